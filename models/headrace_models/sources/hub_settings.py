"""What the environment says about the Hugging Face hub: where it is, who we are, whether it may be asked at all.

The variables are huggingface_hub's own (huggingface.co/docs/huggingface_hub/package_reference/environment_variables).
The home directory comes from the given environment too, so that nothing is read that was not offered.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from headrace_models.sources.web_addresses import origin_of

DEFAULT_ENDPOINT = "https://huggingface.co"
MAX_TOKEN_BYTES = 4096

_YES = frozenset({"1", "on", "yes", "true"})


@dataclass(frozen=True, slots=True)
class HubSettings:
    """`endpoint` has no slash at its end. `token` is never shown."""

    endpoint: str
    token: str | None = field(repr=False)
    is_offline: bool

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Self:
        """Read HF_ENDPOINT, HF_TOKEN or its file, HF_HUB_OFFLINE; raises SourceUnusable for no endpoint."""
        endpoint = environ.get("HF_ENDPOINT", "").strip().rstrip("/") or DEFAULT_ENDPOINT
        origin_of(endpoint)
        return cls(endpoint, _token(environ), environ.get("HF_HUB_OFFLINE", "").strip().lower() in _YES)


def _token(environ: Mapping[str, str]) -> str | None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if token := environ.get(name, "").strip():
            return token
    return next(filter(None, map(_token_of_file, _token_files(environ))), None)


def _token_files(environ: Mapping[str, str]) -> Sequence[Path]:
    """The first that is named; huggingface_hub looks at no other one either."""
    if path := environ.get("HF_TOKEN_PATH"):
        return [Path(path)]
    if home := environ.get("HF_HOME"):
        return [Path(home, "token")]
    if cache := environ.get("XDG_CACHE_HOME"):
        return [Path(cache, "huggingface", "token")]
    return [Path(home, ".cache", "huggingface", "token")] if (home := environ.get("HOME")) else []


def _token_of_file(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return file.read(MAX_TOKEN_BYTES).decode("ascii", "replace").strip() or None
    except OSError:  # most have none
        return None
