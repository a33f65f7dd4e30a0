"""Settings → planned models → entries of the pool, with a supply in between."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from headrace_models.reference import Scheme
from headrace_models.trust import Trust
from headrace_server.catalog import (
    PlannedModel,
    Supplies,
    catalog_entries,
    fetch_request,
    model_settings_of,
    orders_of,
    plan_models,
    supplies_of,
    vllm_spec,
)
from headrace_server.domain import ModelId
from headrace_server.engine.base import StoredWeights
from headrace_server.engine.catalog_entry import CatalogEntry
from headrace_server.engine.machine_memory import MachineMemory
from headrace_server.engine.model_supply import ModelSupply
from headrace_server.errors import EngineFault, UsageError
from headrace_server.settings.schema import DEFAULT_MODEL, EngineSettings, Settings
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.fetching import FACTS, FakeFetches, FakeStore, completed, indexed

GIB = 1024**3
A_COMMIT = "hf://org/name@" + "0" * 40
REFERENCES = {
    Scheme.HF: "hf://org/name@v1",
    Scheme.OCI: "oci://registry.example/team/model:v1",
    Scheme.S3: "s3://bucket/models/m",
    Scheme.HTTPS: "https://models.example/m/",
    Scheme.HTTP: "http://models.example/m/",
}


def planned(*models: dict[str, Any], **sections: Any) -> tuple[PlannedModel, ...]:
    return plan_models(Settings.model_validate({"models": models, **sections}))


def vllm(source: str, **fields: Any) -> dict[str, Any]:
    return {"id": "m", "source": source, **fields}


class TestPlanning:
    """What can be said before anything runs."""

    @pytest.mark.parametrize("reference", REFERENCES.values(), ids=list(REFERENCES))
    def test_every_remote_reference_is_planned_without_asking_anyone(self, reference: str) -> None:
        (model,) = planned(vllm(reference))
        assert model.request is not None
        assert model.request.reference == model.source

    def test_what_is_fetched_is_what_the_settings_say(self, tmp_path: Path) -> None:
        cache = {
            "dir": str(tmp_path),
            "max_bytes": 1000,
            "max_connections": 3,
            "bytes_per_second": 77,
            "insecure_hosts": ["models.example:8080"],
        }
        (model,) = planned(vllm(A_COMMIT, require_trust="file"), cache=cache)
        request = model.request
        assert request is not None
        assert (request.reference, request.cache_dir, request.max_bytes) == (A_COMMIT, tmp_path, 1000)
        assert (request.max_connections, request.bytes_per_second) == (3, 77)
        assert (request.require_trust, request.insecure_hosts) == (Trust.FILE, ("models.example:8080",))

    def test_the_cache_directory_means_the_same_to_processes_that_stand_elsewhere(self) -> None:
        (home,) = planned(vllm(A_COMMIT), cache={"dir": "~/models"})
        (relative,) = planned(vllm(A_COMMIT), cache={"dir": "models"})
        assert home.request is not None
        assert relative.request is not None
        assert home.request.cache_dir == Path.home() / "models"
        assert relative.request.cache_dir == Path.cwd() / "models"

    def test_only_models_on_vllm_are_fetched_and_in_the_catalogs_order(self) -> None:
        models = planned(
            {"id": "words", "engine": "synthetic"},
            {"id": "b", "source": "hf://org/b"},
            {"id": "far", "engine": "upstream", "upstream": {"url": "http://127.0.0.1:1"}},
            {"id": "a", "source": "hf://org/a"},
        )
        assert [model.id for model in models] == ["words", "b", "far", "a"]
        assert [order.model for order in orders_of(models)] == ["b", "a"]

    def test_without_models_there_is_the_embedded_one(self) -> None:
        (model,) = planned()
        assert model.source == DEFAULT_MODEL

    @pytest.mark.parametrize("source", ["nope://x", "hf://a/b/c", "embedded:nobody", "s3://"])
    def test_a_reference_that_cannot_work_is_refused_at_once(self, source: str) -> None:
        with pytest.raises(UsageError, match="model"):
            planned(vllm(source))

    def test_so_is_a_directory_that_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
        with pytest.raises(UsageError, match="pickle"):
            planned(vllm(str(tmp_path)))

    def test_a_model_that_is_named_by_its_reference_has_a_short_name(self) -> None:
        model = model_settings_of("hf://org/Some-Model@v1")
        assert (model.id, model.source) == ("Some-Model", "hf://org/Some-Model@v1")
        assert model.aliases == ("hf://org/Some-Model@v1",)
        assert model_settings_of("https://models.example/my%20model/").aliases == ()

    def test_a_path_is_no_alias(self, tmp_path: Path) -> None:
        model = model_settings_of(str(tmp_path))
        assert model.aliases == ()
        assert model.source == tmp_path.as_uri()


class TestEntries:
    """What the pool gets."""

    @staticmethod
    @asynccontextmanager
    async def supplied(model: PlannedModel, fetches: FakeFetches, store: FakeStore) -> AsyncIterator[CatalogEntry]:
        supply = ModelSupply(orders_of([model]), open_fetch=fetches.open, open_model=store.open)
        (entry,) = entries([model], Supplies(ModelSupply([]), supply))
        running = asyncio.create_task(supply.run())
        yield entry
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        supply.close()

    @pytest.mark.timeout(20)
    async def test_a_supplied_model_is_loaded_from_the_store_with_the_skeleton_as_its_directory(
        self, tmp_path: Path
    ) -> None:
        arguments = {"max_model_len": 9, "cpus": "0-3", "kv_cache_memory_bytes": 5 * GIB}
        (model,) = planned(vllm(A_COMMIT, aliases=["x"], arguments=arguments), cache={"dir": str(tmp_path)})
        fetches, store = FakeFetches(A_COMMIT), FakeStore()
        fetches[A_COMMIT].tell(indexed("name-0123456789ab"), completed("name-0123456789ab"))
        fetches[A_COMMIT].end()
        async with self.supplied(model, fetches, store) as entry:
            assert entry.weights() is None
            prepared = await entry.prepare()
            spec = prepared.spec
            assert spec.directory == tmp_path / "models/name-0123456789ab/skeleton"
            assert spec.store == StoredWeights(tmp_path, "name-0123456789ab")
            assert spec.compile_cache == tmp_path / "compiled/name-0123456789ab"
            assert (spec.aliases, spec.cpus) == ((ModelId("x"),), "0-3")
            assert spec.arguments == {"max_model_len": 9, "kv_cache_memory_bytes": 5 * GIB}
            assert 5 * GIB < prepared.memory_bytes - FACTS.weight_bytes < 7 * GIB
            prepared.close()

    @pytest.mark.timeout(20)
    async def test_a_fetch_that_fails_is_told_to_whoever_prepares(self) -> None:
        (model,) = planned(vllm(A_COMMIT))
        fetches = FakeFetches(A_COMMIT)
        fetches[A_COMMIT].end()
        async with self.supplied(model, fetches, FakeStore()) as entry:
            with pytest.raises(EngineFault, match="ended without a reason"):
                await entry.prepare()

    async def test_engines_without_weights_need_no_supply(self) -> None:
        models = planned(
            {"id": "words", "engine": "synthetic", "synthetic": {"seed": 3, "memory_bytes": 7}},
            {"id": "far", "engine": "upstream", "upstream": {"url": "http://127.0.0.1:1", "api_key": "s3cret"}},
        )
        words, far = [
            (await entry.prepare(), entry.weights())
            for entry in entries(models, supplies_of(models, lambda _model: None))
        ]
        assert (words[0].spec.kind, words[0].spec.arguments["seed"], words[0].memory_bytes) == ("synthetic", 3, 7)
        spec = far[0].spec
        assert (spec.kind, spec.url, spec.arguments["api_key"], spec.store) == (
            "upstream",
            "http://127.0.0.1:1",
            "s3cret",
            None,
        )
        assert (far[0].memory_bytes, words[1], far[1]) == (0, None, None)

    def test_what_is_on_this_machine_does_not_queue_behind_downloads(self, tmp_path: Path) -> None:
        write_checkpoint(tmp_path / "m")
        sources = ("hf://org/name", str(tmp_path / "m"), DEFAULT_MODEL, "https://models.example/m/")
        models = planned(*(vllm(source, id=f"m{n}") for n, source in enumerate(sources)))
        supplies = supplies_of(models, lambda _model: None)
        assert supplies.near is not supplies.far
        assert [supplies.of(model) is supplies.near for model in models] == [False, True, True, False]
        assert all(supplies.of(model).weights(model.id) is None for model in models)

    def test_when_a_model_comes_and_goes_is_its_own_setting_before_the_pools(self) -> None:
        first, second = entries(
            planned(
                {"id": "a", "engine": "synthetic"},
                {"id": "b", "engine": "synthetic", "load": "demand", "keep_alive_seconds": 5, "pin": True},
            ),
            Supplies(ModelSupply([]), ModelSupply([])),
            EngineSettings(keep_alive_seconds=60),
        )
        assert (first.at_startup, first.keep_alive_seconds, first.is_pinned) == (True, 60, False)
        assert (second.at_startup, second.keep_alive_seconds, second.is_pinned) == (False, 5, True)


def entries(
    models: Sequence[PlannedModel], supplies: Supplies, engine: EngineSettings | None = None
) -> tuple[CatalogEntry, ...]:
    return catalog_entries(models, supplies, engine or EngineSettings(), MachineMemory(64 * GIB))


def test_a_directory_without_a_store_is_loaded_as_vllm_does(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m")
    (model,) = planned(vllm(str(tmp_path / "m")))
    spec = vllm_spec(model.settings, tmp_path / "m", FACTS)
    assert (spec.directory, spec.store) == (tmp_path / "m", None)


def test_a_request_of_a_model_by_name_alone_needs_a_good_reference() -> None:
    model = model_settings_of("hf://org/name")
    assert fetch_request(model, Settings().cache).reference == "hf://org/name"
