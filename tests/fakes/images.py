"""Container images made by tests: OCI layouts, archives as Docker and Buildah write them, and pushes to a registry.

What is written was held once against what Buildah 1.28 and Skopeo 1.9 write: the integration test of `image lint` reads
the same image from both.
"""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import zstandard

from headrace_models.sources.oci_manifest import OCI_INDEX, OCI_MANIFEST
from tests.fakes.registry import FakeRegistry

OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_REF_NAME = "org.opencontainers.image.ref.name"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def tar_with(name: str, data: bytes) -> bytes:
    """A tar with one file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@dataclass(frozen=True, slots=True)
class FakeImageLayer:
    """A layer: its tar, how it is stored, and what the history says of it."""

    tar: bytes
    compression: str = "gzip"
    created_by: str = "/bin/sh -c #(nop) COPY dir in /app"
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def stored(self) -> bytes:
        match self.compression:
            case "gzip":
                return gzip.compress(self.tar, mtime=0)
            case "zstd":
                return zstandard.ZstdCompressor().compress(self.tar)
            case _:
                return self.tar

    @property
    def media_type(self) -> str:
        return _LAYER if self.compression == "none" else f"{_LAYER}+{self.compression}"


@dataclass(frozen=True, slots=True)
class FakeImage:
    """An image for one platform."""

    layers: Sequence[FakeImageLayer]
    architecture: str = "amd64"
    annotations: Mapping[str, str] = field(default_factory=dict)
    config_type: str = OCI_CONFIG

    @property
    def config(self) -> bytes:
        history: list[dict[str, object]] = [{"created_by": layer.created_by} for layer in self.layers]
        history.insert(1, {"created_by": "/bin/sh -c #(nop) ENV A=1", "empty_layer": True})
        diff_ids = [digest_of(layer.tar) for layer in self.layers]
        rootfs = {"type": "layers", "diff_ids": diff_ids}
        document = {"os": "linux", "architecture": self.architecture, "rootfs": rootfs, "history": history}
        return json.dumps(document).encode()

    @property
    def manifest(self) -> bytes:
        return json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": descriptor(self.config, self.config_type),
                "layers": [
                    {**descriptor(layer.stored, layer.media_type), "annotations": dict(layer.annotations)}
                    for layer in self.layers
                ],
                "annotations": dict(self.annotations),
            }
        ).encode()

    @property
    def blobs(self) -> list[bytes]:
        return [self.manifest, self.config, *(layer.stored for layer in self.layers)]


def descriptor(data: bytes, media_type: str) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}


def index_of(images: Iterable[FakeImage], *extra: Mapping[str, object]) -> bytes:
    """An index with the images' platforms, and further entries."""
    entries: list[Mapping[str, object]] = [
        {**descriptor(image.manifest, OCI_MANIFEST), "platform": {"os": "linux", "architecture": image.architecture}}
        for image in images
    ]
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*entries, *extra]}).encode()


def write_layout(directory: Path, images: Mapping[str, FakeImage]) -> Path:
    """A layout with images by tag, as buildah and skopeo write it; an empty tag leaves the name out."""
    entries = []
    for tag, image in images.items():
        for data in image.blobs:
            put_blob(directory, data)
        named = {"annotations": {_REF_NAME: tag}} if tag else {}
        entries.append({**descriptor(image.manifest, OCI_MANIFEST), **named})
    write_index(directory, {"schemaVersion": 2, "manifests": entries})
    return directory


def write_index(directory: Path, document: object) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (directory / "index.json").write_text(json.dumps(document))


def put_blob(directory: Path, data: bytes) -> Path:
    path = directory / "blobs/sha256" / digest_of(data).removeprefix("sha256:")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def tar_up(directory: Path, archive: Path) -> Path:
    """The directory's files in an archive, as `oci-archive:` is."""
    with tarfile.open(archive, "w") as tar:
        for path in sorted(directory.rglob("*")):
            tar.add(path, path.relative_to(directory).as_posix(), recursive=False)
    return archive


def write_docker_archive(archive: Path, images: Mapping[str, FakeImage], *, links: bool = False) -> Path:
    """What `docker save` and buildah's `docker-archive:` write: uncompressed layers, and a list of images.

    `links`: the list names layers by links to the files, as older versions of Docker have for layers that recur.
    """
    listed = []
    with tarfile.open(archive, "w") as tar:
        for tag, image in images.items():
            config = f"{digest_of(image.config).removeprefix('sha256:')}.json"
            names = [_put_layer(tar, layer, number, links=links) for number, layer in enumerate(image.layers)]
            _put(tar, config, image.config)
            listed.append({"Config": config, "RepoTags": [tag] if tag else None, "Layers": names})
        _put(tar, "manifest.json", json.dumps(listed).encode())
    return archive


def _put_layer(tar: tarfile.TarFile, layer: FakeImageLayer, number: int, *, links: bool) -> str:
    name = f"{digest_of(layer.tar).removeprefix('sha256:')}.tar"
    _put(tar, name, layer.tar)
    if not links:
        return name
    info = tarfile.TarInfo(f"{number:064x}/layer.tar")
    info.type, info.linkname = tarfile.SYMTYPE, f"../{name}"
    tar.addfile(info)
    return info.name


def _put(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def put_in_registry(registry: FakeRegistry, image: FakeImage, *, tag: str = "latest") -> str:
    """Have a registry hold the image; the manifest's digest."""
    for data in image.blobs[1:]:
        registry.put_blob(data)
    return registry.put_manifest(image.manifest, tag=tag)
