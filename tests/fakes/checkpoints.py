"""Small synthetic checkpoints on disk, as safetensors itself would write them, in pure Python.

Tensors are named as in a Llama and lie in safetensors' own order: larger data types first, then by name, so that layer
10 comes before layer 2 and the order in the file is not the order of use. Values are small and finite. The same
arguments give the same bytes.
"""

import json
import math
import random
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

VOCAB = 6144
# In the order in which safetensors 0.8 sorts them, from the end of the file to its beginning, with their bits.
DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
_DTYPE_RANK = {dtype: rank for rank, dtype in enumerate(DTYPE_BITS)}
# The highest byte of each value keeps its sign and gets an exponent near 2**-7, in every float format that is used.
_SMALL = bytes((byte & 0x81) | 0x3C for byte in range(256))


@dataclass(frozen=True, slots=True)
class FakeTensor:
    """A tensor to write; its bytes follow from `seed`."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "BF16"
    seed: int = 0

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8

    @property
    def data(self) -> bytes:
        width = max(1, DTYPE_BITS[self.dtype] // 8)
        data = bytearray(random.Random(f"{self.seed} {self.name}").randbytes(self.size_bytes))
        data[width - 1 :: width] = data[width - 1 :: width].translate(_SMALL)
        return bytes(data)


def write_checkpoint(
    directory: Path,
    *,
    num_layers: int = 4,
    hidden: int = 128,
    shards: int = 1,
    tied: bool = True,
    seed: int = 0,
    architecture: str = "LlamaForCausalLM",
) -> None:
    """Write a model directory: configs, tokenizer, weights (3.5 MB by default, growing with `hidden` squared) and, for
    several shards, their index. `hidden` is a multiple of 16. The embedding has more than 1 MiB from `hidden` 96 on."""
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(directory / "config.json", llama_config(num_layers, hidden, tied=tied, architecture=architecture))
    _write_tokenizer(directory)
    write_weights(directory, llama_tensors(num_layers, hidden, tied=tied, seed=seed), shards=shards)


def llama_config(num_layers: int, hidden: int, *, tied: bool, architecture: str) -> dict[str, object]:
    """The config.json of `write_checkpoint`."""
    return {
        "architectures": [architecture],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "max_position_embeddings": 256,
        "num_attention_heads": 4,
        "num_hidden_layers": num_layers,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "vocab_size": VOCAB,
    }


def llama_tensors(num_layers: int, hidden: int, *, tied: bool = True, seed: int = 0) -> list[FakeTensor]:
    """The tensors of `write_checkpoint`, in the order of the layers. Norms are F32, so that they lie before all."""
    tensors = [FakeTensor("model.embed_tokens.weight", (VOCAB, hidden), seed=seed)]
    for number in range(num_layers):
        layer = f"model.layers.{number}"
        tensors += [
            FakeTensor(f"{layer}.input_layernorm.weight", (hidden,), "F32", seed),
            FakeTensor(f"{layer}.self_attn.q_proj.weight", (hidden, hidden), seed=seed),
            FakeTensor(f"{layer}.self_attn.k_proj.weight", (hidden // 2, hidden), seed=seed),
            FakeTensor(f"{layer}.self_attn.v_proj.weight", (hidden // 2, hidden), seed=seed),
            FakeTensor(f"{layer}.self_attn.o_proj.weight", (hidden, hidden), seed=seed),
            FakeTensor(f"{layer}.post_attention_layernorm.weight", (hidden,), "F32", seed),
            FakeTensor(f"{layer}.mlp.gate_proj.weight", (4 * hidden, hidden), seed=seed),
            FakeTensor(f"{layer}.mlp.up_proj.weight", (4 * hidden, hidden), seed=seed),
            FakeTensor(f"{layer}.mlp.down_proj.weight", (hidden, 4 * hidden), seed=seed),
        ]
    tensors.append(FakeTensor("model.norm.weight", (hidden,), "F32", seed))
    return tensors if tied else [*tensors, FakeTensor("lm_head.weight", (VOCAB, hidden), seed=seed)]


def write_weights(directory: Path, tensors: Sequence[FakeTensor], *, shards: int = 1) -> None:
    """Write `model.safetensors`, or `shards` files of about one size and `model.safetensors.index.json`."""
    if shards == 1:
        (directory / "model.safetensors").write_bytes(safetensors_bytes(tensors))
        return
    weight_map = {}
    for number, members in enumerate(_split(tensors, shards), start=1):
        name = f"model-{number:05}-of-{shards:05}.safetensors"
        (directory / name).write_bytes(safetensors_bytes(members))
        weight_map.update({tensor.name: name for tensor in members})
    total = sum(tensor.size_bytes for tensor in tensors)
    _write_json(
        directory / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
    )


def safetensors_bytes(tensors: Iterable[FakeTensor], *, metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file as safetensors writes it; `metadata` is `{"format": "pt"}` unless given."""
    ordered = sorted(tensors, key=lambda tensor: (-_DTYPE_RANK[tensor.dtype], tensor.name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"} if metadata is None else metadata}
    begin = 0
    for tensor in ordered:
        end = begin + tensor.size_bytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
        begin = end
    return raw_safetensors(header, b"".join(tensor.data for tensor in ordered))


def raw_safetensors(header: object, data: bytes = b"") -> bytes:
    """A safetensors file with any header, true or not; `bytes` go out as they are."""
    encoded = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8) if not isinstance(header, bytes) else b""
    return struct.pack("<Q", len(encoded)) + encoded + data


def _split(tensors: Sequence[FakeTensor], shards: int) -> list[list[FakeTensor]]:
    """Runs of about one size; every one has a tensor as long as there are enough."""
    total, done = sum(tensor.size_bytes for tensor in tensors), 0
    members: list[list[FakeTensor]] = [[] for _ in range(shards)]
    for number, tensor in enumerate(tensors):
        wanted = min(shards - 1, done * shards // max(1, total))
        members[max(wanted, shards - len(tensors) + number)].append(tensor)
        done += tensor.size_bytes
    return members


def _write_tokenizer(directory: Path) -> None:
    words = ["<unk>", "<s>", "</s>", *(f"w{number}" for number in range(VOCAB - 3))]
    special = [
        {
            "id": number,
            "content": word,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for number, word in enumerate(words[:3])
    ]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "<unk>"},
    }
    _write_json(directory / "tokenizer.json", tokenizer)
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "chat_template": "{% for message in messages %}{{ message.content }} {% endfor %}",
        },
    )
    _write_json(directory / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))
