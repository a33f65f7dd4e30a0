"""What a client reads while its model is on the way."""

from dataclasses import replace

import pytest

from headrace_server.api.held_comment import held_comment, queue_comment
from headrace_server.api.sse import KEEP_ALIVE
from headrace_server.domain import ModelId, ModelState, ModelStatus
from headrace_server.queueing import Outlook

LOADING = ModelStatus(ModelId("smollm2"), ModelState.LOADING, "s", 0, detail="waiting for memory", eta_seconds=7.4)


@pytest.mark.parametrize(
    ("state", "comment"),
    [
        (ModelState.COLD, b": waiting for smollm2, about 7 s\n\n"),
        (ModelState.DRAINING, b": waiting for smollm2, about 7 s\n\n"),
        (ModelState.FETCHING, b": fetching smollm2, about 7 s\n\n"),
        (ModelState.LOADING, b": loading smollm2, about 7 s\n\n"),
        (ModelState.READY, KEEP_ALIVE),
        (ModelState.FAILED, KEEP_ALIVE),
    ],
)
def test_a_comment_names_what_the_model_is_doing_and_for_how_long(state: ModelState, comment: bytes) -> None:
    assert held_comment(replace(LOADING, state=state)) == comment


def test_what_is_not_known_is_not_said() -> None:
    assert held_comment(replace(LOADING, eta_seconds=None)) == b": loading smollm2\n\n"


def test_nothing_is_said_to_take_no_time() -> None:
    assert held_comment(replace(LOADING, eta_seconds=0.0)) == b": loading smollm2, about 1 s\n\n"


def test_a_model_whose_engine_died_is_restarting() -> None:
    assert held_comment(replace(LOADING, is_restarting=True)) == b": restarting smollm2, about 7 s\n\n"


@pytest.mark.parametrize(
    ("seconds", "comment"),
    [
        (2.4, b": queued, position 3, about 2 s\n\n"),
        (0.1, b": queued, position 3, about 1 s\n\n"),
        (None, b": queued, position 3\n\n"),
    ],
)
def test_a_request_in_the_queue_is_told_its_position_and_for_how_long(seconds: float | None, comment: bytes) -> None:
    assert queue_comment(Outlook(3, seconds)) == comment
