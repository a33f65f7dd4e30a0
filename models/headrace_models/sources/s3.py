"""A model below a prefix of an S3 bucket as a source, of AWS or of anything that speaks the same.

Objects are pinned by their version where the bucket keeps versions that may be read, so that a model that is replaced
under way can still be read to its end, and by their ETag elsewhere: then reads of another object fail. An ETag is no
digest; a stored SHA-256 of the whole object is one, and is used. Names that begin with a dot are no part of a model.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

from headrace_models.errors import ModelNotFound, SourceChanged, SourceDenied
from headrace_models.reference import ModelReference, s3_location
from headrace_models.sources.base import Body, SourceFile, SourceOptions
from headrace_models.sources.empty_body import EmptyBody
from headrace_models.sources.file_path import checked_path
from headrace_models.sources.listing import MAX_FILES, ListedSource, proofs_of
from headrace_models.sources.s3_client import ListedObject, ObjectFacts, Pin, S3Bucket

MAX_CONNECTIONS = 16
# Objects are asked about one by one, so many at once.
MAX_ASKED = 2_000
ASKED_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class _Found:
    """A file of the model and the object that it is."""

    file: SourceFile
    pin: Pin


def open_s3(reference: ModelReference, options: SourceOptions) -> "S3Source":
    """List the objects. Blocks on the network; raises ModelError, ModelNotFound where there is none."""
    location = s3_location(reference)
    bucket = S3Bucket(location.bucket, options, max_connections=MAX_CONNECTIONS)
    try:
        prefix = f"{location.prefix}/" if location.prefix else ""
        named = ((_path(entry.key, prefix), entry) for entry in bucket.listing(prefix))
        listed = dict(islice(((path, entry) for path, entry in named if path), MAX_FILES + 1))
        if not listed:
            raise ModelNotFound(f"{reference}: no object is there")
        return S3Source(_find(bucket, listed), bucket)
    except BaseException:
        bucket.close()
        raise


class S3Source(ListedSource):
    """See `Source`; made by `open_s3`."""

    def __init__(self, found: Sequence[_Found], bucket: S3Bucket) -> None:
        files = [entry.file for entry in found]
        super().__init__(files, proofs=proofs_of(files), max_connections=MAX_CONNECTIONS)
        self._bucket = bucket
        self._found: Mapping[str, _Found] = {entry.file.path: entry for entry in found}

    @contextmanager
    def read(self, file: SourceFile, begin: int, end: int) -> Iterator[Body]:
        """See Source."""
        found = self._found.get(file.path)
        if found is None:
            raise ModelNotFound(f"{file.path} is not in the model")
        if found.file != file:
            raise SourceChanged(f"{file.path} is not the object that it was")
        if begin == end:
            yield EmptyBody(begin)
        else:
            with self._bucket.read(found.pin, begin, end) as body:
                yield body

    def close(self) -> None:
        """See Source."""
        self._bucket.close()


def _path(key: str, prefix: str) -> str:
    """The path in the model; empty for what is none: markers of folders, hidden names."""
    name = key.removeprefix(prefix)
    hidden = any(part.startswith(".") and part not in {".", ".."} for part in name.split("/"))
    if hidden or not name or name.endswith("/") or not key.startswith(prefix):
        return ""
    return checked_path(name)


def _find(bucket: S3Bucket, listed: Mapping[str, ListedObject]) -> list[_Found]:
    """Files with their pins; of the first object it is asked whether its bucket keeps versions."""
    with_versions = _keeps_versions(bucket, next(iter(listed.values())))
    asked = [entry for entry in listed.values() if with_versions or entry.has_digest]
    if len(asked) > MAX_ASKED:
        with_versions, asked = False, []
    with ThreadPoolExecutor(ASKED_AT_ONCE, "s3-facts") as pool:
        facts = dict(zip(asked, pool.map(partial(_unchanged_facts, bucket), asked), strict=True))
    if not with_versions:
        facts = {entry: replace(fact, version=None) for entry, fact in facts.items()}
    return [_found(path, entry, facts.get(entry)) for path, entry in listed.items()]


def _found(path: str, entry: ListedObject, facts: ObjectFacts | None) -> _Found:
    version = facts.version if facts else None
    validator = f"version {version}" if version else entry.etag
    file = SourceFile(path, entry.size_bytes, validator, facts.digest if facts else None)
    return _Found(file, Pin(entry.key, entry.size_bytes, entry.etag, version))


def _unchanged_facts(bucket: S3Bucket, entry: ListedObject) -> ObjectFacts:
    facts = bucket.facts(entry)
    if (facts.size_bytes, facts.etag) != (entry.size_bytes, entry.etag):
        raise SourceChanged(f"{entry.key} changed while it was listed: try again")
    return facts


def _keeps_versions(bucket: S3Bucket, entry: ListedObject) -> bool:
    """Whether there are versions, and they may be read: that is a permission of its own (s3:GetObjectVersion)."""
    version = bucket.facts(entry).version
    if version is None:
        return False
    try:
        bucket.facts(entry, version=version)
    except SourceDenied:
        return False
    return True
