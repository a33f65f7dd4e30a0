"""Where an upstream server is and how to talk to it: `EngineSpec.url` and `arguments`, converted once.

Addresses are `http(s)://host:port[/prefix]`, `unix:///path/to/socket` and `unix:///path/to/socket:/prefix`. A final
`/v1` is dropped, because the paths of operations bring their own. The key is a secret: it is in no message and no
repr.
"""

from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

import msgspec

from headrace_server.engine.base import EngineSpec
from headrace_server.errors import UsageError


@dataclass(frozen=True, slots=True)
class Address:
    """The URL that operation paths are appended to, without a final slash, and the Unix socket it goes through."""

    base_url: str
    socket_path: str | None = None


@dataclass(frozen=True, slots=True)
class UpstreamOptions:
    """Arguments of the upstream engine. `upstream_model` is the model's name over there, None if it is ours."""

    upstream_model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    connect_timeout_seconds: float = 5.0


def options_of(spec: EngineSpec) -> UpstreamOptions:
    """Read a spec's arguments; unknown ones are ignored, those that are None take the default.

    Raises:
        UsageError: an argument has the wrong type, or the key could not stand in a header.
    """
    given = {name: value for name, value in spec.arguments.items() if value is not None}
    try:
        options = msgspec.convert(given, UpstreamOptions)
    except msgspec.ValidationError as error:
        raise UsageError(f"model {spec.model!r}: upstream arguments: {error}") from error
    if options.connect_timeout_seconds <= 0:
        raise UsageError(f"model {spec.model!r}: connect_timeout_seconds must be positive")
    if options.api_key is not None and not _fits_header(options.api_key):
        raise UsageError(f"model {spec.model!r}: the upstream api_key has spaces or characters beyond ASCII")
    return options


def _fits_header(key: str) -> bool:
    return key.isascii() and key.isprintable() and " " not in key and key != ""


def address_of(spec: EngineSpec) -> Address:
    """Read a spec's url.

    Raises:
        UsageError: there is none, or it is not an address of the forms above. Credentials in it are refused, because
            addresses are logged.
    """
    parts = urlsplit(spec.url or "")
    match parts.scheme:
        case "unix" if parts.path and not parts.netloc:
            socket_path, _, prefix = parts.path.partition(":")
            return Address(f"http://localhost{_prefix(prefix)}", socket_path)
        case "http" | "https" if parts.hostname and not parts.query and "@" not in parts.netloc and _has_port(parts):
            return Address(f"{parts.scheme}://{parts.netloc}{_prefix(parts.path)}")
        case _:
            forms = "http(s)://host:port[/prefix] or unix:///path/to/socket, without credentials"
            raise UsageError(f"model {spec.model!r}: the upstream url must be {forms}")


def _prefix(path: str) -> str:
    return path.rstrip("/").removesuffix("/v1")


def _has_port(parts: SplitResult) -> bool:
    """Whether the port is a number in range, or left out."""
    try:
        return parts.port != 0
    except ValueError:
        return False
