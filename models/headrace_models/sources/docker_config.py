"""Credentials for registries, from where Docker, Podman and Kubernetes keep them.

Read in this order: $REGISTRY_AUTH_FILE, then config.json in $DOCKER_CONFIG or ~/.docker. In each file the helper of
the registry comes first, then `auths` (the longest key that fits, also with a repository's path), then the general
helper (https://docs.docker.com/reference/cli/docker/login/). Secrets stay in `Credentials`, whose text does not show
them; nothing is written.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from headrace_models.errors import SourceUnusable
from headrace_models.sources.credential_helper import run_helper

MAX_CONFIG_BYTES = 1 << 20
HUB_NAMES = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
HUB_SERVER = "https://index.docker.io/v1/"

# What a helper gives as the user where the secret is an identity token.
_TOKEN_USER = "<token>"
_KEY = re.compile(r"(?:https?://)?(?P<host>[^/]+)(?P<path>/.*)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user's name and password, or an identity token: an OAuth 2 refresh token that stands for both."""

    user: str
    password: str = field(repr=False, default="")
    identity_token: str = field(repr=False, default="")


@dataclass(frozen=True, slots=True)
class _Config:
    """One file; `path` is for messages."""

    path: Path
    content: Mapping[str, object]


def find_credentials(registry: str, repository: str, environ: Mapping[str, str]) -> Credentials | None:
    """What to log in with to pull `repository` of `registry` (`host` or `host:port`); None: as anybody.

    Blocks while a helper runs. Raises SourceUnusable for a file or helper that does not do what it should.
    """
    for config in _configs(environ):
        found = _from_config(config, registry, repository, environ)
        if found is not None:
            return found
    return None


def config_paths(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Where credentials are looked for."""
    paths = [Path(environ["REGISTRY_AUTH_FILE"])] if environ.get("REGISTRY_AUTH_FILE") else []
    if environ.get("DOCKER_CONFIG"):
        paths.append(Path(environ["DOCKER_CONFIG"], "config.json"))
    elif environ.get("HOME"):
        paths.append(Path(environ["HOME"], ".docker", "config.json"))
    return tuple(paths)


def _configs(environ: Mapping[str, str]) -> Iterator[_Config]:
    for path in config_paths(environ):
        try:
            with path.open("rb") as file:
                data = file.read(MAX_CONFIG_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise SourceUnusable(f"the registry credentials in {path} cannot be read: {error.strerror}") from error
        yield _Config(path, _parsed(path, data))


def _parsed(path: Path, data: bytes) -> Mapping[str, object]:
    try:
        content = json.loads(data) if len(data) <= MAX_CONFIG_BYTES else None
    except (ValueError, RecursionError):
        content = None  # what was not understood may be a secret, so no cause is kept
    if not isinstance(content, dict):
        raise SourceUnusable(f"the registry credentials in {path} are no JSON object of less than a MiB")
    return content


def _from_config(config: _Config, registry: str, repository: str, environ: Mapping[str, str]) -> Credentials | None:
    helpers = _mapping(config.content.get("credHelpers"))
    for key, helper in helpers.items():
        if isinstance(helper, str) and _fits(key, registry, repository) is not None:
            return _from_helper(helper, HUB_SERVER if registry in HUB_NAMES else key, environ)
    entries = _mapping(config.content.get("auths"))
    fitting = [(length, key) for key in entries if (length := _fits(key, registry, repository)) is not None]
    for _length, key in sorted(fitting, reverse=True):
        if found := _from_entry(config.path, key, _mapping(entries[key])):
            return found
    store = config.content.get("credsStore")
    if isinstance(store, str) and store:
        return _from_helper(store, HUB_SERVER if registry in HUB_NAMES else registry, environ)
    return None


def _fits(key: str, registry: str, repository: str) -> int | None:
    """How much of the repository's path a key names, in characters; None: it is another registry's or repository's."""
    match = _KEY.fullmatch(key)
    if match is None or not _same_registry(match["host"].lower(), registry):
        return None
    path = (match["path"] or "").strip("/")
    if path in {"", "v1", "v2"}:
        return 0
    return len(path) if f"{repository}/".startswith(f"{path}/") else None


def _same_registry(host: str, registry: str) -> bool:
    return host == registry or (host in HUB_NAMES and registry in HUB_NAMES)


def _from_entry(path: Path, key: str, entry: Mapping[str, object]) -> Credentials | None:
    """An entry of `auths`; None for an empty one, which stands for a helper's."""
    user, password = _text(entry, "username"), _text(entry, "password")
    if encoded := _text(entry, "auth"):
        try:
            # Docker has filled passwords up with NULs.
            user, colon, password = base64.b64decode(encoded, validate=True).decode().strip("\0").partition(":")
        except (binascii.Error, UnicodeDecodeError):
            colon = ""
        if not colon:
            raise SourceUnusable(f"the credentials for {key[:100]!a} in {path} are malformed")
    token = _text(entry, "identitytoken")
    if not token and not (user and password):
        return None
    return Credentials(user, password, token)


def _from_helper(helper: str, server: str, environ: Mapping[str, str]) -> Credentials | None:
    answer = run_helper(helper, server, environ)
    if answer is None:
        return None
    if answer.user == _TOKEN_USER:
        return Credentials("", identity_token=answer.secret)
    return Credentials(answer.user, answer.secret)


def _text(entry: Mapping[str, object], name: str) -> str:
    value = entry.get(name)
    return value if isinstance(value, str) else ""


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}
