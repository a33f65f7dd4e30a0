"""The JSON documents of an image, read strictly: index, manifest, configuration, and `docker save`'s list.

Pure: bytes in, dataclasses out; whatever is not as the specification says raises ImageUnreadable. Formats:
https://github.com/opencontainers/image-spec (v1.1.1) and Docker's equivalents of version 2.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from headrace_models.digest import Sha256
from headrace_models.sources.oci_manifest import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from headrace_server.image.description import Platform
from headrace_server.image.errors import ImageUnreadable

MAX_DOCUMENT_BYTES = 4 << 20
MAX_LAYERS = 10_000
MAX_BLOB_BYTES = 1 << 50
SOCI_INDEX_DIGEST = "com.amazon.soci.index-digest"
REF_NAME = "org.opencontainers.image.ref.name"

_INDEXES = (OCI_INDEX, DOCKER_LIST)
_MANIFESTS = (OCI_MANIFEST, DOCKER_MANIFEST)
_CONFIGS = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
_MODELS = ("application/vnd.docker.ai.", "application/vnd.cncf.model.", "application/vnd.cnai.model.")

Document = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob that a document names."""

    media_type: str
    digest: Sha256
    size_bytes: int
    annotations: Mapping[str, str]
    platform: Platform | None = None
    artifact_type: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Index:
    """Several images under one name."""

    entries: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class Config:
    """What the configuration says: for which platform, and which instruction made each layer, lowest first.

    `diff_ids` are the digests of the layers' tars, unpacked; `created_by` has as many entries, or none where the
    history does not fit the layers.
    """

    platform: Platform | None
    diff_ids: tuple[Sha256, ...]
    created_by: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SavedImage:
    """An entry of `docker save`'s manifest.json: names of files in the archive."""

    config: str
    layers: tuple[str, ...]
    tags: tuple[str, ...]


def parse_document(data: bytes, media_type: str = "") -> Manifest | Index:
    """Read a manifest or an index; `media_type` is what whoever named it says, and counts where it does not itself.

    Raises ImageUnreadable, also for a model and for other artifacts.
    """
    document = _object(data, "manifest")
    if document.get("schemaVersion") != 2:
        raise ImageUnreadable("the manifest is not of schema version 2: build or push the image with a newer tool")
    stated = document.get("mediaType") or media_type
    if "manifests" in document and "layers" not in document and stated in ("", *_INDEXES):
        return Index(_descriptors(document, "manifests"))
    if "layers" in document and "manifests" not in document and stated in ("", *_MANIFESTS):
        return _manifest(document)
    raise ImageUnreadable(f"not an image manifest or index: its type is {ascii(str(stated)[:100])}")


def _manifest(document: Document) -> Manifest:
    config = _descriptor(document.get("config"))
    kind = document.get("artifactType")
    kind = kind if isinstance(kind, str) and kind else config.media_type
    if kind.startswith(_MODELS):
        raise ImageUnreadable(
            f"this is a model ({kind[:100]}), not a container image: headrace index show oci://… looks at it,"
            " headrace pull oci://… fetches it"
        )
    if config.media_type not in _CONFIGS:
        raise ImageUnreadable(f"not a container image but an artifact of type {ascii(kind[:100])}")
    return Manifest(config, _descriptors(document, "layers"), _texts(document.get("annotations")))


def parse_config(data: bytes) -> Config:
    """Read an image's configuration. Raises ImageUnreadable."""
    document = _object(data, "configuration")
    match document.get("rootfs"):
        case {"diff_ids": list(values)} if len(values) <= MAX_LAYERS:
            diff_ids = tuple(_digest(_text(value)) for value in values)
        case _:
            raise ImageUnreadable("the image's configuration does not list its layers (rootfs.diff_ids)")
    return Config(_platform(document), diff_ids, _instructions(document.get("history"), len(diff_ids)))


def parse_saved(data: bytes) -> tuple[SavedImage, ...]:
    """Read manifest.json of `docker save`. Raises ImageUnreadable."""
    content = _json(data, "manifest.json")
    if not isinstance(content, list):
        raise ImageUnreadable("manifest.json is not a list of images, as docker save writes it")
    return tuple(map(_saved, content))


def _saved(entry: object) -> SavedImage:
    match entry:
        case {"Config": str(config), "Layers": list(layers), **rest} if len(layers) <= MAX_LAYERS:
            return SavedImage(config, _names(layers), _names(rest.get("RepoTags") or []))
        case _:
            raise ImageUnreadable("manifest.json has an entry without Config and Layers")


def _names(values: object) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ImageUnreadable("manifest.json has names that are no text")
    return tuple(values)


def _instructions(history: object, num_layers: int) -> tuple[str, ...]:
    entries = [entry for entry in history if isinstance(entry, dict)] if isinstance(history, list) else []
    made = [entry.get("created_by") for entry in entries if entry.get("empty_layer") is not True]
    if len(made) != num_layers:
        return ()
    return tuple(text if isinstance(text, str) else "" for text in made)


def _object(data: bytes, what: str) -> Document:
    content = _json(data, what)
    if not isinstance(content, dict):
        raise ImageUnreadable(f"the image's {what} is not a JSON object")
    return content


def _json(data: bytes, what: str) -> object:
    try:
        content: object = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ImageUnreadable(f"the image's {what} is not JSON") from error
    return content


def _descriptors(document: Document, name: str) -> tuple[Descriptor, ...]:
    values = document.get(name)
    if not isinstance(values, list) or len(values) > MAX_LAYERS:
        raise ImageUnreadable(f"the manifest's {name} are no list, or more than {MAX_LAYERS}")
    return tuple(map(_descriptor, values))


def _descriptor(value: object) -> Descriptor:
    match value:
        case {"digest": str(digest), "size": int(size_bytes), **rest} if (
            type(size_bytes) is int and 0 <= size_bytes <= MAX_BLOB_BYTES
        ):
            return Descriptor(
                _text(rest.get("mediaType")),
                _digest(digest),
                size_bytes,
                _texts(rest.get("annotations")),
                _platform(rest.get("platform")),
                _text(rest.get("artifactType")),
            )
        case _:
            raise ImageUnreadable("the manifest has a malformed descriptor")


def _digest(text: str) -> Sha256:
    try:
        return Sha256.parse(text)
    except ValueError as error:
        raise ImageUnreadable(f"the image has a digest that cannot be checked: {error}") from error


def _platform(value: object) -> Platform | None:
    match value:
        case {"os": str(os), "architecture": str(architecture), **rest} if os and architecture:
            return Platform(os, architecture, _text(rest.get("variant")))
        case _:
            return None


def _texts(value: object) -> Mapping[str, str]:
    if not isinstance(value, dict):
        return {}
    return {name: text for name, text in value.items() if isinstance(name, str) and isinstance(text, str)}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
