"""Is this a model that may be loaded, and what does it hold? Asked before any engine sees it.

Of a local directory, weights included (`inspect`), and of a skeleton that was fetched, whose weights an index describes
(`inspect_skeleton`, `facts_of`). Reads configs, the weights' index and headers, each bounded in size, never weights.
Refused: pickle and GGUF weights, code that a config names (`auto_map`), names and links that leave the directory, files
that are not regular, headers that do not fit their file. The engine gets `trust_remote_code` from nobody, but it has
ignored that before (CVE-2026-22807), so what would run code does not reach it.
"""

import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from headrace_models.errors import ModelNotFound, UnsafeModel
from headrace_models.model_facts import ModelFacts, first_int, gather_facts
from headrace_models.model_files import (
    CONFIG_NAME,
    MAX_CONFIG_BYTES,
    MODULES_NAME,
    choose_files,
    refuse_pickled_module,
    refuse_weights,
)
from headrace_models.safetensors_header import read_header
from headrace_models.seek_index import SeekIndex
from headrace_models.sources.base import SourceFile
from headrace_models.sources.listing import MAX_FILES
from headrace_models.weights_index import MAX_WEIGHTS_INDEX_BYTES, check_agreement, parse_weights_index

__all__ = ["ModelFacts", "facts_of", "inspect", "inspect_skeleton", "read_json", "read_json_object"]


def inspect(directory: Path) -> ModelFacts:
    """Check a model directory and say what it holds; raises ModelNotFound or UnsafeModel."""
    try:
        return _inspect(directory)
    except OSError as error:
        raise UnsafeModel(f"{directory} cannot be read: {error.strerror or error}") from error


def inspect_skeleton(directory: Path) -> None:
    """Check what was fetched of a model beside its weights; raises UnsafeModel.

    Stricter than `inspect`, since all of it was written by us: no links, and no weights but those of modules.
    """
    try:
        names = _checked_files(directory)
        for path in _walk(directory):
            if path.is_symlink():
                raise UnsafeModel(f"{path.relative_to(directory)} is a link, and what is fetched has none")
        refuse_weights(names)
        _check_configs(directory, names)
    except OSError as error:
        raise UnsafeModel(f"{directory} cannot be read: {error.strerror or error}") from error


def facts_of(skeleton: Path, index: SeekIndex) -> ModelFacts:
    """The facts of a model whose weights an index describes; raises UnsafeModel."""
    try:
        return gather_facts(
            read_json_object(skeleton / CONFIG_NAME),
            index.tensors,
            weight_bytes=index.weight_bytes,
            max_length=_sentence_length(skeleton),
        )
    except OSError as error:
        raise UnsafeModel(f"{skeleton} cannot be read: {error.strerror or error}") from error


def read_json_object(path: Path, *, max_bytes: int = MAX_CONFIG_BYTES) -> Mapping[str, Any]:
    """A JSON object from a file of bounded size; raises UnsafeModel, OSError."""
    document = read_json(path, max_bytes=max_bytes)
    if not isinstance(document, dict):
        raise UnsafeModel(f"{path.name} is not a JSON object")
    return document


def read_json(path: Path, *, max_bytes: int = MAX_CONFIG_BYTES) -> object:
    """JSON from a file of bounded size; raises UnsafeModel, OSError.

    Read as leniently as engines read it (NaN, names that stand twice), so that both see the same.
    """
    try:
        document: object = json.loads(_read_bounded(path, max_bytes))
    except (ValueError, RecursionError) as error:
        raise UnsafeModel(f"{path.name} is not JSON") from error
    return document


def _inspect(directory: Path) -> ModelFacts:
    if not directory.exists():
        raise ModelNotFound(f"{directory}: no such directory")
    if not directory.is_dir():
        refuse_weights([directory.name])
        raise UnsafeModel(f"{directory.name} is a file; a model is a directory with config.json and safetensors")
    names = _checked_files(directory)
    files = choose_files([SourceFile(name, (directory / name).stat().st_size) for name in sorted(names)])
    weight_map = None
    shards = files.shards
    if files.weights_index is not None:
        weight_map = parse_weights_index(_read_bounded(directory / files.weights_index.path, MAX_WEIGHTS_INDEX_BYTES))
        shards = files.shards_named(weight_map)
    config = read_json_object(directory / CONFIG_NAME)
    _check_configs(directory, names)
    headers = {shard.path: read_header(directory / shard.path) for shard in shards or ()}
    check_agreement(headers, weight_map)
    return gather_facts(
        config,
        [tensor for tensors in headers.values() for tensor in tensors.values()],
        weight_bytes=sum(shard.size_bytes for shard in shards or ()),
        max_length=_sentence_length(directory),
        notes=files.notes,
    )


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


def _check_configs(directory: Path, names: frozenset[str]) -> None:
    """Configs are bounded JSON that names no code; nested too: sub-configs have been resolved with their own `auto_map`
    (CVE-2026-22807)."""
    read_json_object(directory / CONFIG_NAME)
    for name in sorted(names):
        if name.endswith("config.json") and _names_code(read_json(directory / name)):
            raise UnsafeModel(
                f"{name} names Python code to run (auto_map); models that need their own code are refused"
            )
    if MODULES_NAME in names:
        _check_modules(directory, names)


def _names_code(document: object) -> bool:
    """Not recursive: JSON that can still be read can be nested too deeply for that."""
    waiting = [document]
    while waiting:
        match waiting.pop():
            case dict(value):
                if value.get("auto_map"):
                    return True
                waiting.extend(value.values())
            case list(values):
                waiting.extend(values)
            case _:
                pass
    return False


def _check_modules(directory: Path, names: frozenset[str]) -> None:
    """Of sentence-transformers modules vLLM reads `<path>/config.json` and a Dense module's weights, pickled or not;
    without them it would answer with wrong vectors and say nothing."""
    modules = read_json(directory / MODULES_NAME)
    for module in modules if isinstance(modules, list) else ():
        path = module.get("path") if isinstance(module, dict) else None
        if not isinstance(path, str) or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise UnsafeModel(f"{MODULES_NAME} names a module outside the directory")
        folder = path.rstrip("/")
        if not folder:
            continue
        refuse_pickled_module(folder, names)
        _check_module_weights(directory, names, f"{folder}/model.safetensors", str(module.get("type")))


def _check_module_weights(directory: Path, names: frozenset[str], weights: str, kind: str) -> None:
    if weights in names:
        read_header(directory / weights)
    elif kind.endswith(".Dense"):
        raise UnsafeModel(f"{weights}, the weights of a Dense module, is missing (folders must be named like 2_Dense)")


def _read_bounded(path: Path, max_bytes: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise UnsafeModel(f"{path.name} is larger than {max_bytes} bytes")
    return data


def _sentence_length(directory: Path) -> int | None:
    path = directory / "sentence_bert_config.json"
    return first_int(read_json_object(path), "max_seq_length") if path.exists() else None
