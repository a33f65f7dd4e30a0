"""The command line that vLLM is started with."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from headrace_server.domain import ModelId
from headrace_server.engine.base import EngineSpec, StoredWeights
from headrace_server.engine.vllm_arguments import CPU_DEFAULTS, command_line
from headrace_server.engine.vllm_load_report import report_path
from headrace_server.errors import UsageError

BARE = ["--model", "/models/m", "--served-model-name", "m", "--no-use-tqdm-on-load"]


def spec(*aliases: str, **arguments: object) -> EngineSpec:
    return EngineSpec(ModelId("m"), "vllm", Path("/models/m"), None, arguments, tuple(map(ModelId, aliases)))


def without_policy(line: list[str]) -> list[str]:
    """A command line less what makes vLLM heed the classes of requests, which must be there once."""
    at = line.index("--scheduling-policy")
    assert line[at + 1] == "priority"
    assert line.count("--scheduling-policy") == 1
    return line[:at] + line[at + 2 :]


def line_of(spec: EngineSpec) -> list[str]:
    """The command line on a GPU, less what is always there: the scheduling policy, and the share of its memory."""
    line = without_policy(command_line(spec, cpu=False))
    if "gpu_memory_utilization" not in spec.arguments:
        at = line.index("--gpu-memory-utilization")
        assert line[at + 1] == "0.9", "what the memory budget counts with"
        del line[at : at + 2]
    return line


def test_without_arguments_there_is_the_model_and_its_name() -> None:
    assert line_of(spec()) == BARE


def test_aliases_are_further_served_names() -> None:
    line = line_of(spec("x", "y"))
    at = line.index("--served-model-name")
    assert line[at + 1 : at + 4] == ["m", "x", "y"]


@pytest.mark.parametrize(
    ("argument", "value", "expected"),
    [
        ("max_model_len", 2048, ["--max-model-len", "2048"]),
        ("gpu_memory_utilization", 0.5, ["--gpu-memory-utilization", "0.5"]),
        ("enforce_eager", True, ["--enforce-eager"]),
        ("enforce_eager", False, ["--no-enforce-eager"]),
        ("tensor_parallel_size", 1, ["--tensor-parallel-size", "1"]),
        ("seed", 0, ["--seed", "0"]),
        ("chat_template", Path("/t.jinja"), ["--chat-template", "/t.jinja"]),
        ("dtype", None, []),
    ],
)
def test_an_argument_becomes_a_flag(argument: str, value: object, expected: list[str]) -> None:
    assert line_of(spec(**{argument: value})) == [*BARE, *expected]


def test_flags_come_in_a_fixed_order() -> None:
    assert line_of(spec(seed=1, dtype="auto")) == line_of(spec(dtype="auto", seed=1))


def test_a_parser_for_tool_calls_turns_automatic_calls_on() -> None:
    line = line_of(spec(tool_call_parser="hermes"))
    assert "--enable-auto-tool-choice" in line
    assert line[-2:] == ["--tool-call-parser", "hermes"]
    assert "--enable-auto-tool-choice" not in line_of(spec(tool_call_parser=None))


def on_cpu(**arguments: object) -> list[str]:
    return without_policy(command_line(spec(**arguments), cpu=True))[len(BARE) :]


def test_on_a_cpu_the_defaults_differ_and_what_is_set_wins() -> None:
    kv_cache = ["--kv-cache-memory-bytes", str(CPU_DEFAULTS["kv_cache_memory_bytes"])]
    assert on_cpu() == ["--enforce-eager", *kv_cache, "--max-num-batched-tokens", "256"]
    assert on_cpu(enforce_eager=False, kv_cache_memory_bytes=5, max_num_batched_tokens=6) == [
        "--no-enforce-eager",
        "--kv-cache-memory-bytes",
        "5",
        "--max-num-batched-tokens",
        "6",
    ]


def test_short_steps_on_a_cpu_still_hold_all_sequences() -> None:
    line = on_cpu(max_num_seqs=600)
    assert line[line.index("--max-num-batched-tokens") + 1] == "600"


def test_a_model_that_computes_a_prompt_in_one_piece_has_no_short_steps() -> None:
    assert "--max-num-batched-tokens" not in on_cpu(runner="pooling")


def test_an_operator_cannot_turn_the_classes_of_requests_off() -> None:
    assert line_of(spec(scheduling_policy="fcfs")) == BARE


def test_a_spec_without_a_directory_is_refused_by_the_models_name() -> None:
    with pytest.raises(UsageError, match="'m'"):
        command_line(EngineSpec(ModelId("m"), "vllm"), cpu=True)


def test_weights_of_a_store_are_loaded_by_our_loader_which_is_told_where_they_are() -> None:
    stored = replace(spec(), store=StoredWeights(Path("/cache dir"), "m-0123456789ab"))
    line = line_of(stored)
    assert line[: len(BARE)] == BARE
    assert line[len(BARE) :][:3] == ["--load-format", "headrace", "--model-loader-extra-config"]
    assert json.loads(line[-1]) == {"headrace_store": "/cache dir", "headrace_key": "m-0123456789ab"}


def test_the_loader_is_told_where_to_say_why_it_failed_where_there_is_such_a_place() -> None:
    stored = replace(spec(), store=StoredWeights(Path("/c"), "m-0123456789ab"), scratch=Path("/scratch"))
    settings = json.loads(line_of(stored)[-1])
    assert settings["headrace_report"] == str(report_path(stored))


def test_the_command_line_is_made_without_vllm() -> None:
    assert "vllm" not in vars(sys.modules[command_line.__module__])
