"""SmolLM2 with the marks of a reasoning model, made by renaming two tokens of its vocabulary.

A reasoning parser wants `<think>` and `</think>` to be tokens, and a model that says them. SmolLM2 has no such tokens,
but greedy it begins an answer with "The" and goes on with " is" ("The capital of France is Paris."). So the tokens of
these two words are called `<think>` and `</think>`, and the words get the ids of two tokens that it never says: the
model now answers "<think> capital of France</think> Paris." Prompts should avoid the two words; their tokens are
unknown to the model.
"""

import json
from pathlib import Path

_RENAMED = {"The": "<think>", "Ġis": "</think>"}  # Ġ is how a byte-level vocabulary writes the leading space
_SPARE = {"The": "<jupyter_start>", "Ġis": "<jupyter_text>"}


def write_reasoning_model(source: Path, target: Path) -> Path:
    """Make `target` a model directory that shares `source`'s weights, and return it."""
    target.mkdir()
    for file in source.iterdir():
        if file.name != "tokenizer.json":
            (target / file.name).symlink_to(file)
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    for word, mark in _RENAMED.items():
        spare = vocabulary.pop(_SPARE[word])
        vocabulary[mark], vocabulary[word] = vocabulary[word], spare
        tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["id"] != spare]
        tokenizer["added_tokens"].append(_added_token(mark, vocabulary[mark]))
    (target / "tokenizer.json").write_text(json.dumps(tokenizer))
    return target


def _added_token(content: str, token_id: int) -> dict[str, object]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return {"id": token_id, "content": content, **flags}
