"""What the loader takes from the store and hands to vLLM, piece by piece; no engine is started."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headrace_models.errors import FetchFailed, UnsafeModel
from headrace_models.reading.tensors import TensorBytes
from headrace_models.store.stored_model import StoredModel
from headrace_models.trust import Trust
from tests.fakes.arriving_models import ArrivingModel, publish_empty
from tests.fakes.checkpoints import DTYPE_BITS, FakeTensor, write_checkpoint, write_weights

pytestmark = pytest.mark.filterwarnings("ignore")  # importing vLLM warns about itself

NOT_IN_TORCH = {"F6_E2M3", "F6_E3M2"}


@pytest.fixture(scope="session")
def loading() -> Any:
    """The module under test, which imports vLLM."""
    return importlib.import_module("headrace_server.engine.vllm_loader")


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A model of two shards and four layers."""
    directory = tmp_path / "original"
    write_checkpoint(directory, shards=2)
    return directory


@pytest.fixture
def stored(original: Path, tmp_path: Path) -> StoredModel:
    """The same in a store, none of its weights there."""
    return publish_empty(original, tmp_path)


@pytest.fixture
def arriving(stored: StoredModel, original: Path) -> Iterator[ArrivingModel]:
    """Who brings what is demanded of it, and nothing else."""
    with ArrivingModel(stored, original) as model:
        model.bring_on_demand()
        yield model


def make_loader(loading: Any, stored: StoredModel, **more: object) -> Any:
    config = importlib.import_module("vllm.config.load")
    cache = stored.directory.parent.parent
    extra = {"headrace_store": str(cache), "headrace_key": stored.key, **more}
    return loading.HeadraceModelLoader(config.LoadConfig(load_format="headrace", model_loader_extra_config=extra))


def source(loading: Any, stored: StoredModel, **more: object) -> Any:
    return loading.DefaultModelLoader.Source(str(stored.skeleton), None, **more)


def stage(missing: dict[str, str] | None = None, **attributes: object) -> Any:
    """A model with placeholders at the places in `missing`."""
    torch = importlib.import_module("torch")
    utils = importlib.import_module("vllm.model_executor.models.utils")
    root = torch.nn.Module()
    root.model = torch.nn.Module()
    root.model.layers = torch.nn.ModuleList([torch.nn.Linear(1, 1) for _ in range(12)])
    root.model.embed_tokens, root.model.norm = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    for path, kind in (missing or {}).items():
        parent, _, name = path.rpartition(".")
        placeholder = utils.PPMissingLayer() if kind == "pipeline" else utils.StageMissingLayer("language_model")
        setattr(root.get_submodule(parent), name, placeholder)
    for name, value in attributes.items():
        setattr(root, name, value)
    return root


def names_loaded(loading: Any, stored: StoredModel, model: Any, **more: object) -> list[str]:
    weights = make_loader(loading, stored, **more).get_all_weights(
        SimpleNamespace(model=str(stored.skeleton), revision=None), model
    )
    return [name for name, _tensor in weights]


@pytest.mark.parametrize("dtype", sorted(set(DTYPE_BITS) - NOT_IN_TORCH))
def test_tensors_are_what_safetensors_makes_of_them(dtype: str, loading: Any, tmp_path: Path) -> None:
    torch = importlib.import_module("torch")
    safe_open = importlib.import_module("safetensors").safe_open
    write_checkpoint(tmp_path / "original", num_layers=1, hidden=16)
    shapes = {"matrix": (6, 4), "empty": (0, 4), "scalar": () if DTYPE_BITS[dtype] >= 8 else (2,), "row": (4,)}
    write_weights(tmp_path / "original", [FakeTensor(name, shape, dtype) for name, shape in shapes.items()])
    stored = publish_empty(tmp_path / "original", tmp_path)
    with ArrivingModel(stored, tmp_path / "original") as arriving:
        arriving.bring_all()
        weights = dict(make_loader(loading, stored)._get_weights_iterator(source(loading, stored)))
    with safe_open(tmp_path / "original" / "model.safetensors", "pt") as theirs:
        assert set(weights) == set(theirs.keys())
        for name, ours in weights.items():
            expected = theirs.get_tensor(name)
            assert (ours.dtype, ours.shape) == (expected.dtype, expected.shape)
            assert ours.numel() == 0 or bytes(ours.reshape(-1).view(torch.uint8)) == bytes(
                expected.reshape(-1).view(torch.uint8)
            )


def test_a_tensor_at_an_odd_place_is_moved(loading: Any) -> None:
    torch = importlib.import_module("torch")
    memory = bytearray(4 * 8 + 1)
    memory[1:] = torch.arange(8, dtype=torch.float32).numpy().tobytes()
    moved = loading.as_torch(TensorBytes("x", "F32", (2, 4), memoryview(memory)[1:]))
    assert moved.data_ptr() % 4 == 0
    assert moved.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("dtype", sorted(NOT_IN_TORCH))
def test_a_data_type_that_torch_has_not_is_refused_by_name(dtype: str, loading: Any) -> None:
    with pytest.raises(UnsafeModel, match=dtype):
        loading.as_torch(TensorBytes("x", dtype, (4,), memoryview(b"abc")))


def test_a_pipeline_stage_brings_its_own_layers_only(
    loading: Any, stored: StoredModel, arriving: ArrivingModel
) -> None:
    model = stage({"model.layers.0": "pipeline", "model.layers.1": "pipeline", "model.norm": "pipeline"})
    names = names_loaded(loading, stored, model)
    layers = {name.split(".")[2] for name in names if name.startswith("model.layers.")}
    assert layers == {"2", "3"}
    index = stored.index
    brought = {index.layouts[file].group_of(chunk) for file, chunk in arriving.brought}
    assert {index.groups[group] for group in brought if group is not None} == {"embedding", "layer.2", "layer.3"}


def test_layer_1_is_not_layer_10(loading: Any) -> None:
    may_use = loading.parameters_of(stage({"model.layers.1": "pipeline"}))
    assert not may_use("model.layers.1.mlp.up_proj.weight")
    assert may_use("model.layers.10.mlp.up_proj.weight")


def test_names_are_mapped_before_they_are_judged_and_unknown_ones_are_loaded(loading: Any) -> None:
    mapper = importlib.import_module("vllm.model_executor.models.utils").WeightsMapper(
        orig_to_new_prefix={"transformer.": "model.", "dropped.": None}
    )
    may_use = loading.parameters_of(stage({"model.layers.1": "pipeline"}, hf_to_vllm_mapper=mapper))
    assert not may_use("transformer.layers.1.weight")
    assert may_use("transformer.layers.2.weight")
    assert may_use("dropped.weight")
    assert may_use("something.else")


def test_what_another_part_of_a_multimodal_model_holds_is_not_loaded(loading: Any) -> None:
    may_use = loading.parameters_of(stage({"model.layers": "stage"}))
    assert not may_use("model.layers.3.weight")
    assert may_use("model.norm.weight")


@pytest.mark.parametrize("tied", [True, False])
def test_a_stage_without_an_embedding_takes_it_where_it_may_be_the_head(
    tied: bool, loading: Any, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "original", num_layers=1, hidden=16, tied=tied)
    stored = publish_empty(tmp_path / "original", tmp_path)
    with ArrivingModel(stored, tmp_path / "original") as arriving:
        arriving.bring_all()
        names = names_loaded(loading, stored, stage({"model.embed_tokens": "pipeline"}))
    assert ("model.embed_tokens.weight" in names) == tied


def test_experts_of_other_ranks_are_not_loaded(loading: Any, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "original", num_layers=1, hidden=16)
    experts = [
        FakeTensor(f"model.layers.0.mlp.experts.{number}.up_proj.{part}", (4, 4))
        for number in range(3)
        for part in ("weight", "weight_scale")
    ]
    write_weights(tmp_path / "original", [*experts, FakeTensor("model.norm.weight", (4,))])
    stored = publish_empty(tmp_path / "original", tmp_path)
    with ArrivingModel(stored, tmp_path / "original") as arriving:
        arriving.bring_all()
        loader = make_loader(loading, stored)
        loader.local_expert_ids = {1}
        names = {name for name, _tensor in loader._get_weights_iterator(source(loading, stored))}
    heavy = {name for name in names if name.endswith("up_proj.weight")}
    assert heavy == {"model.layers.0.mlp.experts.1.up_proj.weight"}
    assert len(names) == 1 + 3 + 1


def test_weights_that_the_model_calls_unused_are_not_loaded(
    loading: Any, stored: StoredModel, arriving: ArrivingModel
) -> None:
    model = stage(is_unused_checkpoint_weight=lambda name: not name.endswith("norm.weight"))
    names = names_loaded(loading, stored, model)
    assert names
    assert all(name.endswith("norm.weight") for name in names)


def test_a_source_may_have_a_prefix_and_choose_among_the_shards(
    loading: Any, stored: StoredModel, arriving: ArrivingModel
) -> None:
    chosen = source(loading, stored, prefix="head.", allow_patterns_overrides=["nothing*", "*-00002-of-*.safetensors"])
    names = {name for name, _tensor in make_loader(loading, stored)._get_weights_iterator(chosen)}
    assert names == {f"head.{tensor.name}" for tensor in stored.index.tensors if tensor.file == 1}
    assert {file for file, _chunk in arriving.brought} == {1}


def test_patterns_do_not_cross_folders(loading: Any) -> None:
    assert loading._matches("model.safetensors", "*.safetensors")
    assert not loading._matches("vae/model.safetensors", "*.safetensors")
    assert not loading._matches("a.safetensors/model.safetensors", "*.safetensors")
    assert not loading._matches("model.safetensors", "*.safetensors/*")
    assert loading._matches("vae/model.safetensors", "v*/*.safetensors")


def test_weights_of_another_place_are_loaded_as_vllm_does(
    loading: Any, stored: StoredModel, arriving: ArrivingModel, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "draft", num_layers=1, hidden=16)
    second = loading.DefaultModelLoader.Source(str(tmp_path / "draft"), None, prefix="draft.")
    model = stage(secondary_weights=[second])
    names = names_loaded(loading, stored, model)
    assert "model.layers.3.mlp.up_proj.weight" in names
    assert "draft.model.layers.0.mlp.up_proj.weight" in names


def test_the_default_loaders_own_settings_still_work(loading: Any, stored: StoredModel) -> None:
    assert make_loader(loading, stored, enable_weights_track=False).enable_weights_track is False
    with pytest.raises(ValueError, match="surprise"):
        make_loader(loading, stored, surprise=1)
    config = importlib.import_module("vllm.config.load")
    with pytest.raises(ValueError, match="headrace_key"):
        loading.HeadraceModelLoader(config.LoadConfig(load_format="headrace"))


def test_what_is_loaded_twice_is_loaded_whole_twice(loading: Any, stored: StoredModel, arriving: ArrivingModel) -> None:
    first, second = (names_loaded(loading, stored, stage()) for _ in range(2))
    assert first == second == [tensor.name for tensor in stored.index.tensors]


def test_the_lease_ends_with_the_weights(loading: Any, stored: StoredModel, arriving: ArrivingModel) -> None:
    weights = make_loader(loading, stored)._get_weights_iterator(source(loading, stored))
    kept = next(weights)
    assert stored.status().leased
    kept += tuple(weights)
    assert not stored.status().leased


def test_wrong_files_end_the_weights_before_the_engine_is_ready(loading: Any, original: Path, tmp_path: Path) -> None:
    stored = publish_empty(original, tmp_path / "proven", trust=Trust.FILE)
    with ArrivingModel(stored, original) as arriving:
        arriving.bring_all()
        weights = make_loader(loading, stored)._get_weights_iterator(source(loading, stored))
        for _ in stored.index.tensors:
            next(weights)
        arriving.writer.fail(UnsafeModel("not what the source states"))
    with pytest.raises(Exception, match="not what the source states"):
        next(weights)


def test_a_model_that_stops_asking_early_is_not_ready_before_its_files_are_proven(
    loading: Any, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = publish_empty(original, tmp_path / "proven", trust=Trust.FILE)
    loader = make_loader(loading, stored)
    with ArrivingModel(stored, original) as arriving:
        arriving.bring_all()

        def load_first(self: Any, **_arguments: object) -> str:
            next(self._get_weights_iterator(source(loading, stored)))
            arriving.writer.fail(UnsafeModel("not what the source states"))
            arriving.writer.close()
            return "a model"

        monkeypatch.setattr(loading.DefaultModelLoader, "load_model", load_first)
        with pytest.raises(FetchFailed, match="not what the source states"):
            loader.load_model(vllm_config=None, model_config=None)


def test_header_files_give_vllm_what_the_shards_would(tmp_path: Path) -> None:
    config = importlib.import_module("vllm.transformers_utils.config")
    write_checkpoint(tmp_path / "original", num_layers=1, hidden=16, tied=False, shards=2)
    description = json.loads((tmp_path / "original" / "config.json").read_text())
    (tmp_path / "original" / "config.json").write_text(json.dumps({**description, "tie_word_embeddings": True}))
    stored = publish_empty(tmp_path / "original", tmp_path)

    def described(directory: Path) -> dict[str, Any]:
        found: dict[str, Any] = dict(config.get_safetensors_params_metadata(str(directory)))
        found.pop("__metadata__", None)
        return found

    assert described(stored.skeleton) == described(tmp_path / "original")
    assert config.checkpoint_has_lm_head(str(stored.skeleton)) is True


def test_every_process_of_vllm_knows_the_load_format() -> None:
    script = """
import vllm.model_executor.models.registry  # what vLLM imports least of, in the process that inspects models
from vllm.plugins import load_general_plugins
load_general_plugins()
from vllm.model_executor.model_loader import _LOAD_FORMAT_TO_MODEL_LOADER
print(_LOAD_FORMAT_TO_MODEL_LOADER["headrace"].__name__)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "HeadraceModelLoader"
