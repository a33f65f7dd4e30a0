"""Where the files in an uncompressed tar are, found by reading its headers and nothing else.

The archive is hostile: it is walked by ranged reads, its headers, names and padding are bounded in size and number, and
whatever is not a plain file or a directory is refused, as is a name that another program could read differently. All
bytes that are not some file's content are kept, so that the digest of the whole layer can be checked later from them
and from the files. Never writes and never extracts. Formats: ustar, GNU long names, pax `path` and `size`
(https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html,
https://www.gnu.org/software/tar/manual/html_node/Standard.html).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from headrace_models.errors import UnsafeModel
from headrace_models.sources.base import FileRange, Literal
from headrace_models.sources.file_path import checked_path

BLOCK_BYTES = 512
WINDOW_BYTES = 64 << 10
MAX_MEMBERS = 20_000
MAX_EXTENSION_BYTES = 1 << 20
MAX_LITERAL_BYTES = 16 << 20
MAX_TAIL_BYTES = 1 << 20

ReadAt = Callable[[int, int], bytes]

_OCTAL = re.compile(rb" *([0-7]{1,12})?[ \0]*")
_PAX_LENGTH = re.compile(rb"([1-9]\d{0,6}) ")
_DECIMAL = re.compile(r"\d{1,18}", re.ASCII)
_REGULAR = frozenset({b"0", b"\0", b"7"})
_DIRECTORY, _LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = b"5", b"L", b"K", b"x", b"g"
_REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a FIFO",
    b"S": "a sparse file",
}


@dataclass(frozen=True, slots=True)
class TarMember:
    """A regular file: bytes `begin` to `end` (not included) of the layer."""

    path: str
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class TarLayout:
    """The files of a tar, and the whole tar as bytes that are known and ranges of those files."""

    members: tuple[TarMember, ...]
    parts: tuple[Literal | FileRange, ...]


@dataclass(frozen=True, slots=True)
class _Header:
    name: bytes
    kind: bytes
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Extension:
    """What extended headers say about the member after them."""

    name: bytes | None = None
    size_bytes: int | None = None


def walk_tar(read_at: ReadAt, size_bytes: int) -> TarLayout:
    """Find the files in a tar of `size_bytes`; `read_at(begin, end)` gives its bytes, or raises.

    Reads WINDOW_BYTES around headers, so that small files cost no request of their own. Raises UnsafeModel where the
    archive is cut off, malformed, too large in headers, or holds what no model needs: links, devices, sparse files.
    """
    return _Walk(read_at, size_bytes).layout()


class _Walk:
    """One pass over the archive; `_position` is where the next header is."""

    def __init__(self, read_at: ReadAt, size_bytes: int) -> None:
        self._read_at, self._size_bytes = read_at, size_bytes
        self._window, self._window_begin = b"", 0
        self._position = 0
        self._members: list[TarMember] = []
        self._parts: list[Literal | FileRange] = []
        self._known = bytearray()
        self._num_literal_bytes = 0
        self._num_headers = 0

    def layout(self) -> TarLayout:
        extension = _Extension()
        while (header := self._next_header()) is not None:
            if header.kind in {_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL}:
                extension = self._extended(header, extension)
            else:
                self._member(header, extension)
                extension = _Extension()
        if extension != _Extension():
            raise UnsafeModel("the tar ends after a header that describes a missing file")
        self._flush()
        return TarLayout(tuple(self._members), tuple(self._parts))

    def _next_header(self) -> _Header | None:
        if self._position == self._size_bytes:
            return None
        block = self._take(BLOCK_BYTES)
        if not any(block):
            self._take_tail()
            return None
        self._num_headers += 1
        if self._num_headers > MAX_MEMBERS:
            raise UnsafeModel(f"the tar has more than {MAX_MEMBERS} entries")
        return _parse_header(block)

    def _extended(self, header: _Header, before: _Extension) -> _Extension:
        if header.size_bytes > MAX_EXTENSION_BYTES:
            raise UnsafeModel(f"the tar has an extended header of {header.size_bytes} bytes")
        data = self._take(_padded(header.size_bytes))[: header.size_bytes]
        if header.kind == _LONG_LINK:
            return before
        found = _Extension(name=data.rstrip(b"\0")) if header.kind == _LONG_NAME else _parse_pax(data)
        if header.kind == _PAX_GLOBAL:
            if found != _Extension():
                raise UnsafeModel("the tar gives all its files one name or size")
            return before
        return _merge(before, found)

    def _member(self, header: _Header, extension: _Extension) -> None:
        name = header.name if extension.name is None else extension.name
        if reason := _REFUSED.get(header.kind):
            raise UnsafeModel(f"the tar holds {reason}: {_shown(name)}")
        if header.kind == _DIRECTORY:
            _member_path(name.rstrip(b"/") or b".")
        elif header.kind in _REGULAR:
            size_bytes = header.size_bytes if extension.size_bytes is None else extension.size_bytes
            self._file(_member_path(name), size_bytes)
        else:
            raise UnsafeModel(f"the tar holds an entry of an unknown kind {header.kind!r}: {_shown(name)}")

    def _file(self, path: str | None, size_bytes: int) -> None:
        begin, end = self._position, self._position + size_bytes
        if path is None:
            raise UnsafeModel("the tar holds a file without a name")
        if end > self._size_bytes:
            raise UnsafeModel(f"the tar is cut off in {path}")
        self._flush()
        self._members.append(TarMember(path, begin, end))
        self._parts.append(FileRange(path, 0, size_bytes))
        self._position = end
        self._take(_padded(size_bytes) - size_bytes)

    def _take_tail(self) -> None:
        """Everything after the first empty block: writers fill up to a multiple of 10 KiB or so."""
        tail_bytes = self._size_bytes - self._position
        if tail_bytes > MAX_TAIL_BYTES:
            raise UnsafeModel(f"the tar ends {tail_bytes} bytes before its layer does")
        if any(self._take(tail_bytes)):
            raise UnsafeModel("the tar goes on after its end")

    def _take(self, num_bytes: int) -> bytes:
        """The next bytes, which belong to no file."""
        if num_bytes > self._size_bytes - self._position:
            raise UnsafeModel("the tar is cut off")
        self._num_literal_bytes += num_bytes
        if self._num_literal_bytes > MAX_LITERAL_BYTES:
            raise UnsafeModel(f"the tar has more than {MAX_LITERAL_BYTES} bytes of headers")
        data = self._bytes_at(self._position, num_bytes)
        self._position += num_bytes
        self._known += data
        return data

    def _bytes_at(self, begin: int, num_bytes: int) -> bytes:
        end = begin + num_bytes
        if num_bytes == 0:
            return b""
        if begin < self._window_begin or end > self._window_begin + len(self._window):
            window_end = min(self._size_bytes, begin + max(num_bytes, WINDOW_BYTES))
            self._window, self._window_begin = self._read_at(begin, window_end), begin
        return self._window[begin - self._window_begin : end - self._window_begin]

    def _flush(self) -> None:
        if self._known:
            self._parts.append(Literal(bytes(self._known)))
            self._known.clear()


def _parse_header(block: bytes) -> _Header:
    """One 512-byte header. The checksum counts its own field as spaces."""
    if _number(block[148:156]) != sum(block[:148]) + 8 * 0x20 + sum(block[156:]):
        raise UnsafeModel("the layer is no tar, or a damaged one: a header has a wrong checksum")
    name = _text(block[:100])
    # GNU's own format keeps other things where ustar keeps a prefix.
    if block[257:263] == b"ustar\0" and (prefix := _text(block[345:500])):
        name = prefix + b"/" + name
    return _Header(name, block[156:157], _number(block[124:136]))


def _number(field: bytes) -> int:
    """An octal number, or GNU's base 256, whose first byte is 0x80."""
    if field[0] == 0x80:
        number = int.from_bytes(field[1:], "big")
        if number < 1 << 62:
            return number
    elif match := _OCTAL.fullmatch(field):
        return int(match[1] or b"0", 8)
    raise UnsafeModel("the layer is no tar, or a damaged one: a header has a malformed number")


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _parse_pax(data: bytes) -> _Extension:
    """Records `<length> <key>=<value>\\n`; the length counts the whole record."""
    name, size_bytes, position = None, None, 0
    while position < len(data):
        key, value, position = _pax_record(data, position)
        if key.startswith(b"GNU.sparse."):
            raise UnsafeModel("the tar holds a sparse file")
        if key == b"path":
            name = value
        elif key == b"size":
            if not _DECIMAL.fullmatch(value.decode("ascii", "replace")):
                raise UnsafeModel("the layer is no tar, or a damaged one: a header has a malformed number")
            size_bytes = int(value)
    return _Extension(name, size_bytes)


def _pax_record(data: bytes, position: int) -> tuple[bytes, bytes, int]:
    match = _PAX_LENGTH.match(data, position)
    end = position + int(match[1]) if match else 0
    if match is None or not match.end() < end <= len(data) or data[end - 1 : end] != b"\n":
        raise UnsafeModel("the tar has a malformed extended header")
    key, _equals, value = data[match.end() : end - 1].partition(b"=")
    return key, value, end


def _merge(before: _Extension, found: _Extension) -> _Extension:
    """Programs disagree on which of two headers wins, so there may be only one that says a thing."""
    twice = (before.name is not None and found.name is not None) or (
        before.size_bytes is not None and found.size_bytes is not None
    )
    if twice:
        raise UnsafeModel("the tar gives one file two names or two sizes")
    return _Extension(
        before.name if found.name is None else found.name,
        before.size_bytes if found.size_bytes is None else found.size_bytes,
    )


def _member_path(name: bytes) -> str | None:
    """The path in the model's directory; None for the directory itself. `./` in front is how `tar -C dir .` writes."""
    try:
        text = name.decode()
    except UnicodeDecodeError as error:
        raise UnsafeModel(f"the tar holds a name that is not UTF-8: {_shown(name)}") from error
    while text.startswith("./"):
        text = text[2:]
    return None if text in {"", "."} else checked_path(text)


def _shown(name: bytes) -> str:
    return ascii(name[:100].decode(errors="replace"))


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES
