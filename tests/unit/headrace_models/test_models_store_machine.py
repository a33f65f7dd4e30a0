"""A store beside a plain model of it: whatever is done in whatever order, both agree on what is there and what binds.

Crashes of the machine tear what was not flushed: bytes, recorded digests and marks, each on its own. Kills of processes
are `tests/faults`; here a writer that goes away is enough, since a kill leaves what the page cache has.
"""

from contextlib import ExitStack

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace_models.errors import DigestMismatch, ModelBusy, NoSpace, StoreError
from headrace_models.store.locks import FileLock
from headrace_models.store.model_store import ModelStore
from headrace_models.store.model_writer import ModelWriter
from headrace_models.store.space import allocated_bytes
from headrace_models.trust import Trust
from tests.fakes.stored_models import (
    bytes_on_disk,
    fake_model,
    overwrite,
    present,
    published,
    restart_machine,
    scratch_cache,
)

FAKES = {trust: fake_model(trust, shards=3, seed=9) for trust in Trust}
NUM_CHUNKS = len(FAKES[Trust.NONE].chunks)
CHUNKS = st.integers(0, NUM_CHUNKS - 1)
NOBODY = "none-000000000000"


class StoreMachine(RuleBasedStateMachine):
    """One model of each kind of trust is drawn; `content` is what each chunk that is there must read as."""

    @initialize(trust=st.sampled_from(Trust))
    def open(self, trust: Trust) -> None:
        self._held = ExitStack()
        cache = self._held.enter_context(scratch_cache())
        self.fake = FAKES[trust]
        self.cache = cache
        self.store = ModelStore(cache)
        self.model = published(self.store, self.fake)
        self.content: dict[tuple[int, int], bytes] = {}
        self.bound: dict[tuple[int, int], bytes] = {}
        self.flushed: set[tuple[int, int]] = set()
        self.sealed = False
        self.in_doubt = False
        self.writer: ModelWriter | None = None
        self.leases: list[FileLock] = []

    def teardown(self) -> None:
        if self.writer is not None:
            self.writer.close()
        for lease in self.leases:
            lease.close()
        self._held.close()

    def _is_right(self, chunk: tuple[int, int]) -> bool:
        return self.content[chunk] == self.fake.data(*chunk)

    @precondition(lambda self: self.writer is None)
    @rule()
    def begin(self) -> None:
        self.writer = self.model.writer()
        self.in_doubt = False

    @precondition(lambda self: self.writer is not None)
    @rule()
    def end(self) -> None:
        assert self.writer is not None
        self.writer.close()
        self.writer = None

    @precondition(lambda self: self.writer is not None)
    @rule(numbers=st.lists(CHUNKS, min_size=1, max_size=NUM_CHUNKS))
    def put_right(self, numbers: list[int]) -> None:
        assert self.writer is not None
        for chunk in (self.fake.chunks[number] for number in numbers):
            data = self.fake.data(*chunk)
            if chunk not in self.content and self.bound.get(chunk, data) != data:
                self._refuses(chunk, data)
            else:
                self.writer.put(*chunk, data)
                self.content.setdefault(chunk, data)

    @precondition(lambda self: self.writer is not None)
    @rule(number=CHUNKS)
    def put_wrong(self, number: int) -> None:
        """Only a digest that is known, or bound since the first seal, can tell."""
        assert self.writer is not None
        chunk = self.fake.chunks[number]
        data = self.fake.wrong(*chunk)
        told = self.fake.index.trust is Trust.CHUNK or self.bound.get(chunk, data) != data
        if told and chunk not in self.content:
            self._refuses(chunk, data)
        else:
            self.writer.put(*chunk, data)
            self.content.setdefault(chunk, data)

    def _refuses(self, chunk: tuple[int, int], data: bytes) -> None:
        assert self.writer is not None
        try:
            self.writer.put(*chunk, data)
        except DigestMismatch:
            return
        raise AssertionError(f"{chunk} was taken")

    @precondition(lambda self: self.writer is not None)
    @rule()
    def seal(self) -> None:
        assert self.writer is not None
        wrong = {chunk for chunk in self.content if not self._is_right(chunk)}
        try:
            self.writer.seal()
        except DigestMismatch:
            assert wrong
            assert self.fake.index.trust is Trust.FILE
            files = {0} if all(file == 0 for file, _chunk in wrong) else {1, 2}
            files |= {file for file, _chunk in wrong}
            for chunk in [chunk for chunk in self.content if chunk[0] in files]:
                del self.content[chunk]
            self.flushed.clear()
        except StoreError:
            assert len(self.content) < NUM_CHUNKS
        else:
            assert len(self.content) == NUM_CHUNKS
            assert not wrong or self.fake.index.trust is Trust.NONE
            self.sealed = True
            self.bound = dict(self.content)
            self.flushed = set(self.content)

    @rule(data=st.data())
    def restart(self, data: st.DataObject) -> None:
        """The machine crashes: everybody is gone, and of what was not flushed each part may be."""
        self.teardown_users()
        loose = sorted(set(self.content) - self.flushed)
        for chunk in data.draw(st.lists(st.sampled_from(loose), unique=True)) if loose else ():
            self._tear(chunk, data.draw(st.sampled_from(["data", "digest", "mark"])))
            del self.content[chunk]
        for place in (self.fake.chunks[number] for number in data.draw(st.sets(CHUNKS))):
            if self.bound and not self.sealed and place not in self.content:
                # It was evicted, its hole is on disk and its cleared mark is not.
                overwrite(self.model.directory / f"state/{place[0]}.map", place[1], b"\1")
        restart_machine(self.model)
        self.in_doubt = not self.sealed

    def _tear(self, chunk: tuple[int, int], part: str) -> None:
        file, number = chunk
        begin, end = self.fake.index.layouts[file].range_of(number)
        if part == "data":
            overwrite(self.model.shard_path(file), begin, bytes(end - begin))
        elif part == "digest" and not self.bound and self.fake.index.trust is not Trust.CHUNK:
            overwrite(self.model.directory / f"state/{file}.digests", number * 32, bytes(32))
        else:
            overwrite(self.model.directory / f"state/{file}.map", number, b"\0")

    def teardown_users(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None
        while self.leases:
            self.leases.pop().close()

    @precondition(lambda self: not self.in_doubt)
    @rule(needed=st.integers(1, 600_000))
    def evict(self, needed: int) -> None:
        before, used = present(self.model), allocated_bytes(self.cache / "models")
        kept = bool(self.writer or self.leases)
        try:
            ModelStore(self.cache, max_bytes=used).make_room(needed, protect=NOBODY)
        except NoSpace:
            assert kept or needed > allocated_bytes(self.model.directory)
            assert present(self.model) == before
            return
        assert not kept
        assert allocated_bytes(self.cache / "models") <= used - needed
        if not self.model.directory.exists():
            self._begin_anew()
            return
        there = present(self.model)
        order = [chunk for chunk in self.fake.chunks if chunk in before]
        assert there == set(order[: len(there)]), "not from the end"
        self.content = {chunk: data for chunk, data in self.content.items() if chunk in there}
        self.flushed &= there
        self.sealed = self.sealed and there == before

    @rule()
    def lease(self) -> None:
        self.leases.append(self.model.lease())

    @precondition(lambda self: self.leases)
    @rule()
    def leave(self) -> None:
        self.leases.pop().close()

    @rule()
    def remove(self) -> None:
        try:
            self.store.remove(self.model.key)
        except ModelBusy:
            assert self.writer or self.leases
            return
        assert not self.writer
        assert not self.leases
        self._begin_anew()

    def _begin_anew(self) -> None:
        assert not self.store.models()
        self.model = published(self.store, self.fake)
        self.content, self.bound, self.flushed = {}, {}, set()
        self.sealed = self.in_doubt = False

    @precondition(lambda self: self.writer is None and self.content and not self.in_doubt)
    @rule(number=CHUNKS)
    def flip(self, number: int) -> None:
        """A byte changes on disk: a check finds exactly that chunk."""
        chunk = sorted(self.content)[number % len(self.content)]
        begin, _end = self.fake.index.layouts[chunk[0]].range_of(chunk[1])
        overwrite(self.model.shard_path(chunk[0]), begin, bytes([self.content[chunk][0] ^ 0x80]))
        report = self.model.check_integrity()
        assert report.wrong_chunks == (chunk,)
        del self.content[chunk]
        self.flushed.discard(chunk)
        self.sealed = False

    @invariant()
    def both_agree(self) -> None:
        if self.in_doubt:
            assert self.model.status().in_doubt
            with self.model.reader() as reader:
                assert not reader.is_present(0, 0, 1)
            return
        there = present(self.model)
        assert there == set(self.content)
        assert all(bytes_on_disk(self.model, *chunk) == data for chunk, data in self.content.items())
        status = self.model.status()
        assert status.sealed is self.sealed
        assert status.complete is (len(there) == NUM_CHUNKS)
        assert status.leased is bool(self.leases)
        assert status.fetching is bool(self.writer)
        assert not status.in_doubt


StoreMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestStore = StoreMachine.TestCase
