"""An index that comes with the model, bound to its revision by a digest: what it adds, once it is checked.

It adds digests of chunks, so that every chunk can be checked before anybody reads it, and the headers of the shards, so
that they need not be fetched before the model is known. It is believed only where it says what the headers say: the
same shards with the same sizes, the same tensors at the same bytes. Headers that it brings must have the digests of
their chunks; the fetch brings those chunks all the same, first of all, so an index with invented headers ends it. One
that says anything else is an attack or a defect, and the model is refused; one of another format is left aside.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from headrace_models.checked_reads import read_file
from headrace_models.errors import SourceUnusable, UnsafeModel
from headrace_models.seek_index import MAX_INDEX_BYTES, IndexedFile, SeekIndex
from headrace_models.seek_index_checks import check
from headrace_models.seek_index_json import WrittenIndex, decode_known
from headrace_models.sources.base import Source, SourceFile


@dataclass(frozen=True, slots=True)
class PinnedIndex:
    """What a source pins; `written` is None where there is nothing that can be used, and `notes` say why."""

    written: WrittenIndex | None = None
    notes: tuple[str, ...] = ()


def read_pinned_index(source: Source) -> PinnedIndex:
    """Read the index that the source pins. Raises UnsafeModel, DigestMismatch, SourceUnusable, and what `Source.read`
    raises."""
    if source.pinned_index is None:
        return PinnedIndex()
    file = next((file for file in source.files if file.path == source.pinned_index), None)
    if file is None:
        raise SourceUnusable(f"the source names the index {source.pinned_index}, which it does not list")
    if file.digest is None:
        return PinnedIndex(notes=(f"{file.path} is not used: no digest binds it to the model",))
    written = decode_known(read_file(source, file, max_bytes=MAX_INDEX_BYTES))
    if written is None:
        return PinnedIndex(notes=(f"{file.path} is not used: it is written for another version",))
    return PinnedIndex(written)


def carried_headers(pinned: PinnedIndex, shards: Sequence[SourceFile]) -> Sequence[bytes] | None:
    """The headers of `shards` that the index brings, in their order; None where it does not bring all of them with the
    digests to check them by. Raises UnsafeModel for headers with other digests."""
    if pinned.written is None:
        return None
    index, headers = pinned.written.index, pinned.written.headers
    places = {file.path: number for number, file in enumerate(index.files)}
    if not all(_is_checkable(index, headers, places.get(shard.path)) for shard in shards):
        return None
    return [_checked_header(index, places[shard.path], headers[shard.path]) for shard in shards]


def _is_checkable(index: SeekIndex, headers: Mapping[str, bytes], file: int | None) -> bool:
    return file is not None and index.files[file].path in headers and index.files[file].chunk_digests is not None


def _checked_header(index: SeekIndex, number: int, header: bytes) -> bytes:
    file, layout = index.files[number], index.layouts[number]
    digests = file.chunk_digests or ()
    chunks = layout.covering(0, file.data_begin)
    found = [hashlib.sha256(header[slice(*layout.range_of(chunk))]).hexdigest() for chunk in chunks]
    if len(header) != file.data_begin or found != [digests[chunk].hex for chunk in chunks]:
        raise UnsafeModel(f"the index that comes with the model has another header of {file.path} than its digests say")
    return header


def adopt(built: SeekIndex, pinned: SeekIndex) -> SeekIndex:
    """`built` with the groups and digests of `pinned`; raises UnsafeModel where they contradict each other."""
    files = {file.path: file for file in built.files}
    if files.keys() != {file.path for file in pinned.files}:
        raise UnsafeModel("the index that comes with the model is of other files than the model has")
    index = replace(
        built,
        groups=pinned.groups,
        files=tuple(_merged(files[file.path], file) for file in pinned.files),
        tensors=pinned.tensors,
    )
    if _places(built) != _places(index):
        raise UnsafeModel("the index that comes with the model is of other tensors than the model has")
    check(index)
    return index


def _merged(built: IndexedFile, pinned: IndexedFile) -> IndexedFile:
    digests = {digest for digest in (built.digest, pinned.digest) if digest is not None}
    same = (built.size_bytes, built.data_begin) == (pinned.size_bytes, pinned.data_begin)
    if not same or len(digests) > 1:
        raise UnsafeModel(f"the index that comes with the model is of another {built.path} than the model has")
    return replace(built, digest=next(iter(digests), None), chunk_digests=pinned.chunk_digests)


def _places(index: SeekIndex) -> set[tuple[object, ...]]:
    """Where each tensor is and what it is; independent of groups and of the order of files."""
    return {
        (tensor.name, index.files[tensor.file].path, tensor.begin, tensor.end, tensor.dtype, tensor.shape)
        for tensor in index.tensors
    }
