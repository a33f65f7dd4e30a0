"""Models pushed to a registry in the forms that packers make, over the distribution API."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import urljoin

import urllib3

from headrace_models import seek_index
from headrace_models.sources.oci_manifest import OCI_MANIFEST

_FILEPATH = "org.cncf.model.filepath"
_TITLE = "org.opencontainers.image.title"
_EMPTY = b"{}"


class Form(StrEnum):
    """How the files of a directory become layers."""

    DOCKER = "docker"
    MODELPACK_RAW = "modelpack raw"
    MODELPACK_TAR = "modelpack tar"
    MODELPACK_GZIP = "modelpack tar+gzip"
    ORAS = "oras"


@dataclass(frozen=True, slots=True)
class FakeLayer:
    """A layer to push."""

    media_type: str
    data: bytes
    annotations: Mapping[str, str]

    @property
    def descriptor(self) -> dict[str, object]:
        digest = f"sha256:{hashlib.sha256(self.data).hexdigest()}"
        base: dict[str, object] = {"mediaType": self.media_type, "digest": digest, "size": len(self.data)}
        return {**base, "annotations": dict(self.annotations)} if self.annotations else base


def layers_of(directory: Path, form: Form) -> list[FakeLayer]:
    """The layers of a model directory."""
    files = {path.relative_to(directory).as_posix(): path.read_bytes() for path in sorted(directory.rglob("*.*"))}
    weights = {path: data for path, data in files.items() if path.endswith(".safetensors")}
    configs = {path: data for path, data in files.items() if path not in weights}
    match form:
        case Form.DOCKER:
            raw = [FakeLayer("application/vnd.docker.ai.safetensors", data, {}) for data in weights.values()]
            return [*raw, FakeLayer("application/vnd.docker.ai.vllm.config.tar", tar_of(configs), {})]
        case Form.MODELPACK_RAW:
            return [
                FakeLayer(f"application/vnd.cncf.model.{role}.v1.raw", data, {_FILEPATH: path})
                for role, some in (("weight", weights), ("weight.config", configs))
                for path, data in some.items()
            ]
        case Form.MODELPACK_TAR:
            return [
                FakeLayer("application/vnd.cncf.model.weight.v1.tar", tar_of(weights), {_FILEPATH: "."}),
                FakeLayer("application/vnd.cncf.model.weight.config.v1.tar", tar_of(configs), {_FILEPATH: "."}),
            ]
        case Form.MODELPACK_GZIP:
            return [
                FakeLayer("application/vnd.cncf.model.weight.v1.tar+gzip", gzip.compress(tar_of(weights)), {}),
                FakeLayer("application/vnd.cncf.model.weight.config.v1.tar+gzip", gzip.compress(tar_of(configs)), {}),
            ]
        case Form.ORAS:
            return [FakeLayer("application/octet-stream", data, {_TITLE: path}) for path, data in files.items()]


def seek_index_layer(data: bytes) -> FakeLayer:
    """A layer with a seek index."""
    return FakeLayer(seek_index.MEDIA_TYPE, data, {_TITLE: "headrace.seekindex.json"})


def tar_of(files: Mapping[str, bytes], *, format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar as Python writes it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for path, data in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def manifest_of(layers: Sequence[FakeLayer], *, artifact_type: str | None = None) -> dict[str, object]:
    """The manifest of an artifact whose config is empty."""
    config = FakeLayer("application/vnd.oci.empty.v1+json", _EMPTY, {})
    document: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": config.descriptor,
        "layers": [layer.descriptor for layer in layers],
    }
    return {**document, "artifactType": artifact_type} if artifact_type else document


def push(address: str, repository: str, layers: Sequence[FakeLayer], *, tag: str = "latest") -> str:
    """Push layers and a manifest to the registry at `address` (host:port, plain HTTP); the manifest's digest."""
    base = f"http://{address}/v2/{repository}"
    with closing(_Pool()) as pool:
        for data in (_EMPTY, *(layer.data for layer in layers)):
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            started = pool.send("POST", f"{base}/blobs/uploads/", b"", {}, 202)
            location = urljoin(f"{base}/", started.headers["Location"])
            target = f"{location}{'&' if '?' in location else '?'}digest={digest}"
            pool.send("PUT", target, data, {"Content-Type": "application/octet-stream"}, 201)
        document = json.dumps(manifest_of(layers)).encode()
        pool.send("PUT", f"{base}/manifests/{tag}", document, {"Content-Type": OCI_MANIFEST}, 201)
    return f"sha256:{hashlib.sha256(document).hexdigest()}"


class _Pool:
    def __init__(self) -> None:
        self._pool = urllib3.PoolManager(retries=False)

    def send(
        self, method: str, url: str, body: bytes, headers: Mapping[str, str], expected: int
    ) -> urllib3.BaseHTTPResponse:
        response = self._pool.request(method, url, body=body, headers=dict(headers))
        assert response.status == expected, (response.status, response.data[:500])
        return response

    def close(self) -> None:
        self._pool.clear()
