"""An S3 bucket by path-style addresses: `/s3/models/<model>/<path>`, as far as reading needs it.

    GET  /s3/models?list-type=2      ListObjectsV2, with prefix, delimiter, max-keys, start-after and continuation
    GET  /s3/models/<key>            GetObject, with Range and If-Match
    HEAD /s3/models/<key>, /s3/models

There is one bucket, BUCKET. Any signature is believed, and so is none, unless the origin's `Access` wants one.
Errors and listings: https://docs.aws.amazon.com/AmazonS3/latest/API/
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote
from xml.sax.saxutils import escape

from loadtests.origin.messages import Answer, Request
from loadtests.origin.models import ServedFile, Shelf
from loadtests.origin.ranges import file_answer

BUCKET = "models"
_MAX_KEYS = 1000
_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


class Bucket:
    """The current files of every model, under the model's name."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    def answer(self, request: Request) -> Answer:
        """An object, a listing or an error in S3's form."""
        bucket, _, key = request.path.removeprefix("/s3/").partition("/")
        if bucket != BUCKET:
            return refusal(404, "NoSuchBucket")
        if not key:
            return self._about_bucket(request)
        found = self._shelf.split(key)
        file = found[0].file(found[1]) if found else None
        if file is None:
            return refusal(404, "NoSuchKey")
        answer = file_answer(file, request)
        return refusal(412, "PreconditionFailed") if answer.status == 412 else answer

    def _about_bucket(self, request: Request) -> Answer:
        if request.method == "HEAD":
            return Answer(200, (("x-amz-bucket-region", "us-east-1"),))
        if "location" in request.query:
            return _xml(f'<LocationConstraint xmlns="{_NAMESPACE}"/>')
        objects = {
            f"{name}/{file.path}": file
            for name in self._shelf.names
            for version in self._shelf.versions(name)[:1]
            for file in version.files
        }
        return _xml(_listing(request, _page(request, objects), objects))


@dataclass(frozen=True, slots=True)
class _Page:
    keys: Sequence[str]
    prefixes: Sequence[str]
    more_after: str | None


def refusal(status: int, code: str) -> Answer:
    """An error as S3 tells it."""
    return Answer(status, (("Content-Type", "application/xml"),), f"<Error><Code>{code}</Code></Error>".encode())


def _page(request: Request, objects: dict[str, ServedFile]) -> _Page:
    """The part of the listing that is asked for; continuation goes on behind the last key or prefix."""
    prefix, delimiter = request.query.get("prefix", ""), request.query.get("delimiter", "")
    after = request.query.get("continuation-token") or request.query.get("start-after", "")
    most = min(int(request.query.get("max-keys", _MAX_KEYS)), _MAX_KEYS)
    entries: dict[str, bool] = {}  # a key, or the prefix that stands for many: whether it is a key
    for key in sorted(objects):
        if key.startswith(prefix):
            head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            entries.setdefault(f"{prefix}{head}{found}" if found else key, not found)
    left = [entry for entry in entries if entry > after]
    shown = left[:most]
    return _Page(
        keys=[entry for entry in shown if entries[entry]],
        prefixes=[entry for entry in shown if not entries[entry]],
        more_after=shown[-1] if shown and len(left) > len(shown) else None,
    )


def _listing(request: Request, page: _Page, objects: dict[str, ServedFile]) -> str:
    def spelt(text: str) -> str:
        return quote(text) if request.query.get("encoding-type") == "url" else escape(text)

    contents = "".join(
        f"<Contents><Key>{spelt(key)}</Key><LastModified>{_time(objects[key])}</LastModified>"
        f"<ETag>{escape(objects[key].etag)}</ETag><Size>{objects[key].size_bytes}</Size>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
        for key in page.keys
    )
    folders = "".join(f"<CommonPrefixes><Prefix>{spelt(prefix)}</Prefix></CommonPrefixes>" for prefix in page.prefixes)
    more = "" if page.more_after is None else escape(page.more_after)
    encoding = "<EncodingType>url</EncodingType>" if request.query.get("encoding-type") == "url" else ""
    return (
        f'<ListBucketResult xmlns="{_NAMESPACE}"><Name>{BUCKET}</Name>'
        f"<Prefix>{spelt(request.query.get('prefix', ''))}</Prefix>{encoding}"
        f"<KeyCount>{len(page.keys) + len(page.prefixes)}</KeyCount><MaxKeys>{_MAX_KEYS}</MaxKeys>"
        f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>"
        + (f"<NextContinuationToken>{more}</NextContinuationToken>" if more else "")
        + f"{contents}{folders}</ListBucketResult>"
    )


def _time(file: ServedFile) -> str:
    return datetime.fromtimestamp(file.modified, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _xml(text: str) -> Answer:
    return Answer(200, (("Content-Type", "application/xml"),), f'<?xml version="1.0"?>\n{text}'.encode())
