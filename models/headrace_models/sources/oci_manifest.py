"""OCI manifests and indexes, read strictly: everything in them is a stranger's until its digest is in a reference.

Pure: bytes in, dataclasses out. Formats: OCI image manifest and image index
(https://github.com/opencontainers/image-spec/blob/v1.1.1/manifest.md) and Docker's equivalents of version 2. Digests
are SHA-256 only, since nothing else can be checked here.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from headrace_models.digest import Sha256
from headrace_models.errors import SourceUnusable

MAX_MANIFEST_BYTES = 4 << 20
MAX_LAYERS = 10_000
MAX_ENTRIES = 1_000
MAX_BLOB_BYTES = 1 << 50

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
ACCEPT = ", ".join((OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST))


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob or manifest that a manifest names. `artifact_type` is empty unless an index states it."""

    media_type: str
    digest: Sha256
    size_bytes: int
    annotations: Mapping[str, str]
    artifact_type: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One artifact: `kind` is its artifactType or, without one, the media type of its config."""

    kind: str
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class ManifestIndex:
    """Several artifacts under one name."""

    entries: tuple[Descriptor, ...]


def parse_manifest(data: bytes, media_type: str) -> Manifest | ManifestIndex:
    """Read what a registry answers with the Content-Type `media_type`; raises SourceUnusable.

    Where the document states a mediaType, that is what counts; the two must not contradict each other, so that nobody
    reads an index as a manifest (https://github.com/opencontainers/image-spec/security/advisories/GHSA-77vh-xpmg-72qh).
    """
    document = _document(data)
    stated = document.get("mediaType", media_type)
    if "manifests" in document and "layers" in document:
        raise SourceUnusable("the registry's manifest is an index too, which is not allowed")
    match stated:
        case "application/vnd.oci.image.index.v1+json" | "application/vnd.docker.distribution.manifest.list.v2+json":
            return ManifestIndex(_descriptors(document, "manifests", at_most=MAX_ENTRIES))
        case "application/vnd.oci.image.manifest.v1+json" | "application/vnd.docker.distribution.manifest.v2+json":
            config = _descriptor(document.get("config"))
            kind = document.get("artifactType")
            return Manifest(
                kind if isinstance(kind, str) and kind else config.media_type,
                _descriptors(document, "layers", at_most=MAX_LAYERS),
            )
        case _:
            raise SourceUnusable(f"the registry's manifest has a type that is not supported: {str(stated)[:100]!a}")


def _document(data: bytes) -> Mapping[str, object]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SourceUnusable("the registry's manifest is not JSON") from error
    if not isinstance(document, dict):
        raise SourceUnusable("the registry's manifest is not a JSON object")
    if document.get("schemaVersion") != 2:
        raise SourceUnusable("the registry's manifest is not of schema version 2")
    return document


def _descriptors(document: Mapping[str, object], name: str, *, at_most: int) -> tuple[Descriptor, ...]:
    values = document.get(name)
    if not isinstance(values, list):
        raise SourceUnusable(f"the registry's manifest has no {name}")
    if len(values) > at_most:
        raise SourceUnusable(f"the registry's manifest has {len(values)} {name}; at most {at_most} are allowed")
    return tuple(map(_descriptor, values))


def _descriptor(value: object) -> Descriptor:
    match value:
        case {"mediaType": str(media_type), "digest": str(digest), "size": int(size_bytes), **rest} if (
            type(size_bytes) is int and 0 <= size_bytes <= MAX_BLOB_BYTES
        ):
            annotations, kind = _annotations(rest.get("annotations")), rest.get("artifactType")
            return Descriptor(
                media_type, _digest(digest), size_bytes, annotations, kind if isinstance(kind, str) else ""
            )
        case _:
            raise SourceUnusable("the registry's manifest has a malformed descriptor")


def _digest(text: str) -> Sha256:
    try:
        return Sha256.parse(text)
    except ValueError as error:
        raise SourceUnusable(f"the registry's manifest has a digest that cannot be checked: {error}") from error


def _annotations(value: object) -> Mapping[str, str]:
    match value:
        case None:
            return {}
        case dict() if all(isinstance(text, str) for text in value.values()):
            return dict(value)
        case _:
            raise SourceUnusable("the registry's manifest has malformed annotations")
