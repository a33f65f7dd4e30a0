"""Credentials of HTTP requests: who gives them, and to whom they may go.

The transport asks an `Authorizer` for the headers of each request to the origin (scheme, host and port) of the URL that
its caller gave, and never for one that a redirect leads to elsewhere, nor for what comes after that. When such a
request is answered with 401 the authorizer may renew what it has, once per request. Called from many threads at once.
"""

import base64
from collections.abc import Mapping
from typing import Protocol

from headrace_models.errors import SourceDenied
from headrace_models.sources.web_addresses import origin_of


class Authorizer(Protocol):
    """Gives credentials. An implementation decides itself for which URLs it has any."""

    def headers(self, url: str) -> Mapping[str, str]:
        """Headers to add to a request for `url`; empty where there are no credentials. May raise SourceError."""
        ...

    def renew(self, url: str, challenges: tuple[str, ...], sent: Mapping[str, str]) -> bool:
        """`url` was answered with 401; whether it is worth asking once more with new `headers(url)`.

        `challenges` are the values of WWW-Authenticate, `sent` is what `headers(url)` gave for the refused request: if
        another thread has renewed since, `headers(url)` differs from it, and the answer is True without doing more.
        May raise SourceError.
        """
        ...


class NoCredentials:
    """Asks as anybody."""

    def headers(self, url: str) -> Mapping[str, str]:
        """See Authorizer."""
        return {}

    def renew(self, url: str, challenges: tuple[str, ...], sent: Mapping[str, str]) -> bool:
        """See Authorizer."""
        return False


class FixedCredentials(NoCredentials):
    """One Authorization header, for one origin only."""

    def __init__(self, home: str, authorization: str) -> None:
        """`home` is any URL of the origin. Raises SourceDenied for a text that no header can hold."""
        if not authorization.isascii() or not authorization.isprintable():
            raise SourceDenied("the token or password has characters that cannot be sent")
        self._origin = origin_of(home)
        self._headers = {"Authorization": authorization}

    def headers(self, url: str) -> Mapping[str, str]:
        """See Authorizer."""
        return self._headers if origin_of(url) == self._origin else {}


def bearer(home: str, token: str) -> FixedCredentials:
    """A bearer token (RFC 6750) for the origin of `home`."""
    return FixedCredentials(home, f"Bearer {token}")


def basic(home: str, user: str, password: str) -> FixedCredentials:
    """A user's name and password (RFC 7617) for the origin of `home`."""
    return FixedCredentials(home, f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}")
