"""Models for which there is not enough memory, beside one that serves: what exceeds the budget is refused at once, and
what the machine cannot give is told in one line, is not tried again for a while, and harms nobody."""

import time
from collections.abc import Iterator

import httpx
import pytest

from tests.fakes.process import ServerProcess, running_server

SMALL, HUGE, OVER = "small", "huge", "over"
TIB = 1 << 40
CONFIG = f"""
engine: {{memory_budget_bytes: {2 * TIB}}}
models:
  - {{id: {SMALL}, source: 'embedded:all-minilm-l6-v2'}}
  - {{id: {HUGE}, source: 'embedded:smollm2-135m-instruct', load: demand,
      arguments: {{kv_cache_memory_bytes: {TIB}}}}}
  - {{id: {OVER}, source: 'embedded:smollm2-135m-instruct', load: demand,
      arguments: {{kv_cache_memory_bytes: {4 * TIB}}}}}
"""
AT_ONCE_SECONDS = 1.0


@pytest.fixture(scope="module")
def cramped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The server; its end is part of the test."""
    folder = tmp_path_factory.mktemp("cramped")
    (folder / "headrace.yaml").write_text(CONFIG)
    with running_server(folder / "headrace.yaml", folder / "log") as server:
        yield server


@pytest.fixture
def http(cramped: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=cramped.base_url, trust_env=False, timeout=120) as client:
        yield client


def chat(http: httpx.Client, model: str) -> httpx.Response:
    messages = [{"role": "user", "content": "hi"}]
    return http.post("/v1/chat/completions", json={"model": model, "messages": messages, "max_tokens": 4})


def embeds(http: httpx.Client) -> bool:
    return http.post("/v1/embeddings", json={"model": SMALL, "input": "water"}).status_code == 200


def test_a_model_that_the_machine_has_no_memory_for_is_told_and_harms_nobody(
    cramped: ServerProcess, http: httpx.Client
) -> None:
    first = chat(http, HUGE)
    began = time.monotonic()
    again = chat(http, HUGE)
    assert time.monotonic() - began < AT_ONCE_SECONDS
    for refused in (first, again):
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_down")
        assert 0 < int(refused.headers["retry-after"]) <= 10
    model = http.get(f"/v1/models/{HUGE}").json()
    assert model["state"] == "failed"
    assert "memory" in model["detail"]
    assert "\n" not in model["detail"]
    assert 0 < model["retry_in_seconds"] <= 10
    ready = http.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["problems"] == {HUGE: model["detail"]}
    assert embeds(http)
    assert (len(cramped.called("VLLM::EngineCore")), len(cramped.called("VLLM::Worker"))) == (1, 1)


def test_a_model_that_exceeds_the_budget_is_refused_with_what_it_needs_and_what_there_is(
    cramped: ServerProcess, http: httpx.Client
) -> None:
    engines = cramped.called("VLLM::EngineCore")
    began = time.monotonic()
    refused = chat(http, OVER)
    assert time.monotonic() - began < AT_ONCE_SECONDS
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (503, "no_room")
    needs, has = (int(word.replace(",", "")) for word in error["message"].split() if word.replace(",", "").isdigit())
    assert needs > 4 * TIB >> 20
    assert has == 2 * TIB >> 20
    model = http.get(f"/v1/models/{OVER}").json()
    assert (model["state"], model["detail"]) == ("cold", error["message"])
    assert http.get("/readyz").status_code == 200
    assert embeds(http)
    assert cramped.called("VLLM::EngineCore") == engines
