"""The Hugging Face hub's answers about a model: which commit a revision is, and which files it has.

Read strictly: names are checked, sizes are numbers, digests have their form. Pages of a listing are followed on the
hub's own origin only, and there are bounds to their number and size.
API: huggingface.co/docs/hub/api; `lfs.oid` is the SHA-256 of a large file, `oid` git's id of a blob.
"""

import re
from collections.abc import Callable, Iterable, Iterator

from headrace_models.digest import Sha256
from headrace_models.errors import SourceUnusable
from headrace_models.sources.base import SourceFile
from headrace_models.sources.file_path import checked_path
from headrace_models.sources.http_transport import Document
from headrace_models.sources.web_addresses import origin_of, redirect_target, shown

MAX_PAGE_BYTES = 64 << 20
MAX_PAGES = 1000

_HEX40 = re.compile(r"[0-9a-f]{40}", re.ASCII)
_HEX64 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_NEXT = re.compile(r'<([^<>]*)>\s*;[^<>,]*\brel="?next"?', re.IGNORECASE)


def read_commit(document: Document) -> str:
    """The commit that a revision is, 40 hex digits; raises SourceUnusable."""
    match document.json():
        case {"sha": str(commit)} if _HEX40.fullmatch(commit):
            return commit
        case _:
            raise SourceUnusable(f"{shown(document.url)} does not say which commit the revision is")


def read_files(pages: Iterable[Document]) -> Iterator[SourceFile]:
    """The files of a listing; raises SourceUnusable, UnsafeModel for a name that is refused."""
    for page in pages:
        entries = page.json()
        if not isinstance(entries, list):
            raise SourceUnusable(f"{shown(page.url)} gave no list of files")
        for entry in entries:
            yield from _file(entry, page.url)


def listing_pages(first: str, get: Callable[[str], Document]) -> Iterator[Document]:
    """The pages of a listing, following `Link: <...>; rel="next"` (RFC 8288); raises SourceUnusable."""
    url: str | None = first
    for _page in range(MAX_PAGES):
        if url is None:
            return
        page = get(url)
        yield page
        url = _next_page(page)
    raise SourceUnusable(f"{shown(first)} has more than {MAX_PAGES} pages")


def _next_page(page: Document) -> str | None:
    match = _NEXT.search(page.headers.get("Link", ""))
    if match is None:
        return None
    target = redirect_target(page.url, match[1])
    if origin_of(target) != origin_of(page.url):
        raise SourceUnusable(f"the list of files goes on at another host, which is refused: {shown(target)}")
    return target


def _file(entry: object, url: str) -> Iterator[SourceFile]:
    """Validators name what the commit says of the content: `sha256:...`, or `git:` and the id of the blob."""
    match entry:
        case {"type": "directory"}:
            return
        case {"type": "file", "path": str(path), "lfs": {"oid": str(oid), "size": int(size)}} if _is_size(size):
            digest = Sha256(oid.removeprefix("sha256:"))
            if _HEX64.fullmatch(digest.hex) is None:
                raise SourceUnusable(f"{shown(url)} lists a digest that is none")
            yield SourceFile(checked_path(path), size, str(digest), digest)
        case {"type": "file", "path": str(path), "size": int(size), "oid": str(oid)} if _is_size(size):
            if _HEX40.fullmatch(oid) is None:
                raise SourceUnusable(f"{shown(url)} lists a file's id that is none")
            yield SourceFile(checked_path(path), size, f"git:{oid}")
        case _:
            raise SourceUnusable(f"{shown(url)} lists something that is no file and no directory")


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 60
