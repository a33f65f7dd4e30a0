"""Compose's `models:` bindings: a model whose address and name stand in two variables that the platform sets.

A service that binds the model `llm` gets `LLM_URL` and `LLM_MODEL` (short syntax), or the two variables that it names
as `endpoint_var` and `model_var` (long syntax); https://docs.docker.com/reference/compose-file/services/#models. Which
pair is meant is written in the configuration: no variable is guessed from its look. Values are never repeated in
messages, since an address may hold a password.
"""

from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

from headrace_server.errors import UsageError
from headrace_server.settings.schema import ModelSettings, Settings, UpstreamArguments

_UNBOUND: Mapping[str, object] = {"binding": None, "endpoint_var": None, "model_var": None}


def with_bindings(settings: Settings, environ: Mapping[str, str]) -> Settings:
    """The settings with the addresses and names of bound models in the place of their bindings.

    Raises:
        UsageError: a variable is missing, blank or no address; it is named, and so is the model.
    """
    if not any(model.upstream.is_bound for model in settings.models):
        return settings
    models = tuple(_bound(model, environ) if model.upstream.is_bound else model for model in settings.models)
    return settings.model_copy(update={"models": models})


def _bound(model: ModelSettings, environ: Mapping[str, str]) -> ModelSettings:
    endpoint_var, model_var = _variables(model.upstream)
    missing = [name for name in (endpoint_var, model_var) if not environ.get(name, "").strip()]
    if missing:
        raise UsageError(
            f"model {model.id!r}: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set or blank; "
            f"the service must bind the model (compose: `models:`)"
        )
    url = environ[endpoint_var].strip()
    if not _is_address(url):
        raise UsageError(f"model {model.id!r}: {endpoint_var} is no http(s)://host[:port]/… without credentials")
    filled = model.upstream.model_copy(
        update={**_UNBOUND, "url": url, "upstream_model": environ[model_var].strip()},
    )
    return model.model_copy(update={"upstream": filled})


def _variables(upstream: UpstreamArguments) -> tuple[str, str]:
    """Docker Compose makes a binding's variables so: upper case, dashes become underscores (`pkg/compose/model.go`)."""
    if upstream.binding is None:
        return upstream.endpoint_var or "", upstream.model_var or ""
    prefix = upstream.binding.upper().replace("-", "_")
    return f"{prefix}_URL", f"{prefix}_MODEL"


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return _is_plain(parts) and parts.port != 0
    except ValueError:
        return False


def _is_plain(parts: SplitResult) -> bool:
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and not parts.query and "@" not in parts.netloc
