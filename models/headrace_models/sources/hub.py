"""Models on the Hugging Face hub: a revision becomes a commit, which pins everything; bytes come from wherever it says.

Large files have their SHA-256 in the listing, so they are proved; small ones are vouched for by the commit alone. The
token goes to the hub, never to the content network that it redirects to. What the hub says of a file on the way
(X-Linked-Etag, X-Linked-Size, X-Repo-Commit) must fit the listing, and a file keeps one ETag at each host.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from urllib.parse import quote

from headrace_models.errors import ModelNotFound, SourceChanged, SourceDenied, SourceUnavailable
from headrace_models.locations import HubLocation
from headrace_models.reference import ModelReference, hub_location
from headrace_models.sources.base import Body, SourceFile, SourceOptions
from headrace_models.sources.empty_body import EmptyBody
from headrace_models.sources.http_answers import Answer, Expected, strong_etag
from headrace_models.sources.http_auth import bearer
from headrace_models.sources.http_transport import Document, HttpTransport
from headrace_models.sources.hub_listing import MAX_PAGE_BYTES, listing_pages, read_commit, read_files
from headrace_models.sources.hub_settings import HubSettings
from headrace_models.sources.listing import ListedSource, checked_listing, proofs_of
from headrace_models.sources.web_addresses import origin_of

_CONTENT_ID = re.compile(r'(?:W/)?"?(?P<id>[0-9a-f]{40}|[0-9a-f]{64})"?', re.ASCII)


@dataclass(frozen=True, slots=True)
class _Hub:
    """How to ask about one model."""

    location: HubLocation
    settings: HubSettings
    transport: HttpTransport

    def about(self, what: str, revision: str, query: str = "") -> str:
        """The URL of the hub's answer to `what` of a revision."""
        return (
            f"{self.settings.endpoint}/api/models/{self.location.repository}/{what}/{quote(revision, safe='')}{query}"
        )

    def content(self, commit: str, path: str) -> str:
        """The URL of a file."""
        return f"{self.settings.endpoint}/{self.location.repository}/resolve/{commit}/{quote(path)}"

    def get(self, url: str) -> Document:
        """A document of the API."""
        return self.transport.get(
            url, max_bytes=MAX_PAGE_BYTES, headers={"Accept": "application/json"}, examine=self.examine
        )

    def examine(self, answer: Answer) -> None:
        """Say what a refusal of the hub means; raises SourceDenied, ModelNotFound."""
        if origin_of(answer.url) != origin_of(self.settings.endpoint):
            return
        if answer.status == 404:
            raise ModelNotFound(self._not_found(answer.headers.get("X-Error-Code", "")))
        if answer.status in {401, 403}:
            raise SourceDenied(self._denied(answer.headers.get("X-Error-Code", "")))

    def _not_found(self, code: str) -> str:
        match code:
            case "RevisionNotFound":
                return f"hf://{self.location.repository} has no revision {self.location.revision}"
            case "EntryNotFound":
                return f"hf://{self.location} has lost a file"
            case _:
                return f"the hub knows no hf://{self.location} (or does not show it to this token)"

    def _denied(self, code: str) -> str:
        page = f"{self.settings.endpoint}/{self.location.repository}"
        if code == "GatedRepo":
            return (
                f"hf://{self.location} is gated: accept its conditions at {page}, and set HF_TOKEN to a token of yours"
            )
        if self.settings.token is None:
            return (
                f"the hub does not show hf://{self.location} to strangers: it is gated or private, or there is no"
                f" such model (set HF_TOKEN, or check the name at {page})"
            )
        return (
            f"the hub does not give hf://{self.location} to this token: accept the conditions at {page}, or use another"
        )


class HubModel(ListedSource):
    """See Source. `revision` is the commit."""

    def __init__(self, hub: _Hub, commit: str, files: tuple[SourceFile, ...]) -> None:
        """The transport of `hub` is closed with this."""
        super().__init__(files, revision=commit, proofs=proofs_of(files))
        self._hub = hub
        # Single entries are set and read by threads, which is atomic.
        self._etags: dict[tuple[str, str], str] = {}

    @contextmanager
    def read(self, file: SourceFile, begin: int, end: int) -> Iterator[Body]:
        """See Source."""
        if begin == end:
            yield EmptyBody(begin)
            return

        def examine(answer: Answer) -> None:
            self._hub.examine(answer)
            self._check_content(file, answer)

        url = self._hub.content(self.revision, file.path)
        with self._hub.transport.open_range(url, begin, end, Expected(file.size_bytes), examine=examine) as body:
            yield body

    def close(self) -> None:
        """See Source."""
        self._hub.transport.close()

    def _check_content(self, file: SourceFile, answer: Answer) -> None:
        """Whatever an answer says about the content must fit what the listing said, and what was said before.

        Plain ETags are compared among themselves only: the hub's are git's ids, those of mirrors and of the content
        network look the same and are something else.
        """
        headers, size = answer.headers, str(file.size_bytes)
        linked = _CONTENT_ID.fullmatch(headers.get("X-Linked-Etag", ""))
        if headers.get("X-Linked-Size", size) != size or (linked and linked["id"] != _content_id(file)):
            raise SourceChanged(f"{file.path} is not the content that the hub's list names")
        if headers.get("X-Repo-Commit", self.revision) != self.revision:
            raise SourceChanged(f"{file.path} is of another commit than {self.revision}")
        self._check_etag(file, answer)

    def _check_etag(self, file: SourceFile, answer: Answer) -> None:
        etag, host = strong_etag(answer), origin_of(answer.url).host
        if etag is None or answer.status not in {200, 206}:
            return
        if self._etags.setdefault((file.path, host), etag) != etag:
            raise SourceChanged(f"{file.path} is not the file that it was: its ETag at {host} is another one")


def open_hub(reference: ModelReference, options: SourceOptions) -> HubModel:
    """Find the commit and its files; raises ModelError."""
    settings = HubSettings.from_environ(options.environ)
    location = hub_location(reference)
    if settings.is_offline:
        raise SourceUnavailable(f"{reference} is not asked for: HF_HUB_OFFLINE is set")
    authorizer = bearer(settings.endpoint, settings.token) if settings.token else None
    transport = HttpTransport(options, authorizer=authorizer)
    with ExitStack() as on_failure:
        on_failure.callback(transport.close)
        hub = _Hub(location, settings, transport)
        commit = read_commit(hub.get(hub.about("revision", location.revision)))
        pages = listing_pages(hub.about("tree", commit, "?recursive=true&expand=false"), hub.get)
        model = HubModel(hub, commit, checked_listing(read_files(pages)))
        on_failure.pop_all()
    return model


def _content_id(file: SourceFile) -> str:
    """SHA-256 of a large file, git's id of a small one, in hex."""
    return (file.validator or "").partition(":")[2]
