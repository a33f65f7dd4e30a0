"""Configuration's engine arguments → vLLM's command line. Imports no vLLM, so it can be checked and printed anywhere.

One list serves three readers: vLLM's own argument parser (`vllm_engine`), the comparison with vLLM's own server (both
sides get this list), and people who want to see what is run.
"""

import json
from collections.abc import Iterator, Mapping

from headrace_server.engine.base import EngineSpec
from headrace_server.engine.vllm_load_report import REPORT_KEY, report_path
from headrace_server.errors import UsageError

GIB = 1024**3

# Our loader's name in vLLM, and what it is told.
LOAD_FORMAT = "headrace"
STORE_KEY = "headrace_store"
MODEL_KEY = "headrace_key"

# Eager: compiling on a CPU costs 43 to 67 s at start-up and gains nothing measurable in decoding. An explicit KV
# size skips vLLM's warm-up pass and stops it from reserving a share of all memory.
CPU_DEFAULTS: Mapping[str, object] = {"enforce_eager": True, "kv_cache_memory_bytes": 1 * GIB}
# SmolLM2 on 2 cores: 520 to 610 prompt tokens a second with steps of 256, 512, 1024 and 2048 tokens alike, but a full
# step takes 0.45, 0.8, 1.7 and 3.4 s, and whoever comes waits for it.
CPU_STEP_TOKENS = 256

# vLLM's own default changes between releases; the memory budget counts with this one.
GPU_DEFAULTS: Mapping[str, object] = {"gpu_memory_utilization": 0.9}

# Classes of requests are vLLM's priorities; otherwise it ignores them.
_ALWAYS: Mapping[str, object] = {"scheduling_policy": "priority"}


def command_line(spec: EngineSpec, *, cpu: bool) -> list[str]:
    """The arguments after `python -m vllm.entrypoints.openai.api_server`.

    Raises:
        UsageError: the spec has no model directory.
    """
    if spec.directory is None:
        raise UsageError(f"model {spec.model!r}: the vllm engine needs a model directory")
    defaults = _cpu_defaults(spec.arguments) if cpu else GPU_DEFAULTS
    arguments = {**defaults, **spec.arguments, **_ALWAYS}
    names = [str(spec.model), *(str(alias) for alias in spec.aliases)]
    line = ["--model", str(spec.directory), "--served-model-name", *names, "--no-use-tqdm-on-load"]
    if arguments.get("tool_call_parser"):
        line.append("--enable-auto-tool-choice")
    if spec.store is not None:
        line += ["--load-format", LOAD_FORMAT, "--model-loader-extra-config", json.dumps(_loader_settings(spec))]
    for name, value in sorted(arguments.items()):
        line.extend(_flag(name, value))
    return line


def _cpu_defaults(arguments: Mapping[str, object]) -> Mapping[str, object]:
    """vLLM refuses steps that do not hold all sequences, or a prompt that cannot be computed in pieces."""
    if arguments.get("runner") == "pooling":
        return CPU_DEFAULTS
    num_sequences = arguments.get("max_num_seqs")
    return {**CPU_DEFAULTS, "max_num_batched_tokens": max(CPU_STEP_TOKENS, int(str(num_sequences or 0)))}


def _loader_settings(spec: EngineSpec) -> Mapping[str, str]:
    """What our loader is told: where the weights are, and where it may say why it failed."""
    if spec.store is None:
        return {}
    report = report_path(spec)
    location = {STORE_KEY: str(spec.store.cache_dir), MODEL_KEY: spec.store.key}
    return location if report is None else {**location, REPORT_KEY: str(report)}


def _flag(name: str, value: object) -> Iterator[str]:
    flag = "--" + name.replace("_", "-")
    match value:
        case None:
            return
        case True:
            yield flag
        case False:
            yield "--no-" + flag[2:]
        case _:
            yield flag
            yield str(value)
