"""The runtime with real fetching processes, a real store and a real origin; only the engines are fakes."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from headrace_models.store.model_store import ModelStore
from headrace_models.store.store_status import StoreStatus
from headrace_models.trust import Trust
from headrace_server import runtime as runtime_module
from headrace_server.app import create_app
from headrace_server.domain import ModelId, ModelState, ModelStatus
from headrace_server.engine.base import Engine, EngineSpec, StoredWeights
from headrace_server.errors import EngineFault
from headrace_server.runtime import Progress, Reporting, Runtime, open_runtime, plan_runtime
from headrace_server.settings.schema import Settings
from loadtests.origin.faults import Faults, Stall, Status, When
from loadtests.origin.server import Origin, running_origin
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.engine import FakeEngine
from tests.fakes.server import serve_app

pytestmark = pytest.mark.timeout(60)

A, B = ModelId("a"), ModelId("b")
WEIGHTS = When(path="*/a/*.safetensors", first=3)  # after its size and its header


class Engines:
    """What the runtime builds in place of vLLM."""

    def __init__(self) -> None:
        self.by_model = {A: FakeEngine(max_model_len=1), B: FakeEngine(max_model_len=2)}
        self.specs: list[EngineSpec] = []

    def build(self, spec: EngineSpec) -> Engine:
        """In place of `build_engine`."""
        logging.getLogger("headrace_server.tests").info("engine_built", extra={"model": spec.model})
        self.specs.append(spec)
        return self.by_model[spec.model]


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    engines = Engines()
    monkeypatch.setattr(runtime_module, "build_engine", engines.build)
    monkeypatch.setattr(runtime_module, "preload_engine", lambda _kind, _scratch: None)
    return engines


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in "ab":
        write_checkpoint(folder / name, num_layers=2)
    return {name: folder / name for name in "ab"}


@pytest.fixture
def origin(checkpoints: dict[str, Path]) -> Iterator[Origin]:
    with running_origin(checkpoints) as origin:
        yield origin


def settings_of(origin: Origin, cache_dir: Path) -> Settings:
    models = [{"id": name, "source": f"{origin.url}/files/{name}/"} for name in "ab"]
    return Settings.model_validate({"cache": {"dir": str(cache_dir)}, "models": models})


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Runtime]:
    async with open_runtime(plan_runtime(settings), Reporting(), Progress()) as runtime:
        yield runtime


async def until(runtime: Runtime, model: ModelId, holds: Callable[[ModelStatus], object]) -> ModelStatus:
    """The first status of a model for which something holds."""
    listener = runtime.feed.listen(runtime.pool.statuses())
    try:
        while (changes := await listener.next()) is not None:
            for status in changes:
                if status.id == model and holds(status):
                    return status
    finally:
        listener.close()
    raise AssertionError("the feed ended")


def is_complete(status: ModelStatus) -> bool:
    return status.weights is not None and status.weights.is_complete


def has_ended(status: ModelStatus) -> bool:
    return status.state in (ModelState.READY, ModelState.FAILED)


def stored(cache_dir: Path) -> list[StoreStatus]:
    return [model.status() for model in ModelStore(cache_dir).models()]


async def test_models_are_fetched_and_engines_get_skeleton_and_store(
    origin: Origin, engines: Engines, tmp_path: Path
) -> None:
    async with opened(settings_of(origin, tmp_path / "cache")) as runtime:
        for model in (A, B):
            assert (await until(runtime, model, has_ended)).state is ModelState.READY
            weights = (await until(runtime, model, is_complete)).weights
            assert weights is not None
            assert weights.trust is Trust.NONE
            assert weights.present_bytes == weights.total_bytes
            assert 0 < weights.fetched_bytes < weights.total_bytes  # the headers were read before
            assert [group.name for group in weights.groups] == ["headers", "embedding", "layer.0", "layer.1", "head"]
            assert all(group.present_bytes == group.total_bytes for group in weights.groups)
        for spec in engines.specs:
            assert isinstance(spec.store, StoredWeights)
            assert spec.directory == tmp_path / "cache/models" / spec.store.key / "skeleton"
            assert (spec.directory / "config.json").is_file()
        assert [status.leased for status in stored(tmp_path / "cache")] == [True, True]
    assert [status.leased for status in stored(tmp_path / "cache")] == [False, False]


async def test_what_an_engine_reads_stays_leased_until_the_engine_has_ended(
    origin: Origin, engines: Engines, tmp_path: Path
) -> None:
    class Reading(FakeEngine):
        leased_at_the_end: tuple[bool, ...] = ()

        async def close(self) -> None:
            self.leased_at_the_end = tuple(status.leased for status in stored(tmp_path))
            await super().close()

    engines.by_model[B] = engine = Reading()
    async with opened(settings_of(origin, tmp_path)) as runtime:
        await until(runtime, B, has_ended)
    assert engine.leased_at_the_end == (True, True)


async def test_the_fetch_has_started_before_any_engine_is_built(
    origin: Origin, engines: Engines, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with opened(settings_of(origin, tmp_path)) as runtime:
        await until(runtime, B, has_ended)
    events = [(record.message, vars(record).get("model")) for record in caplog.records]
    for model in (A, B):
        assert events.index(("fetch_started", model)) < events.index(("fetch_indexed", model))
        assert events.index(("fetch_indexed", model)) < events.index(("engine_built", model))
    started = next(record for record in caplog.records if record.message == "fetch_started")
    assert vars(started)["reference"] == f"{origin.url}/files/a/"
    assert isinstance(vars(started)["pid"], int)


async def test_the_next_fetch_does_not_wait_for_the_engine_before_it(
    origin: Origin, engines: Engines, tmp_path: Path
) -> None:
    gate = engines.by_model[A].start_gate = asyncio.Event()
    async with opened(settings_of(origin, tmp_path)) as runtime:
        await until(runtime, B, is_complete)
        assert runtime.pool.status(A).state is ModelState.LOADING
        gate.set()
        assert (await until(runtime, A, has_ended)).state is ModelState.READY


async def test_an_engine_starts_while_its_weights_are_on_their_way(
    origin: Origin, engines: Engines, tmp_path: Path
) -> None:
    origin.set_faults(Faults((Stall(when=WEIGHTS, seconds=600),)))
    async with opened(settings_of(origin, tmp_path)) as runtime:
        status = await until(runtime, A, has_ended)
        assert status.state is ModelState.READY
        assert status.weights is not None
        assert not status.weights.is_complete
        assert runtime.pool.status(B).state is not ModelState.READY


async def test_the_server_can_end_in_the_middle_of_a_fetch_and_goes_on_with_it_next_time(
    origin: Origin, engines: Engines, tmp_path: Path
) -> None:
    origin.set_faults(Faults((Stall(when=WEIGHTS, seconds=600),)))
    async with opened(settings_of(origin, tmp_path)) as runtime:
        await until(runtime, A, lambda status: status.weights)
    (left,) = stored(tmp_path)
    assert (left.fetching, left.leased, left.complete) == (False, False, False)
    origin.set_faults(Faults())
    async with opened(settings_of(origin, tmp_path)) as runtime:
        await until(runtime, A, is_complete)


async def test_a_source_that_refuses_fails_its_model_with_one_line_and_the_next_one_starts(
    origin: Origin, engines: Engines, tmp_path: Path
) -> None:
    origin.set_faults(Faults((Status(when=When(path="*/a/*"), status=403),)))
    async with opened(settings_of(origin, tmp_path)) as runtime:
        status = await until(runtime, A, has_ended)
        assert status.state is ModelState.FAILED
        assert "403" in status.detail
        assert "\n" not in status.detail
        assert (await until(runtime, B, has_ended)).state is ModelState.READY


async def test_an_engine_that_fails_for_want_of_weights_fails_with_what_became_of_the_fetch(
    origin: Origin, engines: Engines, tmp_path: Path
) -> None:
    origin.set_faults(Faults((Status(when=WEIGHTS, status=403),)))
    gate = engines.by_model[A].start_gate = asyncio.Event()
    engines.by_model[A].start_error = EngineFault("the engine did not start: see root cause above")
    async with opened(settings_of(origin, tmp_path)) as runtime:
        await until(runtime, A, lambda status: status.weights and status.weights.problem)
        gate.set()
        status = await until(runtime, A, has_ended)
        assert status.state is ModelState.FAILED
        assert "403" in status.detail


async def test_trust_that_cannot_be_had_fails_the_model(origin: Origin, engines: Engines, tmp_path: Path) -> None:
    model = {"id": "a", "source": f"{origin.url}/files/a/", "require_trust": "file"}
    settings = Settings.model_validate({"cache": {"dir": str(tmp_path)}, "models": [model]})
    async with opened(settings) as runtime:
        status = await until(runtime, A, has_ended)
    assert status.state is ModelState.FAILED
    assert "'file' is asked for" in status.detail


async def test_operators_see_the_weights_and_the_cache_over_http(
    origin: Origin, engines: Engines, tmp_path: Path
) -> None:
    settings = settings_of(origin, tmp_path)
    async with opened(settings) as runtime:
        await until(runtime, A, is_complete)
        await until(runtime, B, is_complete)
    only_b = settings.model_copy(update={"models": settings.models[1:]})
    async with (
        serve_app(create_app(lambda: opened(only_b))) as base_url,
        httpx.AsyncClient(base_url=base_url, trust_env=False) as client,
    ):
        states = []
        async with client.stream("GET", "/admin/events") as answer:
            async for line in answer.aiter_lines():
                states += [line] if '"state":"ready"' in line and '"complete":true' in line else []
                if states:
                    break
        document = (await client.get("/admin/models")).json()
    (model,) = document["models"]
    assert (model["id"], model["weights"]["complete"], model["weights"]["fetched_bytes"]) == ("b", True, 0)
    (other,) = document["cached"]
    assert (other["reference"], other["complete"]) == (f"{origin.url}/files/a/", True)
    assert other["allocated_bytes"] >= other["total_bytes"] == other["present_bytes"]
