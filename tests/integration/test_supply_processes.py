"""A supply with real fetching processes, a real store and a real origin: kills, a full cache, one before the other."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from headrace_models.fetch.client import FetchProcess
from headrace_models.fetch.request import FetchRequest
from headrace_models.store.model_store import ModelStore
from headrace_models.store.store_status import StoreStatus
from headrace_server.domain import ModelId, WeightsStatus
from headrace_server.engine.delivery import Order
from headrace_server.engine.model_supply import ModelSupply
from headrace_server.errors import EngineFault
from loadtests.origin.faults import Faults, Stall, When
from loadtests.origin.link import Link
from loadtests.origin.server import Origin, running_origin
from tests.fakes.checkpoints import write_checkpoint

pytestmark = pytest.mark.timeout(90)

MIB = 1 << 20
A, B = ModelId("a"), ModelId("b")
WEIGHTS_OF_A = When(path="*/a/*.safetensors", first=5)  # after sizes and headers of its two shards


class Changes:
    """Waits until something holds of a model."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self.processes: list[FetchProcess] = []

    def __call__(self, _model: ModelId) -> None:
        self._changed.set()

    def open_fetch(self, request: FetchRequest) -> FetchProcess:
        self.processes.append(FetchProcess(request))
        return self.processes[-1]

    async def until(self, supply: ModelSupply, model: ModelId, holds: Callable[[WeightsStatus], bool]) -> WeightsStatus:
        while (weights := supply.weights(model)) is None or not holds(weights):
            self._changed.clear()
            await self._changed.wait()
        return weights


def is_complete(weights: WeightsStatus) -> bool:
    return weights.is_complete


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in "ab":
        write_checkpoint(folder / name, num_layers=12, hidden=320, shards=2, tied=False)
    return {name: folder / name for name in "ab"}


@pytest.fixture
def origin(checkpoints: dict[str, Path]) -> Iterator[Origin]:
    with running_origin(checkpoints, link=Link(bytes_per_second=20 * MIB, latency_seconds=0.005)) as origin:
        yield origin


@asynccontextmanager
async def supplying(
    origin: Origin, cache_dir: Path, changes: Changes, max_bytes: int | None = None
) -> AsyncIterator[ModelSupply]:
    requests = {
        name: FetchRequest(f"{origin.url}/files/{name}/", cache_dir, max_bytes=max_bytes, stall_seconds=2.0)
        for name in (A, B)
    }
    orders = [Order(name, request) for name, request in requests.items()]
    supply = ModelSupply(orders, on_change=changes, open_fetch=changes.open_fetch)
    running = asyncio.create_task(supply.run())
    try:
        yield supply
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        supply.close()
    assert not any(status.leased or status.fetching for status in stored(cache_dir).values())


def stored(cache_dir: Path) -> dict[str, StoreStatus]:
    return {model.reference.rstrip("/")[-1]: model.status() for model in ModelStore(cache_dir).models()}


async def kill_until_it_fails(process: FetchProcess, failed: "asyncio.Task[str]") -> None:
    """A killed one is started again, some times."""
    while not failed.done():
        if (pid := process.pid) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.02)


async def test_a_fetch_whose_process_is_killed_fails_and_the_next_one_fetches_what_is_missing(
    origin: Origin, tmp_path: Path
) -> None:
    changes = Changes()
    async with supplying(origin, tmp_path, changes) as supply:
        opened = await supply.open(A)
        await changes.until(supply, A, lambda weights: weights.present_bytes > weights.total_bytes // 3)
        failed = asyncio.create_task(opened.failed())
        await kill_until_it_fails(changes.processes[0], failed)
        assert "ended 5 times" in await failed
        assert supply.failure(A) == await failed
        opened.close()
        left, before = stored(tmp_path)["a"], supply.weights(A)
        assert before is not None
        assert not left.complete

        await supply.open(A)
        assert supply.failure(A) is None
        weights = await changes.until(supply, A, is_complete)
        assert len(changes.processes) == 2
        assert left.present_bytes > weights.total_bytes // 3
        assert 0 < weights.fetched_bytes - before.fetched_bytes <= weights.total_bytes - left.present_bytes
    assert stored(tmp_path)["a"].sealed


async def test_an_ordered_model_makes_way_for_a_wanted_one_and_comes_after_it(origin: Origin, tmp_path: Path) -> None:
    origin.set_faults(Faults((Stall(when=WEIGHTS_OF_A, seconds=600),)))
    changes = Changes()
    async with supplying(origin, tmp_path, changes) as supply:
        supply.order(A)
        await changes.until(supply, A, lambda weights: bool(weights.key))
        await supply.open(B)
        origin.set_faults(Faults())
        await changes.until(supply, B, is_complete)
        await changes.until(supply, A, is_complete)
        assert (supply.failure(A), len(changes.processes)) == (None, 3)
        status = stored(tmp_path)
        assert (status["a"].leased, status["b"].leased) == (False, True)


async def test_a_model_may_be_evicted_unless_it_is_open_and_comes_again(
    origin: Origin, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    changes = Changes()
    size = sum(path.stat().st_size for path in checkpoints["a"].glob("*.safetensors"))
    async with supplying(origin, tmp_path, changes, max_bytes=size * 3 // 2) as supply:
        first = await supply.open(A)
        await changes.until(supply, A, is_complete)
        with pytest.raises(EngineFault, match="model cache may take"):
            await brought(supply, B)
        first.close()
        second = await supply.open(B)
        await changes.until(supply, B, is_complete)
        assert not stored(tmp_path)["a"].complete
        second.close()
        await supply.open(A)
        assert supply.failure(A) is None
        await changes.until(supply, A, is_complete)
        assert len(changes.processes) == 4


async def test_a_model_that_is_in_the_cache_opens_without_a_process(origin: Origin, tmp_path: Path) -> None:
    changes = Changes()
    async with supplying(origin, tmp_path, changes) as supply:
        (await supply.open(A)).close()
        await changes.until(supply, A, is_complete)
        opened = await supply.open(A)
        assert opened.supplied.skeleton.is_dir()
        assert len(changes.processes) == 1


async def brought(supply: ModelSupply, model: ModelId) -> None:
    """Raises EngineFault where its weights do not come, sooner or later."""
    opened = await supply.open(model)
    try:
        raise EngineFault(await opened.failed())
    finally:
        opened.close()
