"""Writes a random Llama of one layer, to measure an API layer with: its engine is fast enough for the API to be the
bottleneck, and its tokenizer is a real one, so that prompts and text cost what they cost elsewhere.

    python loadtests/one_layer_model.py FOLDER TOKENIZER_FOLDER

The weights are 6 MB of seeded noise; the answers are noise too. Needs torch and safetensors.
"""

import json
import shutil
import sys
from pathlib import Path

HIDDEN_SIZE = 64
INTERMEDIATE_SIZE = 128
NUM_HEADS = 2
MAX_POSITIONS = 8192
SEED = 20

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")
# Weights of this size keep the logits apart, so that greedy sampling has no ties to break by rounding.
_SCALE = 0.5


def make_one_layer_model(folder: Path, tokenizer_from: Path) -> Path:
    """Write the model to `folder`, with the tokenizer of the model in `tokenizer_from`; returns `folder`.

    Raises:
        FileNotFoundError: `tokenizer_from` has no `config.json` or `tokenizer.json`.
    """
    source = json.loads((tokenizer_from / "config.json").read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    config = _config(source)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(tokenizer_from / "tokenizer.json", folder / "tokenizer.json")
    for name in _TOKENIZER_FILES:
        if (tokenizer_from / name).is_file():
            shutil.copyfile(tokenizer_from / name, folder / name)
    _write_weights(folder / "model.safetensors", vocab_size=config["vocab_size"])
    return folder


def _config(tokenizer_config: dict[str, object]) -> dict[str, object]:
    """A Llama configuration; the special tokens are those of the tokenizer's own model."""
    special = {name: tokenizer_config.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer_config["vocab_size"],
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": INTERMEDIATE_SIZE,
        "num_hidden_layers": 1,
        "num_attention_heads": NUM_HEADS,
        "num_key_value_heads": NUM_HEADS,
        "head_dim": HIDDEN_SIZE // NUM_HEADS,
        "max_position_embeddings": MAX_POSITIONS,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        **special,
    }


def _write_weights(path: Path, *, vocab_size: object) -> None:
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(SEED)

    def noise(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * _SCALE).to(torch.bfloat16)

    layer = "model.layers.0."
    square, up, down = (
        (HIDDEN_SIZE, HIDDEN_SIZE),
        (INTERMEDIATE_SIZE, HIDDEN_SIZE),
        (HIDDEN_SIZE, INTERMEDIATE_SIZE),
    )
    shapes = {
        "model.embed_tokens.weight": (int(str(vocab_size)), HIDDEN_SIZE),
        **{f"{layer}self_attn.{name}_proj.weight": square for name in "qkvo"},
        f"{layer}mlp.gate_proj.weight": up,
        f"{layer}mlp.up_proj.weight": up,
        f"{layer}mlp.down_proj.weight": down,
    }
    norms = ("model.norm.weight", f"{layer}input_layernorm.weight", f"{layer}post_attention_layernorm.weight")
    tensors = {name: noise(*shape) for name, shape in shapes.items()}
    tensors |= {name: torch.ones(HIDDEN_SIZE, dtype=torch.bfloat16) for name in norms}
    save_file(tensors, str(path), metadata={"format": "pt"})


if __name__ == "__main__":
    make_one_layer_model(Path(sys.argv[1]), Path(sys.argv[2]))
