"""One attempt to bring a model: events in; weights, failure and log lines out."""

import asyncio
import logging
from dataclasses import replace

import pytest

from headrace_models.fetch.events import Failed, Noted, Started
from headrace_models.trust import Trust
from headrace_server.domain import GroupBytes, ModelId, WeightsStatus
from headrace_server.engine.delivery import LOG_SECONDS, Delivery
from tests.fakes.fetching import HF, KEY, completed, indexed, order, progress

M = ModelId("m")
WEIGHTS = WeightsStatus(KEY, "r1", Trust.CHUNK, 50, 100)


class Clock:
    """Seconds that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def delivery(
    *,
    reference: str = HF,
    changes: list[ModelId] | None = None,
    clock: Clock | None = None,
    weights: WeightsStatus | None = None,
) -> Delivery:
    on_change = (changes if changes is not None else []).append
    return Delivery(order(M, reference), on_change=on_change, clock=clock or Clock(), weights=weights)


def lines(caplog: pytest.LogCaptureFixture, event: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.message == event]


async def test_a_model_is_found_long_before_its_bytes_are_here() -> None:
    it = delivery()
    it.take(Started(HF, 1))
    assert not it.is_indexed
    assert it.weights is None
    it.take(indexed())
    assert it.is_indexed
    assert not it.is_over
    assert it.weights is not None
    assert (it.weights.present_bytes, it.weights.total_bytes, it.weights.is_complete) == (0, 100, False)
    assert (it.weights.key, it.weights.revision, it.weights.trust) == (KEY, "r1", Trust.CHUNK)


async def test_progress_is_told_with_rate_eta_and_groups() -> None:
    changes: list[ModelId] = []
    it = delivery(changes=changes)
    it.take(indexed())
    it.take(progress(40))
    assert it.weights is not None
    assert (it.weights.present_bytes, it.weights.bytes_per_second, it.weights.eta_seconds) == (40, 10.0, 6.0)
    assert it.weights.groups == (GroupBytes("layer.0", 40, 100),)
    assert changes == [M, M]


async def test_a_completed_fetch_has_all_bytes_and_nothing_comes_any_more() -> None:
    it = delivery()
    it.take(indexed(trust=Trust.FILE))
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
    it.take(indexed(trust=Trust.NONE))
    it.take(completed(trust=Trust.NONE))
    assert it.weights is not None
    assert (it.weights.present_bytes, it.weights.is_complete) == (100, True)


async def test_a_fetch_that_fails_before_the_index_has_its_one_line_and_no_weights() -> None:
    it = delivery()
    it.take(Failed("ModelNotFound", "no such model at example"))
    it.end()
    assert await it.failed() == "no such model at example"
    assert it.failure == "no such model at example"
    assert it.weights is None


async def test_a_fetch_that_fails_later_says_so_in_the_weights_and_to_those_who_ask_later() -> None:
    it = delivery()
    it.take(indexed())
    it.take(progress(40))
    it.take(Failed("SourceUnavailable", "gone for 300 s"))
    it.end()
    assert it.weights is not None
    assert (it.weights.problem, it.weights.present_bytes) == ("gone for 300 s", 40)
    assert (it.weights.bytes_per_second, it.weights.eta_seconds) == (0.0, None)
    assert await it.failed() == "gone for 300 s"


async def test_whoever_waits_for_a_failure_hears_of_no_other_end() -> None:
    it = delivery()
    waiting = asyncio.create_task(it.failed())
    it.take(indexed())
    it.take(completed())
    it.end()
    it.fail("too late")
    await asyncio.sleep(0)
    assert not waiting.done()
    assert it.failure is None
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


@pytest.mark.parametrize("was_indexed", [False, True])
async def test_a_fetch_that_ends_without_saying_how_has_failed(was_indexed: bool) -> None:
    it = delivery()
    if was_indexed:
        it.take(indexed())
    it.end()
    assert it.failure == "the fetch ended without a reason"


async def test_a_fetch_that_completes_what_it_has_not_found_has_failed() -> None:
    it = delivery(weights=WEIGHTS)
    it.take(progress(60))
    it.take(completed())
    assert it.weights == WEIGHTS
    it.end()
    assert it.failure == "the fetch ended without a reason"


async def test_a_process_that_is_started_again_goes_on_with_the_model_that_was_found() -> None:
    it = delivery()
    for event in (Started(HF, 1), indexed(), progress(40), Started(HF, 2), indexed(), progress(30)):
        it.take(event)
    assert it.failure is None
    assert it.weights is not None
    assert it.weights.fetched_bytes == 70


async def test_one_that_finds_another_revision_then_has_failed_because_engines_read_the_first() -> None:
    it = delivery()
    it.take(indexed())
    it.take(indexed("name-ba9876543210"))
    it.take(progress(40))
    assert it.failure == "the model has changed at its source while it was fetched"
    assert it.weights is not None
    assert (it.weights.key, it.weights.present_bytes) == (KEY, 0)


async def test_another_attempt_begins_with_what_is_known_and_no_problem() -> None:
    it = delivery()
    it.take(indexed())
    it.take(progress(40))
    it.fail("gone for 300 s")
    again = it.again()
    assert (again.failure, again.is_indexed, again.order) == (None, False, it.order)
    assert again.weights is not None
    assert (again.weights.problem, again.weights.present_bytes, again.weights.eta_seconds) == ("", 40, None)
    again.take(Started(HF, 1))
    again.take(indexed())
    assert again.weights.present_bytes == 40
    again.take(progress(50))
    assert again.weights.fetched_bytes == 90
    assert it.failure == "gone for 300 s"


async def test_what_was_fetched_of_another_revision_does_not_count() -> None:
    it = delivery()
    it.take(indexed())
    it.take(progress(40))
    again = it.again()
    again.take(Started(HF, 1))
    again.take(indexed("name-ba9876543210"))
    assert again.weights is not None
    assert (again.weights.present_bytes, again.weights.fetched_bytes) == (0, 0)
    again.take(progress(10))
    assert again.weights.fetched_bytes == 10


async def test_another_attempt_at_what_was_complete_is_not() -> None:
    it = delivery()
    it.take(indexed())
    it.take(completed())
    assert it.is_over
    again = it.again()
    assert again.weights is not None
    assert not again.is_over


async def test_what_the_store_has_counts_for_more_than_what_was_known() -> None:
    it = delivery()
    it.take(indexed())
    it.take(progress(40))
    found = it.looked_up(replace(WEIGHTS, present_bytes=100, is_complete=True))
    assert found.is_complete
    assert found.weights is not None
    assert (found.weights.present_bytes, found.weights.fetched_bytes) == (100, 40)
    assert it.looked_up(None).weights is None


async def test_the_log_tells_the_life_of_a_fetch(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    it = delivery()
    it.start(77)
    it.take(Noted("trying again"))
    it.take(indexed())
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
    it.take(indexed())
    for tick in range(41):  # 10 s of ticks
        clock.now = tick * 0.25
        it.take(progress(tick))
    assert LOG_SECONDS == 5.0
    assert [vars(record)["present_bytes"] for record in lines(caplog, "fetch_progress")] == [0, 20, 40]


async def test_weights_that_nobody_checks_are_a_warning_once_for_each_attempt(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    it = delivery()
    it.take(indexed(trust=Trust.NONE))
    it.take(indexed(trust=Trust.NONE))
    it.take(completed(trust=Trust.NONE))
    (record,) = lines(caplog, "fetch_unchecked")
    assert record.levelno == logging.WARNING
    assert vars(record)["detail"].startswith("weights are not checked: ")


async def test_of_a_local_directory_that_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    delivery(reference="file:///models/m").take(indexed(trust=Trust.NONE))
    (record,) = lines(caplog, "fetch_unchecked")
    assert record.levelno == logging.INFO


@pytest.mark.parametrize("trust", [Trust.CHUNK, Trust.FILE])
async def test_weights_that_are_checked_are_no_news(caplog: pytest.LogCaptureFixture, trust: Trust) -> None:
    caplog.set_level(logging.INFO)
    delivery().take(indexed(trust=trust))
    assert not lines(caplog, "fetch_unchecked")


async def test_a_failure_is_logged_as_an_error(caplog: pytest.LogCaptureFixture) -> None:
    delivery().take(Failed("NoSpace", "the disk is full"))
    (record,) = lines(caplog, "fetch_failed")
    assert (record.levelno, vars(record)["detail"]) == (logging.ERROR, "the disk is full")
