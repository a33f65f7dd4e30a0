"""Tenants of a real server: what each may use, how its requests are classed, what it is told, what it has used."""

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.fakes.command import headrace
from tests.fakes.process import READY, ServerProcess, running_server

pytestmark = pytest.mark.timeout(120)

KEYS = {name: f"key-of-{name}-0123456789" for name in ("operator", "red", "blue", "small")}
CONFIG = """
auth: {keys_file: KEYS}
tenants:
  - {id: red, weight: 2}
  - {id: blue, classes: [standard, batch], models: [second]}
  - {id: small, tokens_per_minute: 20}
models:
  - {id: m, aliases: [first], engine: synthetic}
  - {id: n, aliases: [second], engine: synthetic}
"""


@dataclass(frozen=True, slots=True)
class House:
    """A server of several tenants."""

    server: ServerProcess
    config: Path
    log: Path

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """A command of this machine's operator."""
        return headrace(
            *arguments, "--config", str(self.config), env={"HEADRACE_SERVER__STATE_DIR": str(self.server.state_dir)}
        )

    def chat(
        self, tenant: str, model: str = "n", headers: dict[str, str] | None = None, **body: object
    ) -> httpx.Response:
        """A short answer, or why there is none."""
        return httpx.post(
            f"{self.server.base_url}/v1/chat/completions",
            json={"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3, **body},
            headers={"x-api-key": KEYS[tenant], **(headers or {})},
            trust_env=False,
        )

    def get(self, tenant: str, path: str) -> httpx.Response:
        """What a tenant is shown."""
        return httpx.get(f"{self.server.base_url}{path}", headers={"x-api-key": KEYS[tenant]}, trust_env=False)

    def logged(self, request_id: str) -> dict[str, object]:
        """The access log's line of a request."""
        deadline = time.monotonic() + 10
        while True:
            for line in self.log.read_text().splitlines():
                if request_id in line and '"request_done"' in line:
                    return dict(json.loads(line))
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    lines = [f"{key} {'' if name == 'operator' else name}" for name, key in KEYS.items()]
    (folder / "keys").write_text("\n".join(lines))
    config = folder / "headrace.yaml"
    config.write_text(CONFIG.replace("KEYS", str(folder / "keys")))
    with running_server(config, folder / "log") as server:
        yield House(server, config, folder / "log")


def test_a_tenant_sees_and_uses_its_own_models_only(house: House) -> None:
    assert [model["id"] for model in house.get("red", "/v1/models").json()["data"]] == ["m", "n"]
    assert [model["id"] for model in house.get("blue", "/v1/models").json()["data"]] == ["n"]
    assert house.chat("red", "m").status_code == house.chat("blue", "second").status_code == 200
    for name in ("m", "first"):
        refused, unknown = house.chat("blue", name), house.chat("blue", "nobody")
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
        assert refused.content == unknown.content.replace(b"'nobody'", f"'{name}'".encode())
        assert house.get("blue", f"/v1/models/{name}").status_code == 404


@pytest.mark.parametrize(
    ("tenant", "headers", "body", "service_class"),
    [
        ("red", {}, {}, "standard"),
        ("red", {"x-headrace-class": "interactive"}, {}, "interactive"),
        ("red", {}, {"service_tier": "flex"}, "batch"),
        ("red", {}, {"service_tier": "priority"}, "interactive"),
        ("blue", {}, {"service_tier": "priority"}, "standard"),
        ("blue", {"x-headrace-class": "interactive"}, {"service_tier": "flex"}, "standard"),
    ],
)
def test_a_request_is_of_the_class_that_it_asks_for_as_far_as_its_tenant_may(
    house: House, tenant: str, headers: dict[str, str], body: dict[str, object], service_class: str
) -> None:
    answer = house.chat(tenant, "n", headers, **body)
    assert answer.status_code == 200
    line = house.logged(answer.headers["x-request-id"])
    assert (line["tenant"], line["class"]) == (tenant, service_class)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"x-headrace-class": "urgent"}, {}),
        ({}, {"service_tier": "scale"}),
        ({"x-headrace-deadline-ms": "-1"}, {}),
        ({"x-headrace-deadline-ms": "0"}, {}),
        ({"x-headrace-deadline-ms": "soon"}, {}),
        ({}, {"n": 10**6}),
    ],
)
def test_what_makes_no_sense_is_400(house: House, headers: dict[str, str], body: dict[str, object]) -> None:
    assert house.chat("red", "n", headers, **body).status_code == 400


def test_a_client_cannot_speak_for_another_tenant_nor_go_before_others(house: House) -> None:
    answer = house.chat("red", headers={"x-headrace-tenant": "blue"}, priority=-1, cache_salt="x")
    assert answer.status_code == 200
    assert house.logged(answer.headers["x-request-id"])["tenant"] == "red"


def test_a_gateway_speaks_for_its_tenants(house: House) -> None:
    key = house.run("keys", "create", "--tenant", "edge", "--scope", "gateway").stdout.strip()
    url, asked = f"{house.server.base_url}/v1/models", {"x-api-key": key, "x-headrace-tenant": "blue"}
    deadline = time.monotonic() + 10
    while (answer := httpx.get(url, headers=asked, trust_env=False)).status_code == 401:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert [model["id"] for model in answer.json()["data"]] == ["n"]
    assert httpx.get(url, headers={**asked, "x-headrace-tenant": "a b"}, trust_env=False).status_code == 400


def test_a_tenant_that_has_used_its_tokens_is_told_when_to_come_back_and_others_go_on(house: House) -> None:
    answers = [house.chat("small", max_tokens=16) for _ in range(10)]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["error"]["code"] == "quota_exceeded"
    assert refused.headers["x-ratelimit-limit-tokens"] == "20"
    assert refused.headers["x-ratelimit-remaining-tokens"] == "0"
    assert refused.headers["x-ratelimit-reset-tokens"].endswith("s")
    assert 0 < int(refused.headers["retry-after"]) <= 120
    assert house.chat("red").status_code == 200


def test_usage_is_counted_by_tenant_and_model_and_shown_to_operators(house: House) -> None:
    def used(tenant: str, model: str) -> tuple[int, int, int]:
        done = house.run("usage", "--json", "--since", "2")
        assert done.returncode == 0, done.stderr
        counts = [one for one in json.loads(done.stdout)["usage"] if (one["tenant"], one["model"]) == (tenant, model)]
        prompts = (one["computed_prompt_tokens"] + one["cached_prompt_tokens"] for one in counts)
        return sum(one["requests"] for one in counts), sum(prompts), sum(one["output_tokens"] for one in counts)

    before = used("red", "m")
    usages = [house.chat("red", "first").json()["usage"] for _ in range(2)]
    requests, prompt, output = (now - then for now, then in zip(used("red", "m"), before, strict=True))
    assert (requests, prompt) == (2, sum(one["prompt_tokens"] for one in usages))
    assert output == sum(one["completion_tokens"] for one in usages)
    assert house.get("red", "/admin/usage").status_code == 403
    assert house.get("operator", "/admin/usage").status_code == 200
    table = house.run("usage").stdout.splitlines()
    assert table[0].split()[:3] == ["DAY", "TENANT", "MODEL"]
    assert any(line.split()[1:3] == ["red", "m"] for line in table)


def test_usage_outlives_the_server(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="hs-") as state:  # a short name: a socket lies in it
        config = tmp_path / "headrace.yaml"
        config.write_text(f"server: {{port: 0, state_dir: {state}}}\nmodels: [{{id: m, engine: synthetic}}]")
        for num_requests in (1, 2):
            with serving(config) as base_url:
                body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
                assert httpx.post(f"{base_url}/v1/chat/completions", json=body, trust_env=False).status_code == 200
                (count,) = json.loads(headrace("usage", "--json", "--config", str(config)).stdout)["usage"]
                assert (count["tenant"], count["requests"]) == ("default", num_requests)


@contextmanager
def serving(config: Path) -> Iterator[str]:
    """A server whose state directory is the configuration's."""
    command = [sys.executable, "-m", "headrace_server", "serve", "--config", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            ready = READY.search(server.stdout.readline())
            assert ready
            yield ready[1]
        finally:
            server.send_signal(signal.SIGINT)
            assert server.wait(60) == 0
