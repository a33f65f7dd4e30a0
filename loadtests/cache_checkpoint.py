"""Writes checkpoints to be fetched: a Llama of noise, its output matrix apart from its embedding, in several shards.

No engine could answer with one. Shards hold whole layers in the order of use, as large models are cut, and in each of
them tensors lie by name, as safetensors sorts them (https://github.com/huggingface/safetensors#format). The same
arguments give the same bytes, other seeds others. A tensor at a time is in memory.
"""

import json
import math
import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_NOISE_BYTES = 1 << 20
_TOKENIZER = {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a checkpoint is: a layer takes 32 bytes for each square of `hidden_size`, 32 MiB by default, embedding
    and output matrix `vocabulary` rows of twice `hidden_size` bytes each."""

    num_layers: int
    vocabulary: int = 4096
    num_shards: int = 1
    hidden_size: int = 1024

    @property
    def intermediate_size(self) -> int:
        """Of the layers' MLPs."""
        return 4 * self.hidden_size


def write_checkpoint(directory: Path, shape: Shape, *, seed: int) -> Path:
    """Make `directory` and the model in it; returns `directory`. Raises OSError."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(_config(shape)))
    (directory / "tokenizer.json").write_text(json.dumps(_TOKENIZER))
    noise = _Noise(seed)
    weight_map: dict[str, str] = {}
    for number, part in enumerate(_parts(list(_tensors(shape)), shape.num_shards)):
        single = shape.num_shards == 1
        name = "model.safetensors" if single else f"model-{number + 1:05}-of-{shape.num_shards:05}.safetensors"
        _write_shard(directory / name, sorted(part), noise)
        weight_map.update((tensor, name) for tensor, _ in part)
    if shape.num_shards > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


_Tensor = tuple[str, tuple[int, ...]]


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.hidden_size // 64,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def _tensors(shape: Shape) -> Iterator[_Tensor]:
    """In the order of use."""
    wide, inner = shape.hidden_size, shape.intermediate_size
    yield "model.embed_tokens.weight", (shape.vocabulary, wide)
    for layer in range(shape.num_layers):
        prefix = f"model.layers.{layer}."
        yield f"{prefix}input_layernorm.weight", (wide,)
        for name in "qkvo":
            yield f"{prefix}self_attn.{name}_proj.weight", (wide, wide)
        yield f"{prefix}post_attention_layernorm.weight", (wide,)
        for name in ("gate", "up"):
            yield f"{prefix}mlp.{name}_proj.weight", (inner, wide)
        yield f"{prefix}mlp.down_proj.weight", (wide, inner)
    yield "model.norm.weight", (wide,)
    yield "lm_head.weight", (shape.vocabulary, wide)


def _parts(tensors: list[_Tensor], num_parts: int) -> Iterator[list[_Tensor]]:
    """Neighbours together, about as many bytes in each part."""
    parts: list[list[_Tensor]] = [[] for _ in range(num_parts)]
    total, before = sum(map(_size, tensors)), 0
    for tensor in tensors:
        parts[min(num_parts - 1, before * num_parts // total)].append(tensor)
        before += _size(tensor)
    return iter(parts)


def _size(tensor: _Tensor) -> int:
    return 2 * math.prod(tensor[1])


class _Noise:
    """Blocks of noise, each begun at another place, so that no two chunks of a model are equal."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._block = self._random.randbytes(2 * _NOISE_BYTES)

    def of(self, num_bytes: int) -> Iterator[bytes]:
        while num_bytes > 0:
            begin = self._random.randrange(_NOISE_BYTES)
            piece = self._block[begin : begin + min(num_bytes, _NOISE_BYTES)]
            num_bytes -= len(piece)
            yield piece


def _write_shard(path: Path, tensors: Sequence[_Tensor], noise: _Noise) -> None:
    header, position = {}, 0
    for tensor in tensors:
        end = position + _size(tensor)
        header[tensor[0]] = {"dtype": "BF16", "shape": tensor[1], "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            file.writelines(noise.of(_size(tensor)))
