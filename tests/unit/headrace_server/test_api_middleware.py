"""The boundary: request ids, bounds on heads and bodies, and what becomes of defects."""

import asyncio
import json
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace_server.api.middleware import HttpLimits, RequestBoundary
from headrace_server.errors import ClientGone, ModelLoading
from headrace_server.observability.logging import current_request_id

Header = tuple[bytes, bytes]


@dataclass
class Exchange:
    """What came of one request."""

    messages: list[Message] = field(default_factory=list)
    done: list[int] = field(default_factory=list)

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def error(self) -> dict[str, object]:
        document = json.loads(b"".join(message.get("body", b"") for message in self.messages[1:]))
        return dict(document["error"])


async def exchange(
    app: ASGIApp,
    *,
    headers: Iterable[Header] = (),
    body: Iterable[bytes] = (b"",),
    limits: HttpLimits | None = None,
    path: str = "/x",
) -> Exchange:
    """Send one request through the boundary; a `body` that runs out without a last part never ends."""
    result = Exchange()
    pieces = list(body)
    arriving = iter([{"type": "http.request", "body": piece, "more_body": True} for piece in pieces])
    if not pieces or pieces[-1] == b"":
        arriving = iter([*list(arriving)[:-1], {"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Message:
        return next(arriving, None) or await asyncio.Future[Message]()

    async def send(message: Message) -> None:
        result.messages.append(message)

    boundary = RequestBoundary(
        app,
        limits=limits or HttpLimits(),
        on_done=lambda _scope, status, _seconds: result.done.append(status),
        access_log=True,
    )
    headers = list(headers)
    if any(pieces) and b"content-length" not in dict(headers):
        headers.append((b"transfer-encoding", b"chunked"))
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"key=secret", "headers": headers}
    await boundary(scope, receive, send)
    return result


async def drain(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the whole body, then answer."""
    while (await receive()).get("more_body", False):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["state"]["request_id"].encode()})


async def untouched(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise AssertionError("the application was called")


def failing(error: Exception) -> ASGIApp:
    async def fail(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise error

    return fail


@pytest.mark.parametrize("given", ["a", "req-1.2:3_x", "A" * 128])
async def test_a_sane_request_id_is_echoed(given: str) -> None:
    result = await exchange(drain, headers=[(b"x-request-id", given.encode())])
    assert result.headers["x-request-id"] == given
    assert result.messages[1]["body"].decode() == given


@pytest.mark.parametrize("given", [b"", b" ", b"a b", b"A" * 129, b"\xe9", b"x\r\ny: z", b"<script>", b'"'])
async def test_any_other_request_id_is_replaced(given: bytes) -> None:
    result = await exchange(drain, headers=[(b"x-request-id", given)])
    assert re.fullmatch("[0-9a-f]{32}", result.headers["x-request-id"])


async def test_a_request_id_is_made_up_where_there_is_none_and_never_twice_the_same() -> None:
    ids = {(await exchange(drain)).headers["x-request-id"] for _ in range(50)}
    assert len(ids) == 50


async def test_the_request_id_is_known_to_log_lines_inside_and_forgotten_outside() -> None:
    seen = []

    async def note(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(current_request_id.get())
        await drain(scope, receive, send)

    await exchange(note, headers=[(b"x-request-id", b"mine")])
    assert seen == ["mine"]
    assert current_request_id.get() is None


async def test_an_applications_own_request_id_header_does_not_win() -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-request-id", b"other")]})
        await send({"type": "http.response.body", "body": b""})

    result = await exchange(app, headers=[(b"x-request-id", b"mine")])
    assert result.headers["x-request-id"] == "mine"


@pytest.mark.parametrize(
    "headers",
    [
        [(b"x-%d" % number, b"") for number in range(65)],
        [(b"x", b"y" * 16 * 1024)],
        [(b"x" * 16 * 1024, b"y")],
    ],
    ids=["many", "long value", "long name"],
)
async def test_too_many_or_too_large_headers_are_refused(headers: list[Header]) -> None:
    result = await exchange(untouched, headers=headers)
    assert (result.status, result.error["code"]) == (413, "headers_too_large")


async def test_headers_at_the_bounds_pass() -> None:
    limits = HttpLimits(max_header_bytes=64, max_headers=2)
    result = await exchange(drain, headers=[(b"a", b"x" * 31), (b"b", b"x" * 31)], limits=limits)
    assert result.status == 200


@pytest.mark.parametrize("host", [b"", b"a b", b"a/b", b"a@b", b"a\x00", b"h" * 256, b"\xe9.example"])
async def test_a_bad_host_is_refused(host: bytes) -> None:
    result = await exchange(untouched, headers=[(b"host", host)])
    assert (result.status, result.error["code"]) == (400, "bad_host")


async def test_a_doubled_host_is_refused_even_if_both_agree() -> None:
    result = await exchange(untouched, headers=[(b"host", b"a"), (b"host", b"a")])
    assert (result.status, result.error["code"]) == (400, "bad_host")


@pytest.mark.parametrize("host", [b"localhost", b"127.0.0.1:8000", b"[::1]:8000", b"llm-0.llm.ns_x.svc"])
async def test_a_plain_host_passes(host: bytes) -> None:
    assert (await exchange(drain, headers=[(b"host", host)])).status == 200


@pytest.mark.parametrize("length", [b"11", b"9" * 19, b"9" * 5000])
async def test_a_body_that_announces_too_much_is_refused_unread(length: bytes) -> None:
    limits = HttpLimits(max_body_bytes=10)
    result = await exchange(untouched, headers=[(b"content-length", length)], body=[b"x"], limits=limits)
    assert (result.status, result.headers["connection"]) == (413, "close")


async def test_a_body_that_grows_too_large_is_refused_where_it_does() -> None:
    limits = HttpLimits(max_body_bytes=10)
    result = await exchange(drain, body=[b"12345", b"67890", b"1"], limits=limits)
    assert (result.status, result.headers["connection"]) == (413, "close")


@pytest.mark.parametrize("length", [[], [(b"content-length", b"10")], [(b"content-length", b"\xb2")]])
async def test_a_body_of_exactly_the_bound_passes(length: list[Header]) -> None:
    limits = HttpLimits(max_body_bytes=10)
    assert (await exchange(drain, headers=length, body=[b"12345", b"67890", b""], limits=limits)).status == 200


@pytest.mark.parametrize("body", [[b"12345"], [b"1", b"2"]])
async def test_a_body_that_does_not_end_in_time_is_refused(body: list[bytes]) -> None:
    limits = HttpLimits(body_timeout_seconds=0.01)
    result = await exchange(drain, body=body, limits=limits)
    assert (result.status, result.error["code"], result.headers["connection"]) == (408, "request_timeout", "close")


async def test_an_answer_that_comes_before_the_body_is_there_closes_the_connection() -> None:
    async def hasty(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    announced = await exchange(hasty, headers=[(b"content-length", b"5")], body=[b"12345"])
    chunked = await exchange(hasty, body=[b"12345"])
    bodiless = await exchange(hasty)
    assert announced.headers.get("connection") == chunked.headers.get("connection") == "close"
    assert "connection" not in bodiless.headers


async def test_a_defect_becomes_a_plain_500_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    result = await exchange(failing(ZeroDivisionError("secret /etc/path")))
    assert result.status == 500
    assert result.error == {
        "message": "internal error",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }
    assert result.headers["x-request-id"]
    assert [record.message for record in caplog.records if record.exc_info] == ["request_failed"]


async def test_an_error_of_ours_that_gets_this_far_still_has_its_status() -> None:
    result = await exchange(failing(ModelLoading("soon", retry_after_seconds=3)))
    assert (result.status, result.headers["retry-after"]) == (503, "3")


async def test_a_failure_after_the_headers_is_passed_to_the_server_so_that_it_cuts_the_connection() -> None:
    async def half(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError

    with pytest.raises(Exception, match="internal error"):
        await exchange(half)


async def test_a_client_that_left_is_no_defect_and_gets_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    result = await exchange(failing(ClientGone()))
    assert (result.messages, result.done) == ([], [499])
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("app", "status"), [(drain, 200), (failing(ModelLoading("soon")), 503), (failing(ValueError()), 500)]
)
async def test_every_request_is_counted_once_with_its_status(app: ASGIApp, status: int) -> None:
    assert (await exchange(app)).done == [status]


async def test_the_access_log_has_no_query_and_bounds_the_path(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headrace_server.access")
    await exchange(drain, headers=[(b"authorization", b"Bearer secret")], path="/" + "p" * 5000)
    (record,) = [record for record in caplog.records if record.name == "headrace_server.access"]
    assert (record.message, vars(record)["status"], len(vars(record)["path"])) == ("request_done", 200, 200)
    assert "secret" not in str(vars(record))


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
async def test_what_is_not_http_passes_untouched(kind: str) -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope)

    async def never() -> Message:
        raise AssertionError

    async def ignore(_message: Message) -> None:
        raise AssertionError

    done: Callable[[Scope, int, float], None] = lambda *_: None  # noqa: E731
    await RequestBoundary(app, limits=HttpLimits(), on_done=done, access_log=True)({"type": kind}, never, ignore)
    assert seen == [{"type": kind}]
