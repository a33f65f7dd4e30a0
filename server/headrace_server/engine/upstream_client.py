"""The HTTP client that an upstream engine keeps, and bounded reading of what it receives.

The environment decides nothing here: no proxies, no netrc. Generation may be silent for as long as it likes, so there
is no read timeout; connecting, sending and waiting for a free connection are bounded.
"""

import httpx

from headrace_server.engine.upstream_options import Address, UpstreamOptions
from headrace_server.errors import EngineDown, EngineFault

MAX_REPLY_BYTES = 32 * 1024**2

_WRITE_TIMEOUT_SECONDS = 30.0
_POOL_TIMEOUT_SECONDS = 5.0
# Idle connections go before the other side's keep-alive does (uvicorn: 5 s), so that none is used as it closes.
_LIMITS = httpx.Limits(max_connections=1024, max_keepalive_connections=64, keepalive_expiry=4.0)


def open_client(address: Address, options: UpstreamOptions) -> httpx.AsyncClient:
    """A client whose relative URLs are operation paths. Reads the certificate store, which takes a while."""
    headers = {"accept-encoding": "identity", "user-agent": "headrace"}
    if options.api_key is not None:
        headers["authorization"] = f"Bearer {options.api_key}"
    transport = httpx.AsyncHTTPTransport(uds=address.socket_path, limits=_LIMITS, trust_env=False)
    timeout = httpx.Timeout(
        connect=options.connect_timeout_seconds,
        read=None,
        write=_WRITE_TIMEOUT_SECONDS,
        pool=_POOL_TIMEOUT_SECONDS,
    )
    return httpx.AsyncClient(
        base_url=address.base_url, headers=headers, timeout=timeout, transport=transport, trust_env=False
    )


async def body_of(response: httpx.Response, *, max_bytes: int | None = None) -> bytes:
    """Read a response and close it; with `max_bytes` only its beginning.

    Raises:
        EngineDown: the server hung up.
        EngineFault: the whole was asked for and is too large.
    """
    body = bytearray()
    try:
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > (max_bytes or MAX_REPLY_BYTES):
                break
    except httpx.HTTPError as error:
        raise EngineDown("the upstream server broke the answer off") from error
    finally:
        await response.aclose()
    if max_bytes is None and len(body) > MAX_REPLY_BYTES:
        raise EngineFault("the upstream server's answer is too large")
    return bytes(body[:max_bytes])


def is_compressed(response: httpx.Response) -> bool:
    """Whether the body is not what was asked for."""
    encoding: str = response.headers.get("content-encoding", "identity")
    return encoding != "identity"
