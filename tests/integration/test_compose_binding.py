"""`headrace serve` as a service of compose's that binds a model: the platform's variables in, answers out."""

from pathlib import Path

import pytest
import yaml
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.fakes.command import headrace, one_line
from tests.fakes.model_runner import NAME, FakeModelRunner
from tests.fakes.process import running_server
from tests.fakes.upstream_thread import running_upstream
from tests.fakes.vllm_server import WORDS


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "headrace.yaml"
    model = {"id": "chat", "engine": "upstream", "upstream": {"binding": "llm"}}
    path.write_text(yaml.safe_dump({"models": [model], "cache": {"dir": str(tmp_path / "cache")}}))
    return path


def test_a_service_that_binds_a_model_serves_it(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the capital of France?"}]
    with running_upstream(FakeModelRunner()) as url:
        monkeypatch.setenv("LLM_URL", f"{url}/engines/v1/")
        monkeypatch.setenv("LLM_MODEL", NAME)
        with (
            running_server(config, tmp_path / "log") as server,
            OpenAI(base_url=f"{server.base_url}/v1", api_key="unused", max_retries=0) as client,
        ):
            answer = client.chat.completions.create(model="chat", messages=asked)
            stream = client.chat.completions.create(model="chat", messages=asked, stream=True)
            streamed = "".join(event.choices[0].delta.content or "" for event in stream)
    assert (answer.model, answer.choices[0].message.content, streamed) == ("chat", "".join(WORDS), "".join(WORDS))


def test_a_service_that_binds_none_does_not_start(config: Path) -> None:
    done = headrace("config", "check", "--config", str(config), env={"LLM_URL": "http://127.0.0.1:1/engines/v1/"})
    assert done.returncode == 2
    assert "model 'chat': LLM_MODEL is not set or blank" in one_line(done)
