"""One model's fetch: events in; weights, failure and log lines out."""

import asyncio
import logging
from pathlib import Path

import pytest

from headrace_models.fetch.events import Failed, Noted, Started
from headrace_models.trust import Trust
from headrace_server.domain import GroupBytes, ModelId
from headrace_server.engine.delivery import LOG_SECONDS, Delivery, Supplied
from headrace_server.errors import EngineFault
from tests.fakes.fetching import FACTS, HF, completed, indexed, order, progress

M = ModelId("m")
SUPPLIED = Supplied("name-0123456789ab", Path("/cache/skeleton"), Path("/cache"), FACTS)


class Clock:
    """Seconds that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def delivery(*, reference: str = HF, changes: list[ModelId] | None = None, clock: Clock | None = None) -> Delivery:
    on_change = (changes if changes is not None else []).append
    return Delivery(order(M, reference), on_change=on_change, clock=clock or Clock())


def lines(caplog: pytest.LogCaptureFixture, event: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.message == event]


async def test_an_engine_may_start_once_the_model_is_indexed_long_before_its_bytes_are_here() -> None:
    it = delivery()
    waiting = asyncio.create_task(it.indexed())
    it.take(Started(HF, 1))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert it.weights is None
    it.supply(indexed(), SUPPLIED)
    assert await waiting is SUPPLIED
    assert it.weights is not None
    assert (it.weights.present_bytes, it.weights.total_bytes, it.weights.is_complete) == (0, 100, False)
    assert (it.weights.key, it.weights.revision, it.weights.trust) == ("name-0123456789ab", "r1", Trust.CHUNK)


async def test_progress_is_told_with_rate_eta_and_groups() -> None:
    changes: list[ModelId] = []
    it = delivery(changes=changes)
    it.supply(indexed(), SUPPLIED)
    it.take(progress(40))
    assert it.weights is not None
    assert (it.weights.present_bytes, it.weights.bytes_per_second, it.weights.eta_seconds) == (40, 10.0, 6.0)
    assert it.weights.groups == (GroupBytes("layer.0", 40, 100),)
    assert changes == [M, M]


async def test_a_completed_fetch_has_all_bytes_and_nothing_comes_any_more() -> None:
    it = delivery()
    it.supply(indexed(trust=Trust.FILE), SUPPLIED)
    it.take(progress(40))
    it.take(completed(trust=Trust.FILE))
    it.end()
    weights = it.weights
    assert weights is not None
    assert weights.is_complete
    assert (weights.present_bytes, weights.bytes_per_second, weights.eta_seconds) == (100, 0.0, None)
    assert weights.groups == (GroupBytes("layer.0", 100, 100),)
    assert (weights.fetched_bytes, weights.trust, it.failure) == (100, Trust.FILE, None)


async def test_a_local_model_is_complete_without_any_progress() -> None:
    it = delivery(reference="file:///models/m")
    it.supply(indexed(trust=Trust.NONE), SUPPLIED)
    it.take(completed(trust=Trust.NONE))
    assert it.weights is not None
    assert (it.weights.present_bytes, it.weights.is_complete) == (100, True)


async def test_a_fetch_that_fails_before_the_index_keeps_the_engine_from_starting_with_its_one_line() -> None:
    it = delivery()
    it.take(Failed("ModelNotFound", "no such model at example"))
    it.end()
    with pytest.raises(EngineFault, match="no such model at example"):
        await it.indexed()
    assert it.failure == "no such model at example"
    assert it.weights is None


async def test_a_fetch_that_fails_later_says_so_in_the_weights_and_to_those_who_ask_later() -> None:
    it = delivery()
    it.supply(indexed(), SUPPLIED)
    it.take(progress(40))
    it.take(Failed("SourceUnavailable", "gone for 300 s"))
    it.end()
    assert it.weights is not None
    assert (it.weights.problem, it.weights.present_bytes) == ("gone for 300 s", 40)
    assert (it.weights.bytes_per_second, it.weights.eta_seconds) == (0.0, None)
    with pytest.raises(EngineFault, match="gone for 300 s"):
        await it.indexed()


@pytest.mark.parametrize("was_indexed", [False, True])
async def test_a_fetch_that_ends_without_saying_how_has_failed(was_indexed: bool) -> None:
    it = delivery()
    if was_indexed:
        it.supply(indexed(), SUPPLIED)
    it.end()
    with pytest.raises(EngineFault):
        await it.indexed()


async def test_the_log_tells_the_life_of_a_fetch(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    it = delivery()
    it.start(77)
    it.take(Noted("trying again"))
    it.supply(indexed(), SUPPLIED)
    it.take(progress(40))
    it.take(completed())
    names = ["fetch_started", "fetch_note", "fetch_indexed", "fetch_progress", "fetch_completed"]
    assert [record.message for record in caplog.records] == names
    fields = [vars(record) for record in caplog.records]
    assert all(field["model"] == M for field in fields)
    assert (fields[0]["pid"], fields[0]["reference"]) == (77, HF)
    assert fields[1]["detail"] == "trying again"
    assert (fields[2]["revision"], fields[2]["bytes"], fields[2]["trust"]) == ("r1", 100, "chunk")
    assert (fields[3]["present_bytes"], fields[3]["bytes_per_second"], fields[3]["eta_seconds"]) == (40, 10, 6.0)
    assert (fields[4]["seconds"], fields[4]["fetched_bytes"], fields[4]["trust"]) == (2.5, 100, "chunk")


async def test_progress_is_logged_every_few_seconds_only(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    it = delivery(clock=clock)
    it.supply(indexed(), SUPPLIED)
    for tick in range(41):  # 10 s of ticks
        clock.now = tick * 0.25
        it.take(progress(tick))
    assert LOG_SECONDS == 5.0
    assert [vars(record)["present_bytes"] for record in lines(caplog, "fetch_progress")] == [0, 20, 40]


async def test_weights_that_nobody_checks_are_a_warning_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    it = delivery()
    it.supply(indexed(trust=Trust.NONE), SUPPLIED)
    it.take(completed(trust=Trust.NONE))
    (record,) = lines(caplog, "fetch_unchecked")
    assert record.levelno == logging.WARNING
    assert vars(record)["detail"].startswith("weights are not checked: ")


async def test_of_a_local_directory_that_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    delivery(reference="file:///models/m").supply(indexed(trust=Trust.NONE), SUPPLIED)
    (record,) = lines(caplog, "fetch_unchecked")
    assert record.levelno == logging.INFO


@pytest.mark.parametrize("trust", [Trust.CHUNK, Trust.FILE])
async def test_weights_that_are_checked_are_no_news(caplog: pytest.LogCaptureFixture, trust: Trust) -> None:
    caplog.set_level(logging.INFO)
    delivery().supply(indexed(trust=trust), SUPPLIED)
    assert not lines(caplog, "fetch_unchecked")


async def test_a_failure_is_logged_as_an_error(caplog: pytest.LogCaptureFixture) -> None:
    delivery().take(Failed("NoSpace", "the disk is full"))
    (record,) = lines(caplog, "fetch_failed")
    assert (record.levelno, vars(record)["detail"]) == (logging.ERROR, "the disk is full")
