"""Which layers of an OCI artifact are a model's files, and what they are called.

Three families: Docker's (`application/vnd.docker.ai.*`, https://github.com/docker/model-spec), CNCF ModelPack's
(`application/vnd.cncf.model.*`, earlier `cnai`, https://github.com/modelpack/model-spec), and any artifact whose layers
carry a title, as ORAS writes them. Code is never taken, licences and data sets are not needed. Of documents those are
taken that an engine reads: modctl files every `*.txt` under doc, a tokenizer's merges.txt too. Pure.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from headrace_models.digest import Sha256
from headrace_models.errors import SourceUnusable, UnsafeModel
from headrace_models.seek_index import MEDIA_TYPE as SEEK_INDEX_TYPE
from headrace_models.sources.file_path import checked_path
from headrace_models.sources.oci_manifest import Descriptor, Manifest, ManifestIndex

SEEK_INDEX_PATH = "headrace.seekindex.json"
# What a layer holds, where its media type is that of the artifact's family: readers that know those types only (modctl
# ends with an error at any other) unpack one small file more.
CONTENT_TYPE_ANNOTATION = "dev.headrace.content-type"

_PATH_ANNOTATIONS = ("org.cncf.model.filepath", "org.cnai.model.filepath", "org.opencontainers.image.title")
# A directory that ORAS packed: the names in it begin with the directory's.
_UNPACK_ANNOTATION = "io.deis.oras.content.unpack"
_DOCKER = "application/vnd.docker.ai."
_MODELPACK = re.compile(
    r"application/vnd\.(?:cncf|cnai)\.model\.(?P<role>weight\.config|weight|doc|code|dataset)(?:\.(?P<form>.+))?"
)
_READ_BY_ENGINES = re.compile(r"(?:merges|vocab)\.txt|.+\.(?:json|jinja|model|tiktoken)")
_ARCHIVES = (".tar", "+tar", "+gzip", "+gz", "+zstd")
_MODEL_KINDS = ("application/vnd.docker.ai.", "application/vnd.cncf.model.", "application/vnd.cnai.model.")


class Packing(StrEnum):
    """How a layer holds files: RAW is one file, the others are archives."""

    RAW = "raw"
    TAR = "tar"
    TAR_GZIP = "tar+gzip"
    TAR_ZSTD = "tar+zstd"


@dataclass(frozen=True, slots=True)
class ModelLayer:
    """A layer whose files are the model's. `path` is the file's for RAW and empty for archives."""

    digest: Sha256
    size_bytes: int
    packing: Packing
    path: str = ""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model in layers. `pinned_index` is the path of the seek index among them, if there is one."""

    layers: tuple[ModelLayer, ...]
    pinned_index: str | None


def choose_entry(index: ManifestIndex) -> Descriptor:
    """The model among the artifacts of an index; raises SourceUnusable, naming them, where that is not clear."""
    entries = index.entries
    models = [entry for entry in entries if entry.artifact_type.startswith(_MODEL_KINDS)]
    for candidates in (entries, models):
        if len(candidates) == 1:
            return candidates[0]
    named = ", ".join(f"{entry.digest} ({ascii(entry.artifact_type or entry.media_type)[1:-1]})" for entry in entries)
    raise SourceUnusable(
        f"the reference names {len(entries)} artifacts; name one by its digest, as REPOSITORY@DIGEST: {named[:1000]}"
    )


def read_artifact(manifest: Manifest) -> Artifact:
    """The model's layers, in the manifest's order; raises UnsafeModel for a path that is refused, SourceUnusable where
    no layer is a model's."""
    indexes = [layer for layer in manifest.layers if _is_seek_index(layer)]
    if len(indexes) > 1:
        raise UnsafeModel("the artifact has more than one seek index")
    layers = [layer for descriptor in manifest.layers if (layer := _model_layer(descriptor)) is not None]
    if not layers:
        raise SourceUnusable(f"the artifact holds no model: its type is {manifest.kind[:100]!a}")
    pinned_index = None
    if indexes:
        pinned_index = _path(indexes[0]) or SEEK_INDEX_PATH
        layers.append(_raw(indexes[0], pinned_index))
    return Artifact(_named(layers), pinned_index)


def _is_seek_index(layer: Descriptor) -> bool:
    return SEEK_INDEX_TYPE in {layer.media_type, layer.annotations.get(CONTENT_TYPE_ANNOTATION)}


def _model_layer(layer: Descriptor) -> ModelLayer | None:
    if _is_seek_index(layer):
        return None
    if layer.media_type.startswith(_DOCKER):
        return _docker_layer(layer, layer.media_type.removeprefix(_DOCKER))
    if match := _MODELPACK.fullmatch(layer.media_type):
        return _modelpack_layer(layer, match["role"], match["form"] or "")
    if layer.annotations.get(_UNPACK_ANNOTATION) == "true":
        return _archive(layer)
    path = _path(layer)
    return _raw(layer, path) if path else None


def _docker_layer(layer: Descriptor, kind: str) -> ModelLayer | None:
    if kind.endswith(_ARCHIVES):
        return _archive(layer)
    path = _path(layer)
    if kind == "safetensors":
        return _raw(layer, path or _Unnamed.SAFETENSORS)
    if kind == "gguf.v3":
        return _raw(layer, path or _Unnamed.GGUF)
    if kind == "chat.template.jinja":
        return _raw(layer, path or "chat_template.jinja")
    return _raw(layer, path) if kind == "model.file" and path else None


def _modelpack_layer(layer: Descriptor, role: str, form: str) -> ModelLayer | None:
    if role in {"code", "dataset"}:
        return None
    if role == "doc" and _READ_BY_ENGINES.fullmatch(_annotated(layer).rpartition("/")[2]) is None:
        return None
    if f".{form}".endswith(_ARCHIVES):
        return _archive(layer)
    path = _path(layer)
    if path or role != "weight":
        return _raw(layer, path) if path else None
    return _raw(layer, _Unnamed.GGUF if form.endswith("gguf") else _Unnamed.SAFETENSORS)


class _Unnamed(StrEnum):
    """What a weight without a path is called, if it is the only one."""

    SAFETENSORS = "model.safetensors"
    GGUF = "model.gguf"


def _named(layers: Sequence[ModelLayer]) -> tuple[ModelLayer, ...]:
    """Weights without a path get one: the only one its plain name, several the numbers that a sharded model has."""
    named = list(layers)
    for plain in _Unnamed:
        places = [place for place, layer in enumerate(named) if layer.path is plain]
        stem, dot, suffix = plain.partition(".")
        for number, place in enumerate(places, start=1) if len(places) > 1 else ():
            named[place] = replace(named[place], path=f"{stem}-{number:05}-of-{len(places):05}{dot}{suffix}")
    # The same layer twice is the same files once.
    return tuple(dict.fromkeys(replace(layer, path=str(layer.path)) for layer in named))


def _archive(layer: Descriptor) -> ModelLayer:
    media_type = layer.media_type
    if media_type.endswith(("+gzip", "+gz")):
        packing = Packing.TAR_GZIP
    elif media_type.endswith("+zstd"):
        packing = Packing.TAR_ZSTD
    else:
        packing = Packing.TAR
    return ModelLayer(layer.digest, layer.size_bytes, packing)


def _raw(layer: Descriptor, path: str) -> ModelLayer:
    return ModelLayer(layer.digest, layer.size_bytes, Packing.RAW, path)


def _path(layer: Descriptor) -> str:
    """The path that the annotations of a raw layer give it; empty: none."""
    text = _annotated(layer)
    return checked_path(text.removeprefix("./")) if text else ""


def _annotated(layer: Descriptor) -> str:
    """What the annotations say, unchecked. Of an archive it is where its files are, often `.`, and means nothing."""
    texts = (layer.annotations.get(name) for name in _PATH_ANNOTATIONS)
    return next((text for text in texts if text), "")
