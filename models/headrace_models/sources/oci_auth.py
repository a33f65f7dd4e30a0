"""Being let in by a registry: Basic, or a token that a service gives for one repository and a few minutes.

Protocol: https://distribution.github.io/distribution/spec/auth/token/ and .../auth/oauth/ (identity tokens). Nothing is
known before the first 401, so the first request goes as anybody; later ones carry the token, which is renewed shortly
before it expires, and whenever the registry refuses it. One thread renews, the others wait for it. Credentials go to
the registry and to the token service that it names, which must speak https unless the operator allowed otherwise.
Secrets stand in no message.
"""

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlencode

from headrace_models.errors import SourceDenied, SourceUnusable
from headrace_models.sources.base import SourceOptions
from headrace_models.sources.docker_config import Credentials
from headrace_models.sources.http_auth import basic
from headrace_models.sources.http_transport import HttpTransport
from headrace_models.sources.oci_challenge import Challenge, parse_challenges
from headrace_models.sources.web_addresses import is_loopback, origin_of, shown

MAX_TOKEN_ANSWER_BYTES = 256 << 10
# https://distribution.github.io/distribution/spec/auth/token/: never less than 60 s; 60 s where nothing is said.
LEAST_SECONDS = 60.0
LONGEST_SECONDS = 86_400.0
# A token is not used in the last tenth of its life: requests take time, and clocks differ.
USED_SHARE = 0.9
CLIENT_ID = "headrace"

_TOKEN = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class _Token:
    """What is sent, and until when by our clock."""

    headers: Mapping[str, str] = field(repr=False)
    good_until: float


class RegistryAuthorizer:
    """An `Authorizer` (see `http_auth`) for one repository of the registry at `home`, which is a URL of it.

    `find_credentials` is called once, at the first 401; it may block. `scopes` are what tokens are asked for, whatever
    a challenge names: who pushes knows that from the first request on, while the registry names what each request
    needs. Without them it is what the challenge names, else to pull.
    """

    def __init__(
        self,
        home: str,
        repository: str,
        options: SourceOptions,
        *,
        find_credentials: Callable[[], Credentials | None],
        scopes: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._home, self._repository, self._options = home, repository, options
        self._scopes = tuple(scopes)
        self._origin = origin_of(home)
        self._find_credentials, self._clock = find_credentials, clock
        self._credentials: tuple[Credentials | None] | None = None
        self._challenge: Challenge | None = None
        self._token: _Token | None = None
        self._lock = threading.Lock()

    def headers(self, url: str) -> Mapping[str, str]:
        """See Authorizer."""
        if origin_of(url) != self._origin:
            return {}
        with self._lock:
            if self._token is None:
                return {}
            if self._challenge is not None and self._clock() >= self._token.good_until:
                self._token = self._fetch_token(self._challenge)
            return self._token.headers

    def renew(self, url: str, challenges: tuple[str, ...], sent: Mapping[str, str]) -> bool:
        """See Authorizer."""
        if origin_of(url) != self._origin:
            return False
        with self._lock:
            if self._token is not None and self._token.headers != sent:
                return True
            offered = {challenge.scheme: challenge for challenge in parse_challenges(challenges)}
            if bearer := offered.get("bearer"):
                self._token = self._fetch_token(bearer)
                self._challenge = bearer
                return True
            return "basic" in offered and self._log_in(sent)

    def _log_in(self, sent: Mapping[str, str]) -> bool:
        """Basic: whether there is a password that was not refused already."""
        credentials = self._known_credentials()
        if credentials is None or not credentials.password:
            return False
        authorizer = basic(self._home, credentials.user, credentials.password)
        self._token, self._challenge = _Token(authorizer.headers(self._home), float("inf")), None
        return self._token.headers != sent

    def _known_credentials(self) -> Credentials | None:
        if self._credentials is None:
            self._credentials = (self._find_credentials(),)
        return self._credentials[0]

    def _fetch_token(self, challenge: Challenge) -> _Token:
        realm = challenge.parameters.get("realm", "")
        self._check_realm(realm)
        asked_at = self._clock()
        try:
            answer = self._ask(realm, challenge)
        except SourceDenied as error:
            wish = "push to" if self._scopes else "pull"
            raise SourceDenied(f"{shown(realm)} gives no token to {wish} {self._repository}") from error
        return _read_token(answer, asked_at)

    def _check_realm(self, realm: str) -> None:
        origin = origin_of(realm)
        if origin.scheme == "http" and is_loopback(origin.host) and not is_loopback(self._origin.host):
            raise SourceUnusable(f"{self._origin.host} asks for a token from this machine, which is refused")

    def _ask(self, realm: str, challenge: Challenge) -> object:
        """What the service answers: to a form with an identity token, to a query with a password or without.

        What may be plain HTTP the transport decides. Its redirects lose the password as soon as they leave the origin.
        """
        service = challenge.parameters.get("service", self._origin.host)
        scopes = self._scopes or (challenge.parameters.get("scope") or f"repository:{self._repository}:pull",)
        credentials = self._known_credentials()
        has_password = credentials is not None and not credentials.identity_token
        authorizer = basic(realm, credentials.user, credentials.password) if credentials and has_password else None
        transport = HttpTransport(self._options, authorizer=authorizer)
        try:
            if credentials and credentials.identity_token:
                form = {
                    "grant_type": "refresh_token",
                    "client_id": CLIENT_ID,
                    "service": service,
                    "scope": " ".join(scopes),
                    "refresh_token": credentials.identity_token,
                }
                return transport.post_form(realm, form, max_bytes=MAX_TOKEN_ANSWER_BYTES).json()
            query = urlencode([("service", service), *(("scope", scope) for scope in scopes)])
            url = realm + ("&" if "?" in realm else "?") + query
            return transport.get_json(url, max_bytes=MAX_TOKEN_ANSWER_BYTES)
        finally:
            transport.close()


def _read_token(answer: object, asked_at: float) -> _Token:
    content = answer if isinstance(answer, dict) else {}
    token, seconds = content.get("token") or content.get("access_token"), content.get("expires_in")
    if not isinstance(token, str) or _TOKEN.fullmatch(token) is None:
        raise SourceUnusable("the registry's token service answered without a token")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > LEAST_SECONDS:
        seconds = LEAST_SECONDS
    good_seconds = USED_SHARE * min(seconds, LONGEST_SECONDS)
    return _Token({"Authorization": f"Bearer {token}"}, asked_at + good_seconds)
