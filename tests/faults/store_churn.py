"""Processes that use a store as servers do, and die in the middle of it; run by `test_store_kills`.

    python -m tests.faults.store_churn CACHE     reads orders from standard input, one a line, and answers each with
                                                 lines of its own, the last of which begins with "end"

    kill SEED AT      a child publishes, puts, seals, evicts, removes ... until it kills itself in its AT-th call that
                      changes files: before the call, after it, or half-way through a write
    crowd SEED COUNT  COUNT children do the same at once and read each other's bytes; every other one dies

A child is a fork of this process, so that it costs no imports.
"""

import contextlib
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from headrace_models.errors import DigestMismatch, FetchFailed, ModelBusy, ModelNotFound, NoSpace
from headrace_models.store import removal, space
from headrace_models.store.model_store import ModelStore
from headrace_models.store.stored_model import StoredModel
from headrace_models.trust import Trust
from tests.fakes.stored_models import FakeModel, bytes_on_disk, fake_model, published, put

CROWD_STEPS = 30
WRITES = ("pwrite", "rename", "ftruncate", "fsync", "posix_fallocate", "unlink", "rmdir", "mkdir", "truncate")
FAKES = tuple(fake_model(trust, shards=3, seed=seed, reference=f"hf://org/{trust}") for seed, trust in enumerate(Trust))


def tell(*words: object) -> None:
    """A line to whoever gave the order, in one write, so that it is out before the next call."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class Churn:
    """What one child does; every step is drawn at random."""

    def __init__(self, cache: Path, seed: int) -> None:
        self._random = random.Random(seed)
        self._cache = cache
        self._store = ModelStore(cache)

    def step(self) -> None:
        """Something that may be refused, since others are at work."""
        fake = self._random.choice(FAKES)
        steps: Sequence[tuple[int, Callable[[FakeModel], None]]] = (
            (8, self._put),
            (4, self._complete),
            (2, self._evict),
            (1, self._remove),
            (1, self._check),
            (2, self._read),
            (1, self._pin),
        )
        (chosen,) = self._random.choices([step for _weight, step in steps], [weight for weight, _step in steps])
        with contextlib.suppress(ModelBusy, ModelNotFound, NoSpace):
            chosen(fake)

    def _model(self, fake: FakeModel) -> StoredModel:
        model = published(self._store, fake)
        self._store.remember(model.reference, model)
        return model

    def _put(self, fake: FakeModel) -> None:
        model = self._model(fake)
        with model.writer() as writer:
            missing = list(writer.missing())
            for file, chunk in self._random.sample(missing, min(3, len(missing))):
                if fake.index.trust is Trust.CHUNK and self._random.random() < 0.2:
                    with contextlib.suppress(DigestMismatch):
                        writer.put(file, chunk, fake.wrong(file, chunk))
                writer.put(file, chunk, fake.data(file, chunk))
                tell("put", model.key, file, chunk)

    def _complete(self, fake: FakeModel) -> None:
        model = self._model(fake)
        with model.writer() as writer:
            put(writer, fake)
            writer.seal()
        tell("sealed", model.key)

    def _evict(self, _fake: FakeModel) -> None:
        used = sum(model.status().allocated_bytes for model in self._store.models())
        tell("evicting")
        tight = ModelStore(self._cache, max_bytes=used)
        tight.make_room(self._random.randrange(1, 400_000), protect="none-000000000000")

    def _remove(self, fake: FakeModel) -> None:
        model = self._model(fake)
        tell("removing", model.key)
        self._store.remove(model.key)

    def _check(self, fake: FakeModel) -> None:
        if not (report := self._model(fake).check_integrity()).is_sound:
            raise AssertionError(report)

    def _read(self, fake: FakeModel) -> None:
        with self._model(fake).reader() as reader:
            for file, chunk in self._random.sample(fake.chunks, 4):
                begin, end = fake.index.layouts[file].range_of(chunk)
                with contextlib.suppress(FetchFailed):
                    reader.wait_for(file, begin, end, patience_seconds=0.0)
                    if bytes_on_disk(reader.model, file, chunk) != fake.data(file, chunk):
                        raise AssertionError(f"a reader saw wrong bytes: {reader.model.key} {file} {chunk}")

    def _pin(self, fake: FakeModel) -> None:
        self._model(fake).set_pin(pinned=self._random.random() < 0.3)


def die_at(seed: int, at: int) -> None:
    """From now on count calls that change files, and end without a word in the one number `at`."""
    left = iter(range(at - 1, -1, -1))
    how = random.Random(seed)

    def wrapped(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **named: Any) -> Any:
            if next(left, -1) != 0:
                return call(*arguments, **named)
            try:
                if name == "pwrite" and how.random() < 0.5:
                    descriptor, data, begin = arguments
                    call(descriptor, bytes(data)[: len(data) // 2], begin)
                elif how.random() < 0.5:
                    call(*arguments, **named)
            finally:
                tell("dying in", name)
                os.kill(os.getpid(), signal.SIGKILL)

        return wrapper

    for name in WRITES:
        if hasattr(os, name):
            setattr(os, name, wrapped(name, getattr(os, name)))
    vars(removal)["punch_hole"] = wrapped("punch_hole", space.punch_hole)


def _kill(cache: Path, seed: int, at: int) -> None:
    churn = Churn(cache, seed)
    die_at(seed, at)
    while True:
        churn.step()


def _crowd(cache: Path, seed: int) -> None:
    churn = Churn(cache, seed)
    if seed % 2:
        die_at(seed, random.Random(seed).randrange(20, 400))
    for _step in range(CROWD_STEPS):
        churn.step()


def _fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # noqa: BLE001
            tell("failed", traceback.format_exc().replace("\n", "\\n"))
        finally:
            os._exit(status)
    return child


def _obey(cache: Path, order: str, seed: int, number: int) -> None:
    if order == "kill":
        children = [_fork(lambda: _kill(cache, seed, number))]
    else:
        children = [_fork(lambda at=at: _crowd(cache, seed * number + at)) for at in range(number)]  # type: ignore[misc]
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    tell("end", *statuses)


def main() -> None:
    """Obey until standard input ends."""
    cache = Path(sys.argv[1])
    for line in sys.stdin:
        order, seed, number = line.split()
        _obey(cache, order, int(seed), int(number))


if __name__ == "__main__":
    main()
