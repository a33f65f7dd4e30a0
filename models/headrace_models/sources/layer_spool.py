"""Layers that cannot be read in ranges: fetched whole, checked, unpacked, and kept on disk until the source is closed.

Where: `SourceOptions.spool`, an existing directory of ours. A layer is `<digest>.part` while it is fetched, and goes on
where it stopped when it is opened again after a broken connection; it is unpacked only when all of it has its digest,
into `<digest>.tar`. So what is unpacked was vouched for by the manifest, but it may still be a bomb: it ends at
MAX_RATIO times the compressed size. Everything but a `.part` that may go on is removed on any error, and by `close`.
"""

import contextlib
import gzip
import hashlib
import importlib
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from headrace_models.digest import Sha256, sha256_of_file
from headrace_models.errors import (
    DigestMismatch,
    ModelError,
    NoSpace,
    SourceUnavailable,
    StoreUnusable,
    UnsafeModel,
    is_out_of_space,
)
from headrace_models.sources.base import Body
from headrace_models.sources.oci_artifact import ModelLayer, Packing
from headrace_models.sources.tar_layer import TarMember, walk_tar

# Deflate reaches 1032:1 on zeros; of weights nothing comes near.
MAX_RATIO = 1000
ALWAYS_ALLOWED_BYTES = 16 << 20

_BLOCK_BYTES = 1 << 20

ReadBlob = Callable[[int, int], AbstractContextManager[Body]]


@dataclass(frozen=True, slots=True)
class SpooledFile:
    """A file of a spooled layer: bytes `member.begin` to `member.end` of `archive`."""

    archive: Path
    member: TarMember
    digest: Sha256


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class LayerSpool:
    """What one source keeps in `directory`."""

    def __init__(self, directory: Path, *, on_kept: Callable[[], None] = lambda: None) -> None:
        """`on_kept` is called whenever bytes have been kept."""
        self._directory = directory
        self._on_kept = on_kept
        self._ours: set[Path] = set()

    def fetch(self, layer: ModelLayer, read_blob: ReadBlob) -> None:
        """Bring a whole layer; `read_blob(begin, end)` gives its bytes, or all of them.

        Raises what reading raises (what has come is kept then, if trying again may help), DigestMismatch, NoSpace,
        StoreUnusable.
        """
        part = self._part(layer)
        with self._removing_on_error(part):
            with _open_ours(part, os.O_APPEND) as file:
                _append(file, layer.size_bytes, read_blob, self._on_kept)
            found = sha256_of_file(part)
            if found != layer.digest:
                raise DigestMismatch(f"a layer of the model has the digest {found}, not {layer.digest}")

    def unpack(self, layer: ModelLayer) -> tuple[SpooledFile, ...]:
        """The files of a fetched layer. Raises UnsafeModel, SourceUnusable, NoSpace, StoreUnusable."""
        part, archive = self._part(layer), self._directory / f"{layer.digest.hex}.tar"
        with self._removing_on_error(part, archive):
            self._ours.add(archive)
            if layer.packing is Packing.TAR:
                part.rename(archive)
            else:
                _decompress(part, archive, layer.packing)
                part.unlink()
            return _files(archive)

    def close(self) -> None:
        """Remove everything."""
        for path in self._ours:
            with contextlib.suppress(OSError):
                path.unlink()

    def _part(self, layer: ModelLayer) -> Path:
        part = self._directory / f"{layer.digest.hex}.part"
        self._ours.add(part)
        return part

    @contextlib.contextmanager
    def _removing_on_error(self, *paths: Path) -> Iterator[None]:
        try:
            yield
        except SourceUnavailable:
            raise
        except BaseException as error:
            for path in paths:
                path.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise self._translated(error) from error
            raise

    def _translated(self, error: OSError) -> ModelError:
        if is_out_of_space(error):
            return NoSpace(f"no space left to unpack the model in {self._directory}")
        return StoreUnusable(f"the model cannot be unpacked in {self._directory}: {error.strerror or error}")


def _open_ours(path: Path, flag: int) -> IO[bytes]:
    """A file to write, which nobody else may read; never by way of a link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | flag
    return open(os.open(path, flags, 0o600), "wb", closefd=True)


def _append(file: IO[bytes], size_bytes: int, read_blob: ReadBlob, on_kept: Callable[[], None]) -> None:
    position = kept = file.seek(0, os.SEEK_END)
    if position >= size_bytes:
        return
    with read_blob(position, size_bytes) as body:
        if body.begin < position:  # the whole layer once more
            position = body.begin
            file.truncate(position)
        while position < size_bytes:
            data = body.read(_BLOCK_BYTES)
            if not data:
                raise SourceUnavailable(f"the layer ended {size_bytes - position} bytes early")
            file.write(data)
            position += len(data)
            if position > kept:  # what comes once more is no progress
                kept = position
                on_kept()


def _decompress(source: Path, target: Path, packing: Packing) -> None:
    left = max(ALWAYS_ALLOWED_BYTES, MAX_RATIO * source.stat().st_size)
    with source.open("rb") as compressed, _open_ours(target, os.O_TRUNC) as file:
        for data in _plain_blocks(compressed, packing):
            left -= len(data)
            if left < 0:
                raise UnsafeModel(f"a layer of the model unpacks to more than {MAX_RATIO} times its size")
            file.write(data)


def _plain_blocks(compressed: IO[bytes], packing: Packing) -> Iterator[bytes]:
    reader, errors = _decompressor(compressed, packing)
    try:
        while data := reader.read(_BLOCK_BYTES):
            yield data
    except errors as error:
        raise UnsafeModel("a layer of the model is not what it says: it cannot be decompressed") from error


def _decompressor(compressed: IO[bytes], packing: Packing) -> tuple[_Readable, tuple[type[Exception], ...]]:
    """A reader of what comes out, in bounded memory, and what it raises for damaged input."""
    if packing is Packing.TAR_GZIP:
        return gzip.GzipFile(fileobj=compressed, mode="rb"), (gzip.BadGzipFile, EOFError, zlib.error)
    try:
        zstd = importlib.import_module("compression.zstd")  # Python 3.14
    except ImportError:
        zstandard = importlib.import_module("zstandard")
        decompressor = zstandard.ZstdDecompressor(max_window_size=128 << 20)
        return decompressor.stream_reader(compressed, read_across_frames=True), (zstandard.ZstdError, EOFError)
    return zstd.ZstdFile(compressed, "rb"), (zstd.ZstdError, EOFError)


def _files(archive: Path) -> tuple[SpooledFile, ...]:
    with archive.open("rb") as file:

        def read_at(begin: int, end: int) -> bytes:
            file.seek(begin)
            return file.read(end - begin)

        layout = walk_tar(read_at, archive.stat().st_size)
        return tuple(SpooledFile(archive, member, _digest(file, member)) for member in layout.members)


def _digest(file: IO[bytes], member: TarMember) -> Sha256:
    hashing, position = hashlib.sha256(), member.begin
    file.seek(position)
    while position < member.end:
        data = file.read(min(_BLOCK_BYTES, member.end - position))
        hashing.update(data)
        position += len(data)
    return Sha256(hashing.hexdigest())
