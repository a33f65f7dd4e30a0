"""From a reference to tensors: a real child process fetches from a web server in this one."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from headrace_models.errors import FetchFailed, InvalidReference, ModelError, ModelNotFound
from headrace_models.fetch.events import Completed, Failed, FetchEvent, Indexed, Noted, Started
from headrace_models.fetch.request import FetchRequest
from headrace_models.reading.open_model import _error_of, open_model, open_request
from headrace_models.safetensors_header import read_header
from headrace_models.store.model_store import ModelStore
from headrace_models.trust import Trust
from tests.fakes.artifacts import Form, layers_of, push
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.origin_http import Ask, OriginHttp, Reply, origin_http, serve
from tests.fakes.registry import running_registry

SHARD = "model.safetensors"
TENSOR = "model.layers.2.mlp.up_proj.weight"


@dataclass
class Origin:
    """A model on a web server, and its files here."""

    server: OriginHttp
    directory: Path

    @property
    def reference(self) -> str:
        return f"{self.server.url}/"

    @property
    def weight_bytes(self) -> int:
        """How many bytes of the shard were asked for."""
        total = 0
        for ask in self.server.asked:
            if ask.path == f"/{SHARD}":
                begin, _, last = ask.headers["range"].removeprefix("bytes=").partition("-")
                total += int(last) - int(begin) + 1
        return total

    def tensor(self, name: str) -> bytes:
        content = (self.directory / SHARD).read_bytes()
        entry = read_header(self.directory / SHARD)[name]
        data_begin = 8 + int.from_bytes(content[:8], "little")
        return content[data_begin + entry.begin : data_begin + entry.end]

    @property
    def names(self) -> set[str]:
        return set(read_header(self.directory / SHARD))


@contextmanager
def origin_of(directory: Path) -> Iterator[Origin]:
    files = {f"/{path.name}": path.read_bytes() for path in directory.iterdir()}
    with origin_http(serve(files, etags={f"/{SHARD}": '"1"'})) as server:
        yield Origin(server, directory)


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[Origin]:
    """A model of four layers in one shard of 3.6 MB."""
    write_checkpoint(tmp_path / "origin")
    with origin_of(tmp_path / "origin") as served:
        yield served


def test_what_is_read_is_fetched_and_no_more(origin: Origin, tmp_path: Path) -> None:
    with open_model(origin.reference, tmp_path / "cache") as model:
        indexed_at = origin.weight_bytes
        assert (model.skeleton / "config.json").is_file()
        data = model.tensor(TENSOR).data
        assert bytes(data) == origin.tensor(TENSOR)
        assert origin.weight_bytes - indexed_at == len(data)
        present = {name: present for name, present, _total in model.stored.status().present_by_group}
        assert present["embedding"] == present["layer.1"] == 0


def test_a_shard_is_a_file(origin: Origin, tmp_path: Path) -> None:
    content = (origin.directory / SHARD).read_bytes()
    with open_model(origin.reference, tmp_path / "cache") as model:
        with model.open(SHARD) as shard:
            shard.seek(-100, os.SEEK_END)
            assert shard.read() == content[-100:]
        with pytest.raises(KeyError):
            model.open("config.json")


def test_a_whole_model_is_fetched_once(origin: Origin, tmp_path: Path) -> None:
    for _ in range(2):
        with open_model(origin.reference, tmp_path / "cache", on_demand=False) as model:
            found = {tensor.name: bytes(tensor.data) for tensor in model.tensors()}
        assert found == {name: origin.tensor(name) for name in origin.names}
        assert origin.weight_bytes <= (origin.directory / SHARD).stat().st_size + (256 << 10)  # the guessed headers


def test_a_whole_model_can_be_read_on_demand(origin: Origin, tmp_path: Path) -> None:
    with open_model(origin.reference, tmp_path / "cache") as model:
        assert {tensor.name for tensor in model.tensors()} == origin.names


def test_a_whole_model_that_is_read_on_demand_ends_proven(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "origin")
    with running_registry() as registry:
        push(registry.address, "org/model", layers_of(tmp_path / "origin", Form.MODELPACK_RAW))
        with open_model(f"oci://{registry.address}/org/model", tmp_path / "cache") as model:
            assert model.index.trust is Trust.FILE
            assert len(list(model.tensors())) == len(model.index.tensors)
            assert model.stored.status().proven


def test_a_group_is_fetched_by_itself(origin: Origin, tmp_path: Path) -> None:
    with open_model(origin.reference, tmp_path / "cache") as model:
        names = [tensor.name for tensor in model.group("layer.1")]
        model.release_group("layer.1")
        assert len(names) == 9
        present = {name: present for name, present, _total in model.stored.status().present_by_group}
        assert present["layer.1"] > 0
        assert present["layer.0"] == present["layer.2"] == 0


def test_events_are_told_in_their_order(origin: Origin, tmp_path: Path) -> None:
    events: list[FetchEvent] = []
    with open_model(origin.reference, tmp_path / "cache", on_demand=False, on_event=events.append) as model:
        list(model.tensors())
    kinds = [type(event) for event in events]
    assert kinds[0] is Started
    assert kinds.count(Indexed) == 1
    assert not {Failed} & set(kinds)


def test_a_local_directory_needs_no_fetch(origin: Origin, tmp_path: Path) -> None:
    events: list[FetchEvent] = []
    with open_model(str(origin.directory), tmp_path / "cache", on_event=events.append) as model:
        assert bytes(model.tensor(TENSOR).data) == origin.tensor(TENSOR)
    assert origin.server.asked == []
    assert {type(event) for event in events} >= {Indexed}


@pytest.mark.parametrize(("path", "kind"), [("nothing/", ModelNotFound), ("model.safetensors", InvalidReference)])
def test_a_model_that_cannot_be_opened_says_why(
    origin: Origin, tmp_path: Path, path: str, kind: type[ModelError]
) -> None:
    with pytest.raises(kind), open_model(origin.reference + path, tmp_path / "cache"):
        raise AssertionError("it was opened")


def test_weights_that_are_refused_are_told_to_the_reader(origin: Origin, tmp_path: Path) -> None:
    with open_model(origin.reference, tmp_path / "cache") as model:
        origin.server.answer = forbidden
        with pytest.raises(FetchFailed, match="403"):
            model.tensor(TENSOR)


def forbidden(ask: Ask) -> Reply:
    return Reply(403, b"no")


def test_a_child_that_is_killed_is_started_again(origin: Origin, tmp_path: Path) -> None:
    events: list[FetchEvent] = []
    with open_model(origin.reference, tmp_path / "cache", on_event=events.append) as model:
        first = next(event for event in events if isinstance(event, Started))
        os.kill(first.pid, signal.SIGKILL)
        assert bytes(model.tensor(TENSOR).data) == origin.tensor(TENSOR)
    assert any(isinstance(event, Noted) for event in events)
    assert len({event.pid for event in events if isinstance(event, Started)}) == 2


def test_an_error_of_the_reader_ends_everything(origin: Origin, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), open_model(origin.reference, tmp_path / "cache"):
        raise ZeroDivisionError
    (stored,) = ModelStore(tmp_path / "cache").models()
    assert not stored.status().leased
    assert not stored.status().fetching


def test_everything_that_a_fetch_can_be_asked_for(origin: Origin, tmp_path: Path) -> None:
    request = FetchRequest(origin.reference, tmp_path / "cache", groups=("layer.3",))
    events: list[FetchEvent] = []
    with open_request(request, on_event=events.append) as model:
        names = {tensor.name for tensor in model.tensors(groups=frozenset({"layer.3"}))}
    assert len(names) == 9
    assert not any(isinstance(event, Completed) and event.fetched_bytes > 2 << 20 for event in events)


@pytest.mark.parametrize(
    ("kind", "error"), [("SourceDenied", "SourceDenied"), ("Sha256", "FetchFailed"), ("nonsense", "FetchFailed")]
)
def test_failures_have_the_class_that_they_name(kind: str, error: str) -> None:
    found = _error_of(Failed(kind, "why"))
    assert (type(found).__name__, str(found)) == (error, "why")
