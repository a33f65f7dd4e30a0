"""One bucket by way of botocore: listing, facts of an object, ranges of one.

Credentials, region and endpoint come from where AWS's own programs find them (environment, ~/.aws, the instance); where
there are no credentials requests go unsigned, for public buckets, and AWS_NO_SIGN_REQUEST asks for that. Endpoints
other than AWS's get the bucket in the path, unless ~/.aws/config says otherwise. Botocore retries nothing: `fetch`
does.
"""

import base64
import binascii
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import botocore.session
from botocore import UNSIGNED
from botocore.config import Config
from urllib3 import HTTPHeaderDict

from headrace_models.digest import Sha256
from headrace_models.errors import SourceUnavailable, SourceUnusable
from headrace_models.sources.base import SourceOptions
from headrace_models.sources.http_answers import Answer, Expected, check_answer
from headrace_models.sources.s3_errors import translated
from headrace_models.sources.web_addresses import check_clear

MAX_PAGES = 1000
DEFAULT_REGION = "us-east-1"

_YES = frozenset({"1", "true", "yes"})


@dataclass(frozen=True, slots=True)
class ListedObject:
    """An object as a listing shows it. `has_digest`: its SHA-256 can be asked for."""

    key: str
    size_bytes: int
    etag: str | None
    has_digest: bool


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    """What the store says of one object. `version` only where the bucket keeps versions; `digest` of the whole."""

    size_bytes: int
    etag: str | None
    version: str | None
    digest: Sha256 | None


@dataclass(frozen=True, slots=True)
class Pin:
    """The object that is meant: its key, its size, and its ETag or version where they are known."""

    key: str
    size_bytes: int
    etag: str | None
    version: str | None


class S3Bucket:
    """A bucket; callable from many threads. Close it. Everything raises as `Source.read`."""

    def __init__(self, name: str, options: SourceOptions, *, max_connections: int) -> None:
        self._name, self._closed = name, threading.Event()
        _keep_signatures_out_of_logs()
        with translated(f"s3://{name}"):
            self._client = _make_client(options, max_connections)
        try:
            check_clear(self._client.meta.endpoint_url, options.insecure_hosts)
        except SourceUnusable:
            self._client.close()
            raise

    def listing(self, prefix: str) -> Iterator[ListedObject]:
        """The objects whose keys begin with `prefix`."""
        place = f"s3://{self._name}/{prefix}"
        more: dict[str, str] = {}
        for _page in range(MAX_PAGES):
            with translated(place):
                page = self._client.list_objects_v2(Bucket=self._name, Prefix=prefix, **more)
            yield from (_listed(entry) for entry in page.get("Contents", ()))
            token = page.get("NextContinuationToken")
            if not page.get("IsTruncated") or not token:
                return
            more = {"ContinuationToken": token}
        raise SourceUnusable(f"{place}: the listing does not end")

    def facts(self, entry: ListedObject, *, version: str | None = None) -> ObjectFacts:
        """What the store says of an object, or of one version of it."""
        asked = {} if version is None else {"VersionId": version}
        if entry.has_digest:
            asked["ChecksumMode"] = "ENABLED"
        with translated(f"s3://{self._name}/{entry.key}"):
            head = self._client.head_object(Bucket=self._name, Key=entry.key, **asked)
        kept = head.get("VersionId")
        return ObjectFacts(
            head["ContentLength"], _strong(head.get("ETag")), None if kept == "null" else kept, _digest(head)
        )

    @contextmanager
    def read(self, pin: Pin, begin: int, end: int) -> Iterator["S3Body"]:
        """Bytes `begin` to `end` (not included), at least one; all of the object where the store ignores ranges."""
        place = f"s3://{self._name}/{pin.key}"
        asked: dict[str, str] = {} if pin.etag is None else {"IfMatch": pin.etag}
        if pin.version is not None:
            asked["VersionId"] = pin.version
        with translated(place):
            answer = self._client.get_object(Bucket=self._name, Key=pin.key, Range=f"bytes={begin}-{end - 1}", **asked)
        try:
            metadata = answer["ResponseMetadata"]
            headers = HTTPHeaderDict(metadata["HTTPHeaders"])
            # Stored with the object, whose bytes are meant as they are; some stores keep an uploader's `aws-chunked`.
            headers.discard("Content-Encoding")
            seen = Answer(place, metadata["HTTPStatusCode"], headers)
            given = check_answer(seen, begin, end, Expected(pin.size_bytes, pin.etag))
            yield S3Body(place, answer["Body"], *given, is_closed=self._closed.is_set)
        finally:
            answer["Body"].close()

    def close(self) -> None:
        """Close idle connections; reads under way fail with SourceUnavailable when their next bytes come."""
        self._closed.set()
        self._client.close()


class S3Body:
    """See Body."""

    def __init__(self, place: str, stream: Any, begin: int, end: int, *, is_closed: Callable[[], bool]) -> None:
        self._place, self._stream, self._is_closed = place, stream, is_closed
        self._begin, self._end, self._position = begin, end, begin

    @property
    def begin(self) -> int:
        """See Body."""
        return self._begin

    @property
    def end(self) -> int:
        """See Body."""
        return self._end

    def read(self, max_bytes: int) -> bytes:
        """See Body."""
        if self._position == self._end:
            return b""
        with translated(self._place):
            data: bytes = self._stream.read(min(max_bytes, self._end - self._position))
        if self._is_closed():
            raise SourceUnavailable("the source is closed")
        if not data:
            raise SourceUnavailable(f"{self._place} ended {self._end - self._position} bytes early")
        self._position += len(data)
        return data


def _make_client(options: SourceOptions, max_connections: int) -> Any:
    session = botocore.session.Session()
    unsigned = os.environ.get("AWS_NO_SIGN_REQUEST", "").lower() in _YES or session.get_credentials() is None
    config = Config(
        region_name=session.get_config_variable("region") or DEFAULT_REGION,
        signature_version=UNSIGNED if unsigned else None,
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=options.connect_seconds,
        read_timeout=options.stall_seconds,
        max_pool_connections=max_connections,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        user_agent_extra="headrace",
    )
    return session.create_client("s3", config=config)


def _keep_signatures_out_of_logs() -> None:
    logger = logging.getLogger("botocore")
    logger.setLevel(max(logger.level, logging.WARNING))


def _listed(entry: Any) -> ListedObject:
    has_digest = "SHA256" in entry.get("ChecksumAlgorithm", ()) and entry.get("ChecksumType") != "COMPOSITE"
    return ListedObject(entry["Key"], entry["Size"], _strong(entry.get("ETag")), has_digest)


def _digest(head: Any) -> Sha256 | None:
    """The SHA-256 of the whole object; that of a composite one is of its parts' digests."""
    text = head.get("ChecksumSHA256") or ""
    if head.get("ChecksumType") == "COMPOSITE":
        return None
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error:
        return None
    return Sha256(data.hex()) if len(data) == 32 else None


def _strong(etag: str | None) -> str | None:
    """As the header has it: some stores list ETags without quotes."""
    if not etag or etag.startswith("W/"):
        return None
    return etag if etag.startswith('"') else f'"{etag}"'
