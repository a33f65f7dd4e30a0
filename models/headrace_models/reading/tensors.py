"""A model's tensors in the order of their use, each given out as soon as its bytes are here.

Bytes are memory maps of the shards: nothing is copied and no torch is needed. Before it waits, a walk demands what it
will need next, at most WINDOW_BYTES, so that fetching follows the reader. What a model with trust FILE gives out before
the end of a full walk is provisional: its digests are of whole files, so the walk ends with `wait_until_proven`, and
whoever uses the tensors must wait for that end. Closing forgets the maps; tensors that were given out stay readable.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from headrace_models.reading.shard_maps import ShardMaps

if TYPE_CHECKING:
    from headrace_models.seek_index import IndexedTensor
    from headrace_models.store.model_reader import ModelReader

WINDOW_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class TensorBytes:
    """One tensor: safetensors' name of its data type, its shape in elements, its bytes (little endian, row-major)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview


class TensorReader:
    """The tensors of the model that `reader` reads; a context manager. The reader is the caller's, and its lease must
    be held for as long as any tensor is used."""

    def __init__(self, reader: "ModelReader") -> None:
        self._reader = reader
        self._index = reader.index
        self._maps = ShardMaps(reader.model)

    def tensor(self, name: str) -> TensorBytes:
        """One tensor, waited for; KeyError when the model has none of that name."""
        return self._get(self._index.tensors_by_name[name])

    def group(self, name: str) -> Iterator[TensorBytes]:
        """The tensors of a group; KeyError when the model has none of that name."""
        return self._walk(self._members(name))

    def iterate(
        self, *, wanted: Callable[[str], bool] | None = None, groups: frozenset[str] | None = None
    ) -> Iterator[TensorBytes]:
        """The tensors for which `wanted` holds, of `groups`, in execution order; waits only for what it yields.

        Raises FetchFailed, StoreDamaged, and DigestMismatch at the end of a full walk (neither `wanted` nor `groups`).
        """
        yield from self._walk([tensor for tensor in self._index.tensors if self._is_asked(tensor, wanted, groups)])
        if wanted is None and groups is None:
            self._reader.wait_until_proven()

    def release_group(self, name: str) -> None:
        """Give back the memory of a group whose tensors have been used up; they can be read again. KeyError."""
        self._maps.release((tensor.file, tensor.begin, tensor.end) for tensor in self._members(name))

    def close(self) -> None:
        """Forget the maps; tensors that were given out keep theirs."""
        self._maps.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _is_asked(
        self, tensor: "IndexedTensor", wanted: Callable[[str], bool] | None, groups: frozenset[str] | None
    ) -> bool:
        if groups is not None and self._index.groups[tensor.group] not in groups:
            return False
        return wanted is None or wanted(tensor.name)

    def _members(self, group: str) -> Sequence["IndexedTensor"]:
        if group not in self._index.groups:
            raise KeyError(group)
        number = self._index.groups.index(group)
        return [tensor for tensor in self._index.tensors if tensor.group == number]

    def _walk(self, tensors: Sequence["IndexedTensor"]) -> Iterator[TensorBytes]:
        window = _Window(self._reader, tensors)
        for position, tensor in enumerate(tensors):
            window.move_to(position)
            yield self._get(tensor)

    def _get(self, tensor: "IndexedTensor") -> TensorBytes:
        self._reader.wait_for(tensor.file, tensor.begin, tensor.end)
        data = self._maps.view(tensor.file, tensor.begin, tensor.end)
        return TensorBytes(tensor.name, tensor.dtype, tensor.shape, data)


class _Window:
    """Demands what a walk will come to, each tensor once."""

    def __init__(self, reader: "ModelReader", tensors: Sequence["IndexedTensor"]) -> None:
        self._reader = reader
        self._tensors = tensors
        self._next = 0
        self._ahead_bytes = 0

    def move_to(self, position: int) -> None:
        """The walk waits for the tensor at `position` now: demand it and what follows within WINDOW_BYTES."""
        if position > 0:
            self._ahead_bytes -= self._tensors[position - 1].size_bytes
        while self._next < len(self._tensors) and self._has_room(self._next, position):
            self._demand(self._tensors[self._next])
            self._next += 1

    def _has_room(self, candidate: int, position: int) -> bool:
        return candidate == position or self._ahead_bytes + self._tensors[candidate].size_bytes <= WINDOW_BYTES

    def _demand(self, tensor: "IndexedTensor") -> None:
        self._ahead_bytes += tensor.size_bytes
        if not self._reader.is_present(tensor.file, tensor.begin, tensor.end):
            self._reader.want(tensor.file, tensor.begin, tensor.end)


def iterate_tensors(
    reader: "ModelReader", *, wanted: Callable[[str], bool] | None = None, groups: frozenset[str] | None = None
) -> Iterator[TensorBytes]:
    """`TensorReader.iterate` for one walk."""
    with TensorReader(reader) as tensors:
        yield from tensors.iterate(wanted=wanted, groups=groups)
