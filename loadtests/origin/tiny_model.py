"""Writes a model directory to be served in tests: the files and names of a small Llama, and noise for weights.

No engine could answer with it. The safetensors files are right in every respect (https://github.com/huggingface/
safetensors#format), sorted by name as the library sorts them, so that layer 10 comes before layer 2.
"""

import json
import random
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

HIDDEN_SIZE = 32
_VOCABULARY_SIZE = 64
_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN_SIZE,
    "vocab_size": _VOCABULARY_SIZE,
    "torch_dtype": "bfloat16",
}


def write_tiny_model(
    directory: Path, *, num_layers: int = 3, rows: int = 256, num_shards: int = 1, seed: int = 0
) -> Path:
    """Make `directory` and the model in it; returns `directory`. A layer has 64 * `rows` bytes, and a norm."""
    directory.mkdir(parents=True, exist_ok=True)
    noise = random.Random(seed)
    tensors = {name: (shape, noise.randbytes(2 * shape[0] * shape[1])) for name, shape in _shapes(num_layers, rows)}
    (directory / "config.json").write_text(json.dumps(_CONFIG | {"num_hidden_layers": num_layers}))
    (directory / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {}}}))
    names = sorted(tensors)
    if num_shards == 1:
        _write_shard(directory / "model.safetensors", tensors)
        return directory
    weight_map = {}
    for number in range(num_shards):
        file = f"model-{number + 1:05}-of-{num_shards:05}.safetensors"
        part = {name: tensors[name] for name in names[number::num_shards]}
        _write_shard(directory / file, part)
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def _shapes(num_layers: int, rows: int) -> Iterator[tuple[str, tuple[int, int]]]:
    yield "model.embed_tokens.weight", (_VOCABULARY_SIZE, HIDDEN_SIZE)
    for layer in range(num_layers):
        yield f"model.layers.{layer}.input_layernorm.weight", (1, HIDDEN_SIZE)
        yield f"model.layers.{layer}.mlp.down_proj.weight", (rows, HIDDEN_SIZE)
    yield "model.norm.weight", (1, HIDDEN_SIZE)


def _write_shard(path: Path, tensors: Mapping[str, tuple[tuple[int, int], bytes]]) -> None:
    header, position = {}, 0
    for name in sorted(tensors):
        shape, data = tensors[name]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, position + len(data)]}
        position += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensors[name][1] for name in sorted(tensors)))
