"""Who may read what: bearers, the registry's tokens, signed addresses that expire.

The registry's way is that of the distribution specification: 401 with a challenge, a token from `/token`, the request
again. A redirect leads to `/cdn/<path>` under the machine's other name, signed with a secret of this process; whoever
comes there with Authorization is counted, as a leak.
"""

import hashlib
import secrets
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from loadtests.origin.messages import Answer, Request, plain
from loadtests.origin.registry import refusal as registry_refusal

CDN = "/cdn"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What the origin wants of its clients; nothing, if nothing is said.

    Attributes:
        bearer: plain files and the hub want `Authorization: Bearer <bearer>`.
        registry_tokens: the registry wants a token from `/token`.
        credentials: `user:password`, which `/token` wants by Basic authentication; None: anyone gets a token.
        token_requests: how many requests a token is good for; None: any number.
        signed_bucket: the bucket wants some Authorization.
    """

    bearer: str | None = None
    registry_tokens: bool = False
    credentials: str | None = None
    token_requests: int | None = None
    signed_bucket: bool = False


ANYONE = Access()


class Gate:
    """Checks requests; may be asked from many threads."""

    def __init__(self, access: Access, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._access, self._clock = access, clock
        self._secret = secrets.token_hex()
        self._tokens: dict[str, int] = {}
        self._lock = threading.Lock()

    def refusal(self, request: Request) -> Answer | None:
        """Why the request may not be answered; None: it may."""
        match request.path.split("/", 2)[1]:
            case "v2" if self._access.registry_tokens:
                return None if self._takes(request) else self._challenge(request)
            case "cdn":
                return self._check_signature(request)
            case "files" | "hub" if self._access.bearer is not None:
                wanted = f"Bearer {self._access.bearer}"
                return None if request.header("authorization") == wanted else plain(401)
            case "s3" if self._access.signed_bucket and not request.header("authorization"):
                return plain(403, "<Error><Code>AccessDenied</Code></Error>")
            case _:
                return None

    def token(self, request: Request) -> Answer:
        """Answers `/token`."""
        if self._access.credentials is not None:
            wanted = f"Basic {b64encode(self._access.credentials.encode()).decode()}"
            if request.header("authorization") != wanted:
                return registry_refusal(401, "UNAUTHORIZED")
        token = secrets.token_hex(16)
        with self._lock:
            self._tokens[token] = 0
        body = f'{{"token": "{token}", "expires_in": 300}}'
        return Answer(200, (("Content-Type", "application/json"),), body.encode())

    def expire_tokens(self) -> None:
        """No token given so far is good any more."""
        with self._lock:
            self._tokens.clear()

    def signed_address(self, request: Request, valid_seconds: float | None) -> str:
        """Where the request's path is to be had under this machine's other name."""
        name, _, port = request.host.rpartition(":")
        other = "localhost" if name == "127.0.0.1" else "127.0.0.1"
        until = "never" if valid_seconds is None else repr(self._clock() + valid_seconds)
        query = urlencode({"until": until, "signature": self._signature(request.path, until)})
        return f"http://{other}:{port}{CDN}{quote(request.path)}?{query}"

    def _takes(self, request: Request) -> bool:
        token = request.header("authorization").removeprefix("Bearer ")
        most = self._access.token_requests
        with self._lock:
            if token not in self._tokens or (most is not None and self._tokens[token] >= most):
                return False
            self._tokens[token] += 1
            return True

    def _challenge(self, request: Request) -> Answer:
        name = request.path.removeprefix("/v2/").rpartition("/")[0].rpartition("/")[0]
        challenge = f'Bearer realm="http://{request.host}/token",service="{request.host}"'
        scope = f',scope="repository:{name}:pull"' if name else ""
        answer = registry_refusal(401, "UNAUTHORIZED")
        return Answer(401, (*answer.headers, ("WWW-Authenticate", challenge + scope)), answer.body)

    def _check_signature(self, request: Request) -> Answer | None:
        until = request.query.get("until", "")
        if request.query.get("signature") != self._signature(request.path.removeprefix(CDN), until):
            return plain(403, "no signature")
        return None if until == "never" or self._clock() < float(until) else plain(403, "the address has expired")

    def _signature(self, path: str, until: str) -> str:
        return hashlib.sha256(f"{self._secret} {path} {until}".encode()).hexdigest()[:32]
