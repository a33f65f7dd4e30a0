"""The image as it is run: by any user, on a root that cannot be written to, with and without a network."""

import re
import signal
import statistics
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import openai
import pytest

from tests.image.conftest import Figures
from tests.image.runc import Image
from tests.image.stations import MODEL, QUESTION, Station, Volumes, answer, answer_outside, station

ANY_USER = "12345:0"
FOREIGN_USER = "23456:34567"
NUM_PAIRS = 5
NUM_STREAMS = 8
MAX_LIVEZ_SECONDS = 2.0
MAX_RATIO = 1.1
_ASK = f"""
import json, sys, urllib.request
body = {{"model": "{MODEL}", "temperature": 0, "messages": [{{"role": "user", "content": "{QUESTION}"}}]}}
headers = {{"authorization": "Bearer " + sys.argv[2], "content-type": "application/json"}}
url = sys.argv[1] + "/v1/chat/completions"
print(urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers)).read().decode())
"""


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Volumes:
    return Volumes.below(tmp_path_factory.mktemp("volumes"))


@pytest.fixture(scope="module")
def server(image: Image, volumes: Volumes, environment: Mapping[str, str]) -> Iterator[Station]:
    """One that stands for most tests."""
    with station(image, volumes, ANY_USER, environment) as running:
        running.until_ready()
        yield running


def test_the_ready_line_brings_the_key_that_opens_the_server(server: Station) -> None:
    assert f"authorization: Bearer {server.key}" in server.until_ready()
    with pytest.raises(openai.AuthenticationError):
        answer(server.base_url, "hr-wrong")
    assert "Paris" in answer(server.base_url, server.key)


def test_it_can_write_nowhere_but_where_it_must(server: Station) -> None:
    for folder in ("/", "/etc", "/opt/headrace", "/usr/share/headrace/models"):
        assert server.container.execute("touch", f"{folder}/x").returncode == 1, folder
    for folder in ("/tmp", "/dev/shm", "/var/cache/headrace", "/var/lib/headrace"):
        assert server.container.execute("touch", f"{folder}/x").returncode == 0, folder
    assert server.container.execute("id", "-u").stdout.strip() == ANY_USER.partition(":")[0]


def test_the_health_check_says_so(server: Station) -> None:
    assert server.container.execute("headrace-healthcheck").returncode == 0
    nobody = {"HEADRACE_SERVER__STATE_DIR": "/nowhere", "HEADRACE_SERVER__PORT": "1"}
    assert server.container.execute("headrace-healthcheck", **nobody).returncode == 1


def test_the_operator_s_commands_work_inside(server: Station) -> None:
    assert MODEL in server.container.execute("headrace", "ps").stdout
    key = server.container.execute("headrace", "keys", "create").stdout.strip()
    assert re.fullmatch(r"hr-\S+", key)


def test_no_process_stays_that_has_ended(server: Station) -> None:
    """Engines that are killed leave their children to process 1."""
    find = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline | grep -q '^VLLM::EngineCore' && echo ${p#/proc/}; done"
    (engine,) = server.container.execute("sh", "-c", find).stdout.split()
    assert server.container.execute("sh", "-c", f"kill -KILL {engine}").returncode == 0
    assert "Paris" in answer(server.base_url, server.key)
    states = server.container.execute("sh", "-c", "cat /proc/[0-9]*/stat").stdout
    assert " S " in states
    assert " Z " not in states


def test_a_foreign_group_without_a_network_gets_an_answer(
    image: Image, tmp_path: Path, environment: Mapping[str, str]
) -> None:
    with station(image, Volumes.below(tmp_path), FOREIGN_USER, environment, has_network=False) as running:
        running.until_ready()
        asked = running.container.execute("python", "-c", _ASK, running.base_url, running.key)
        assert "Paris" in asked.stdout, asked.stderr
        devices = running.container.execute("python", "-c", "import socket; print(socket.if_nameindex())").stdout
        assert "eth0" not in devices


def test_a_restart_keeps_its_key_and_says_how_to_get_another(
    image: Image, tmp_path: Path, environment: Mapping[str, str]
) -> None:
    kept = Volumes.below(tmp_path)
    with station(image, kept, ANY_USER, environment) as first:
        first.until_live()
        key = first.key
        first.container.send(signal.SIGTERM)
        assert first.container.wait() == 0
    with station(image, kept, ANY_USER, environment) as second:
        ready = second.until_ready()
        assert "headrace keys create" in ready
        assert not re.search(r"hr-[a-z2-9]{8}-", second.container.said())
        assert "Paris" in answer(second.base_url, key)


def test_sigterm_under_load_ends_every_stream_properly(
    image: Image, volumes: Volumes, tmp_path: Path, environment: Mapping[str, str]
) -> None:
    reasons: list[str | None] = []
    with station(image, Volumes(volumes.cache, Volumes.below(tmp_path).state), ANY_USER, environment) as running:
        running.until_ready()
        begun = threading.Semaphore(0)
        url, key = running.base_url, running.key
        threads = [threading.Thread(target=_stream, args=(url, key, begun, reasons)) for _ in range(NUM_STREAMS)]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert begun.acquire(timeout=60)
        running.container.send(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert running.container.wait() == 0
        assert '"num_cut": 0' in running.container.said()
    assert reasons == ["length"] * NUM_STREAMS


def _stream(base_url: str, key: str, begun: threading.Semaphore, reasons: list[str | None]) -> None:
    reason = None
    try:
        with openai.OpenAI(base_url=f"{base_url}/v1", api_key=key, max_retries=0, timeout=60) as client:
            events = client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": "Count for ever."}],
                stream=True,
                max_tokens=60,
                extra_body={"ignore_eos": True},
            )
            next(iter(events))
            begun.release()
            for event in events:
                reason = event.choices[0].finish_reason or reason
    finally:
        reasons.append(reason)


def test_it_starts_as_fast_as_outside_of_a_container(
    image: Image, tmp_path: Path, environment: Mapping[str, str], figures: Figures
) -> None:
    """In turns, each with the model in its cache; pair by pair, since the machine's pace changes within minutes."""
    inside, outside, key = Volumes.below(tmp_path / "inside"), tmp_path / "outside", ""
    for number in range(NUM_PAIRS):
        with station(image, inside, ANY_USER, environment) as running:
            live = running.until_live()
            key = key or running.key
            assert "Paris" in answer(running.base_url, key)
            took = time.monotonic() - running.began
        folder = outside / str(number)
        folder.mkdir(parents=True)
        figures.livez_seconds.append(live)
        figures.first_answer_seconds.append(took)
        figures.outside_seconds.append(answer_outside(_prepared(image, outside), folder))
    assert statistics.median(figures.livez_seconds) <= MAX_LIVEZ_SECONDS
    assert figures.ratio <= MAX_RATIO, figures


def _prepared(image: Image, folder: Path) -> Path:
    """A cache that holds the image's models, as one that has been used does."""
    cache = folder / "cache"
    if not cache.exists():
        (cache / "embedded").mkdir(parents=True, mode=0o700)
        for model in (image.root / "usr/share/headrace/models/embedded").iterdir():
            (cache / "embedded" / model.name).symlink_to(model)
    return cache
