"""`model.safetensors.index.json`: which shard holds which tensor, as the model's maker wrote it down.

Hostile like everything else: it may name only plain files beside it, and what it says must agree with the headers of
those files. A tensor that it does not name but a shard holds is accepted, since engines load all that a shard holds; a
tensor in two shards is refused, since which one counts would depend on the reader.
"""

from collections.abc import Mapping

from headrace_models import strict_json
from headrace_models.errors import UnsafeModel
from headrace_models.safetensors_header import TensorEntry
from headrace_models.seek_index_checks import is_shard_path

WEIGHTS_INDEX_NAME = "model.safetensors.index.json"
MAX_WEIGHTS_INDEX_BYTES = 100_000_000

# Shards by tensor; a tensor's shard is the name of a file.
WeightMap = Mapping[str, str]


def parse_weights_index(data: bytes) -> WeightMap:
    """The weight map of an index; raises UnsafeModel unless all shards are names of .safetensors files."""
    if len(data) > MAX_WEIGHTS_INDEX_BYTES:
        raise UnsafeModel(f"{WEIGHTS_INDEX_NAME} is larger than {MAX_WEIGHTS_INDEX_BYTES} bytes")
    try:
        content = strict_json.parse(data)
    except ValueError as error:
        raise UnsafeModel(f"{WEIGHTS_INDEX_NAME} is not JSON as it must be ({error})") from error
    if not isinstance(content, dict):
        raise UnsafeModel(f"{WEIGHTS_INDEX_NAME} is not a JSON object")
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise UnsafeModel(f"{WEIGHTS_INDEX_NAME}: no map from tensors to shards")
    for shard in sorted(set(weight_map.values())):
        if not is_shard_path(shard):
            raise UnsafeModel(
                f"{WEIGHTS_INDEX_NAME}: {shard[:100]!a} is not the name of a .safetensors file in the directory"
            )
    return weight_map


def check_agreement(headers: Mapping[str, Mapping[str, TensorEntry]], weight_map: WeightMap | None) -> None:
    """Raise UnsafeModel where shards contradict each other or the weight map; `headers` are tensors by shard."""
    shard_of: dict[str, str] = {}
    for shard, tensors in headers.items():
        for name in tensors:
            first = shard_of.setdefault(name, shard)
            if first != shard:
                raise UnsafeModel(f"the tensor {name[:100]!r} is in two shards: {first} and {shard}")
    for name, shard in (weight_map or {}).items():
        if shard_of.get(name) != shard:
            raise UnsafeModel(f"{WEIGHTS_INDEX_NAME} says that {shard} holds {name[:100]!a}, which it does not")
