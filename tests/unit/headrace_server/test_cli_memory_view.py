"""What `headrace ps` shows."""

import pytest

from headrace_models.trust import Trust
from headrace_server.api.admin_documents import AdminModel, Memory, model_document
from headrace_server.cli.memory_view import detail, is_shown, lines
from headrace_server.domain import ModelId, ModelState, ModelStatus, WeightsStatus

MEMORY = Memory(budget_bytes=10**9, used_bytes=3 * 10**8)


def model(state: ModelState, **fields: object) -> AdminModel:
    return model_document(ModelStatus(ModelId("m"), state, "s", 0, **fields))  # type: ignore[arg-type]


def cells(shown: AdminModel) -> dict[str, str]:
    """The cells of a model's line, by column; none of them holds two spaces."""
    head, line, _ = lines([shown], MEMORY)
    starts = [head.index(name) for name in head.split()]
    ends = [*starts[1:], None]
    return {head[start:end].strip(): line[start:end].strip() for start, end in zip(starts, ends, strict=True)}


def test_a_model_in_memory_shows_what_it_takes_and_how_long_it_has_been_idle() -> None:
    shown = model(ModelState.READY, memory_bytes=3 * 10**8, idle_seconds=12.2, keep_alive_seconds=300.0, is_pinned=True)
    assert cells(shown) == {
        "MODEL": "m",
        "STATE": "ready",
        "MEMORY": "300.0 MB",
        "REQUESTS": "0",
        "HELD": "0",
        "IDLE/KEEP": "12 s/5 min 0 s",
        "PIN": "pinned",
        "DETAIL": "-",
    }


def test_a_model_in_use_is_not_idle() -> None:
    shown = cells(model(ModelState.READY, memory_bytes=0, num_leases=3, num_held=2))
    assert (shown["REQUESTS"], shown["HELD"], shown["IDLE/KEEP"], shown["MEMORY"]) == ("3", "2", "-", "0 B")


def test_what_is_not_known_of_idling_is_a_dash() -> None:
    assert cells(model(ModelState.READY, idle_seconds=1.0))["IDLE/KEEP"] == "1.0 s/-"
    assert cells(model(ModelState.READY, num_leases=1, keep_alive_seconds=60.0))["IDLE/KEEP"] == "-/1 min 0 s"


def test_the_last_line_is_the_memory() -> None:
    assert list(lines([], MEMORY))[-1] == "300.0 MB of 1.0 GB in use"
    assert list(lines([], Memory(budget_bytes=None, used_bytes=0)))[-1] == "0 B in use"


@pytest.mark.parametrize("state", ModelState)
def test_only_models_that_nothing_is_to_be_said_of_are_left_out(state: ModelState) -> None:
    assert is_shown(model(state)) is (state is not ModelState.COLD)
    assert is_shown(model(state, memory_bytes=1))


def test_the_detail_says_how_far_a_fetch_is_and_how_long_it_takes() -> None:
    weights = WeightsStatus("k", "r", Trust.NONE, 42_000_000, 100_000_000)
    assert detail(model(ModelState.FETCHING, weights=weights, eta_seconds=13.0)) == "42 % of 100.0 MB, about 13 s"
    assert detail(model(ModelState.LOADING, detail="waiting for memory")) == "waiting for memory"
    assert detail(model(ModelState.FAILED, detail="no", retry_in_seconds=30.0)) == "no, again in 30 s"
    assert detail(model(ModelState.FAILED, detail="no", retry_in_seconds=0.0)) == "no"
    assert detail(model(ModelState.READY, weights=weights)) == ""


def test_nothing_in_a_detail_drives_the_terminal() -> None:
    assert detail(model(ModelState.FAILED, detail="a\nb\x1b[31m")) == "a b [31m"
