"""URLs: who is meant, who may be spoken to in the clear, where a redirect may lead, and what may be shown.

Pure. Rules: plain HTTP to loopback always, to others only where the operator named them; never from HTTPS to plain
HTTP; no credentials in a URL; what is shown of a URL has no query, since presigned URLs keep their secret there.
"""

import ipaddress
import re
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

from headrace_models.errors import SourceUnusable

MAX_URL_CHARS = 16_384

_DEFAULT_PORTS = {"http": 80, "https": 443}
_NOT_IN_URLS = re.compile(r"[\x00-\x20\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port: what credentials belong to (RFC 6454)."""

    scheme: str
    host: str
    port: int


def origin_of(url: str) -> Origin:
    """Who answers for `url`; raises SourceUnusable unless it is an HTTP or HTTPS URL without credentials."""
    parts = _split(url)
    host, port = parts.hostname, _port(parts)
    if parts.scheme not in _DEFAULT_PORTS or not host:
        raise SourceUnusable(f"not an HTTP address: {shown(url)}")
    if "@" in parts.netloc:
        raise SourceUnusable(f"an address with credentials in it is not used: {shown(url)}")
    return Origin(parts.scheme, host, _DEFAULT_PORTS[parts.scheme] if port is None else port)


def shown(url: str) -> str:
    """What may stand in a message: no credentials, no query, one line of bounded length."""
    bare = re.split(r"[?#]", url, maxsplit=1)[0]
    scheme, colon, rest = bare.partition("://")
    authority, slash, path = rest.partition("/")
    text = f"{scheme}{colon}{authority.rpartition('@')[2]}{slash}{path}" if colon else bare
    return _NOT_IN_URLS.sub("?", text)[:300]


def is_loopback(host: str) -> bool:
    """Whether packets to `host`, as it is written, stay on this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def may_be_plain(host: str, port: int, insecure_hosts: Collection[str]) -> bool:
    """Whether `host` may be spoken to over plain HTTP: loopback, or named as `host` or `host:port`."""
    shown_host = f"[{host}]" if ":" in host else host
    return is_loopback(host) or not {host, shown_host, f"{shown_host}:{port}"}.isdisjoint(insecure_hosts)


def check_clear(url: str, insecure_hosts: Collection[str]) -> None:
    """Raise SourceUnusable where `url` is plain HTTP to a host that may not be spoken to so."""
    origin = origin_of(url)
    if origin.scheme == "http" and not may_be_plain(origin.host, origin.port, insecure_hosts):
        raise SourceUnusable(
            f"plain HTTP to {origin.host}:{origin.port} is refused: use https, or name it among the insecure hosts"
        )


def redirect_target(url: str, location: str | None) -> str:
    """Where an answer of `url` with this Location leads; raises SourceUnusable where it must not be followed."""
    if not location or len(location) > MAX_URL_CHARS or _NOT_IN_URLS.search(location):
        raise SourceUnusable(f"{shown(url)} redirects to nowhere")
    try:
        target = urljoin(url, location)
    except ValueError as error:
        raise SourceUnusable(f"{shown(url)} redirects to no address") from error
    if origin_of(url).scheme == "https" and origin_of(target).scheme != "https":
        raise SourceUnusable(f"{shown(url)} redirects from https to plain HTTP, which is refused: {shown(target)}")
    return target


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise SourceUnusable(f"not an address: {shown(url)}") from error


def _port(parts: SplitResult) -> int | None:
    try:
        return parts.port
    except ValueError as error:
        raise SourceUnusable(f"no such port in {shown(parts.geturl())}") from error
