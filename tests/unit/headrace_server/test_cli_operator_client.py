"""How a command finds the server that is meant, and what it makes of what that says."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from headrace_server.cli.control_socket import control_listener, control_path
from headrace_server.cli.operator_client import Operator, Whereabouts, find_socket, open_operator
from headrace_server.errors import HeadraceError, UsageError
from headrace_server.settings.schema import ServerSettings
from tests.fakes.engine import FakeEngine
from tests.fakes.server import MODEL, build_stage, in_process

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def state_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hs-") as folder:
        yield Path(folder)


def found(state_dir: Path, *live: int, port: int | None = None) -> str:
    """The name of the socket that is taken where servers run on these ports and 8000 is configured."""
    with ExitStack() as servers:
        for number in live:
            servers.enter_context(control_listener(state_dir, number))
        return find_socket(ServerSettings(state_dir=state_dir), port).name


def test_the_configured_port_comes_first(state_dir: Path) -> None:
    assert found(state_dir, 8000, 9000) == "control-8000.sock"


def test_the_only_one_that_lives_is_taken_where_no_port_was_asked_for(state_dir: Path) -> None:
    assert found(state_dir, 9000) == "control-9000.sock"


def test_a_port_that_was_asked_for_is_never_replaced(state_dir: Path) -> None:
    assert found(state_dir, 8000, 9000, port=9000) == "control-9000.sock"
    with pytest.raises(HeadraceError, match=r"control-9001\.sock.*servers run on 9000 "):
        found(state_dir, 9000, port=9001)


def test_among_several_none_is_guessed(state_dir: Path) -> None:
    with pytest.raises(HeadraceError, match=r"control-8000\.sock; servers run on 9000, 9001 \(--port\)"):
        found(state_dir, 9000, 9001)


def test_where_nobody_listens_the_path_is_named(state_dir: Path) -> None:
    with pytest.raises(HeadraceError, match=str(control_path(state_dir, 8000))) as raised:
        found(state_dir)
    assert not isinstance(raised.value, UsageError)


@pytest.mark.parametrize("name", ["file", "absent", "x" * 120])
def test_a_state_directory_that_is_none_is_named(state_dir: Path, name: str) -> None:
    (state_dir / "file").touch()
    with pytest.raises(HeadraceError, match="control-8000.sock"):
        found(state_dir / name)


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://h", "http://", "http://h:port", "http://[::1"])
async def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="--url"):
        async with open_operator(Whereabouts(url=url)):
            raise AssertionError("it was taken")


async def test_a_key_that_no_header_can_carry_is_refused() -> None:
    with pytest.raises(UsageError, match="HEADRACE_API_KEY") as raised:
        async with open_operator(Whereabouts(url="http://127.0.0.1:1", key="secrét\n")):
            raise AssertionError("it was taken")
    assert "secr" not in str(raised.value)


async def test_a_server_that_cannot_be_reached_is_one_line() -> None:
    async with open_operator(Whereabouts(url="http://127.0.0.1:1/v1/")) as operator:
        with pytest.raises(HeadraceError, match="http://127.0.0.1:1/v1/ cannot be reached"):
            await operator.models()
        with pytest.raises(HeadraceError, match="cannot be reached"):
            await anext(operator.events())


def answering(answer: Callable[[httpx.Request], httpx.Response]) -> Operator:
    """Speaks to a server that answers so."""
    return Operator(httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://h"), "there")


@pytest.mark.parametrize("content", [b"", b"{}", b"<html>", b'{"models": 5}'])
async def test_a_server_of_another_kind_is_told_apart(content: bytes) -> None:
    operator = answering(lambda _request: httpx.Response(200, content=content))
    with pytest.raises(HeadraceError, match="there does not answer as a server of this version does"):
        await operator.models()


@pytest.mark.parametrize(
    ("content", "said"),
    [(b'{"error": {"message": "no"}}', "no"), (b"<html>", "the server answered 503"), (b"[]", "answered 503")],
)
async def test_a_refusal_is_told_in_the_servers_words(content: bytes, said: str) -> None:
    operator = answering(lambda _request: httpx.Response(503, content=content))
    with pytest.raises(HeadraceError, match=said):
        await operator.drain(None)


@pytest.mark.parametrize("name", ["org/m:v1@x", "a?b", "a#b", "a b", "../x", "ü", "a%2Fb"])
async def test_a_models_name_arrives_as_it_was_given(name: str) -> None:
    paths: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.path.encode())
        return httpx.Response(404, json={"error": {"message": "no such model"}})

    with pytest.raises(HeadraceError, match="no such model"):
        await answering(answer).act(name, "load")
    assert paths == [f"/admin/models/{name}/load".encode()]


async def test_it_understands_the_server() -> None:
    async with in_process(build_stage(FakeEngine(), load=False)) as client:
        operator = Operator(client, "there")
        (model,) = (await operator.models()).models
        assert (model.id, model.state.value) == (MODEL, "cold")
        assert (await operator.act(MODEL, "load")).state.value == "ready"
        assert (await operator.act(MODEL, "pin")).pinned
        assert not (await operator.drain_status()).draining
        assert await operator.drain(0.0) == 0
        assert (await operator.drain_status()).draining
