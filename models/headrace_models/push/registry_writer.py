"""What pushing asks of a registry, one request each, and what its answers mean. Nothing is tried again here.

OCI distribution specification 1.1, "Push" (https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md).
Refusals are told with the registry's own words, their first line; they are a stranger's, so they are cut and cleaned.
Callable from many threads.
"""

import json
import re
from collections.abc import Iterable
from urllib.parse import urlencode

from headrace_models.digest import Sha256
from headrace_models.errors import (
    DigestMismatch,
    ModelError,
    ModelNotFound,
    SourceDenied,
    SourceUnavailable,
    SourceUnusable,
)
from headrace_models.locations import OciLocation
from headrace_models.sources.base import SourceOptions
from headrace_models.sources.docker_config import find_credentials
from headrace_models.sources.http_answers import Answer, refusal
from headrace_models.sources.http_connections import Request
from headrace_models.sources.http_transport import HttpTransport
from headrace_models.sources.oci_auth import RegistryAuthorizer
from headrace_models.sources.oci_manifest import OCI_MANIFEST
from headrace_models.sources.oci_registry import full_repository, home_of
from headrace_models.sources.web_addresses import redirect_target

MAX_ANSWER_BYTES = 1 << 20
MAX_WORDS_CHARS = 300

_BLOB_TYPE = "application/octet-stream"
_RECEIVED = re.compile(r"(?:bytes=)?0-(\d{1,18})", re.ASCII)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
# What registries answer that take a blob as a whole only, or that have forgotten the upload.
_PIECE_REFUSED = frozenset({400, 404, 405, 411, 416, 501})


class PieceRefused(Exception):
    """The registry does not take this piece of a blob: not in pieces at all, or no longer from this place."""


class RegistryWriter:
    """The repository that `location` names. Close it."""

    def __init__(self, location: OciLocation, options: SourceOptions, *, mount_from: str | None = None) -> None:
        """`mount_from`: another repository of this registry that may have the blobs."""
        self._location = location
        self._home = home_of(location, options)
        self._mount_from = mount_from
        repository = full_repository(location)
        scopes = [f"repository:{repository}:pull,push"] + ([f"repository:{mount_from}:pull"] if mount_from else [])
        self._transport = HttpTransport(
            options,
            authorizer=RegistryAuthorizer(
                self._home,
                repository,
                options,
                find_credentials=lambda: find_credentials(location.registry, repository, options.environ),
                scopes=scopes,
            ),
        )

    def has_blob(self, digest: Sha256) -> bool:
        """Whether the repository has a blob. A redirect leads to it, so it is there. A refusal counts as no: answers to
        HEAD have no words, and the upload's refusal says why."""
        answer, data = self._send(Request(f"{self._home}/blobs/{digest}", {}, "HEAD"))
        error = self._refused(answer, data) if answer.status >= 400 else None
        if isinstance(error, SourceUnavailable):
            raise error
        return error is None

    def start(self, digest: Sha256) -> str | None:
        """Begin to upload a blob: where to send it; None where the registry took it over from another repository."""
        query = f"?{urlencode({'mount': str(digest), 'from': self._mount_from})}" if self._mount_from else ""
        url = f"{self._home}/blobs/uploads/"
        answer, data = self._send(Request(url + query, {"Content-Length": "0"}, "POST"))
        if answer.status == 201 and self._mount_from:
            return None
        if answer.status != 202:
            raise self._refused(answer, data)
        return _next_place(answer)

    def put_whole(self, place: str, digest: Sha256, body: Iterable[bytes], size_bytes: int) -> None:
        """Send a blob in one request and end its upload. Raises DigestMismatch where other bytes have arrived."""
        self._finish(place, digest, body, size_bytes)

    def put_piece(self, place: str, body: Iterable[bytes], begin: int, end: int) -> str:
        """Send bytes `begin` to `end` (not included) of a blob; where to go on. Raises PieceRefused."""
        headers = {
            "Content-Type": _BLOB_TYPE,
            "Content-Length": str(end - begin),
            "Content-Range": f"{begin}-{end - 1}",
        }
        answer, data = self._send(Request(place, headers, "PATCH", body))
        if answer.status in _PIECE_REFUSED:
            raise PieceRefused(_words(data))
        if answer.status not in {201, 202, 204}:
            raise self._refused(answer, data)
        return _next_place(answer)

    def finish(self, place: str, digest: Sha256) -> None:
        """End the upload of a blob that came in pieces. Raises DigestMismatch where other bytes have arrived."""
        self._finish(place, digest, (), 0)

    def received(self, place: str) -> tuple[int, str] | None:
        """How many bytes of a blob have arrived, and where to go on; None where the registry has forgotten it."""
        answer, data = self._send(Request(place, {}))
        if answer.status in _PIECE_REFUSED:
            return None
        if answer.status not in {200, 204}:
            raise self._refused(answer, data)
        match = _RECEIVED.fullmatch(answer.headers.get("Range", "").strip())
        last = int(match[1]) if match else 0
        # `0-0` is what registries say of nothing, and of one byte, which nobody sends alone.
        return (last + 1 if last else 0), _next_place(answer)

    def put_manifest(self, tag: str, manifest: bytes, digest: Sha256) -> None:
        """Give the model its name; everything that the manifest names is there. Raises SourceUnusable where the
        registry takes it for another one."""
        headers = {"Content-Type": OCI_MANIFEST}
        answer, data = self._send(Request(f"{self._home}/manifests/{tag}", headers, "PUT", manifest))
        if answer.status not in {200, 201, 202}:
            raise self._refused(answer, data)
        stated = answer.headers.get("Docker-Content-Digest", str(digest))
        if stated.startswith("sha256:") and stated != str(digest):
            raise SourceUnusable(f"{self._location}: the registry has taken the manifest for {stated[:100]!a}")

    def close(self) -> None:
        """Close connections; requests under way fail with SourceUnavailable."""
        self._transport.close()

    def _finish(self, place: str, digest: Sha256, body: Iterable[bytes], size_bytes: int) -> None:
        url = f"{place}{'&' if '?' in place else '?'}{urlencode({'digest': str(digest)})}"
        headers = {"Content-Type": _BLOB_TYPE, "Content-Length": str(size_bytes)}
        answer, data = self._send(Request(url, headers, "PUT", body))
        if answer.status in {201, 204}:
            return
        if answer.status == 400 and "DIGEST_INVALID" in _codes(data):
            raise DigestMismatch(f"{self._location.registry} has got other bytes than were read: {_words(data)}")
        if answer.status in {404, 416}:
            raise SourceUnavailable(f"{self._location.registry} has lost an upload")
        raise self._refused(answer, data)

    def _send(self, request: Request) -> tuple[Answer, bytes]:
        return self._transport.send(request, max_bytes=MAX_ANSWER_BYTES)

    def _refused(self, answer: Answer, data: bytes) -> ModelError:
        """The error that a refusal is, in the registry's words."""
        words, name = _words(data), self._location
        said = f" ({words})" if words else ""
        match answer.status:
            case 401:
                return SourceDenied(f"{name} may not be pushed to{said}; credentials: docker login {name.registry}")
            case 403:
                return SourceDenied(f"{name} may not be pushed to{said}")
            case 404:
                return ModelNotFound(f"{name}: the registry has no such repository{said}")
            case 413 | 507:
                return SourceUnusable(f"{name} is larger than the registry takes{said}")
            case status if status >= 500 or status in {408, 425, 429}:
                error = refusal(answer)
                wait = error.retry_after_seconds if isinstance(error, SourceUnavailable) else None
                return SourceUnavailable(f"{error}{said}", retry_after_seconds=wait)
            case status:
                return SourceUnusable(f"{name} is refused by the registry: it answered {status}{said}")


def _next_place(answer: Answer) -> str:
    return redirect_target(answer.url, answer.headers.get("Location"))


def _words(data: bytes) -> str:
    """The first line of what a registry says of its refusal, from its errors' messages or as it stands."""
    messages = [error.get("message") for error in _errors(data)]
    texts = [text for text in messages if isinstance(text, str) and text.strip()]
    plain = "" if data.lstrip()[:1] in {b"<", b"{", b"["} else data[: 4 * MAX_WORDS_CHARS].decode(errors="replace")
    lines = (texts[0] if texts else plain).strip().splitlines()
    return _UNPRINTABLE.sub(" ", lines[0]).strip()[:MAX_WORDS_CHARS] if lines else ""


def _codes(data: bytes) -> frozenset[str]:
    return frozenset(str(error.get("code")) for error in _errors(data))


def _errors(data: bytes) -> list[dict[str, object]]:
    """`{"errors": [{"code", "message", "detail"}]}`, as far as it is that."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return []
    errors = document.get("errors") if isinstance(document, dict) else None
    return [error for error in errors if isinstance(error, dict)] if isinstance(errors, list) else []
