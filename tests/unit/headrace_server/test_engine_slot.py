"""The books of one model: who has a lease, who waits for one, and what is told of it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from headrace_models.trust import Trust
from headrace_server.domain import ModelState, ModelStatus, Operation, WeightsStatus
from headrace_server.engine.base import EngineInfo
from headrace_server.engine.slot import Lease, Slot
from headrace_server.errors import EngineDown, UnsupportedOperation
from headrace_server.residency import Phase
from headrace_server.scheduling.restarts import Restarts
from tests.fakes.engine import FakeEngine
from tests.fakes.engine_room import FakeModel
from tests.fakes.virtual_loop import now, turns, virtually

CHAT_ONLY = EngineInfo(frozenset({Operation.CHAT}), max_model_len=77, memory_bytes=3)
LATER = 1e6


@dataclass
class Books:
    """A slot, and what it has told."""

    model: FakeModel = field(default_factory=lambda: FakeModel("a", keep_alive_seconds=9.0))
    told: list[ModelStatus] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.slot = Slot(self.model.entry, Restarts(), self.told.append, asyncio.get_running_loop().time)

    def place(self, memory_bytes: int = 2) -> None:
        """As a stay does it."""
        self.slot.phase, self.slot.memory_bytes = Phase.STARTING, memory_bytes

    def serve(self, engine: FakeEngine | None = None, info: EngineInfo = CHAT_ONLY) -> FakeEngine:
        """The engine is ready."""
        if self.slot.phase is None:
            self.place()
        self.slot.begin_loading()
        engine = engine or FakeEngine()
        self.slot.begin_serving(engine, info)
        return engine

    def serve_and_leave(self) -> None:
        """It was ready, and takes no more requests."""
        self.serve()
        self.slot.begin_leaving()

    def hold(self, operation: Operation | None = Operation.CHAT, until: float = LATER) -> asyncio.Task[Lease]:
        """A request that waits."""
        return asyncio.create_task(self.slot.held(operation, until))


@virtually
async def test_whoever_waits_has_a_lease_in_the_moment_in_which_the_engine_is_ready() -> None:
    books = Books()
    waiting = [books.hold() for _ in range(3)]
    await turns()
    assert books.slot.num_held == 3
    engine = books.serve()
    resident = books.slot.resident()
    assert resident is not None
    assert (resident.num_leases, books.slot.num_held) == (3, 0)  # before any of them has run
    leases = await asyncio.gather(*waiting)
    assert all(lease.engine is engine and lease.model == "a" for lease in leases)
    for lease in leases:
        lease.release()
        lease.release()
    assert not books.slot.is_in_use


@virtually
async def test_a_waiter_that_is_cancelled_before_gets_nothing() -> None:
    books = Books()
    waiting = books.hold()
    await turns()
    waiting.cancel()
    await turns()
    assert books.slot.num_held == 0
    books.serve()
    assert not books.slot.is_in_use


@virtually
async def test_a_waiter_that_was_cancelled_and_has_not_heard_of_it_is_not_counted_any_more() -> None:
    books = Books()
    waiting = books.hold()
    await turns()
    waiting.cancel()
    assert (books.slot.num_held, books.slot.held_since) == (0, None)
    await turns()


@pytest.mark.parametrize("is_cancelled_first", [True, False])
@virtually
async def test_a_waiter_that_is_cancelled_in_the_moment_of_readiness_leaves_no_lease(is_cancelled_first: bool) -> None:
    books = Books()
    waiting = books.hold()
    await turns()
    if is_cancelled_first:
        waiting.cancel()
    books.serve()
    if not is_cancelled_first:
        waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not books.slot.is_in_use


@virtually
async def test_a_waiter_that_is_cancelled_in_the_moment_of_refusal_leaves_no_complaint() -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
    books = Books()
    waiting = books.hold()
    await turns()
    books.slot.refuse_all(EngineDown("no"))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    del waiting
    assert complaints == []


@virtually
async def test_waiting_ends_at_its_time_and_readiness_at_that_time_leaves_no_lease() -> None:
    books = Books()
    waiting = [books.hold(until=now() + 5) for _ in range(2)]
    await turns()
    asyncio.get_running_loop().call_at(now() + 5, books.serve)
    for result in await asyncio.gather(*waiting, return_exceptions=True):
        if isinstance(result, Lease):
            result.release()
        else:
            assert isinstance(result, TimeoutError)
    assert not books.slot.is_in_use
    with pytest.raises(TimeoutError):
        await books.slot.held(Operation.CHAT, now() - 1)
    assert books.slot.num_held == 0


@virtually
async def test_a_refusal_reaches_everybody_who_waits_then_and_nobody_later() -> None:
    books, refusal = Books(), EngineDown("no")
    waiting = [books.hold() for _ in range(2)]
    await turns()
    books.slot.refuse_all(refusal)
    later = books.hold()
    assert await asyncio.gather(*waiting, return_exceptions=True) == [refusal, refusal]
    assert books.slot.num_held == 1
    books.serve()
    (await later).release()


@virtually
async def test_the_first_waiter_counts_for_how_long_a_model_has_been_waited_for() -> None:
    books = Books()
    assert books.slot.held_since is None
    start = now()
    first = books.hold()
    await asyncio.sleep(2)
    second = books.hold()
    await turns()
    assert books.slot.held_since == start
    first.cancel()
    await turns()
    assert books.slot.held_since == start + 2
    second.cancel()
    await turns()


@virtually
async def test_an_operation_that_the_model_turns_out_not_to_offer_gives_its_lease_back() -> None:
    books = Books()
    right, wrong, neither = books.hold(Operation.CHAT), books.hold(Operation.EMBEDDING), books.hold(None)
    books.slot.check_operation(Operation.EMBEDDING)  # nothing is known yet
    await turns()
    books.serve()
    with pytest.raises(UnsupportedOperation, match="/v1/embeddings"):
        await wrong
    (await right).release()
    (await neither).release()
    assert not books.slot.is_in_use
    books.slot.leave_memory(ModelState.COLD)
    with pytest.raises(UnsupportedOperation):
        books.slot.check_operation(Operation.EMBEDDING)


@virtually
async def test_a_lease_counts_until_it_is_given_back_whatever_has_become_of_the_engine() -> None:
    books = Books()
    books.serve()
    old = books.slot.lease()
    books.slot.lose_engine()
    books.serve(FakeEngine())
    new = books.slot.lease()
    assert books.slot.status().num_leases == 2
    old.release()
    assert books.slot.is_in_use
    new.release()
    assert not books.slot.is_in_use


@virtually
async def test_a_model_is_idle_once_the_last_lease_is_back() -> None:
    books = Books()
    books.serve()
    leases = [books.slot.lease(), books.slot.lease()]
    idle = asyncio.create_task(books.slot.until_idle())
    for lease in leases:
        await turns()
        assert not idle.done()
        assert books.slot.status().idle_seconds is None
        lease.release()
    await idle
    await asyncio.sleep(4)
    assert books.slot.status().idle_seconds == 4.0
    resident = books.slot.resident()
    assert resident is not None
    assert resident.idle_since == now() - 4


@virtually
async def test_a_death_that_a_request_reports_is_believed_of_the_present_engine_only() -> None:
    books = Books()
    books.serve()
    old = books.slot.lease()
    old.report_death()
    assert books.slot.died.is_set()
    assert not books.slot.serves
    books.serve(FakeEngine())
    assert not books.slot.died.is_set()
    old.report_death()
    assert books.slot.serves
    old.release()
    old.report_death()
    assert not books.slot.died.is_set()


@virtually
async def test_nothing_is_leased_from_a_model_that_does_not_serve() -> None:
    books = Books()
    steps: list[Callable[[], object]] = [
        lambda: None,
        books.place,
        books.serve_and_leave,
        books.slot.lose_engine,
        lambda: books.slot.leave_memory(ModelState.COLD),
    ]
    for step in steps:
        step()
        assert not books.slot.serves
        with pytest.raises(AssertionError):
            books.slot.lease()


@pytest.mark.parametrize("is_in_use", [True, False])
@virtually
async def test_a_model_that_leaves_is_not_called_ready(is_in_use: bool) -> None:
    books = Books()
    books.serve()
    lease = books.slot.lease() if is_in_use else None
    books.slot.begin_leaving()
    assert books.slot.state is ModelState.DRAINING
    resident = books.slot.resident()
    assert resident is not None
    assert (resident.phase, resident.memory_bytes) == (Phase.LEAVING, 3)
    if lease is not None:
        lease.release()
    books.slot.lose_engine()
    resident = books.slot.resident()
    assert resident is not None
    assert resident.phase is Phase.LEAVING


@virtually
async def test_the_policy_sees_estimates_first_and_measurements_where_there_are_any() -> None:
    books = Books()
    assert books.slot.resident() is None
    assert books.slot.status().memory_bytes is None
    books.place(2)
    resident = books.slot.resident()
    assert resident is not None
    assert (resident.phase, resident.memory_bytes, resident.keep_alive_seconds) == (Phase.STARTING, 2, 9.0)
    books.serve()
    assert books.slot.status().memory_bytes == 3
    books.slot.leave_memory(ModelState.COLD)
    assert books.slot.resident() is None
    books.place(2)
    books.serve(info=EngineInfo(frozenset(Operation)))
    assert books.slot.status().memory_bytes == 2


@virtually
async def test_an_upstream_that_is_away_fails_the_model_until_it_is_back_and_it_is_leased_all_the_same() -> None:
    books = Books()
    books.serve()
    books.slot.reach(None)
    assert books.slot.state is ModelState.READY
    books.slot.reach("no route")
    books.slot.reach("no route")
    assert (books.slot.state, books.slot.detail) == (ModelState.FAILED, "no route")
    books.slot.lease().release()
    books.slot.reach(None)
    assert (books.slot.state, books.slot.detail) == (ModelState.READY, "")
    books.slot.begin_leaving()
    books.slot.reach("no route")
    assert [status.state for status in books.told][-4:] == [
        ModelState.FAILED,
        ModelState.FAILED,  # nobody uses it any more
        ModelState.READY,
        ModelState.DRAINING,
    ]


@virtually
async def test_a_model_tells_of_every_change_once() -> None:
    books = Books()
    books.slot.enter(ModelState.FETCHING)
    books.slot.enter(ModelState.FETCHING)
    books.serve()
    books.slot.lease().release()
    books.slot.leave_memory(ModelState.COLD)
    assert [status.state for status in books.told] == [
        ModelState.FETCHING,
        ModelState.LOADING,
        ModelState.READY,
        ModelState.READY,  # nobody uses it any more
        ModelState.COLD,
    ]


@virtually
async def test_a_status_says_what_the_model_can_and_how_long_it_stays() -> None:
    books = Books()
    before = books.slot.status()
    assert (before.operations, before.max_model_len) == (frozenset(), None)
    assert (before.keep_alive_seconds, before.is_pinned) == (9.0, False)
    books.serve()
    status = books.slot.status()
    assert (status.operations, status.max_model_len) == (frozenset({Operation.CHAT}), 77)


@virtually
async def test_the_time_that_a_load_may_take_is_known_from_the_fetch_and_from_the_start_before() -> None:
    def weights() -> WeightsStatus | None:
        return WeightsStatus("k-0123456789ab", "r1", Trust.FILE, 0, 100, eta_seconds=fetch_seconds)

    fetch_seconds: float | None = 30.0
    books = Books(FakeModel("a", weights=weights))
    etas = [books.slot.eta_seconds()]
    books.slot.enter(ModelState.FETCHING)
    etas.append(books.slot.eta_seconds())
    books.slot.enter(ModelState.LOADING, "waiting for memory")
    etas.append(books.slot.eta_seconds())
    assert etas == [None, 30.0, None]
    fetch_seconds = None
    books.place()
    books.slot.begin_loading()
    assert books.slot.eta_seconds() is None
    await asyncio.sleep(8)
    assert books.slot.begin_serving(FakeEngine(), CHAT_ONLY) == 8.0
    assert books.slot.eta_seconds() is None
    books.slot.leave_memory(ModelState.COLD)
    fetch_seconds = 30.0
    books.slot.enter(ModelState.FETCHING)
    assert books.slot.eta_seconds() == 38.0
    fetch_seconds = None
    books.place()
    books.slot.begin_loading()
    await asyncio.sleep(3)
    assert books.slot.eta_seconds() == 5.0
    await asyncio.sleep(30)
    assert books.slot.eta_seconds() == 0.0


@virtually
async def test_a_model_that_may_be_tried_again_later_says_when() -> None:
    books = Books()
    books.slot.retry_at = now() + 7
    await asyncio.sleep(3)
    assert books.slot.status().retry_in_seconds == 4.0
    await asyncio.sleep(30)
    assert books.slot.status().retry_in_seconds == 0.0
    books.serve()
    assert books.slot.status().retry_in_seconds is None
