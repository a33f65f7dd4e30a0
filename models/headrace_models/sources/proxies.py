"""Which proxy a URL is asked through: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY, lower case first.

NO_PROXY names hosts and what is below them, with a port or without, or is `*`, as Python and curl read it. Loopback is
never asked through a proxy. Proxies speak HTTP or HTTPS; their credentials stand in their URL and are never shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from headrace_models.errors import SourceUnusable
from headrace_models.sources.web_addresses import Origin, is_loopback, origin_of, shown


@dataclass(frozen=True, slots=True)
class Proxy:
    """`url` has no credentials; `credentials` is `user:password`, unescaped."""

    url: str
    credentials: str | None


def proxy_for(url: str, environ: Mapping[str, str]) -> Proxy | None:
    """The proxy to ask for `url`; None: ask its host. Raises SourceUnusable for a proxy that cannot be used."""
    origin = origin_of(url)
    if is_loopback(origin.host) or _is_exempt(origin, environ):
        return None
    setting = _setting(f"{origin.scheme}_proxy", environ) or _setting("all_proxy", environ)
    return _parse(setting) if setting else None


def _is_exempt(origin: Origin, environ: Mapping[str, str]) -> bool:
    names = (origin.host, f"{origin.host}:{origin.port}")
    entries = [entry.strip().lower().lstrip(".") for entry in _setting("no_proxy", environ).split(",")]
    return "*" in entries or any(
        name == entry or name.endswith(f".{entry}") for entry in entries if entry for name in names
    )


def _setting(name: str, environ: Mapping[str, str]) -> str:
    # HTTP_PROXY of a CGI program is what the client sent as its Proxy header (CVE-2016-1000110).
    upper = "" if name == "http_proxy" and "REQUEST_METHOD" in environ else environ.get(name.upper(), "")
    return (environ.get(name) or upper).strip()


def _parse(setting: str) -> Proxy:
    url = setting if "://" in setting else f"http://{setting}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise SourceUnusable(f"the proxy is not an address: {shown(url)}") from error
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise SourceUnusable(f"only HTTP proxies are used, not {shown(url)}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else None
    return Proxy(f"{parts.scheme}://{host}" + (f":{port}" if port else ""), credentials)
