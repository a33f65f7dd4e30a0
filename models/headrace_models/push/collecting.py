"""From a directory, a GGUF file or a model of the store to what is pushed of it.

The same choice as when a model is fetched (`model_files`): shards and what an engine reads beside them, never code,
pickles or second copies; and, from a directory, what people read: README and licence. What would be refused when it is
loaded is refused here. A model of the store is pushed from its own files, each chunk compared with its digest.
"""

import json
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from headrace_models.errors import ModelNotFound, UnsafeModel
from headrace_models.index_building import build_index
from headrace_models.inspection import facts_of, inspect, read_json_object
from headrace_models.model_facts import ModelFacts
from headrace_models.model_files import CONFIG_NAME, MAX_TEXT_BYTES, choose_files
from headrace_models.push.contents import (
    BytesContent,
    ModelContents,
    PushedFile,
    Role,
    SourceContent,
    WeightsFacts,
    read_whole,
)
from headrace_models.reference import ModelReference, Scheme, oci_location, parse_reference
from headrace_models.seek_index import SeekIndex
from headrace_models.seek_index_checks import SHARD_SUFFIX
from headrace_models.sources.base import Source, SourceFile
from headrace_models.sources.local_directory import LocalDirectory
from headrace_models.store.checking import expected_digest
from headrace_models.store.model_directory import ModelDirectory
from headrace_models.store.stored_model import StoredModel
from headrace_models.weights_index import WEIGHTS_INDEX_NAME

GGUF_SUFFIX = ".gguf"

_GGUF_V3 = b"GGUF\x03\x00\x00\x00"
_LICENCE = re.compile(r"(?:licen[cs]e|copying|notice)(?:[._-][^/]*)?", re.IGNORECASE)
_DOCUMENT = re.compile(r"readme(?:\.[^/]*)?|[^/]+\.md", re.IGNORECASE)
_NUMBERED = re.compile(r"(?P<stem>.+)-[0-9]{5}-of-(?P<count>[0-9]{5})\.gguf")


def contents_of_directory(reference: ModelReference) -> ModelContents:
    """What is pushed of a directory of safetensors or GGUF. Raises ModelNotFound, UnsafeModel, SourceUnusable."""
    directory = Path(reference.location)
    source = LocalDirectory(reference)
    names = [file.path for file in source.files if "/" not in file.path]
    if not any(name.endswith(SHARD_SUFFIX) for name in names):
        weights = [name for name in names if name.endswith(GGUF_SUFFIX)]
        if weights:
            return _gguf(source, weights)
    facts = inspect(directory)
    files = choose_files(source.files)
    config = read_json_object(directory / CONFIG_NAME)
    index = build_index(source, str(reference), files, config).index
    indexed = {file.path for file in index.files}
    shards = [file for file in source.files if file.path in indexed]
    others = [*files.skeleton, *([files.weights_index] if files.weights_index else [])]
    return ModelContents(
        (*_of(source, shards, Role.WEIGHTS), *_of(source, others, Role.CONFIG), *_documents(source)),
        _facts(facts, config.get("model_type")),
        index,
        notes=files.notes,
    )


def contents_of_gguf(path: Path) -> ModelContents:
    """What is pushed of one GGUF file, with the other parts of its model. Raises as `contents_of_directory`."""
    path = path.absolute()
    match = _NUMBERED.fullmatch(path.name)
    names = [path.name]
    if match is not None:
        stem, count = match["stem"], match["count"]
        names = [f"{stem}-{number:05}-of-{count}.gguf" for number in range(1, int(count) + 1)]
    if missing := [name for name in names if not (path.parent / name).exists()]:
        raise ModelNotFound(f"{path.parent / missing[0]}: no such file")
    return _gguf(LocalDirectory(ModelReference(Scheme.FILE, str(path.parent)), names=names), names)


def contents_of_stored(model: StoredModel) -> ModelContents:
    """What is pushed of a model of the store; the caller holds a lease. Raises ModelNotFound where not all of it is
    there, StoreError, and for a model that is used where it lies what `contents_of_directory` does."""
    if model.is_local:
        return contents_of_directory(ModelReference(Scheme.FILE, str(model.skeleton)))
    status = model.status()
    if not (status.complete and status.sealed):  # what is not sealed may not have been compared with its files' digests
        share = 100 * status.present_bytes // status.total_bytes
        raise ModelNotFound(
            f"{model.reference} is not complete in the model cache ({share} %): headrace pull {model.reference}"
        )
    index = model.index
    skeleton = LocalDirectory(ModelReference(Scheme.FILE, str(model.skeleton)))
    headers = {file.path for file in index.files}
    others = [file for file in skeleton.files if file.path not in headers]
    config = read_json_object(model.skeleton / CONFIG_NAME)
    return ModelContents(
        (*_stored_shards(model), *_of(skeleton, others, Role.CONFIG), *_written_weights_index(index)),
        _facts(facts_of(model.skeleton, index), config.get("model_type")),
        index,
        fetched_from=_fetched_from(model.reference),
    )


def _stored_shards(model: StoredModel) -> Iterator[PushedFile]:
    directory = ModelDirectory.read(model.directory)
    shards = LocalDirectory(ModelReference(Scheme.FILE, str(model.shard_path(0).parent)))
    listed = {file.path: file for file in shards.files}
    for number, file in enumerate(model.index.files):
        if file.path not in listed:
            raise ModelNotFound(f"{file.path} is gone from the model cache: headrace verify {model.key}")
        content = SourceContent(shards, listed[file.path])
        yield PushedFile(file.path, Role.WEIGHTS, content, partial(expected_digest, directory, number))


def _written_weights_index(index: SeekIndex) -> Iterator[PushedFile]:
    """Which shard has which tensor, as other readers want it; the store does not keep the checkpoint's own."""
    if len(index.files) > 1:
        weight_map = {tensor.name: index.files[tensor.file].path for tensor in index.tensors}
        total = sum(tensor.size_bytes for tensor in index.tensors)
        document = {"metadata": {"total_size": total}, "weight_map": weight_map}
        data = json.dumps(document, indent=2, sort_keys=True).encode()
        yield PushedFile(WEIGHTS_INDEX_NAME, Role.CONFIG, BytesContent(data))


def _fetched_from(reference: str) -> tuple[str, str] | None:
    parsed = parse_reference(reference)
    if parsed.scheme is not Scheme.OCI:
        return None
    location = oci_location(parsed)
    return location.registry, location.repository


def _gguf(source: Source, names: Sequence[str]) -> ModelContents:
    _check_one_model(names)
    weights = [file for file in source.files if file.path in names]
    files = tuple(_of(source, weights, Role.WEIGHTS))
    for file in files:
        if read_whole(file.content, 0, min(len(_GGUF_V3), file.content.size_bytes)) != _GGUF_V3:
            raise UnsafeModel(f"{file.path} is no GGUF file of version 3")
    return ModelContents(
        (*files, *_documents(source)),
        WeightsFacts("gguf", sum(file.size_bytes for file in weights)),
        notes=("there is no seek index for GGUF: the next node checks whole files",),
    )


def _check_one_model(names: Sequence[str]) -> None:
    """One file, or the numbered parts of one model, all of them."""
    matches = [_NUMBERED.fullmatch(name) for name in names]
    sets = {(match["stem"], int(match["count"])) for match in matches if match}
    if len(names) > 1 and (None in matches or len(sets) != 1):
        raise UnsafeModel(f"the directory holds several GGUF models; push one of the files: {', '.join(names)[:300]}")
    if sets and next(iter(sets))[1] != len(names):
        raise UnsafeModel(f"of the parts of {next(iter(sets))[0]} there are {len(names)} of {next(iter(sets))[1]}")


def _of(source: Source, files: Sequence[SourceFile], role: Role) -> Iterator[PushedFile]:
    for file in sorted(files, key=lambda file: file.path):
        yield PushedFile(file.path, _role(file.path, role), SourceContent(source, file))


def _role(path: str, role: Role) -> Role:
    """Modules of a sentence-transformers model have weights of their own, which count as configuration elsewhere."""
    if path.endswith(SHARD_SUFFIX):
        return Role.WEIGHTS
    return Role.TEMPLATE if path == "chat_template.jinja" else role


def _documents(source: Source) -> Iterator[PushedFile]:
    for file in source.files:
        if file.size_bytes > MAX_TEXT_BYTES:
            continue
        if _LICENCE.fullmatch(file.path):
            yield PushedFile(file.path, Role.LICENCE, SourceContent(source, file))
        elif _DOCUMENT.fullmatch(file.path):
            yield PushedFile(file.path, Role.DOCUMENT, SourceContent(source, file))


def _facts(facts: ModelFacts, family: object) -> WeightsFacts:
    return WeightsFacts(
        "safetensors",
        facts.weight_bytes,
        family if isinstance(family, str) and family.isprintable() else None,
        facts.num_parameters,
        facts.dtype,
        facts.max_length,
    )
