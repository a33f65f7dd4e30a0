"""Make the seek index of a model: from the headers of its shards, read by a few ranged reads, never from weights.

An index that comes with the model may bring the headers; then none is read. What the source lists, what the weights
index says and what the headers say must agree; then `pinned_index` and `shard_proofs` add what the bytes can be checked
by. Nothing is tried again here: the caller wraps the source.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from headrace_models.checked_reads import read_file, read_range
from headrace_models.chunk_hashing import with_chunk_digests
from headrace_models.errors import UnsafeModel
from headrace_models.inspection import read_json_object
from headrace_models.layer_plan import group_order, plan_groups
from headrace_models.model_facts import architecture_of
from headrace_models.model_files import CONFIG_NAME, ModelFiles, choose_files
from headrace_models.pinned_index import adopt, carried_headers, read_pinned_index
from headrace_models.reference import ModelReference, Scheme
from headrace_models.safetensors_header import TensorEntry, data_begin, parse_header
from headrace_models.seek_index import IndexedFile, IndexedTensor, SeekIndex
from headrace_models.seek_index_checks import check, execution_key
from headrace_models.shard_proofs import proofs_of_shards
from headrace_models.sources.base import Source, SourceFile
from headrace_models.sources.local_directory import LocalDirectory
from headrace_models.strict_json import is_plain
from headrace_models.tensor_types import MAX_NAME_CHARS, MAX_TENSORS
from headrace_models.weights_index import MAX_WEIGHTS_INDEX_BYTES, WeightMap, check_agreement, parse_weights_index

__all__ = ["BuiltIndex", "build_index", "index_of_directory", "with_chunk_digests"]

# Enough for the header of a shard with a thousand tensors, and no more than 3 ms at 50 MB/s.
GUESSED_HEADER_BYTES = 128 << 10
MAX_HEADERS_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class BuiltIndex:
    """A new index. `headers` are the first `data_begin` bytes of each shard, by path, that were read from it; `notes`
    are lines for a user."""

    index: SeekIndex
    headers: Mapping[str, bytes]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Shard:
    """A shard whose header has been read."""

    file: SourceFile
    data_begin: int
    tensors: Mapping[str, TensorEntry]


def build_index(source: Source, reference: str, files: ModelFiles, config: Mapping[str, Any]) -> BuiltIndex:
    """Make the index of the model that `files` were chosen for and whose config.json says `config`.

    Raises UnsafeModel where anything contradicts anything, DigestMismatch, and what `Source.read` raises. Reads shards
    in parallel, `source.max_connections` at most.
    """
    shards, weight_map = _shards(source, files)
    pinned = read_pinned_index(source)
    carried = carried_headers(pinned, shards)
    headers = _read_headers(source, shards) if carried is None else carried
    read = _parse(shards, headers, weight_map)
    proofs, notes = proofs_of_shards(source, shards)
    indexed, groups, tensors = _arrange(read)
    index = SeekIndex(reference, source.revision, _architecture(config), groups, indexed, tensors, proofs)
    check(index)
    if pinned.written is not None:
        index = adopt(index, pinned.written.index)
    fetched = dict(zip((shard.path for shard in shards), headers, strict=True)) if carried is None else {}
    return BuiltIndex(index, fetched, notes + pinned.notes)


def index_of_directory(directory: Path, reference: str, *, digests: bool) -> SeekIndex:
    """The index of a model that lies in `directory`, under the name of `reference`. `digests`: with those of all chunks
    and shards, for which every byte is read. Raises ModelError, OSError."""
    source = LocalDirectory(ModelReference(Scheme.FILE, str(directory.absolute())))
    config = read_json_object(directory / CONFIG_NAME)
    index = build_index(source, reference, choose_files(source.files), config).index
    return with_chunk_digests(index, directory) if digests else index


def _shards(source: Source, files: ModelFiles) -> tuple[tuple[SourceFile, ...], WeightMap | None]:
    if files.weights_index is None:
        return files.shards or (), None
    weight_map = parse_weights_index(read_file(source, files.weights_index, max_bytes=MAX_WEIGHTS_INDEX_BYTES))
    return files.shards_named(weight_map), weight_map


def _read_headers(source: Source, shards: Sequence[SourceFile]) -> list[bytes]:
    """The headers, whole. The first request for each is a guess; only where it was too short there is a second one."""
    with ThreadPoolExecutor(max(1, min(len(shards), source.max_connections))) as threads:
        prefixes = list(threads.map(partial(_read_prefix, source), shards))
        needed = [
            data_begin(shard.path, prefix, shard.size_bytes) for shard, prefix in zip(shards, prefixes, strict=True)
        ]
        if sum(needed) > MAX_HEADERS_BYTES:
            raise UnsafeModel(f"the shards have headers of {sum(needed)} bytes; {MAX_HEADERS_BYTES} are possible")
        return list(threads.map(partial(_complete, source), shards, prefixes, needed))


def _read_prefix(source: Source, shard: SourceFile) -> bytes:
    prefix = read_range(source, shard, 0, min(shard.size_bytes, GUESSED_HEADER_BYTES))
    return prefix[: data_begin(shard.path, prefix, shard.size_bytes)]


def _complete(source: Source, shard: SourceFile, prefix: bytes, needed: int) -> bytes:
    return prefix + read_range(source, shard, len(prefix), needed)


def _parse(shards: Sequence[SourceFile], headers: Sequence[bytes], weight_map: WeightMap | None) -> list[_Shard]:
    read, num_tensors = [], 0
    for file, header in zip(shards, headers, strict=True):
        shard = _Shard(file, len(header), parse_header(file.path, header, file.size_bytes))
        num_tensors += len(shard.tensors)
        if num_tensors > MAX_TENSORS:
            raise UnsafeModel(f"the model has more than {MAX_TENSORS} tensors")
        read.append(shard)
    check_agreement({shard.file.path: shard.tensors for shard in read}, weight_map)
    return read


def _arrange(
    shards: Sequence[_Shard],
) -> tuple[tuple[IndexedFile, ...], tuple[str, ...], tuple[IndexedTensor, ...]]:
    """Files, groups and tensors of the index, each in its order."""
    group_of = plan_groups({name: entry.size_bytes for shard in shards for name, entry in shard.tensors.items()})
    groups = group_order(group_of.values())
    numbers = {group: number for number, group in enumerate(groups)}
    files, tensors = [], []
    for number, shard in enumerate(shards):
        file, first = shard.file, shard.data_begin
        files.append(IndexedFile(file.path, file.size_bytes, first, file.validator, file.digest))
        for name, entry in shard.tensors.items():
            begin, end = first + entry.begin, first + entry.end
            group = numbers[group_of[name]]
            tensors.append(IndexedTensor(name, number, begin, end, entry.dtype, entry.shape, group))
    return tuple(files), groups, tuple(sorted(tensors, key=execution_key))


def _architecture(config: Mapping[str, Any]) -> str | None:
    """It is hostile still; one that is no name is nobody's architecture."""
    name = architecture_of(config)
    return name if name is not None and is_plain(name, max_chars=MAX_NAME_CHARS) else None
