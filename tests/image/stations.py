"""Starting a server in a container or outside, and how long it takes until it lives and has answered."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai

from tests.image.runc import Container, Image, Terms, started

MODEL = "smollm2-135m-instruct"
QUESTION = "What is the capital of France?"
STARTING_SECONDS = 120.0
_KEY = re.compile(r"hr-[a-z2-9]{8}-[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class Volumes:
    """The folders of one server, which outlive its containers."""

    cache: Path
    state: Path

    @classmethod
    def below(cls, folder: Path) -> "Volumes":
        """Empty ones, in which any user may write, as Docker and Kubernetes make them."""
        for name in ("cache", "state"):
            (folder / name).mkdir(parents=True)
            (folder / name).chmod(0o1777)
        return cls(folder / "cache", folder / "state")


@dataclass(frozen=True, slots=True)
class Station:
    """A server that runs in a container. `base_url` has no path."""

    container: Container
    base_url: str
    began: float

    @property
    def key(self) -> str:
        """The key that it printed."""
        found = _KEY.search(self.container.said())
        assert found is not None, self.container.said()
        return found[0]

    def until_live(self) -> float:
        """Seconds from its start until /livez answers."""
        until_live(self.base_url, lambda: self.container.process.poll() is None, self.container.said)
        return time.monotonic() - self.began

    def until_ready(self) -> str:
        """Its ready line."""
        deadline = time.monotonic() + STARTING_SECONDS
        while (ready := re.search(r"^Headrace is ready .*$", self.container.said(), flags=re.MULTILINE)) is None:
            assert self.container.process.poll() is None, self.container.said()[-4000:]
            assert time.monotonic() < deadline, self.container.said()[-4000:]
            time.sleep(0.02)
        return ready[0]


@contextmanager
def station(
    image: Image, volumes: Volumes, user: str, environment: Mapping[str, str], *, has_network: bool = True
) -> Iterator[Station]:
    """A container of the image that serves on a free port."""
    port = free_port()
    terms = Terms(
        user,
        {"/var/cache/headrace": volumes.cache, "/var/lib/headrace": volumes.state},
        variables={"HEADRACE_SERVER__PORT": str(port)},
        has_network=has_network,
    )
    began = time.monotonic()
    with started(image, terms, environment) as container:
        yield Station(container, f"http://127.0.0.1:{port}", began)


def answer(base_url: str, key: str) -> str:
    """What the model says to the question, through OpenAI's SDK; the request is held while the model is loaded."""
    with openai.OpenAI(base_url=f"{base_url}/v1", api_key=key, max_retries=0, timeout=STARTING_SECONDS) as client:
        asked = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=12
        )
    return asked.choices[0].message.content or ""


def until_live(base_url: str, is_running: Callable[[], bool], said: Callable[[], str]) -> None:
    """Wait until /livez answers."""
    deadline = time.monotonic() + STARTING_SECONDS
    with httpx.Client(trust_env=False) as client:
        while time.monotonic() < deadline:
            assert is_running(), said()
            try:
                if client.get(f"{base_url}/livez", timeout=2).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.01)
    raise AssertionError(f"/livez does not answer: {said()}")


def answer_outside(cache: Path, folder: Path) -> float:
    """Seconds from the start of `headrace serve` on this machine itself to its first answer."""
    port = free_port()
    environment = {
        **os.environ,
        "HEADRACE_CACHE__DIR": str(cache),
        "HEADRACE_SERVER__STATE_DIR": str(folder / "state"),
        "HEADRACE_SERVER__PORT": str(port),
    }
    output = folder / "output"
    command = [sys.executable, "-m", "headrace_server", "serve", "--make-key"]
    began = time.monotonic()
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=environment)
    try:
        until_live(f"http://127.0.0.1:{port}", lambda: process.poll() is None, output.read_text)
        key = _KEY.search(output.read_text())
        assert key is not None
        assert "Paris" in answer(f"http://127.0.0.1:{port}", key[0])
        return time.monotonic() - began
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(STARTING_SECONDS)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
