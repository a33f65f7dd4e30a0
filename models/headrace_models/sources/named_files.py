"""Which files other files name: the shards of a safetensors index, the folders of sentence-transformers modules. Pure.

What is read comes from the model's own server and is not believed: names that leave the directory are refused.
"""

from headrace_models.errors import UnsafeModel
from headrace_models.sources.file_path import checked_path
from headrace_models.sources.listing import MAX_FILES
from headrace_models.strict_json import parse


def shards_of_index(data: bytes) -> tuple[str, ...]:
    """The shards that a `model.safetensors.index.json` names, sorted; raises UnsafeModel."""
    document = _json(data, "the index of the shards")
    weights = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weights, dict) or not weights or not all(isinstance(name, str) for name in weights.values()):
        raise UnsafeModel("the index of the shards has no map from tensors to shards")
    shards = sorted(set(weights.values()))
    if len(shards) > MAX_FILES:
        raise UnsafeModel(f"the index names more than {MAX_FILES} shards")
    for shard in shards:
        if "/" in shard or not shard.endswith(".safetensors"):
            raise UnsafeModel(f"the index names no .safetensors file of the directory: {shard[:100]!a}")
    return tuple(map(checked_path, shards))


def folders_of_modules(data: bytes) -> tuple[str, ...]:
    """The folders that a `modules.json` names, without the directory itself; raises UnsafeModel."""
    document = _json(data, "modules.json")
    modules = document if isinstance(document, list) else []
    paths = [module.get("path") for module in modules if isinstance(module, dict)]
    folders = sorted({checked_path(path.rstrip("/")) for path in paths if isinstance(path, str) and path})
    if len(folders) > MAX_FILES:
        raise UnsafeModel(f"modules.json names more than {MAX_FILES} modules")
    return tuple(folders)


def _json(data: bytes, name: str) -> object:
    try:
        return parse(data)
    except ValueError as error:
        raise UnsafeModel(f"{name} is not JSON that can be used: {error}") from error
