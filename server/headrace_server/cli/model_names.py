"""What a name on the command line stands for: a configured id or alias, a reference, a key of the cache or its start.

Read-only: no cache is made where there is none, and nothing is fetched to find out.
"""

from headrace_models import ModelError, ModelNotFound, parse_reference
from headrace_models.store.model_store import ModelStore
from headrace_server.catalog import cache_directory, model_settings, model_settings_of, parsed_reference
from headrace_server.errors import UsageError
from headrace_server.settings.schema import EngineKind, ModelSettings, Settings


def open_store(settings: Settings) -> ModelStore | None:
    """The cache of these settings; None where nothing has ever been kept. Raises ModelError."""
    cache_dir = cache_directory(settings.cache)
    return ModelStore(cache_dir, max_bytes=settings.cache.max_bytes) if (cache_dir / "models").is_dir() else None


def settings_named(name: str, settings: Settings) -> ModelSettings:
    """The configured model with this id or alias, else one that this reference alone describes.

    Raises:
        UsageError: it is neither, or a model whose weights are elsewhere.
    """
    found = _configured(name, settings)
    if found is not None and found.engine is not EngineKind.VLLM:
        raise UsageError(f"model {name!r} runs on {found.engine.value}: it has no weights here")
    return found or model_settings_of(name)


def key_named(name: str, settings: Settings, store: ModelStore) -> str:
    """The key of the model in the cache that a name stands for.

    Raises:
        UsageError: several models could be meant, or a configured one that has no weights here.
        ModelNotFound: nothing of that name is in the cache.
    """
    if _configured(name, settings) is not None:
        return _by_reference(settings_named(name, settings).source or "", store)
    try:
        reference = str(parse_reference(name))
    except ModelError:
        return _by_prefix(name, store)
    # A bare word that happens to be a directory here may be the start of a key all the same.
    is_word = not {":", "/"} & set(name)
    return _by_prefix(name, store) if is_word and store.find(reference) is None else _by_reference(reference, store)


def _configured(name: str, settings: Settings) -> ModelSettings | None:
    return next((model for model in model_settings(settings) if name in (model.id, *model.aliases)), None)


def _by_reference(text: str, store: ModelStore) -> str:
    reference = str(parsed_reference(text))
    model = store.find(reference)
    if model is None:
        raise ModelNotFound(f"nothing of {reference} is in the model cache; headrace ls lists what is there")
    return model.key


def _by_prefix(name: str, store: ModelStore) -> str:
    keys = [model.key for model in store.models()] + [key for key, _why in store.damaged()]
    found = sorted(key for key in keys if key.startswith(name))
    if name in found:
        return name
    if len(found) > 1:
        raise UsageError(f"{name!r} could be any of {', '.join(found)}")
    if not found:
        raise ModelNotFound(f"nothing of {name[:200]!r} is in the model cache; headrace ls lists what is there")
    return found[0]
