"""A bucket in a thread: as much of S3 as a source of models uses, signed or not, and what stores do wrong."""

import base64
import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "models"

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


@dataclass(slots=True)
class FakeObject:
    """One version of an object; `digest` is stored with it as S3 stores a SHA-256."""

    data: bytes
    version: str = "null"
    has_digest: bool = False

    @property
    def etag(self) -> str:
        # Not a digest of the content alone: neither are those of real stores.
        return f'"{hashlib.md5(self.data + self.version.encode(), usedforsecurity=False).hexdigest()}-1"'


@dataclass(frozen=True, slots=True)
class SeenRequest:
    """A request as the store saw it."""

    method: str
    host: str
    path: str
    query: dict[str, list[str]]
    authorization: str
    range: str
    if_match: str | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """An answer instead of the true one."""

    status: int
    code: str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(eq=False)
class FakeBucket:
    """What the bucket holds and how it behaves; a test may set every attribute.

    Attributes:
        url: the endpoint.
        objects: by key, oldest version first.
        keeps_versions: objects have version ids, and older versions can be read.
        page_size: how many keys a page of a listing has.
        ignores_ranges: always whole objects.
        ignores_conditions: If-Match is not looked at.
        breaks_after: the body of the next object ends after so many bytes.
        fail: asked for each request; a Failure is answered instead.
        endless: listings never end.
        stored_encoding: a Content-Encoding that was stored with every object.
    """

    url: str
    objects: dict[str, list[FakeObject]] = field(default_factory=dict)
    keeps_versions: bool = False
    page_size: int = 1000
    ignores_ranges: bool = False
    ignores_conditions: bool = False
    breaks_after: int | None = None
    fail: Callable[[SeenRequest], Failure | None] = lambda _request: None
    endless: bool = False
    stored_encoding: str = ""
    seen: list[SeenRequest] = field(default_factory=list)

    def put(self, key: str, data: bytes, *, has_digest: bool = False) -> None:
        versions = self.objects.setdefault(key, [])
        new = FakeObject(data, f"v{len(versions) + 1}" if self.keeps_versions else "null", has_digest)
        versions[:] = [*versions, new] if self.keeps_versions else [new]


@contextmanager
def running_bucket() -> Iterator[FakeBucket]:
    """A store with the bucket BUCKET on a free port of 127.0.0.1."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.bucket = bucket = FakeBucket(f"http://127.0.0.1:{server.server_address[1]}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield bucket
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    @property
    def bucket(self) -> FakeBucket:
        found: FakeBucket = self.server.bucket  # type: ignore[attr-defined]
        return found

    def handle(self) -> None:
        with suppress(ConnectionError):  # clients may leave when they like
            super().handle()

    def finish(self) -> None:
        with suppress(ConnectionError):
            super().finish()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query, keep_blank_values=True)
        authorization, wanted = self.headers.get("Authorization", ""), self.headers.get("Range", "")
        request = SeenRequest(
            self.command,
            self.headers["Host"],
            unquote(parts.path),
            query,
            authorization,
            wanted,
            self.headers.get("If-Match"),
        )
        self.bucket.seen.append(request)
        name, _slash, key = request.path[1:].partition("/")
        if failure := self.bucket.fail(request):
            self._fail(failure.status, failure.code, failure.headers)
        elif name != BUCKET:
            self._fail(404, "NoSuchBucket")
        elif key:
            self._answer_object(key, request)
        else:
            self._list(request)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing on standard error."""

    def _list(self, request: SeenRequest) -> None:
        bucket, query = self.bucket, request.query
        assert query["list-type"] == ["2"]
        prefix = query["prefix"][0]
        keys = sorted(key for key in bucket.objects if key.startswith(prefix))
        first = int(query.get("continuation-token", ["0"])[0])
        page = keys[first : first + bucket.page_size]
        more = bucket.endless or first + bucket.page_size < len(keys)
        token = f"<NextContinuationToken>{first + len(page)}</NextContinuationToken>" if more else ""
        entries = "".join(_entry(key, bucket.objects[key][-1]) for key in page)
        document = (
            f"<ListBucketResult><Name>{BUCKET}</Name><EncodingType>url</EncodingType>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}</ListBucketResult>"
        )
        self._send(200, document.encode(), {"Content-Type": "application/xml"})

    def _answer_object(self, key: str, request: SeenRequest) -> None:
        found = self._find(key, request)
        if found is None:
            self._fail(404, "NoSuchKey")
            return
        wanted = self.headers.get("If-Match")
        if wanted not in {None, found.etag} and not self.bucket.ignores_conditions:
            self._fail(412, "PreconditionFailed")
            return
        headers = {"ETag": found.etag}
        if self.bucket.stored_encoding:
            headers["Content-Encoding"] = self.bucket.stored_encoding
        if self.bucket.keeps_versions:
            headers["x-amz-version-id"] = found.version
        if found.has_digest and self.headers.get("x-amz-checksum-mode") == "ENABLED":
            headers["x-amz-checksum-sha256"] = base64.b64encode(hashlib.sha256(found.data).digest()).decode()
            headers["x-amz-checksum-type"] = "FULL_OBJECT"
        self._send_range(found.data, request, headers)

    def _find(self, key: str, request: SeenRequest) -> FakeObject | None:
        versions = self.bucket.objects.get(key, [])
        if "versionId" in request.query:
            return next((one for one in versions if one.version == request.query["versionId"][0]), None)
        return versions[-1] if versions else None

    def _send_range(self, data: bytes, request: SeenRequest, headers: dict[str, str]) -> None:
        match = _RANGE.fullmatch(request.range)
        if match is None or self.bucket.ignores_ranges:
            self._send(200, data, headers)
            return
        begin, end = int(match[1]), min(int(match[2]) + 1, len(data))
        if begin >= len(data):
            self._fail(416, "InvalidRange")
            return
        self._send(206, data[begin:end], {**headers, "Content-Range": f"bytes {begin}-{end - 1}/{len(data)}"})

    def _fail(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        document = f"<Error><Code>{code}</Code><Message>AKIDEXAMPLE said no</Message></Error>"
        self._send(status, document.encode(), {"Content-Type": "application/xml", **(headers or {})})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        breaks_after = self.bucket.breaks_after
        if status in {200, 206} and breaks_after is not None and "ETag" in headers and self.command == "GET":
            self.bucket.breaks_after, self.close_connection = None, True
            body = body[:breaks_after]
        if self.command != "HEAD":
            self.wfile.write(body)


def _entry(key: str, found: FakeObject) -> str:
    checksum = "<ChecksumAlgorithm>SHA256</ChecksumAlgorithm><ChecksumType>FULL_OBJECT</ChecksumType>"
    return (
        f"<Contents><Key>{escape(quote(key))}</Key><Size>{len(found.data)}</Size>"
        f"<ETag>{escape(found.etag)}</ETag>{checksum if found.has_digest else ''}</Contents>"
    )
