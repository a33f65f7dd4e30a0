"""What `headrace load` shows while it waits."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import httpx

from headrace_models.trust import Trust
from headrace_server.api.admin import model_event
from headrace_server.cli.moving import follow
from headrace_server.cli.operator_client import Operator
from headrace_server.domain import ModelId, ModelState, ModelStatus, WeightsStatus


class Display:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        return

    def show(self, done_bytes: int, total_bytes: int, *, rate: float = 0.0, eta_seconds: float | None = None) -> None:
        self.told.append((done_bytes, total_bytes, rate, eta_seconds))

    def note(self, line: str) -> None:
        self.told.append(line)


async def shown(name: str, statuses: Sequence[ModelStatus]) -> list[object]:
    """What a display is told of these events."""
    events = b": keep-alive\n\n" + b"".join(map(model_event, statuses))
    transport = httpx.MockTransport(lambda _request: httpx.Response(200, content=events))
    display = Display()
    async with httpx.AsyncClient(transport=transport, base_url="http://h") as client:
        await follow(Operator(client, "there"), name, display)
    return display.told


def status(state: ModelState, **fields: object) -> ModelStatus:
    return ModelStatus(ModelId("m"), state, "s", 0, aliases=(ModelId("n"),), **fields)  # type: ignore[arg-type]


async def test_every_state_is_told_once_and_the_fetch_as_it_gets_on() -> None:
    some = WeightsStatus("k", "r", Trust.NONE, 40, 100, bytes_per_second=5.0, eta_seconds=12.0)
    told = await shown(
        "m",
        [
            status(ModelState.COLD),
            status(ModelState.FETCHING),
            status(ModelState.FETCHING, weights=some),
            status(ModelState.LOADING, detail="waiting for memory"),
            status(ModelState.LOADING, detail="waiting for memory"),
            status(ModelState.LOADING, eta_seconds=7.0),
            status(ModelState.READY),
        ],
    )
    assert told == ["fetching", (40, 100, 5.0, 12.0), "loading: waiting for memory", "loading: about 7.0 s"]


async def test_other_models_are_not_told_of_and_an_alias_is_a_name() -> None:
    other = ModelStatus(ModelId("other"), ModelState.LOADING, "s", 0)
    assert await shown("n", [other, status(ModelState.LOADING)]) == ["loading"]


async def test_events_that_cannot_be_had_are_no_failure() -> None:
    def fail(_request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("gone")

    display = Display()
    async with httpx.AsyncClient(transport=httpx.MockTransport(fail), base_url="http://h") as client:
        await follow(Operator(client, "there"), "m", display)
    assert display.told == []
