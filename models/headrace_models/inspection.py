"""Is this directory a model that may be loaded, and what does it hold? Asked before any engine sees it.

Reads configs, the index and the shards' headers, each bounded in size, never weights. Refused: pickle and GGUF
weights, code that a config names (`auto_map`), names and links that leave the directory, files that are not regular,
headers that do not fit their file. The engine gets `trust_remote_code` from nobody, but it has ignored that before
(CVE-2026-22807), so what would run code does not reach it.
"""

import json
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from headrace_models.errors import ModelNotFound, UnsafeModel
from headrace_models.safetensors_header import TensorEntry, read_header
from headrace_models.task import Task

MAX_CONFIG_BYTES = 16 << 20
MAX_INDEX_BYTES = 100_000_000
MAX_FILES = 20_000
INDEX_NAME = "model.safetensors.index.json"
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})

_GENERATING = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn"}


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a directory holds, from its config and headers; None where they are silent.

    `max_length` is in tokens. `num_parameters` counts stored elements: packed quantised weights count as stored.
    `dtype` is the one that most bytes have, named as in torch. `notes` are lines for a user.
    """

    architecture: str | None
    task: Task
    weight_bytes: int
    num_parameters: int
    dtype: str | None
    max_length: int | None
    num_layers: int | None
    vocab_size: int | None
    hidden_size: int | None
    num_kv_heads: int | None
    head_dim: int | None
    notes: tuple[str, ...] = ()


def inspect(directory: Path) -> ModelFacts:
    """Check a model directory and say what it holds; raises ModelNotFound or UnsafeModel."""
    try:
        return _inspect(directory)
    except OSError as error:
        raise UnsafeModel(f"{directory} cannot be read: {error.strerror or error}") from error


def _inspect(directory: Path) -> ModelFacts:
    if not directory.exists():
        raise ModelNotFound(f"{directory}: no such directory")
    if not directory.is_dir():
        _refuse_weights([directory.name])
        raise UnsafeModel(f"{directory.name} is a file; a model is a directory with config.json and safetensors")
    names = _checked_files(directory)
    shards = _shards(directory, names)
    if "config.json" not in names:
        raise UnsafeModel(f"{directory}: config.json is missing, so this is no model directory")
    config = read_json_object(directory / "config.json")
    _refuse_code(directory, names)
    _check_modules(directory, names)
    tensors = [tensor for shard in shards for tensor in read_header(directory / shard).values()]
    weight_bytes = sum((directory / shard).stat().st_size for shard in shards)
    max_length = _sentence_length(directory, names)
    return _facts(config, tensors, weight_bytes=weight_bytes, max_length=max_length, notes=_notes(names))


def _checked_files(directory: Path) -> frozenset[str]:
    """Relative paths of all files, each regular and inside `directory` even after its links are followed."""
    root = os.path.realpath(directory)
    names: set[str] = set()
    for path in _walk(directory):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink():
            _check_link(path, name, root)
        if path.is_dir():
            continue
        if not stat.S_ISREG(path.stat().st_mode):
            raise UnsafeModel(f"{name} is not a regular file")
        names.add(name)
        if len(names) > MAX_FILES:
            raise UnsafeModel(f"{directory} has more than {MAX_FILES} files")
    return frozenset(names)


def _walk(directory: Path) -> Iterator[Path]:
    def raise_error(error: OSError) -> None:
        raise error

    for folder, folders, files in os.walk(directory, onerror=raise_error):
        yield from (Path(folder, name) for name in sorted(folders + files))


def _check_link(path: Path, name: str, root: str) -> None:
    target = os.path.realpath(path)
    if not Path(target).is_relative_to(root):
        raise UnsafeModel(f"{name} is a link that leaves the directory; copy the files: cp -rL DIRECTORY COPY")
    if not path.exists():
        raise UnsafeModel(f"{name} is a link to nothing")


def _shards(directory: Path, names: frozenset[str]) -> Sequence[str]:
    """The safetensors files that hold the weights: those of the index, without one all at the top."""
    top = [name for name in sorted(names) if "/" not in name]
    shards = [name for name in top if name.endswith(".safetensors")]
    if INDEX_NAME in names:
        shards = _indexed(directory / INDEX_NAME, names)
    if not shards:
        _refuse_weights(top)
        raise UnsafeModel(f"{directory}: no .safetensors file, so there are no weights to load")
    return shards


def _indexed(index: Path, names: frozenset[str]) -> list[str]:
    weight_map = read_json_object(index, max_bytes=MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise UnsafeModel(f"{index.name}: no map from tensors to shards")
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if shard != PurePosixPath(shard).name or not shard.endswith(".safetensors"):
            raise UnsafeModel(f"{index.name}: {shard[:100]!r} is not the name of a .safetensors file in the directory")
        if shard not in names:
            raise UnsafeModel(f"{index.name} names the shard {shard[:100]}, which is missing")
    return shards


def _refuse_weights(names: Sequence[str]) -> None:
    for name in names:
        if name.endswith(".gguf"):
            raise UnsafeModel(f"{name}: GGUF is not loaded; use the model's safetensors, or convert it to them")
    for name in names:
        if PurePosixPath(name).suffix in PICKLE_SUFFIXES:
            raise UnsafeModel(f"{name}: pickle weights can run code when loaded; use the model's safetensors")


def _refuse_code(directory: Path, names: frozenset[str]) -> None:
    """Nested too: sub-configs have been resolved with their own `auto_map` (CVE-2026-22807)."""
    for name in sorted(names):
        if name.endswith("config.json") and _names_code(read_json(directory / name)):
            raise UnsafeModel(
                f"{name} names Python code to run (auto_map); models that need their own code are refused"
            )


def _names_code(value: object) -> bool:
    if isinstance(value, dict):
        return bool(value.get("auto_map")) or any(map(_names_code, value.values()))
    return isinstance(value, list) and any(map(_names_code, value))


def _check_modules(directory: Path, names: frozenset[str]) -> None:
    """Of sentence-transformers modules vLLM reads `<path>/config.json` and a Dense module's weights, pickled or not."""
    if "modules.json" not in names:
        return
    modules = read_json(directory / "modules.json")
    for module in modules if isinstance(modules, list) else ():
        path = module.get("path") if isinstance(module, dict) else None
        if not isinstance(path, str) or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise UnsafeModel("modules.json names a module outside the directory")
        inside = [name for name in names if path and name.startswith(f"{path.rstrip('/')}/")]
        if not any(name.endswith(".safetensors") for name in inside):
            _refuse_weights(sorted(inside))


def _notes(names: frozenset[str]) -> tuple[str, ...]:
    unused = sorted(name for name in names if PurePosixPath(name).suffix in PICKLE_SUFFIXES | {".gguf"})
    return tuple(f"{name} is not used: the weights are read from safetensors" for name in unused)


def read_json_object(path: Path, *, max_bytes: int = MAX_CONFIG_BYTES) -> Mapping[str, Any]:
    """A JSON object from a file of bounded size; raises UnsafeModel, OSError."""
    document = read_json(path, max_bytes=max_bytes)
    if not isinstance(document, dict):
        raise UnsafeModel(f"{path.name} is not a JSON object")
    return document


def read_json(path: Path, *, max_bytes: int = MAX_CONFIG_BYTES) -> object:
    """JSON from a file of bounded size; raises UnsafeModel, OSError."""
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise UnsafeModel(f"{path.name} is larger than {max_bytes} bytes")
    try:
        document: object = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UnsafeModel(f"{path.name} is not JSON") from error
    return document


def _sentence_length(directory: Path, names: frozenset[str]) -> int | None:
    if "sentence_bert_config.json" not in names:
        return None
    return _first_int(read_json_object(directory / "sentence_bert_config.json"), "max_seq_length")


def _facts(
    config: Mapping[str, Any],
    tensors: Sequence[TensorEntry],
    *,
    weight_bytes: int,
    max_length: int | None,
    notes: tuple[str, ...],
) -> ModelFacts:
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    architecture = _architecture(config)
    return ModelFacts(
        architecture=architecture,
        task=Task.GENERATE if (architecture or "").endswith(_GENERATING) else Task.EMBED,
        weight_bytes=weight_bytes,
        num_parameters=sum(tensor.num_elements for tensor in tensors),
        dtype=_main_dtype(tensors),
        max_length=max_length or _first_int(text, "max_position_embeddings", "n_positions", "max_seq_len"),
        num_layers=_first_int(text, "num_hidden_layers", "n_layer", "num_layers"),
        vocab_size=_first_int(text, "vocab_size"),
        hidden_size=_first_int(text, "hidden_size", "n_embd", "d_model"),
        num_kv_heads=_first_int(text, "num_key_value_heads", "num_attention_heads", "n_head"),
        head_dim=_head_dim(text),
        notes=notes,
    )


def _architecture(config: Mapping[str, Any]) -> str | None:
    match config.get("architectures"):
        case [str(first), *_]:
            return first
        case _:
            return None


def _main_dtype(tensors: Sequence[TensorEntry]) -> str | None:
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.size_bytes
    return next((_DTYPES.get(dtype, dtype.lower()) for dtype, _bytes in sizes.most_common(1)), None)


def _head_dim(config: Mapping[str, Any]) -> int | None:
    stated = _first_int(config, "head_dim")
    hidden, heads = _first_int(config, "hidden_size", "n_embd"), _first_int(config, "num_attention_heads", "n_head")
    return stated or (hidden // heads if hidden and heads else None)


def _first_int(config: Mapping[str, Any], *names: str) -> int | None:
    values = (config.get(name) for name in names)
    return next((value for value in values if type(value) is int and value > 0), None)
