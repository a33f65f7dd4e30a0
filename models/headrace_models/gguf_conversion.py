"""`python -m headrace_models.gguf_conversion FILE.gguf DIRECTORY`: a GGUF file becomes a directory that engines load.

Dequantises once to bfloat16 safetensors, with tokenizer, chat template and generation config beside it. Runs as a
child process only (see `child_process`): torch and transformers are imported here and nowhere else in the package,
by name, so that they stay optional. Transformers does the work; what it loses on the way is put back here: the
pre-tokenizer, the context length in the tokenizer's config, a generation config that stops at the end of a turn.
Memory: 0.92 GB at the peak for 135 million parameters, 344 MB of it imports.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from headrace_models.child_process import exit_with_parent


@dataclass(frozen=True, slots=True)
class Family:
    """What a GGUF file does not say about models that share a pre-tokenizer."""

    pre_tokenizer: Mapping[str, object]
    sampling: Mapping[str, object]


# llama.cpp names the pre-tokenizer (`tokenizer.ggml.pre`); transformers 5.19 ignores the name and takes GPT-2's. For
# SmolLM that splits a run of spaces before a digit into single spaces, which the model was not trained on: every digit
# must be cut out first (llama.cpp's "smollm", and the tokenizer that the model was published with).
# Greedy unless a request says otherwise: asked 40 times for the capital of France, the 135 M model said Paris 35 times
# at temperature 0.2 and 15 times at 1.0, which is what vLLM takes when nothing is said.
FAMILIES = {
    "smollm": Family(
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            ],
        },
        sampling={"do_sample": False, "temperature": 0.0},
    ),
}

# Set by transformers to describe how it was called; they mean nothing to who loads the directory.
CALL_TRACES = ("is_local", "local_files_only")


def convert(gguf: Path, destination: Path) -> None:
    """Write the model in `gguf` to `destination`, which exists and is empty; SystemExit with one line if impossible."""
    family = _family(gguf)
    model = _load_model(gguf)
    tokenizer = _load_tokenizer(gguf, max_length=model.config.max_position_embeddings)
    if tokenizer.chat_template is None:
        raise SystemExit(f"{gguf.name} has no chat template")
    if tokenizer.eos_token_id is None or tokenizer.eos_token_id != model.config.eos_token_id:
        raise SystemExit(f"{gguf.name} does not say which token ends a turn")
    model.save_pretrained(destination)
    tokenizer.save_pretrained(destination)
    _edit(destination / "tokenizer.json", changes={"pre_tokenizer": family.pre_tokenizer})
    _edit(destination / "tokenizer_config.json", drop=CALL_TRACES)
    # Not through GenerationConfig: it refuses to save a temperature beside do_sample=False, which vLLM needs to see.
    _edit(destination / "generation_config.json", changes=family.sampling)


def main() -> None:
    """The command line of the child process."""
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m headrace_models.gguf_conversion FILE.gguf DIRECTORY")
    exit_with_parent()
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except ImportError as error:
        raise SystemExit(f"converting GGUF needs torch, transformers, accelerate and gguf ({error})") from error


def _family(gguf: Path) -> Family:
    field = import_module("gguf").GGUFReader(gguf).get_field("tokenizer.ggml.pre")
    name = "absent" if field is None else str(field.contents())
    if name not in FAMILIES:
        raise SystemExit(f"the pre-tokenizer of {gguf.name} is {name}; known: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def _load_model(gguf: Path) -> Any:
    transformers = import_module("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=import_module("torch").bfloat16,
        quantization_config=transformers.GgufConfig(dequantize=True),
    )
    config = model.config
    # The GGUF's title, which a loader could take for a path.
    vars(config).pop("_model_name_or_path", None)
    # A float32 in the GGUF: 9.999999747378752e-06 is 1e-05.
    config.rms_norm_eps = float(f"{config.rms_norm_eps:.6g}")
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )
    return model


def _load_tokenizer(gguf: Path, *, max_length: int) -> Any:
    tokenizer = import_module("transformers").AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.model_max_length = max_length
    return tokenizer


def _edit(path: Path, *, changes: Mapping[str, object] | None = None, drop: Sequence[str] = ()) -> None:
    content = json.loads(path.read_bytes())
    kept = {key: value for key, value in content.items() if key not in drop}
    text = json.dumps({**kept, **(changes or {})}, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
