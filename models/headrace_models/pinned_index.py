"""An index that comes with the model, bound to its revision by a digest: what it adds, once it is checked.

It adds digests of chunks, so that every chunk can be checked before anybody reads it. It is believed only where it says
what the files themselves say: the same shards with the same sizes, the same tensors at the same bytes. One that says
anything else is an attack or a defect, and the model is refused; one of another format is left aside.
"""

from dataclasses import replace

from headrace_models.checked_reads import read_file
from headrace_models.errors import SourceUnusable, UnsafeModel
from headrace_models.seek_index import MAX_INDEX_BYTES, IndexedFile, SeekIndex
from headrace_models.seek_index_checks import check
from headrace_models.seek_index_json import decode_known
from headrace_models.sources.base import Source


def with_pinned_digests(built: SeekIndex, source: Source) -> tuple[SeekIndex, tuple[str, ...]]:
    """`built` with what the source's pinned index adds, and notes. Its groups are taken over too, since the chunks that
    its digests are of follow from them.

    Raises UnsafeModel where it contradicts `built`, DigestMismatch, SourceUnusable, and what `Source.read` raises.
    """
    if source.pinned_index is None:
        return built, ()
    file = next((file for file in source.files if file.path == source.pinned_index), None)
    if file is None:
        raise SourceUnusable(f"the source names the index {source.pinned_index}, which it does not list")
    if file.digest is None:
        return built, (f"{file.path} is not used: no digest binds it to the model",)
    pinned = decode_known(read_file(source, file, max_bytes=MAX_INDEX_BYTES))
    if pinned is None:
        return built, (f"{file.path} is not used: it is written for another version",)
    return adopt(built, pinned), ()


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
