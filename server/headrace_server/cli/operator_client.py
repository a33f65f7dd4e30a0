"""The operator's end of a running server: finds its control socket, or takes an address, and speaks `/admin` to it.

The socket is looked for where the configuration puts it. Another port's is taken only where no port was asked for and
it is the only one that anybody listens on, so that a command never reaches a server that was not meant by accident.
Every failure is one line.
"""

import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from headrace_server.api.admin_documents import AdminModel, AdminModels, Drained, DrainStatus, UsageReport
from headrace_server.cli.control_socket import control_path, is_live, live_ports
from headrace_server.errors import HeadraceError, UsageError
from headrace_server.settings.loading import load_settings
from headrace_server.settings.schema import ServerSettings

CONNECT_SECONDS = 5.0

Document = TypeVar("Document", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where the server is, as the command line says. `port` and `url` None: as configured; `key` is sent to a `url`."""

    config: Path | None = None
    port: int | None = None
    url: str | None = None
    key: str | None = None


class Operator:
    """Speaks to one server, at `socket` or (None) somewhere else. Every method raises HeadraceError, with the server's
    words where it refuses."""

    def __init__(self, http: httpx.AsyncClient, place: str, socket: Path | None = None) -> None:
        self.socket = socket
        self._http = http
        self._place = place

    async def models(self) -> AdminModels:
        """The catalog and the memory."""
        return self._read(AdminModels, await self._ask("GET", "/admin/models"))

    async def act(self, model: str, action: str) -> AdminModel:
        """`load`, `unload`, `pin` or `unpin` a model; returns once that is done."""
        name = f"{quote(model, safe='/:@')}/".replace("./", "%2E/")  # else `..` would be resolved
        return self._read(AdminModel, await self._ask("POST", f"/admin/models/{name}{action}", {}))

    async def drain(self, deadline_seconds: float | None) -> int:
        """Drain the server; returns how many requests were cut."""
        body = {"deadline_seconds": deadline_seconds}
        return self._read(Drained, await self._ask("POST", "/admin/drain", body)).cut

    async def drain_status(self) -> DrainStatus:
        """How many requests are open."""
        return self._read(DrainStatus, await self._ask("GET", "/admin/drain"))

    async def usage(self, num_days: int) -> UsageReport:
        """What tenants have used in the last days."""
        return self._read(UsageReport, await self._ask("GET", f"/admin/usage?days={num_days}"))

    async def events(self) -> AsyncIterator[AdminModel]:
        """Every model, and then every change of one, until the server ends."""
        try:
            async with self._http.stream("GET", "/admin/events") as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("data: "):
                        yield self._read(AdminModel, line.removeprefix("data: ").encode())
        except httpx.HTTPError as error:
            raise self._lost(error) from error

    async def _ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> bytes:
        try:
            answer = await self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise self._lost(error) from error
        if not answer.is_success:
            raise HeadraceError(_refusal(answer))
        return answer.content

    def _lost(self, error: httpx.HTTPError) -> HeadraceError:
        return HeadraceError(f"the server at {self._place} cannot be reached: {str(error) or type(error).__name__}")

    def _read(self, kind: type[Document], document: bytes) -> Document:
        try:
            return kind.model_validate_json(document)
        except ValidationError as error:
            raise HeadraceError(f"{self._place} does not answer as a server of this version does") from error


@asynccontextmanager
async def open_operator(where: Whereabouts) -> AsyncIterator[Operator]:
    """Speak to the server that is meant.

    Raises:
        UsageError: the configuration or the address cannot be right.
        HeadraceError: there is no such server.
    """
    if where.url is not None:
        async with _remote(where.url, where.key) as http:
            yield Operator(http, where.url)
        return
    path = find_socket(load_settings(config=where.config).server, where.port)
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=_timeout()) as http:
        yield Operator(http, str(path), path)


def find_socket(server: ServerSettings, port: int | None) -> Path:
    """The control socket of the server that is meant; see the module.

    Raises:
        HeadraceError: nobody listens there, or it may not be asked.
    """
    path = control_path(server.state_dir, server.port if port is None else port)
    try:
        if is_live(path):
            return path
    except OSError as error:
        raise HeadraceError(f"{path} cannot be opened: {error.strerror or error}") from error
    others = live_ports(server.state_dir)
    if port is None and len(others) == 1:
        return control_path(server.state_dir, others[0])
    found = f"; servers run on {', '.join(map(str, others))} (--port)" if others else ""
    raise HeadraceError(f"no server listens on {path}{found}")


def _remote(url: str, key: str | None) -> httpx.AsyncClient:
    address = url.rstrip("/").removesuffix("/v1")
    try:
        parsed = httpx.URL(address)
    except httpx.InvalidURL as error:
        raise UsageError(f"--url {url[:200]}: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UsageError(f"--url {url[:200]} is not an address such as http://127.0.0.1:8000")
    headers = key_headers(key)
    verify = ssl.create_default_context()  # the system's authorities, and SSL_CERT_FILE
    return httpx.AsyncClient(base_url=address, headers=headers, verify=verify, trust_env=False, timeout=_timeout())


def key_headers(key: str | None) -> dict[str, str]:
    """What a client with this key sends.

    Raises:
        UsageError: it cannot be one.
    """
    if key is not None and not (key.isascii() and key.isprintable()):
        raise UsageError("HEADRACE_API_KEY holds what no key can")
    return {"authorization": f"Bearer {key}"} if key else {}


def _timeout() -> httpx.Timeout:
    return httpx.Timeout(None, connect=CONNECT_SECONDS)  # a model may take as long as it takes


def _refusal(answer: httpx.Response) -> str:
    try:
        return str(json.loads(answer.content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {answer.status_code}"
