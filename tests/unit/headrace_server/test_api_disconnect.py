"""Work for a client ends when the client leaves, and only then."""

import asyncio

import pytest
from starlette.types import Message

from headrace_server.api.disconnect import unless_gone
from headrace_server.errors import ClientGone, EngineFault


class Client:
    """The other side of a connection: stays until it `leaves`."""

    def __init__(self) -> None:
        self.leaves = asyncio.Event()
        self.num_waiting = 0
        self.early: list[Message] = []

    async def receive(self) -> Message:
        if self.early:
            return self.early.pop()
        self.num_waiting += 1
        try:
            await self.leaves.wait()
        finally:
            self.num_waiting -= 1
        return {"type": "http.disconnect"}


class Work:
    """Something that takes until it is told to end, and notes how it ended."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.may_end = asyncio.Event()
        self.ended = ""

    async def run(self) -> str:
        self.started.set()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # stopping an engine takes a while
            self.ended = "cancelled"
            raise
        self.ended = "done"
        return "result"


async def test_work_for_a_client_that_stays_returns_its_result_and_nothing_is_left_running() -> None:
    client, work = Client(), Work()
    work.may_end.set()
    assert await unless_gone(client.receive, work.run()) == "result"
    assert client.num_waiting == 0


async def test_a_failure_of_the_work_is_passed_on_as_it_is() -> None:
    async def fail() -> None:
        raise EngineFault("no")

    client = Client()
    with pytest.raises(EngineFault, match="no"):
        await unless_gone(client.receive, fail())
    assert client.num_waiting == 0


async def test_work_for_a_client_that_leaves_is_cancelled_and_has_ended_when_the_call_returns() -> None:
    client, work = Client(), Work()
    call = asyncio.create_task(unless_gone(client.receive, work.run()))
    await work.started.wait()
    client.leaves.set()
    with pytest.raises(ClientGone):
        await call
    assert work.ended == "cancelled"


async def test_late_parts_of_the_body_are_not_mistaken_for_a_disconnect() -> None:
    client, work = Client(), Work()
    client.early = [{"type": "http.request", "body": b"", "more_body": False}]
    call = asyncio.create_task(unless_gone(client.receive, work.run()))
    await work.started.wait()
    work.may_end.set()
    assert await call == "result"


async def test_a_result_that_is_there_when_the_client_leaves_is_not_lost() -> None:
    client, work = Client(), Work()
    client.leaves.set()
    work.may_end.set()
    assert await unless_gone(client.receive, work.run()) == "result"


async def test_cancelling_the_call_cancels_the_work_and_waits_for_it() -> None:
    client, work = Client(), Work()
    call = asyncio.create_task(unless_gone(client.receive, work.run()))
    await work.started.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (work.ended, client.num_waiting) == ("cancelled", 0)
