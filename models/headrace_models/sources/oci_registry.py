"""One repository of a registry: its manifests, checked against their digests, and ranges of its blobs.

OCI distribution specification 1.1 (https://github.com/opencontainers/distribution-spec). https, but plain HTTP to
loopback and to the hosts that the operator named. Ranges are closed ones, without looking for Accept-Ranges: most
registries serve them without saying so, and some refuse open ones. Tokens and redirects are the business of `oci_auth`
and `http_transport`. Callable from many threads.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from headrace_models.digest import Sha256
from headrace_models.errors import DigestMismatch, ModelNotFound, SourceDenied, SourceUnusable
from headrace_models.locations import OciLocation
from headrace_models.sources.base import Body, SourceOptions
from headrace_models.sources.docker_config import HUB_NAMES, find_credentials
from headrace_models.sources.http_answers import Expected
from headrace_models.sources.http_transport import Document, HttpTransport
from headrace_models.sources.oci_artifact import choose_entry
from headrace_models.sources.oci_auth import RegistryAuthorizer
from headrace_models.sources.oci_manifest import (
    ACCEPT,
    DOCKER_MANIFEST,
    MAX_MANIFEST_BYTES,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    ManifestIndex,
    parse_manifest,
)
from headrace_models.sources.web_addresses import may_be_plain, origin_of

HUB_HOST = "registry-1.docker.io"
MAX_EXAMINED = 16


class Registry:
    """The repository that `location` names. Close it."""

    def __init__(self, location: OciLocation, options: SourceOptions) -> None:
        self._location = location
        self._repository = full_repository(location)
        self._home = home_of(location, options)
        self._transport = HttpTransport(
            options,
            authorizer=RegistryAuthorizer(
                self._home,
                self._repository,
                options,
                find_credentials=lambda: find_credentials(location.registry, self._repository, options.environ),
            ),
        )

    def manifest(self) -> tuple[Manifest, Sha256]:
        """The artifact, and the digest of its manifest; of an index, of the entry that is the model.

        Raises DigestMismatch, ModelNotFound, SourceDenied, SourceUnavailable, SourceUnusable.
        """
        found, digest = self._fetch(None)
        if isinstance(found, ManifestIndex):
            entry = choose_entry(self._examined(found))
            found, digest = self._fetch(entry.digest)
        if isinstance(found, ManifestIndex):
            raise SourceUnusable(f"{self._location}: an index in an index is not followed")
        return found, digest

    def document(self, pinned: Sha256 | None = None) -> tuple[Document, Sha256]:
        """The bytes of a manifest or index and their digest, checked: of what the location names, or of `pinned`.

        Raises DigestMismatch, ModelNotFound, SourceDenied, SourceUnavailable, SourceUnusable.
        """
        pinned = pinned or self._location.digest
        name = str(pinned or self._location.tag)
        document = self._asked(
            lambda: self._transport.get(
                f"{self._home}/manifests/{name}", max_bytes=MAX_MANIFEST_BYTES, headers={"Accept": ACCEPT}
            )
        )
        digest = Sha256(hashlib.sha256(document.data).hexdigest())
        for wanted in (pinned, _stated_digest(document)):
            if wanted not in {None, digest}:
                raise DigestMismatch(f"{self._location}: the manifest has the digest {digest}, not {wanted}")
        return document, digest

    @contextmanager
    def read_blob(self, digest: Sha256, size_bytes: int, begin: int, end: int) -> Iterator[Body]:
        """Bytes `begin` to `end` (not included), at least one, of a blob of `size_bytes`. Raises as `Source.read`."""
        with self._transport.open_range(f"{self._home}/blobs/{digest}", begin, end, Expected(size_bytes)) as body:
            yield body

    def close(self) -> None:
        """Close connections; reads under way fail with SourceUnavailable."""
        self._transport.close()

    def _examined(self, index: ManifestIndex) -> ManifestIndex:
        """The same, with the kinds that the entries' own manifests state, where that may help to choose."""
        if not 1 < len(index.entries) <= MAX_EXAMINED:
            return index
        return ManifestIndex(tuple(entry if entry.artifact_type else self._with_kind(entry) for entry in index.entries))

    def _with_kind(self, entry: Descriptor) -> Descriptor:
        if entry.media_type not in {OCI_MANIFEST, DOCKER_MANIFEST}:
            return entry
        found, _digest = self._fetch(entry.digest)
        return entry if isinstance(found, ManifestIndex) else replace(entry, artifact_type=found.kind)

    def _fetch(self, pinned: Sha256 | None) -> tuple[Manifest | ManifestIndex, Sha256]:
        document, digest = self.document(pinned)
        return parse_manifest(document.data, media_type_of(document)), digest

    def _asked(self, ask: Callable[[], Document]) -> Document:
        """Say what is missing by the name that the user gave, and what to do about it."""
        try:
            return ask()
        except ModelNotFound as error:
            raise ModelNotFound(f"{self._location} is not in the registry") from error
        except SourceDenied as error:
            raise SourceDenied(
                f"{self._location} may not be pulled: {error}"
                f" (no such model, or no credentials for it: docker login {self._location.registry})"
            ) from error


def media_type_of(document: Document) -> str:
    """What the registry says that a document is, without parameters."""
    return document.headers.get("Content-Type", "").partition(";")[0].strip()


def home_of(location: OciLocation, options: SourceOptions) -> str:
    """The URL that the repository's manifests, blobs and uploads are below."""
    return f"{_base_url(location.registry, options)}/v2/{full_repository(location)}"


def full_repository(location: OciLocation) -> str:
    """Docker Hub keeps what has no organisation under `library`."""
    on_hub = location.registry in HUB_NAMES and "/" not in location.repository
    return f"library/{location.repository}" if on_hub else location.repository


def _base_url(registry: str, options: SourceOptions) -> str:
    if registry in HUB_NAMES:
        return f"https://{HUB_HOST}"
    origin = origin_of(f"http://{registry}")
    scheme = "http" if may_be_plain(origin.host, origin.port, options.insecure_hosts) else "https"
    return f"{scheme}://{registry}"


def _stated_digest(document: Document) -> Sha256 | None:
    """Docker-Content-Digest; None where it is missing or of a kind that is not computed here."""
    try:
        return Sha256.parse(document.headers.get("Docker-Content-Digest", ""))
    except ValueError:
        return None
