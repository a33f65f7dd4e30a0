"""Where a server is reached and how a request to it is written, byte for byte."""

import json
import re
import ssl
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

from headrace_server.errors import UsageError

_NAMED = re.compile(r"(?P<name>[\w.-]{1,40})=(?P<url>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A base URL, in parts. `prefix` comes before `/v1/…` in every path."""

    host: str
    port: int
    secure: bool = False
    prefix: str = ""

    @property
    def authority(self) -> str:
        """`host:port`, as it stands in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def tls(self) -> ssl.SSLContext | None:
        return ssl.create_default_context() if self.secure else None


def parse_target(text: str, default_name: str) -> tuple[str, Endpoint]:
    """`URL` or `name=URL` → name and endpoint; a `/v1` at the end of the URL is taken for granted.

    Raises:
        UsageError: not an http or https URL.
    """
    named = _NAMED.fullmatch(text)
    name, url = (named["name"], named["url"]) if named else (default_name, text)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"not a URL: {url}: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"not an http:// or https:// URL: {url}")
    if parts.username or parts.query or parts.fragment:
        raise UsageError("a base URL has no user, query or fragment; a key goes into --api-key")
    secure = parts.scheme == "https"
    prefix = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return name, Endpoint(parts.hostname, port or (443 if secure else 80), secure, prefix)


class Api(StrEnum):
    """Which of OpenAI's two completion endpoints is measured."""

    CHAT = "chat"
    COMPLETIONS = "completions"

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self is Api.CHAT else "/v1/completions"

    def document(self, model: str, prompt: str, *, num_tokens: int, stream: bool) -> dict[str, object]:
        """A greedy request for exactly `num_tokens` tokens; `ignore_eos` is vLLM's, and Headrace's."""
        asked: dict[str, object] = {"messages": [{"role": "user", "content": prompt}]}
        if self is Api.COMPLETIONS:
            asked = {"prompt": prompt}
        options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        return {"model": model, **asked, "max_tokens": num_tokens, "temperature": 0, "ignore_eos": True, **options}


def http_request(endpoint: Endpoint, path: str, document: object = None, *, api_key: str | None = None) -> bytes:
    """GET `path`, or POST `document` as JSON to it, on a connection that stays open."""
    body = b"" if document is None else json.dumps(document).encode()
    lines = [
        f"{'GET' if document is None else 'POST'} {endpoint.prefix}{path} HTTP/1.1",
        f"host: {endpoint.authority}",
    ]
    if document is not None:
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
    if api_key is not None:
        lines.append(f"authorization: Bearer {api_key}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
