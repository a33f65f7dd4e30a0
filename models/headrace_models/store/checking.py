"""Whether bytes on disk are the right ones: chunks against their digests, proofs against whole files.

Reads a block at a time, so that memory stays flat whatever the model's size; changes nothing. What is missing or cut
off is wrong, not an error.
"""

import hashlib
import os
from collections.abc import Callable, Iterator

from headrace_models.chunk_layout import UNIT_BYTES
from headrace_models.seek_index import SeekIndex
from headrace_models.sources.base import FileRange, Literal, Proof
from headrace_models.store.chunk_map import DIGEST_BYTES, read_digest
from headrace_models.store.files import read_part
from headrace_models.store.model_directory import ModelDirectory

OnBytes = Callable[[int], None]


def expected_digest(model: ModelDirectory, file: int, chunk: int) -> bytes | None:
    """The SHA-256 that a chunk must have: the index's, else the recorded one, else None. Raises OSError."""
    known = model.index.files[file].chunk_digests
    if known is not None:
        return bytes.fromhex(known[chunk].hex)
    return read_digest(model.digests(file), chunk)


def chunk_is_right(model: ModelDirectory, file: int, chunk: int) -> bool:
    """Whether a chunk's bytes have the digest that they must have, and there is one. Raises OSError."""
    begin, end = model.index.layouts[file].range_of(chunk)
    data = read_part(model.shard(file), begin, end - begin)
    return len(data) == end - begin and hashlib.sha256(data).digest() == expected_digest(model, file, chunk)


def wrong_chunks(model: ModelDirectory, *, on_bytes: OnBytes = lambda _num_bytes: None) -> Iterator[tuple[int, int]]:
    """(shard, chunk) of what is marked and is not right; reads every marked chunk. Raises OSError."""
    for file, layout in enumerate(model.index.layouts):
        for chunk, mark in enumerate(model.marks(file)):
            if mark != 1:
                continue
            if not chunk_is_right(model, file, chunk):
                yield file, chunk
            begin, end = layout.range_of(chunk)
            on_bytes(end - begin)


def has_its_sizes(model: ModelDirectory, file: int) -> bool:
    """Whether a shard and what is kept of its chunks have the sizes that the index gives them. Raises OSError."""
    num_chunks = len(model.index.layouts[file])
    sizes = [(model.shard(file), model.index.files[file].size_bytes), (model.map(file), num_chunks)]
    if model.keeps_digests(file):
        sizes.append((model.digests(file), num_chunks * DIGEST_BYTES))
    return all(shard_size(path) == size for path, size in sizes)


def shard_size(path: os.PathLike[str]) -> int | None:
    """A file's size, None where it is missing. Raises OSError."""
    try:
        return os.stat(path).st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def needed_proofs(index: SeekIndex) -> tuple[Proof, ...]:
    """The proofs that say something which the digests of chunks do not say already."""
    unknown = {file.path for file in index.files if file.chunk_digests is None}
    return tuple(proof for proof in index.proofs if proof.paths & unknown)


def proof_holds(model: ModelDirectory, proof: Proof, *, on_bytes: OnBytes = lambda _num_bytes: None) -> bool:
    """Whether the parts of a proof have its digest; reads all of them in order. Raises OSError."""
    digest = hashlib.sha256()
    numbers = {file.path: number for number, file in enumerate(model.index.files)}
    for part in proof.parts:
        match part:
            case Literal(data):
                digest.update(data)
            case FileRange(path, begin, end):
                for offset in range(begin, end, UNIT_BYTES):
                    data = read_part(model.shard(numbers[path]), offset, min(UNIT_BYTES, end - offset))
                    digest.update(data)
                    on_bytes(len(data))
    return digest.hexdigest() == proof.digest.hex
