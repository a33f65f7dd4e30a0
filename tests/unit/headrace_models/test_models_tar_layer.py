"""Files in tars, found by their headers; hostile tars."""

import io
import struct
import tarfile
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_models.errors import UnsafeModel
from headrace_models.sources.base import FileRange, Literal
from headrace_models.sources.tar_layer import BLOCK_BYTES, MAX_TAIL_BYTES, WINDOW_BYTES, TarLayout, walk_tar
from tests.fakes.artifacts import tar_of

_PARTS = st.text("abcdefghij0123456789-_äß", min_size=1, max_size=40)
_PATHS = st.lists(_PARTS, min_size=1, max_size=6).map("/".join)
_FORMATS = st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


class Archive:
    """Bytes that count how often they are read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reads: list[tuple[int, int]] = []

    def read_at(self, begin: int, end: int) -> bytes:
        assert 0 <= begin < end <= len(self.data)
        self.reads.append((begin, end))
        return self.data[begin:end]


def walk(data: bytes) -> TarLayout:
    return walk_tar(Archive(data).read_at, len(data))


def contents(data: bytes, layout: TarLayout) -> dict[str, bytes]:
    return {member.path: data[member.begin : member.end] for member in layout.members}


def rebuilt(data: bytes, layout: TarLayout) -> bytes:
    """The layer from its parts, as a proof hashes it."""
    files = contents(data, layout)
    return b"".join(
        part.data if isinstance(part, Literal) else files[part.path][part.begin : part.end] for part in layout.parts
    )


def one_entry(change: Callable[[tarfile.TarInfo], None], data: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo("entry")
        info.size = len(data)
        change(info)
        tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def header(name: bytes = b"f", *, size: bytes = b"00000000000\0", kind: bytes = b"0", prefix: bytes = b"") -> bytes:
    """A ustar header with a true checksum, whatever else is in it."""
    block = bytearray(BLOCK_BYTES)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[345 : 345 + len(prefix)] = prefix
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK_BYTES)


def pax(*records: tuple[str, str], kind: bytes = b"x") -> bytes:
    lines = []
    for key, value in records:
        body = f" {key}={value}\n".encode()
        length = len(body) + 1
        while len(str(length)) + len(body) != length:
            length += 1
        lines.append(str(length).encode() + body)
    data = b"".join(lines)
    return header(b"pax", size=b"%011o\0" % len(data), kind=kind) + padded(data)


@given(st.dictionaries(_PATHS, st.binary(max_size=2000), max_size=8), _FORMATS)
def test_every_file_is_found_and_the_parts_are_the_whole_layer(files: dict[str, bytes], format: int) -> None:
    data = tar_of(files, format=format)
    layout = walk(data)
    assert contents(data, layout) == files
    assert rebuilt(data, layout) == data


def test_the_bytes_of_large_files_are_never_read() -> None:
    files = {"a.safetensors": bytes(3 << 20), "b.safetensors": bytes(2 << 20), "config.json": b"{}"}
    archive = Archive(tar_of(files))
    layout = walk_tar(archive.read_at, len(archive.data))
    assert [member.path for member in layout.members] == list(files)
    assert len(archive.reads) == 3
    assert all(end - begin <= WINDOW_BYTES for begin, end in archive.reads)


def test_small_files_share_one_read() -> None:
    archive = Archive(tar_of({f"{number}.json": b"{}" for number in range(20)}))
    walk_tar(archive.read_at, len(archive.data))
    assert len(archive.reads) == 1


def test_directories_and_the_dots_that_tar_writes_are_no_files() -> None:
    data = header(b"./", kind=b"5") + header(b"./sub/", kind=b"5") + header(b"./sub/f", size=b"00000000003\0")
    layout = walk(data + padded(b"abc") + bytes(1024))
    assert [(member.path, member.end - member.begin) for member in layout.members] == [("sub/f", 3)]


def test_a_ustar_prefix_stands_before_the_name() -> None:
    assert walk(header(b"f", prefix=b"folder") + bytes(1024)).members[0].path == "folder/f"


def test_sizes_beyond_octal_are_read() -> None:
    size_bytes = 10 << 30
    data = header(size=b"\x80" + bytes(3) + struct.pack(">Q", size_bytes))

    def read_at(begin: int, end: int) -> bytes:
        return (data + bytes(end - begin))[: end - begin] if begin == 0 else bytes(end - begin)

    layout = walk_tar(read_at, BLOCK_BYTES + size_bytes + 1024)
    assert layout.parts[1] == FileRange("f", 0, size_bytes)


def test_an_archive_that_ends_without_empty_blocks_is_read() -> None:
    data = header(size=b"00000000003\0") + padded(b"abc")
    assert contents(data, walk(data)) == {"f": b"abc"}


def test_a_layer_without_bytes_holds_no_files() -> None:
    assert walk(b"").members == ()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (tarfile.SYMTYPE, "symbolic link"),
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.CHRTYPE, "device"),
        (tarfile.BLKTYPE, "device"),
        (tarfile.FIFOTYPE, "FIFO"),
        (tarfile.GNUTYPE_SPARSE, "sparse"),
        (b"Z", "unknown kind"),
    ],
)
def test_what_no_model_needs_is_refused_with_its_reason(kind: bytes, reason: str) -> None:
    with pytest.raises(UnsafeModel, match=reason):
        walk(header(kind=kind) + bytes(1024))


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "a//b", "a\\b", "a/./b", "a\nb", "a/"])
def test_names_that_are_not_plain_are_refused(name: str) -> None:
    with pytest.raises(UnsafeModel, match="a file name"):
        walk(header(name.encode()) + bytes(1024))


def test_a_directory_outside_is_refused_too() -> None:
    with pytest.raises(UnsafeModel, match="a file name"):
        walk(header(b"../", kind=b"5") + bytes(1024))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x1f\x8b" + bytes(1022), "no tar"),
        (header()[:-1] + b"x" + bytes(1024), "checksum"),
        (header(size=b"00000002000\0") + bytes(512), "cut off"),
        (header(size=b"00000001000\0") + bytes(512) + bytes(100), "cut off"),
        (header(size=b"-0000000001\0") + bytes(1024), "malformed number"),
        (header(size=b"\xff" * 12) + bytes(1024), "malformed number"),
        (header(size=b"\x80" + b"\xff" * 11) + bytes(1024), "malformed number"),
        (header(b"") + bytes(1024), "without a name"),
        (header(b"\xff\xfe") + bytes(1024), "UTF-8"),
        (bytes(1024) + header(), "after its end"),
        (bytes(1024 + MAX_TAIL_BYTES), "ends"),
        (header(size=b"00010000000\0", kind=b"L") + bytes(4 << 20), "extended header"),
        (pax(("path", "a")), "missing file"),
        (pax(("path", "a")) + pax(("path", "b")) + header() + bytes(1024), "two names"),
        (pax(("size", "-1")) + header() + bytes(1024), "malformed number"),
        (pax(("size", "1e3")) + header() + bytes(1024), "malformed number"),
        (pax(("size", "²")) + header() + bytes(1024), "malformed number"),
        (pax(("GNU.sparse.map", "0,1")) + header() + bytes(1024), "sparse"),
        (pax(("path", "../x")) + header() + bytes(1024), "a file name"),
        (pax(("path", "x"), kind=b"g") + header() + bytes(1024), "all its files"),
        (header(size=b"00000000005\0", kind=b"x") + padded(b"9 a=b") + bytes(1024), "malformed extended"),
        (header(size=b"00000000005\0", kind=b"x") + padded(b"0 a=b") + bytes(1024), "malformed extended"),
        (header(size=b"00000000005\0", kind=b"x") + padded(b"a=bcd") + bytes(1024), "malformed extended"),
    ],
)
def test_malformed_archives_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(UnsafeModel, match=reason):
        walk(data)


def test_comments_in_global_headers_are_passed_over() -> None:
    data = pax(("comment", "0123"), kind=b"g") + header(size=b"00000000003\0") + padded(b"abc") + bytes(1024)
    assert contents(data, walk(data)) == {"f": b"abc"}


def test_the_number_of_entries_is_bounded() -> None:
    with pytest.raises(UnsafeModel, match="entries"):
        walk(header() * 20_001)


def test_extended_headers_are_bounded_together() -> None:
    extended = header(size=b"00003777777\0", kind=b"K") + padded(b"a" * 0o3777777)
    with pytest.raises(UnsafeModel, match="bytes of headers"):
        walk(extended * 17)


@given(st.binary(max_size=4096))
def test_no_bytes_end_in_anything_but_a_layout_or_a_refusal(data: bytes) -> None:
    try:
        layout = walk(data)
    except UnsafeModel:
        return
    assert rebuilt(data, layout) == data


@given(st.data())
def test_a_damaged_archive_is_refused_or_still_accounts_for_every_byte(data: st.DataObject) -> None:
    whole = bytearray(tar_of({"a": b"12", "b/c": b"x" * 700}, format=data.draw(_FORMATS)))
    for _change in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, 3 * BLOCK_BYTES))] = data.draw(st.integers(0, 255))
    damaged = bytes(whole)
    try:
        layout = walk(damaged)
    except UnsafeModel:
        return
    assert rebuilt(damaged, layout) == damaged
