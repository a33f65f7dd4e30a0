"""One real server for the whole session: both embedded models on vLLM, as `headrace serve` runs them."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import anthropic
import httpx
import openai
import pytest

from tests.fakes.process import ServerProcess, running_server

CHAT = "smollm2-135m-instruct"
EMBED = "all-minilm-l6-v2"
CONFIG = f"""
models:
  - id: {CHAT}
    aliases: [chat]
    source: embedded:{CHAT}
  - id: {EMBED}
    source: embedded:{EMBED}
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs vLLM."""
    here = Path(__file__).parent
    missing = importlib.util.find_spec("vllm") is None
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.engine)
            item.add_marker(pytest.mark.timeout(600))
            if missing:
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed (the core lock has no engine)"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The server; its end is part of the test."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "headrace.yaml").write_text(CONFIG)
    with running_server(folder / "headrace.yaml", folder / "server.log") as process:
        yield process


@pytest.fixture
def http(server: ServerProcess) -> Iterator[httpx.Client]:
    """Plain HTTP."""
    with httpx.Client(base_url=server.base_url, timeout=120, trust_env=False) as client:
        yield client


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    """OpenAI's SDK, without retries that would hide a failure."""
    with openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="unused", max_retries=0, timeout=120) as sdk:
        yield sdk


@pytest.fixture
def claude(server: ServerProcess) -> Iterator[anthropic.Anthropic]:
    """Anthropic's SDK."""
    with anthropic.Anthropic(base_url=server.base_url, api_key="unused", max_retries=0, timeout=120) as sdk:
        yield sdk
