"""Does a seek index contradict itself? Asked of every index, read or built, before anything relies on it.

After `check` the tensors fill their shards without holes or overlaps, data types and shapes fit the bytes, groups and
tensors are in execution order, there is one digest for each chunk, and proofs stay inside the shards. Takes n log n of
the tensors. Sizes are bounded first, since the chunks of a claimed petabyte would fill the memory.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from headrace_models.errors import UnsafeModel
from headrace_models.layer_plan import group_order, is_group
from headrace_models.safetensors_header import LENGTH_BYTES, MAX_HEADER_BYTES
from headrace_models.sources.base import FileRange, Literal, Proof
from headrace_models.strict_json import is_plain
from headrace_models.tensor_types import MAX_TENSORS, check_name, size_of

if TYPE_CHECKING:
    from headrace_models.seek_index import IndexedFile, IndexedTensor, SeekIndex

MAX_SHARDS = 4096
MAX_WEIGHT_BYTES = 8 << 40
MAX_PATH_CHARS = 255
MAX_TEXT_CHARS = 8192
MAX_PROOF_PARTS = 100_000
MAX_LITERAL_BYTES = 32 << 20
SHARD_SUFFIX = ".safetensors"
# Eight bytes of length and `{}`.
SMALLEST_DATA_BEGIN = LENGTH_BYTES + 2


def check(index: "SeekIndex") -> None:
    """Raise UnsafeModel where an index contradicts itself: numbers out of range, holes, overlaps, wrong order, digests
    that are not one per chunk, proofs of what is not there."""
    try:
        _check_texts(index)
        _check_files(index.files)
        _check_tensors(index)
        _check_order(index)
        _check_coverage(index)
        _check_digests(index)
        _check_proofs(index)
    except ValueError as error:
        raise UnsafeModel(f"the seek index cannot be used: {error}") from error


def is_shard_path(path: str) -> bool:
    """Whether a shard may have this path: a plain file name that ends in `.safetensors`."""
    flat = "/" not in path and "\\" not in path and not path.startswith(".")
    return flat and path.endswith(SHARD_SUFFIX) and is_plain(path, max_chars=MAX_PATH_CHARS)


def _check_texts(index: "SeekIndex") -> None:
    texts = (index.reference, index.revision, *(text for text in (index.architecture,) if text is not None))
    validators = (file.validator for file in index.files if file.validator is not None)
    if not all(is_plain(text, max_chars=MAX_TEXT_CHARS) for text in (*texts, *validators)):
        raise ValueError("reference, revision, architecture or a validator is empty, too long or not printable")


def _check_files(files: Sequence["IndexedFile"]) -> None:
    if not 0 < len(files) <= MAX_SHARDS:
        raise ValueError(f"it has {len(files)} files (1 to {MAX_SHARDS} are possible)")
    for file in files:
        if not is_shard_path(file.path):
            raise ValueError(f"{file.path[:100]!a} is not the name of a {SHARD_SUFFIX} file")
        if not SMALLEST_DATA_BEGIN <= file.data_begin <= min(file.size_bytes, LENGTH_BYTES + MAX_HEADER_BYTES):
            raise ValueError(f"{file.path} cannot have {file.size_bytes} bytes and a header of {file.data_begin}")
    if len({file.path for file in files}) != len(files):
        raise ValueError("a file stands in it twice")
    if sum(file.size_bytes for file in files) > MAX_WEIGHT_BYTES:
        raise ValueError(f"its files have more than {MAX_WEIGHT_BYTES} bytes")


def _check_tensors(index: "SeekIndex") -> None:
    if len(index.tensors) > MAX_TENSORS:
        raise ValueError(f"it has more than {MAX_TENSORS} tensors")
    for tensor in index.tensors:
        check_name(tensor.name)
        if not (0 <= tensor.file < len(index.files) and 0 <= tensor.group < len(index.groups)):
            raise ValueError(f"{tensor.name!r} is in no file or group of it")
        if size_of(tensor.dtype, tensor.shape) != tensor.size_bytes:
            raise ValueError(f"the shape of {tensor.name!r} does not fit its {tensor.size_bytes} bytes")
    if len({tensor.name for tensor in index.tensors}) != len(index.tensors):
        raise ValueError("a tensor stands in it twice")


def _check_order(index: "SeekIndex") -> None:
    used = {index.groups[tensor.group] for tensor in index.tensors}
    if not all(map(is_group, index.groups)) or index.groups != group_order(used):
        raise ValueError("its groups are not those of its tensors, in execution order")
    positions = [execution_key(tensor) for tensor in index.tensors]
    if positions != sorted(positions):
        raise ValueError("its tensors are not in execution order")


def execution_key(tensor: "IndexedTensor") -> tuple[int, int, int, int, str]:
    """What an index's tensors are sorted by; the name decides among tensors without bytes."""
    return tensor.group, tensor.file, tensor.begin, tensor.end, tensor.name


def _check_coverage(index: "SeekIndex") -> None:
    positions = [file.data_begin for file in index.files]
    for tensor in sorted(index.tensors, key=lambda tensor: (tensor.file, tensor.begin, tensor.end)):
        if tensor.begin != positions[tensor.file]:
            raise ValueError(f"{tensor.name!r} does not begin where the tensor before it ends")
        positions[tensor.file] = tensor.end
    for file, position in zip(index.files, positions, strict=True):
        if position != file.size_bytes:
            raise ValueError(f"the tensors of {file.path} end at byte {position}, the file at {file.size_bytes}")


def _check_digests(index: "SeekIndex") -> None:
    for file, layout in zip(index.files, index.layouts, strict=True):
        if file.chunk_digests is not None and len(file.chunk_digests) != len(layout):
            raise ValueError(f"{file.path} has {len(layout)} chunks and {len(file.chunk_digests)} digests of chunks")


def _check_proofs(index: "SeekIndex") -> None:
    parts = [part for proof in index.proofs for part in proof.parts]
    if len(parts) > MAX_PROOF_PARTS or len(index.proofs) > MAX_PROOF_PARTS:
        raise ValueError(f"its proofs have more than {MAX_PROOF_PARTS} parts")
    if sum(len(part.data) for part in parts if isinstance(part, Literal)) > MAX_LITERAL_BYTES:
        raise ValueError(f"its proofs hold more than {MAX_LITERAL_BYTES} bytes")
    sizes = {file.path: file.size_bytes for file in index.files}
    for proof in index.proofs:
        if not is_provable(proof, sizes):
            raise ValueError(f"the proof {proof.digest} speaks of bytes that no shard has")


def is_provable(proof: Proof, sizes: Mapping[str, int]) -> bool:
    """Whether a proof speaks of shards only, of one at least, and of bytes that they have; `sizes` by path."""
    ranges = [part for part in proof.parts if isinstance(part, FileRange)]
    return bool(ranges) and all(0 <= part.begin <= part.end <= sizes.get(part.path, -1) for part in ranges)
