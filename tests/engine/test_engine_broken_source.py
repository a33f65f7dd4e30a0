"""A source that breaks off half way, while the engine starts on what has come: the start ends with the fetch, for the
fetch's reason, and once the source is mended the model loads with what was missing."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace_models import parse_reference, prepare
from loadtests.origin.faults import NO_FAULTS, Faults, Status, When
from loadtests.origin.link import UNLIMITED, Link
from loadtests.origin.server import Origin, running_origin
from tests.fakes.process import ServerProcess, running_server

MIB = 1 << 20
SLOW = Link(bytes_per_second=8 * MIB)  # so that the engine waits for its weights when they break off
GONE = Faults((Status(when=When(path="*.safetensors"), status=404),))
TOLD_SECONDS = 2.0
# What was under way when it broke off.
TWICE_BYTES = 16 * MIB
QUESTION = {
    "model": "far",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0,
    "max_tokens": 20,
}


@pytest.fixture(scope="module")
def weights() -> Path:
    """SmolLM2's directory, with one file of weights."""
    return prepare(parse_reference("embedded:smollm2-135m-instruct"), Path("~/.cache/headrace").expanduser()).directory


@pytest.fixture
def origin(weights: Path) -> Iterator[Origin]:
    """The model on a plain web server."""
    with running_origin({"smol": weights}, link=SLOW) as running:
        yield running


def lines_of(log: Path, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


def seconds(line: dict[str, Any]) -> float:
    return datetime.fromisoformat(line["time"]).timestamp()


def load(server: ServerProcess) -> httpx.Response:
    return httpx.post(f"{server.base_url}/admin/models/far/load", json={}, timeout=120, trust_env=False)


def until_half_has_come(origin: Origin, total_bytes: int) -> None:
    while origin.stats().body_bytes("*.safetensors") < total_bytes // 2:
        time.sleep(0.05)


def test_a_start_ends_with_its_fetch_and_the_next_one_goes_on_where_it_was(
    origin: Origin, weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "headrace.yaml").write_text(
        f"cache: {{dir: {tmp_path / 'cache'}}}\n"
        f"models: [{{id: far, source: '{origin.url}/files/smol/', load: demand,"
        " arguments: {kv_cache_memory_bytes: 200000000}}]\n"
        "telemetry: {log_format: json}\n"
    )
    log, total_bytes = tmp_path / "log", sum(path.stat().st_size for path in weights.glob("*.safetensors"))
    with running_server(tmp_path / "headrace.yaml", log) as server, ThreadPoolExecutor(1) as thread:
        loading = thread.submit(load, server)
        server.until_called("VLLM::Worker")
        server.remember_shared_memory()
        until_half_has_come(origin, total_bytes)
        assert not loading.done()
        origin.set_faults(GONE)
        refused = loading.result()
        assert (server.called("VLLM::EngineCore"), server.called("VLLM::Worker")) == ([], [])
        (fetch,) = lines_of(log, "fetch_failed")
        (failed,) = (line for line in lines_of(log, "model_state") if line["state"] == "failed")
        assert seconds(failed) - seconds(fetch) < TOLD_SECONDS
        assert failed["detail"] == fetch["detail"]
        assert refused.status_code == 503
        assert fetch["detail"] in refused.json()["error"]["message"]
        assert not [path for path in server.shared_memory if path.exists()]

        origin.set_faults(NO_FAULTS)
        origin.set_link(UNLIMITED)
        assert load(server).status_code == 200
        answer = httpx.post(f"{server.base_url}/v1/chat/completions", json=QUESTION, timeout=60, trust_env=False)
        assert "Paris" in answer.json()["choices"][0]["message"]["content"]
    assert origin.stats().body_bytes("*.safetensors") <= total_bytes + TWICE_BYTES
