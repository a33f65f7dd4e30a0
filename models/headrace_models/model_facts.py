"""What a model is, as far as its config and the headers of its shards say: facts for catalogs, planning and people.

A config is hostile, so every value is looked at before it is believed: what is absent, negative or of another type is
None. Pure.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from headrace_models.task import Task

_GENERATING = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn"}


class StoredTensor(Protocol):
    """A tensor in a header or in an index."""

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def size_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a directory holds, from its config and headers; None where they are silent.

    `max_length` is in tokens. `num_parameters` counts stored elements: packed quantised weights count as stored.
    `dtype` is the one that most bytes have, named as in torch. `notes` are lines for a user.
    """

    architecture: str | None
    task: Task
    weight_bytes: int
    num_parameters: int
    dtype: str | None
    max_length: int | None
    num_layers: int | None
    vocab_size: int | None
    hidden_size: int | None
    num_kv_heads: int | None
    head_dim: int | None
    notes: tuple[str, ...] = ()


def gather_facts(
    config: Mapping[str, Any],
    tensors: Iterable[StoredTensor],
    *,
    weight_bytes: int,
    max_length: int | None,
    notes: tuple[str, ...] = (),
) -> ModelFacts:
    """The facts of a model with this config.json and these tensors. `max_length`, in tokens, wins over the config's."""
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    architecture = architecture_of(config)
    tensors = tuple(tensors)
    return ModelFacts(
        architecture=architecture,
        task=Task.GENERATE if (architecture or "").endswith(_GENERATING) else Task.EMBED,
        weight_bytes=weight_bytes,
        num_parameters=sum(math.prod(tensor.shape) for tensor in tensors),
        dtype=_main_dtype(tensors),
        max_length=max_length or first_int(text, "max_position_embeddings", "n_positions", "max_seq_len"),
        num_layers=first_int(text, "num_hidden_layers", "n_layer", "num_layers"),
        vocab_size=first_int(text, "vocab_size"),
        hidden_size=first_int(text, "hidden_size", "n_embd", "d_model"),
        num_kv_heads=first_int(text, "num_key_value_heads", "num_attention_heads", "n_head"),
        head_dim=_head_dim(text),
        notes=notes,
    )


def architecture_of(config: Mapping[str, Any]) -> str | None:
    """The first architecture that a config names."""
    match config.get("architectures"):
        case [str(first), *_]:
            return first
        case _:
            return None


def first_int(config: Mapping[str, Any], *names: str) -> int | None:
    """The first positive integer among the named values."""
    values = (config.get(name) for name in names)
    return next((value for value in values if type(value) is int and value > 0), None)


def _main_dtype(tensors: Iterable[StoredTensor]) -> str | None:
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.size_bytes
    return next((_DTYPES.get(dtype, dtype.lower()) for dtype, _bytes in sizes.most_common(1)), None)


def _head_dim(config: Mapping[str, Any]) -> int | None:
    stated = first_int(config, "head_dim")
    hidden, heads = first_int(config, "hidden_size", "n_embd"), first_int(config, "num_attention_heads", "n_head")
    return stated or (hidden // heads if hidden and heads else None)
