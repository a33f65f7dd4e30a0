"""Of all the files that a source lists, those that make up the model: shards of weights, and the skeleton.

The skeleton is what an engine reads beside the weights: configs, tokenizer, chat templates, the modules of a
sentence-transformers model. Nothing else is ever fetched: no code, no pickles, no GGUF, no adapters, no second copy of
the weights in another form. Decided by names and sizes alone, before a byte is read; pure.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from headrace_models.errors import UnsafeModel
from headrace_models.safetensors_header import LENGTH_BYTES
from headrace_models.seek_index_checks import MAX_SHARDS, SHARD_SUFFIX, is_shard_path
from headrace_models.sources.base import SourceFile
from headrace_models.sources.file_path import checked_path
from headrace_models.sources.listing import checked_listing
from headrace_models.weights_index import MAX_WEIGHTS_INDEX_BYTES, WEIGHTS_INDEX_NAME, WeightMap

CONFIG_NAME = "config.json"
MODULES_NAME = "modules.json"
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
MAX_CONFIG_BYTES = 16 << 20
# The largest tokenizer.json that is known has 34 MB (Gemma 3).
MAX_TEXT_BYTES = 100 << 20
# vLLM reads a Dense module's weights from the directory itself; those that are known have a few MB.
MAX_MODULE_BYTES = 1 << 30
MAX_SKELETON_BYTES = 2 << 30
MAX_SKELETON_FILES = 500

_TEXT = re.compile(
    r"[^/]+\.(json|tiktoken|jinja)|tokenizer\.model(\.v\d+)?|(spiece|spm|sentencepiece(\.bpe)?)\.model"
    r"|vocab\.(txt|bpe)|merges\.txt|chat_template(\.txt)?|additional_chat_templates/[^/]+\.jinja",
    re.ASCII,
)
# Indexes of weights, ours and others', and adapters: an engine that finds those beside a config loads them.
_NOT_TEXT = re.compile(r"\..*|adapter_.*|.*\.index\.json|.*seekindex\.json", re.ASCII)
_MODULE = re.compile(r"(?P<folder>[0-9]{1,3}_\w{1,50})/(config\.json|model\.safetensors)", re.ASCII)
_VARIANT = re.compile(r"model\..+\.safetensors")
_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{1,6})-of-(?P<count>[0-9]{1,6})\.safetensors")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What a model consists of.

    `shards` are None where `weights_index` must be read first to know them (`shards_named`); `candidates` are those
    that it may name. `skeleton` has `config` in it and none of the weights. `notes` are lines for a user.
    """

    config: SourceFile
    weights_index: SourceFile | None
    shards: tuple[SourceFile, ...] | None
    candidates: tuple[SourceFile, ...]
    skeleton: tuple[SourceFile, ...]
    notes: tuple[str, ...] = ()

    def shards_named(self, weight_map: WeightMap) -> tuple[SourceFile, ...]:
        """The shards that a weight map names, sorted; raises UnsafeModel when there are none or one is missing."""
        candidates = {file.path: file for file in self.candidates}
        names = sorted(set(weight_map.values()))
        for name in names:
            if name not in candidates:
                raise UnsafeModel(f"{WEIGHTS_INDEX_NAME} names the shard {name[:100]}, which is missing")
        return _checked_shards(candidates[name] for name in names)


def choose_files(files: Sequence[SourceFile]) -> ModelFiles:
    """Choose among what a source lists; raises UnsafeModel, with what is wrong, when that is no model to be loaded."""
    for file in files:
        if checked_path(file.path) and file.size_bytes < 0:
            raise UnsafeModel(f"{file.path} is listed with {file.size_bytes} bytes")
    by_path = {file.path: file for file in checked_listing(files)}
    candidates = tuple(file for path, file in by_path.items() if is_shard_path(path))
    weights_index = by_path.get(WEIGHTS_INDEX_NAME)
    shards = None
    if not candidates:
        _refuse_absent_weights(by_path)
    if weights_index is None:
        shards = _checked_shards(_without_copies(candidates))
    elif weights_index.size_bytes > MAX_WEIGHTS_INDEX_BYTES:
        raise UnsafeModel(f"{WEIGHTS_INDEX_NAME} is larger than {MAX_WEIGHTS_INDEX_BYTES} bytes")
    config = _config(by_path)
    skeleton, notes = _skeleton(by_path)
    notes += _unused(by_path, candidates if shards is None else shards)
    return ModelFiles(config, weights_index, shards, candidates, skeleton, notes)


def refuse_weights(names: Iterable[str]) -> None:
    """Raise UnsafeModel for weights in a form that is not loaded: GGUF, pickle."""
    names = sorted(names)
    for name in names:
        if name.endswith(".gguf"):
            raise UnsafeModel(f"{name}: GGUF is not loaded; use the model's safetensors, or convert it to them")
    for name in names:
        if PurePosixPath(name).suffix in PICKLE_SUFFIXES:
            raise UnsafeModel(f"{name}: pickle weights can run code when loaded; use the model's safetensors")


def _refuse_absent_weights(by_path: Mapping[str, SourceFile]) -> None:
    refuse_weights(path for path in by_path if "/" not in path)
    raise UnsafeModel("there is no .safetensors file, so there are no weights to load")


def _without_copies(candidates: Sequence[SourceFile]) -> list[SourceFile]:
    """Without an index all that lies there, but no adapters, no variants (`model.fp16.safetensors`) beside
    `model.safetensors`, and Mistral's `consolidated` only where it is not a second copy."""
    weights = [file for file in candidates if not file.path.startswith("adapter_")]
    if not weights:
        raise UnsafeModel(
            f"{candidates[0].path} is an adapter without its model: use the base model, or merge the adapter into it"
        )
    usual = [file for file in weights if not file.path.startswith("consolidated")] or weights
    if any(file.path == "model.safetensors" for file in usual):
        usual = [file for file in usual if not _VARIANT.fullmatch(file.path)]
    _check_numbers({file.path for file in usual})
    return usual


def _check_numbers(paths: set[str]) -> None:
    """Of `x-00001-of-00003` there must be all three."""
    for path in sorted(paths):
        match = _NUMBERED.fullmatch(path)
        if match is None:
            continue
        count, width = int(match["count"]), len(match["number"])
        for number in range(1, min(count, MAX_SHARDS) + 1):
            name = f"{match['stem']}-{number:0{width}}-of-{match['count']}{SHARD_SUFFIX}"
            if name not in paths:
                raise UnsafeModel(f"the shard {name} is missing beside {path}")


def _checked_shards(files: Iterable[SourceFile]) -> tuple[SourceFile, ...]:
    shards = tuple(files)
    if not 0 < len(shards) <= MAX_SHARDS:
        raise UnsafeModel(f"the weights are in {len(shards)} shards (1 to {MAX_SHARDS} are possible)")
    for file in shards:
        if file.size_bytes < LENGTH_BYTES:
            raise UnsafeModel(f"{file.path} is no safetensors file: it has {file.size_bytes} bytes")
    return shards


def _config(by_path: Mapping[str, SourceFile]) -> SourceFile:
    config = by_path.get(CONFIG_NAME)
    if config is None:
        raise UnsafeModel(f"{CONFIG_NAME} is missing, so this is no model")
    if config.size_bytes > MAX_CONFIG_BYTES:
        raise UnsafeModel(f"{CONFIG_NAME} is larger than {MAX_CONFIG_BYTES} bytes")
    return config


def _skeleton(by_path: Mapping[str, SourceFile]) -> tuple[tuple[SourceFile, ...], tuple[str, ...]]:
    texts = [file for path, file in by_path.items() if _TEXT.fullmatch(path) and not _NOT_TEXT.fullmatch(path)]
    notes = [
        f"{file.path} is not used: it has more than {MAX_TEXT_BYTES} bytes"
        for file in texts
        if file.size_bytes > MAX_TEXT_BYTES
    ]
    chosen = [file for file in texts if file.size_bytes <= MAX_TEXT_BYTES]
    if MODULES_NAME in by_path:
        chosen += _modules(by_path)
    _check_bounds(chosen)
    return tuple(chosen), tuple(notes)


def _modules(by_path: Mapping[str, SourceFile]) -> list[SourceFile]:
    """Configs and weights in the folders of modules, which sentence-transformers numbers: `1_Pooling`, `2_Dense`."""
    chosen = []
    for path, file in by_path.items():
        if match := _MODULE.fullmatch(path):
            if file.size_bytes > MAX_MODULE_BYTES:
                raise UnsafeModel(f"{path} has {file.size_bytes} bytes; a module may have {MAX_MODULE_BYTES}")
            refuse_pickled_module(match["folder"], by_path)
            chosen.append(file)
    return chosen


def refuse_pickled_module(folder: str, paths: Iterable[str]) -> None:
    """Raise UnsafeModel when the weights in the folder of a module are pickled only: vLLM would load them."""
    inside = [path for path in paths if path.startswith(f"{folder}/")]
    if not any(path.endswith(SHARD_SUFFIX) for path in inside):
        refuse_weights(inside)


def _check_bounds(chosen: Sequence[SourceFile]) -> None:
    total = sum(file.size_bytes for file in chosen)
    if len(chosen) > MAX_SKELETON_FILES or total > MAX_SKELETON_BYTES:
        raise UnsafeModel(
            f"beside the weights there are {len(chosen)} files of {total} bytes; "
            f"{MAX_SKELETON_FILES} of {MAX_SKELETON_BYTES} bytes are possible"
        )
    if len({file.path.casefold() for file in chosen}) != len(chosen):
        raise UnsafeModel("two files of the model differ only in upper and lower case")


def _unused(by_path: Mapping[str, SourceFile], shards: Sequence[SourceFile]) -> tuple[str, ...]:
    """What somebody might take for the weights."""
    used = {file.path for file in shards}
    pickled = [path for path in by_path if PurePosixPath(path).suffix in PICKLE_SUFFIXES | {".gguf"}]
    copies = [path for path in by_path if is_shard_path(path) and path not in used]
    return (
        *(f"{path} is not used: the weights are read from safetensors" for path in pickled),
        *(f"{path} is not used: the weights are read from {shards[0].path}" for path in copies),
    )
