"""A registry in a thread that takes uploads as the distribution specification says, and breaks where a test says."""

import hashlib
import json
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

_UPLOADS = re.compile(r"/v2/(?P<repository>.+)/blobs/uploads/(?P<upload>[0-9a-f]*)")
_BLOB = re.compile(r"/v2/(?P<repository>.+)/blobs/(?P<digest>sha256:[0-9a-f]{64})")
_MANIFEST = re.compile(r"/v2/(?P<repository>.+)/manifests/(?P<name>[^/]+)")
_BLOCK_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Asked:
    """A request without its body; names of headers are in lower case."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer in place of the registry's own."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def refused(status: int, message: str, code: str = "DENIED", **headers: str) -> Refusal:
    """As registries word it."""
    return Refusal(status, json.dumps({"errors": [{"code": code, "message": message}]}).encode(), headers)


@dataclass(eq=False)
class UploadRegistry:
    """What the registry holds and how it behaves; a test may set every attribute.

    Attributes:
        blobs: by repository, by digest.
        judge: looks at every request first; what it returns is the answer.
        breaks_after: connections end after so many bytes of a body, one for each entry; what has come is kept.
        forgets: an upload that broke is gone.
        corrupts: the next upload ends up with other bytes.
    """

    address: str
    blobs: dict[str, dict[str, bytes]] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, bytearray] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    judge: Callable[[Asked], Refusal | None] = lambda _asked: None
    breaks_after: list[int] = field(default_factory=list)
    forgets: bool = False
    corrupts: int = 0

    def put(self, repository: str, data: bytes) -> None:
        self.blobs.setdefault(repository, {})[f"sha256:{hashlib.sha256(data).hexdigest()}"] = data

    def methods(self, *methods: str) -> list[str]:
        """The methods that were asked for, of these."""
        return [asked.method for asked in self.asked if asked.method in methods]


@contextmanager
def running_upload_registry() -> Iterator[UploadRegistry]:
    """A registry on a free port of 127.0.0.1."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.registry = UploadRegistry(f"127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.registry
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    registry: UploadRegistry

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that end early are what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    server: _Server

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing on standard error."""

    def do_HEAD(self) -> None:
        asked = self._begin()
        match = _BLOB.fullmatch(asked.path)
        if match is not None and not self._is_judged(asked):
            self._send(200 if match["digest"] in self.server.registry.blobs.get(match["repository"], {}) else 404)

    def do_GET(self) -> None:
        asked = self._begin()
        match = _UPLOADS.fullmatch(asked.path)
        if self._is_judged(asked):
            return
        upload = self.server.registry.uploads.get(match["upload"]) if match else None
        if upload is None:
            self._send(404, refused(404, "unknown", "BLOB_UPLOAD_UNKNOWN").body)
        else:
            self._send(204, headers={"Range": f"0-{max(0, len(upload) - 1)}", "Location": asked.path})

    def do_POST(self) -> None:
        asked, registry = self._begin(), self.server.registry
        self._body(asked, bytearray())
        match = _UPLOADS.fullmatch(asked.path)
        if match is None or self._is_judged(asked):
            return
        source = registry.blobs.get(asked.query.get("from", [""])[0], {})
        mounted = source.get(asked.query.get("mount", [""])[0])
        if mounted is not None:
            registry.put(match["repository"], mounted)
            self._send(201)
            return
        upload = secrets.token_hex(4)
        registry.uploads[upload] = bytearray()
        self._send(202, headers={"Location": f"{asked.path}{upload}"})

    def do_PATCH(self) -> None:
        asked, registry = self._begin(), self.server.registry
        match = _UPLOADS.fullmatch(asked.path)
        upload = registry.uploads.get(match["upload"]) if match else None
        body = bytearray()
        if not self._body(asked, body):
            self._keep(match["upload"] if match else "", body)
            return
        if self._is_judged(asked):
            return
        if upload is None or not asked.headers["content-range"].startswith(f"{len(upload)}-"):
            self._send(404 if upload is None else 416)
            return
        upload += body
        self._send(202, headers={"Location": asked.path, "Range": f"0-{len(upload) - 1}"})

    def do_PUT(self) -> None:
        asked, registry = self._begin(), self.server.registry
        body = bytearray()
        if not self._body(asked, body) or self._is_judged(asked):
            return
        if match := _MANIFEST.fullmatch(asked.path):
            registry.manifests[match["name"]] = bytes(body)
            self._send(201, headers={"Docker-Content-Digest": f"sha256:{hashlib.sha256(body).hexdigest()}"})
        elif match := _UPLOADS.fullmatch(asked.path):
            self._finish(match["repository"], match["upload"], bytes(body), asked.query["digest"][0])

    def _finish(self, repository: str, name: str, body: bytes, digest: str) -> None:
        registry = self.server.registry
        data = bytes(registry.uploads.pop(name, b"")) + body
        if registry.corrupts:
            registry.corrupts -= 1
            data = data[:-1] + bytes([data[-1] ^ 1])
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
            self._send(400, refused(400, "provided digest did not match uploaded content", "DIGEST_INVALID").body)
        else:
            registry.put(repository, data)
            self._send(201)

    def _keep(self, name: str, body: bytearray) -> None:
        registry = self.server.registry
        if registry.forgets:
            registry.uploads.pop(name, None)
        elif name in registry.uploads:
            registry.uploads[name] += body

    def _begin(self) -> Asked:
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, parts.path, parse_qs(parts.query), headers)
        self.server.registry.asked.append(asked)
        return asked

    def _body(self, asked: Asked, into: bytearray) -> bool:
        """Read the body; whether all of it came before the connection was to break, or did."""
        registry = self.server.registry
        length = int(asked.headers.get("content-length", "0"))
        limit = registry.breaks_after.pop(0) if length and registry.breaks_after else length
        while len(into) < min(length, limit):
            data = self.rfile.read(min(_BLOCK_BYTES, min(length, limit) - len(into)))
            if not data:
                break
            into += data
        if len(into) < length:
            self.close_connection = True
            return False
        return True

    def _is_judged(self, asked: Asked) -> bool:
        refusal = self.server.registry.judge(asked)
        if refusal is not None:
            self._send(refusal.status, refusal.body, refusal.headers)
        return refusal is not None

    def _send(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
