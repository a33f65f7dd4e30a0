"""An OCI registry: `/v2/<model>/manifests/<tag or digest>`, `/v2/<model>/blobs/<digest>`, tags and referrers.

Artifacts are made from the directory by the CNCF ModelPack specification: a raw layer for each file, its path in an
annotation, and a ModelPack config. Tags: `latest`, and `indexed` with a seek index as one more layer, which binds the
digest of every chunk to the manifest's. An artifact is built once for each version of a model, which reads all of its
files; what a tag named before stays to be had by digest.
"""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from loadtests.origin.messages import Answer, Request
from loadtests.origin.models import ServedFile, Shelf, Version
from loadtests.origin.pinned_index import INDEX_PATH, NoIndex, pinned_index
from loadtests.origin.ranges import file_answer

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
IMAGE_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
FILEPATH = "org.cncf.model.filepath"
TAGS = ("latest", "indexed")

_LAYER = "application/vnd.cncf.model.{}.v1.raw"
_PATH = re.compile(r"/v2/(?P<name>.+)/(?P<kind>manifests|blobs|referrers|tags)/(?P<reference>[^/]+)")


@dataclass(frozen=True, slots=True)
class Artifact:
    """A manifest and what it names, by digest (`sha256:<hex>`)."""

    manifest: bytes
    blobs: Mapping[str, bytes | ServedFile]

    @property
    def digest(self) -> str:
        """How the manifest is called."""
        return digest_of(self.manifest)


class Registry:
    """Every model is a repository of the same name."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._built: dict[tuple[Version, str], Artifact] = {}
        self._lock = threading.Lock()

    def answer(self, request: Request) -> Answer:
        """A manifest, a blob, or an error in the registry's form."""
        if request.path.rstrip("/") == "/v2":
            return Answer(200, (("Content-Type", "application/json"),), b"{}")
        match = _PATH.fullmatch(request.path)
        if match is None or not self._shelf.versions(match["name"]):
            return refusal(404, "NAME_UNKNOWN")
        name, reference = match["name"], match["reference"]
        match match["kind"]:
            case "manifests":
                return self._manifest(name, reference)
            case "blobs":
                return self._blob(name, reference, request)
            case "tags":
                return _json({"name": name, "tags": list(TAGS)})
            case _:
                return _json({"schemaVersion": 2, "mediaType": IMAGE_INDEX_TYPE, "manifests": []}, IMAGE_INDEX_TYPE)

    def artifact(self, version: Version, tag: str) -> Artifact:
        """Built when it is first asked for; raises NoIndex for `indexed` where there can be none."""
        with self._lock:
            if (version, tag) not in self._built:
                self._built[version, tag] = build_artifact(version, index=tag == "indexed")
            return self._built[version, tag]

    def _manifest(self, name: str, reference: str) -> Answer:
        if reference in TAGS:
            found = next(self._artifacts(self._shelf.versions(name)[:1], (reference,)), None)
        else:
            artifacts = self._artifacts(self._shelf.versions(name), TAGS)
            found = next((artifact for artifact in artifacts if artifact.digest == reference), None)
        if found is None:
            return refusal(404, "MANIFEST_UNKNOWN")
        headers = (("Content-Type", MANIFEST_TYPE), ("Docker-Content-Digest", found.digest))
        return Answer(200, headers, found.manifest)

    def _blob(self, name: str, digest: str, request: Request) -> Answer:
        for artifact in self._artifacts(self._shelf.versions(name), TAGS):
            blob = artifact.blobs.get(digest)
            headers = (("Docker-Content-Digest", digest),)
            if isinstance(blob, bytes):
                return Answer(200, (*headers, ("Content-Type", "application/octet-stream")), blob)
            if blob is not None:
                return file_answer(blob, request, etag=f'"{digest}"', headers=headers)
        return refusal(404, "BLOB_UNKNOWN")

    def _artifacts(self, versions: Sequence[Version], tags: Sequence[str]) -> Iterator[Artifact]:
        """One after the other, built when their turn comes; without those that cannot be built here."""
        for version in versions:
            for tag in tags:
                with contextlib.suppress(NoIndex):
                    yield self.artifact(version, tag)


def build_artifact(version: Version, *, index: bool) -> Artifact:
    """The ModelPack artifact of a model; raises NoIndex where `index` is wanted and there can be none."""
    blobs: dict[str, bytes | ServedFile] = {f"sha256:{file.sha256}": file for file in version.files}
    layers = [
        _descriptor(_layer_type(file.path), f"sha256:{file.sha256}", file.size_bytes, file.path)
        for file in version.files
    ]
    if index:
        media_type, data = pinned_index(version)
        blobs[digest_of(data)] = data
        layers.append(_descriptor(media_type, digest_of(data), len(data), INDEX_PATH))
    config = _model_config(version, [str(layer["digest"]) for layer in layers])
    blobs[digest_of(config)] = config
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": _descriptor(CONFIG_TYPE, digest_of(config), len(config)),
        "layers": layers,
    }
    return Artifact(json.dumps(manifest, indent=1).encode(), blobs)


def digest_of(data: bytes) -> str:
    """`sha256:<hex>`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def refusal(status: int, code: str) -> Answer:
    """An error as a registry tells it (distribution specification, "Error Codes")."""
    body = json.dumps({"errors": [{"code": code, "message": code.lower().replace("_", " ")}]})
    return Answer(status, (("Content-Type", "application/json"),), body.encode())


def _model_config(version: Version, diff_ids: list[str]) -> bytes:
    config = {
        "descriptor": {"name": version.name},
        "modelfs": {"type": "layers", "diffIds": diff_ids},
        "config": {"format": "safetensors"},
    }
    return json.dumps(config).encode()


def _descriptor(media_type: str, digest: str, size_bytes: int, path: str | None = None) -> dict[str, object]:
    descriptor: dict[str, object] = {"mediaType": media_type, "digest": digest, "size": size_bytes}
    if path is not None:
        descriptor["annotations"] = {FILEPATH: path}
    return descriptor


def _layer_type(path: str) -> str:
    if path.endswith((".safetensors", ".gguf", ".bin")):
        return _LAYER.format("weight")
    if path.lower().endswith((".md", "license")):
        return _LAYER.format("doc")
    return _LAYER.format("code" if path.endswith(".py") else "weight.config")


def _json(content: object, media_type: str = "application/json") -> Answer:
    return Answer(200, (("Content-Type", media_type),), json.dumps(content).encode())
