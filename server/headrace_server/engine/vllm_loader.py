"""vLLM's loader for models in our store: tensors in execution order, each as soon as its bytes are here.

A subclass of vLLM's default loader with another iterator of weights; everything else (secondary weights, expert
parallelism, the check for missing parameters, reloading) stays vLLM's. A tensor that this process does not use, because
its layer or expert lives elsewhere, is not waited for. The iterator holds a lease while it runs; afterwards the
server's own lease keeps the bytes, since a model class may keep what it was given. Runs in the worker that loads;
imported in every process of vLLM by `vllm_plugin`, which adds 0.1 s there.
"""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from vllm.config import ModelConfig, VllmConfig
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.ep_weight_filter import should_skip_weight
from vllm.model_executor.models.utils import PPMissingLayer, StageMissingLayer

from headrace_models.errors import UnsafeModel
from headrace_models.layer_plan import EMBEDDING, is_tied
from headrace_models.reading.tensors import TensorBytes, TensorReader
from headrace_models.seek_index import SeekIndex
from headrace_models.store.model_store import ModelStore
from headrace_server.engine.vllm_arguments import LOAD_FORMAT, MODEL_KEY, STORE_KEY
from headrace_server.engine.vllm_load_report import REPORT_KEY, report_failure

if TYPE_CHECKING:
    from headrace_models.store.stored_model import StoredModel

Weights = Generator[tuple[str, torch.Tensor], None, None]

# As vLLM chooses for the format "auto": Mistral's own files where there are any.
_PATTERNS = ("consolidated*.safetensors", "*.safetensors")

_PACKED = "float4_e2m1fn_x2"  # two values in a byte, which torch counts as one
_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F4": _PACKED,
}


@dataclass(frozen=True, slots=True)
class LoaderSettings:
    """Which model of which store to load, and where to say why it cannot be."""

    cache_dir: Path
    key: str
    report: Path | None


def settings_of(extra_config: Mapping[str, object]) -> tuple[LoaderSettings, dict[str, object]]:
    """Our part of vLLM's `model_loader_extra_config`, and the rest; ValueError when ours is not complete."""
    rest = dict(extra_config)
    match rest.pop(STORE_KEY, None), rest.pop(MODEL_KEY, None), rest.pop(REPORT_KEY, None):
        case str(cache_dir), str(key), None | str() as report:
            return LoaderSettings(Path(cache_dir), key, Path(report) if report else None), rest
        case _:
            raise ValueError(f"the load format {LOAD_FORMAT} needs {STORE_KEY} and {MODEL_KEY}")


@register_model_loader(LOAD_FORMAT)
class HeadraceModelLoader(DefaultModelLoader):
    """Loads one model of the store; weights of other places are loaded as vLLM does."""

    counter_before_loading_weights: float  # vLLM logs how long loading took

    def __init__(self, load_config: LoadConfig) -> None:
        self._settings, rest = settings_of(load_config.model_loader_extra_config)
        super().__init__(replace(load_config, load_format="auto", model_loader_extra_config=rest))
        self._is_here: Callable[[str], bool] = lambda _name: True

    def download_model(self, model_config: ModelConfig) -> None:
        """The fetching process does."""

    def load_model(self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = "") -> torch.nn.Module:
        """As vLLM's; a failure is told to the server as well. Ends only when what was read is proven, whether or not
        the model class has asked for all of its weights."""
        with _told(self._settings.report), self._stored().reader() as watching:
            model = super().load_model(vllm_config=vllm_config, model_config=model_config, prefix=prefix)
            watching.wait_until_proven()
            return model

    def get_all_weights(self, model_config: ModelConfig, model: torch.nn.Module) -> Weights:
        """As vLLM's, without what `model` has no place for."""
        self._is_here = parameters_of(model)
        yield from super().get_all_weights(model_config, model)

    def _get_weights_iterator(self, source: DefaultModelLoader.Source) -> Weights:
        stored = self._stored()
        shards = chosen_shards(stored, source)
        if not shards:
            theirs: Weights = super()._get_weights_iterator(source)
            return theirs
        if self.counter_before_loading_weights == 0.0:
            self.counter_before_loading_weights = time.perf_counter()
        return self._weights(stored, source, shards)

    def _stored(self) -> "StoredModel":
        return ModelStore(self._settings.cache_dir).open_key(self._settings.key)

    def _weights(self, stored: "StoredModel", source: DefaultModelLoader.Source, shards: frozenset[str]) -> Weights:
        with stored.reader() as reader, TensorReader(reader) as tensors:
            for tensor in tensors.iterate(wanted=self._choice(reader.index, source, shards)):
                yield source.prefix + tensor.name, as_torch(tensor)
            # Digests of whole files are checked at the end; until then nothing may serve.
            reader.wait_until_proven()

    def _choice(
        self, index: SeekIndex, source: DefaultModelLoader.Source, shards: frozenset[str]
    ) -> Callable[[str], bool]:
        shared = shared_embedding(index)

        def is_wanted(name: str) -> bool:
            if index.files[index.tensors_by_name[name].file].path not in shards:
                return False
            if source.is_unused_weight is not None and source.is_unused_weight(name):
                return False
            here = name in shared or self._is_here(source.prefix + name)
            return here and not should_skip_weight(name, self.local_expert_ids)

        return is_wanted


def as_torch(tensor: TensorBytes) -> torch.Tensor:
    """The tensor over the same memory, which stays alive with it; a copy where its place is not one for its type.

    Raises UnsafeModel: torch has no such data type.
    """
    name = _DTYPES.get(tensor.dtype)
    if name is None:
        raise UnsafeModel(f"{tensor.name} has the data type {tensor.dtype}, which the engine does not know")
    dtype: torch.dtype = getattr(torch, name)
    shape = (*tensor.shape[:-1], tensor.shape[-1] // 2) if name == _PACKED else tensor.shape
    if not tensor.data:
        return torch.empty(shape, dtype=dtype)
    flat = torch.frombuffer(tensor.data, dtype=dtype)
    if flat.data_ptr() % dtype.itemsize:
        flat = torch.frombuffer(bytearray(tensor.data), dtype=dtype)
    return flat.reshape(shape)


def chosen_shards(stored: "StoredModel", source: DefaultModelLoader.Source) -> frozenset[str]:
    """The model's shards that vLLM would take for `source`; none when it means another place, or files that are no
    shards of ours."""
    if not _is_same(Path(source.model_or_path), stored.skeleton):
        return frozenset()
    patterns: Sequence[str] = source.allow_patterns_overrides or _PATTERNS
    folder = f"{source.subfolder}/" if source.subfolder else ""
    paths = [file.path for file in stored.index.files]
    for pattern in patterns:
        if chosen := frozenset(path for path in paths if _matches(path, folder + pattern)):
            return chosen
    return frozenset()


def parameters_of(model: torch.nn.Module) -> Callable[[str], bool]:
    """Whether `model` may use the weight of this checkpoint name: no when its module is a placeholder for one that
    another process has (a pipeline stage, a part of a multimodal model); yes for every name that is not understood."""
    placeholders = (PPMissingLayer, StageMissingLayer)
    # vLLM's own list of these is kept by the model's address, and may be of a model that is gone.
    missing = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, placeholders))
    mapper = getattr(model, "hf_to_vllm_mapper", None)

    def may_use(name: str) -> bool:
        mapped = name if mapper is None else mapper.map_name(name)
        return mapped is None or not mapped.startswith(missing)

    return may_use


def shared_embedding(index: SeekIndex) -> frozenset[str]:
    """Tensors of the embedding where it serves as the head too, so that a stage without the one may need it for the
    other."""
    if not is_tied(index.tensors_by_name):
        return frozenset()
    return frozenset(tensor.name for tensor in index.tensors if index.groups[tensor.group] == EMBEDDING)


def _is_same(one: Path, other: Path) -> bool:
    return one.is_dir() and one.samefile(other)


def _matches(path: str, pattern: str) -> bool:
    """As `glob` matches: no `*` crosses a slash."""
    parts, wanted = path.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


@contextmanager
def _told(report: Path | None) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if report is not None:
            report_failure(report, error)
        raise
