"""A model from a real registry: pulled, killed, resumed by the server, and answering before it was ever all on disk."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from headrace_models import FetchProcess, FetchRequest, parse_reference, prepare
from headrace_models.fetch.events import Progress
from headrace_models.index_building import index_of_directory
from requirements.debian_tools import ensure_docker_registry
from tests.fakes.artifacts import Form, layers_of, push, seek_index_layer
from tests.fakes.process import running_server
from tests.fakes.real_registry import running_real_registry

MIB = 1 << 20
QUESTION = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0,
    "max_tokens": 20,
}


@pytest.fixture
def reference(tmp_path: Path) -> Iterator[str]:
    """SmolLM2 in a registry, with a seek index bound to it."""
    binary = ensure_docker_registry()
    if binary is None:
        pytest.skip("no docker-registry here, and none to be had from apt")
    embedded = parse_reference("embedded:smollm2-135m-instruct")
    directory = prepare(embedded, Path("~/.cache/headrace").expanduser()).directory
    index = index_of_directory(directory, str(embedded), digests=True).to_json()
    (tmp_path / "registry").mkdir()
    with running_real_registry(binary, tmp_path / "registry") as address:
        push(address, "models/smollm2", [*layers_of(directory, Form.DOCKER), seek_index_layer(index)], tag="1")
        yield f"oci://{address}/models/smollm2:1"


def kill_half_way(reference: str, cache_dir: Path) -> int:
    """Pull a part and SIGKILL the fetching process; how many bytes had come."""
    process = FetchProcess(FetchRequest(reference, cache_dir, bytes_per_second=100 * MIB))
    process.start()
    for event in process.events():
        if isinstance(event, Progress) and event.present_bytes > 60 * MIB and process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)
            return event.present_bytes
    raise AssertionError("the fetch ended before it was killed")


def test_the_server_goes_on_where_a_killed_pull_stopped_and_fetches_before_it_imports_vllm(
    reference: str, tmp_path: Path
) -> None:
    present_bytes = kill_half_way(reference, tmp_path / "cache")
    (tmp_path / "headrace.yaml").write_text(
        f"cache: {{dir: {tmp_path / 'cache'}, bytes_per_second: {10 * MIB}}}\n"
        f"models: [{{id: smollm2, source: '{reference}', require_trust: chunk}}]\n"
        "telemetry: {log_format: json}\n"
    )
    with running_server(tmp_path / "headrace.yaml", tmp_path / "log") as server:
        answer = httpx.post(f"{server.base_url}/v1/chat/completions", json=QUESTION, timeout=60, trust_env=False)
        model = httpx.get(f"{server.base_url}/admin/models", trust_env=False).json()["models"][0]
    assert "Paris" in answer.json()["choices"][0]["message"]["content"]
    assert (model["weights"]["trust"], model["weights"]["complete"]) == ("chunk", True)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if line.startswith("{")]
    events = [line["event"] for line in lines]
    assert events.index("fetch_started") < events.index("vllm_import") < events.index("fetch_completed")
    completed = lines[events.index("fetch_completed")]
    assert completed["fetched_bytes"] <= model["weights"]["total_bytes"] - present_bytes
