"""What listeners hear: every state, the newest progress, nothing after the end; and nobody is waited for."""

import asyncio
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from headrace_models.trust import Trust
from headrace_server.domain import ModelId, ModelState, ModelStatus, WeightsStatus
from headrace_server.observability.events import MAX_UNREAD, TICK_SECONDS, Mailbox, ModelFeed

WEIGHTS = WeightsStatus("k-0123456789ab", "r1", Trust.CHUNK, 0, 100)


def status(model: str = "m", state: ModelState = ModelState.LOADING, present_bytes: int | None = None) -> ModelStatus:
    weights = None if present_bytes is None else replace(WEIGHTS, present_bytes=present_bytes)
    return ModelStatus(ModelId(model), state, "hf://o/m", 0, weights=weights)


class Clock:
    """Seconds that the test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class TestMailbox:
    """What one listener has not read."""

    def test_every_state_is_kept_in_order(self) -> None:
        box = Mailbox()
        changes = [status(state=state) for state in (ModelState.FETCHING, ModelState.LOADING, ModelState.READY)]
        for change in changes:
            box.put(change)
        assert list(box.take()) == changes
        assert box.take() == ()

    def test_of_unread_progress_only_the_newest_stays(self) -> None:
        box = Mailbox()
        for present_bytes in range(50):
            box.put(status(present_bytes=present_bytes))
            box.put(status("other", present_bytes=present_bytes))
        assert [change.weights and change.weights.present_bytes for change in box.take()] == [49, 49]

    def test_a_reason_is_a_change_and_so_are_completion_and_failure_of_the_fetch(self) -> None:
        box = Mailbox()
        changes = [
            status(present_bytes=1),
            replace(status(present_bytes=1), weights=replace(WEIGHTS, problem="gone")),
            replace(status(present_bytes=1), weights=replace(WEIGHTS, is_complete=True)),
            replace(status(), detail="why"),
        ]
        for change in changes:
            box.put(change)
        assert list(box.take()) == changes

    def test_who_reads_nothing_at_all_is_told_the_last_state_of_each_model(self) -> None:
        box = Mailbox()
        states = [ModelState.READY, ModelState.FAILED] * (MAX_UNREAD + 1)
        for state in states:
            box.put(status("a", state))
        unread = box.take()
        assert len(unread) <= MAX_UNREAD
        assert unread[-1] == status("a", states[-1])

    @given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(ModelState), st.integers(0, 3)), max_size=300))
    def test_whatever_comes_it_stays_bounded_and_ends_with_the_newest_of_each_model(
        self, changes: list[tuple[str, ModelState, int]]
    ) -> None:
        box, newest = Mailbox(), {}
        for model, state, present_bytes in changes:
            newest[model] = status(model, state, present_bytes)
            box.put(newest[model])
        unread = box.take()
        assert len(unread) <= MAX_UNREAD
        assert {str(change.id): change for change in unread} == newest


async def test_a_listener_hears_the_present_first_and_then_every_change() -> None:
    feed = ModelFeed()
    listener = feed.listen([status("a"), status("b")])
    assert [change.id for change in await listener.next() or ()] == ["a", "b"]
    waiting = asyncio.create_task(listener.next())
    await asyncio.sleep(0)
    assert not waiting.done()
    feed.publish(status("b", ModelState.READY))
    assert [(change.id, change.state) for change in await waiting or ()] == [("b", ModelState.READY)]
    listener.close()


async def test_progress_is_told_at_most_every_tick_and_a_state_at_once() -> None:
    clock = Clock()
    feed = ModelFeed(clock=clock)
    listener = feed.listen([])
    heard: list[int | str] = []
    for step in range(1, 9):
        clock.now += TICK_SECONDS / 4
        feed.publish(status(present_bytes=step))
        if step == 6:
            feed.publish(status(state=ModelState.READY, present_bytes=step))
        if step in (1, 5, 6):
            heard += [change.weights.present_bytes for change in await listener.next() or () if change.weights]
    assert heard == [1, 5, 6]
    listener.close()


async def test_the_pace_of_one_model_is_not_that_of_another() -> None:
    feed = ModelFeed(clock=Clock())
    listener = feed.listen([])
    feed.publish(status("a", present_bytes=1))
    feed.publish(status("b", present_bytes=1))
    assert [change.id for change in await listener.next() or ()] == ["a", "b"]
    listener.close()


async def test_closing_the_feed_ends_those_who_listen_after_what_they_have_not_read() -> None:
    feed = ModelFeed()
    reading, idle = feed.listen([status("a")]), feed.listen([])
    waiting = asyncio.create_task(idle.next())
    await asyncio.sleep(0)
    feed.close()
    assert await waiting is None
    assert await idle.next() is None
    assert [change.id for change in await reading.next() or ()] == ["a"]
    assert await reading.next() is None


async def test_who_comes_after_the_end_hears_the_present_and_no_more() -> None:
    feed = ModelFeed()
    feed.close()
    listener = feed.listen([status("a")])
    assert [change.id for change in await listener.next() or ()] == ["a"]
    assert await listener.next() is None


async def test_who_has_left_is_forgotten() -> None:
    feed = ModelFeed()
    listener = feed.listen([])
    assert feed.num_listeners == 1
    listener.close()
    listener.close()
    assert feed.num_listeners == 0
    feed.publish(status())
    assert await listener.next() is None
