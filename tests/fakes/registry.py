"""A registry in a thread: the distribution API's pushing and pulling, with the tricks that real registries play."""

import base64
import hashlib
import json
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from headrace_models.sources.oci_manifest import OCI_MANIFEST

_UPLOAD = re.compile(r"/v2/(?P<repository>.+)/blobs/uploads/(?P<upload>[0-9a-f]*)")
_BLOB = re.compile(r"/v2/(?P<repository>.+)/blobs/(?P<digest>sha256:[0-9a-f]{64})")
_MANIFEST = re.compile(r"/v2/(?P<repository>.+)/manifests/(?P<name>[^/]+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


class Login(StrEnum):
    """What the registry wants to see."""

    NOTHING = "nothing"
    BASIC = "basic"
    BEARER = "bearer"


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as the registry saw it."""

    method: str
    host: str
    path: str
    query: dict[str, list[str]]
    authorization: str
    range: str
    form: dict[str, list[str]] = field(default_factory=dict)


@dataclass(eq=False)
class FakeRegistry:
    """What the registry holds and how it behaves; a test may set every attribute.

    Attributes:
        address: `127.0.0.1:port`; `other_host` is the same server under another name, another origin to clients.
        manifests: by tag and by digest: bytes and media type.
        users: name → password; with none, tokens are for anybody.
        identity_tokens: refresh tokens that are good.
        tokens: those that are good now.
        redirects_blobs: blobs are to be fetched from `other_host`, with a signature in the query.
        ignores_ranges: always whole blobs.
        breaks_after: an answer to a blob ends after so many bytes, once.
        stated_digest: sent as Docker-Content-Digest instead of the true one.
        on_blob: called with the digest before a blob is answered.
        realm: where tokens are said to be; None: here.
    """

    address: str
    other_host: str
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    login: Login = Login.NOTHING
    users: dict[str, str] = field(default_factory=dict)
    identity_tokens: set[str] = field(default_factory=set)
    tokens: set[str] = field(default_factory=set)
    expires_in: int = 300
    realm: str | None = None
    redirects_blobs: bool = False
    ignores_ranges: bool = False
    breaks_after: int | None = None
    stated_digest: str | None = None
    on_blob: Callable[[str], None] = lambda _digest: None
    seen: list[Seen] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)

    def put_blob(self, data: bytes) -> str:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[digest] = data
        return digest

    def put_manifest(self, document: object, *, tag: str = "latest", media_type: str = OCI_MANIFEST) -> str:
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.manifests[tag] = self.manifests[digest] = (data, media_type)
        return digest

    def blob_requests(self) -> list[Seen]:
        """Requests for bytes of blobs, redirects to the other host included."""
        return [seen for seen in self.seen if "/blobs/sha256:" in seen.path or seen.path.startswith("/storage/")]

    def token_requests(self) -> list[Seen]:
        return [seen for seen in self.seen if seen.path == "/token"]


@contextmanager
def running_registry() -> Iterator[FakeRegistry]:
    """A registry on a free port of 127.0.0.1."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    port = server.server_address[1]
    server.registry = registry = FakeRegistry(f"127.0.0.1:{port}", f"localhost:{port}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # One write per answer: a header and a body in two packets wait for each other's acknowledgement.
    wbufsize = -1

    @property
    def registry(self) -> FakeRegistry:
        found: FakeRegistry = self.server.registry  # type: ignore[attr-defined]
        return found

    def handle(self) -> None:
        with suppress(ConnectionError):  # clients may leave when they like
            super().handle()

    def finish(self) -> None:
        with suppress(ConnectionError):
            super().finish()

    def do_GET(self) -> None:
        seen = self._note()
        if seen.path == "/token":
            self._give_token(self._user_of_basic(seen.authorization), seen.query)
        elif seen.path.startswith("/storage/"):
            self._answer_storage(seen)
        elif self._is_let_in(seen):
            self._pull(seen)

    def do_HEAD(self) -> None:
        seen = self._note()
        if self._is_let_in(seen):
            self._send(404)

    def do_POST(self) -> None:
        body = self._body()
        if self.path == "/token":
            seen = self._note(form=parse_qs(body.decode()))
            good = seen.form.get("refresh_token", [""])[0] in self.registry.identity_tokens
            self._give_token("user" if good else None, seen.form)
        elif self._is_let_in(self._note()):
            upload = secrets.token_hex(4)
            self.registry.uploads[upload] = b""
            self._send(202, headers={"Location": f"{urlsplit(self.path).path}{upload}?state=1"})

    def do_PUT(self) -> None:
        body, seen = self._body(), self._note()
        if not self._is_let_in(seen):
            return
        if match := _UPLOAD.fullmatch(seen.path):
            assert match["upload"] in self.registry.uploads
            assert self.registry.put_blob(body) == seen.query["digest"][0]
            self._send(201)
        elif match := _MANIFEST.fullmatch(seen.path):
            digest = self.registry.put_manifest(
                body, tag=match["name"], media_type=self.headers.get("Content-Type", "")
            )
            self._send(201, headers={"Docker-Content-Digest": digest})

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing on standard error."""

    def _note(self, form: dict[str, list[str]] | None = None) -> Seen:
        parts, headers = urlsplit(self.path), self.headers
        seen = Seen(
            self.command,
            headers.get("Host", ""),
            parts.path,
            parse_qs(parts.query),
            headers.get("Authorization", ""),
            headers.get("Range", ""),
            form or {},
        )
        self.registry.seen.append(seen)
        return seen

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _is_let_in(self, seen: Seen) -> bool:
        registry = self.registry
        match registry.login:
            case Login.NOTHING:
                return True
            case Login.BASIC:
                good, challenge = self._user_of_basic(seen.authorization) is not None, 'Basic realm="fake"'
            case Login.BEARER:
                good = seen.authorization.removeprefix("Bearer ") in registry.tokens
                realm = registry.realm or f"http://{registry.address}/token"
                repository = seen.path.removeprefix("/v2/").partition("/blobs/")[0].partition("/manifests/")[0]
                challenge = f'Bearer realm="{realm}",service="fake",scope="repository:{repository}:pull"'
        if not good:
            self._send(401, b"{}", {"WWW-Authenticate": challenge})
        return good

    def _user_of_basic(self, authorization: str) -> str | None:
        if not authorization.startswith("Basic "):
            return None
        user, _colon, password = base64.b64decode(authorization[6:]).decode().partition(":")
        return user if self.registry.users.get(user) == password else None

    def _give_token(self, user: str | None, asked: dict[str, list[str]]) -> None:
        registry = self.registry
        if user is None and (registry.users or registry.identity_tokens):
            self._send(401, b"{}")
            return
        assert asked["service"] == ["fake"]
        assert asked["scope"][0].startswith("repository:")
        token = secrets.token_hex(8)
        registry.tokens.add(token)
        self._send(200, json.dumps({"token": token, "expires_in": registry.expires_in}).encode())

    def _pull(self, seen: Seen) -> None:
        registry = self.registry
        if (match := _MANIFEST.fullmatch(seen.path)) and match["name"] in registry.manifests:
            data, media_type = registry.manifests[match["name"]]
            stated = registry.stated_digest or f"sha256:{hashlib.sha256(data).hexdigest()}"
            self._send(200, data, {"Content-Type": media_type, "Docker-Content-Digest": stated})
        elif (match := _BLOB.fullmatch(seen.path)) and match["digest"] in registry.blobs:
            self._answer_blob(match["digest"], seen)
        else:
            self._send(404, b'{"errors":[{"code":"NOT_FOUND"}]}')

    def _answer_blob(self, digest: str, seen: Seen) -> None:
        self.registry.on_blob(digest)
        if self.registry.redirects_blobs:
            location = f"http://{self.registry.other_host}/storage/{digest}?X-Signature=secret"
            self._send(307, headers={"Location": location})
        else:
            self._send_range(self.registry.blobs[digest], seen)

    def _answer_storage(self, seen: Seen) -> None:
        if seen.query.get("X-Signature") != ["secret"]:
            self._send(403, b"<Error/>")
        else:
            self._send_range(self.registry.blobs[seen.path.removeprefix("/storage/")], seen)

    def _send_range(self, data: bytes, seen: Seen) -> None:
        match = _RANGE.fullmatch(seen.range)
        if match is None or self.registry.ignores_ranges:
            self._send(200, data)
            return
        begin, end = int(match[1]), min(int(match[2]) + 1, len(data))
        self._send(206, data[begin:end], {"Content-Range": f"bytes {begin}-{end - 1}/{len(data)}"})

    def _send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        breaks_after = self.registry.breaks_after
        if status in {200, 206} and breaks_after is not None and "sha256:" in self.path and len(body) > breaks_after:
            self.registry.breaks_after, self.close_connection = None, True
            body = body[:breaks_after]
        if self.command != "HEAD":
            self.wfile.write(body)
