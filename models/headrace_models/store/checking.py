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
    proving = Proving(model, proof)
    while num_bytes := proving.advance(is_there=lambda _file, _begin, _end: True):
        on_bytes(num_bytes)
    return proving.holds()


class Proving:
    """A proof under way: hashes the parts in their order, as far as they are there. For one thread at a time."""

    def __init__(self, model: ModelDirectory, proof: Proof) -> None:
        self._model = model
        self._numbers = {file.path: number for number, file in enumerate(model.index.files)}
        self._proof = proof
        self._digest = hashlib.sha256()
        self._steps = _steps(proof)
        self._next = next(self._steps, None)

    @property
    def proof(self) -> Proof:
        """What is to be proven."""
        return self._proof

    def advance(self, *, is_there: Callable[[int, int, int], bool]) -> int:
        """Hash the next piece, at most a chunk's worth, if `is_there(shard, begin, end)`; how many bytes were read, 0
        when nothing can be done now. Raises OSError."""
        while isinstance(self._next, Literal):
            self._digest.update(self._next.data)
            self._next = next(self._steps, None)
        if self._next is None:
            return 0
        file, begin, end = self._numbers[self._next.path], self._next.begin, self._next.end
        if not is_there(file, begin, end):
            return 0
        data = read_part(self._model.shard(file), begin, end - begin)
        self._digest.update(data)
        self._next = next(self._steps, None)
        return len(data)

    def holds(self) -> bool:
        """Whether everything has been hashed, and to the right digest."""
        return self._next is None and self._digest.hexdigest() == self._proof.digest.hex


def _steps(proof: Proof) -> Iterator[Literal | FileRange]:
    """The parts, ranges cut into pieces of a chunk's size."""
    for part in proof.parts:
        if isinstance(part, Literal):
            yield part
            continue
        for offset in range(part.begin, part.end, UNIT_BYTES):
            yield FileRange(part.path, offset, min(part.end, offset + UNIT_BYTES))
