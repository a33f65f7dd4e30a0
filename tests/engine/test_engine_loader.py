"""Models that arrive while vLLM starts: it waits, answers as it would from files, and says why it cannot."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headrace_models.errors import SourceDenied
from headrace_models.preparation import prepare
from headrace_models.reference import parse_reference
from headrace_models.store.stored_model import StoredModel
from headrace_models.trust import Trust
from headrace_server.engine.vllm_load_report import take_report
from tests.fakes.arriving_models import ArrivingModel, publish_empty

CACHE = Path("~/.cache/headrace").expanduser()
START_SECONDS = 300
POLL_SECONDS = 0.05


def embedded(name: str) -> Path:
    """The directory of an embedded model, as `headrace serve` makes it."""
    return prepare(parse_reference(f"embedded:{name}"), CACHE).directory


@contextlib.contextmanager
def starting(**arguments: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """vLLM in a process of its own; what it leaves in the folder for temporary files goes with that."""
    with tempfile.TemporaryDirectory(prefix="hr-", ignore_cleanup_errors=True) as scratch:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.engine.loader_run"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "TMPDIR": scratch},
        )
        assert process.stdin is not None
        with process:
            try:
                process.stdin.write(json.dumps(arguments).encode())
                process.stdin.close()
                yield process
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, 9)


def result(process: "subprocess.Popen[bytes]") -> dict[str, Any]:
    """What it found; the other lines are vLLM's."""
    assert process.stdout is not None
    lines = process.stdout.read().decode(errors="replace").splitlines()
    assert process.wait(START_SECONDS) == 0, "\n".join(lines[-40:])
    found: dict[str, Any] = json.loads(next(line for line in lines if line.startswith('{"')))
    return found


def from_store(stored: StoredModel, cache: Path, **more: str) -> dict[str, Any]:
    """The engine arguments that load a stored model."""
    extra = {"headrace_store": str(cache), "headrace_key": stored.key, **more}
    return {"model": str(stored.skeleton), "load_format": "headrace", "model_loader_extra_config": extra}


def until_a_reader_waits(arriving: ArrivingModel, process: "subprocess.Popen[bytes]") -> None:
    """The loader has come so far that it needs bytes."""
    while not arriving.demanded():
        assert process.poll() is None, "vLLM ended before it loaded anything"
        threading.Event().wait(POLL_SECONDS)


def test_vllm_waits_for_a_model_that_arrives_and_says_what_it_says_from_files(tmp_path: Path) -> None:
    original = embedded("smollm2-135m-instruct")
    with starting(model=str(original)) as process:
        expected = result(process)["texts"]
    assert any(text.strip() for text in expected)

    stored = publish_empty(original, tmp_path, trust=Trust.FILE)
    with starting(**from_store(stored, tmp_path)) as process, ArrivingModel(stored, original) as arriving:
        until_a_reader_waits(arriving, process)
        missing = arriving.writer.missing()
        for part in range(0, len(missing), 16):
            arriving.bring(missing[part : part + 16])
            threading.Event().wait(POLL_SECONDS)
        assert stored.status().leased
        arriving.writer.seal()
        assert result(process)["texts"] == expected


def test_an_embedding_model_gives_the_vectors_that_it_gives_from_files(tmp_path: Path) -> None:
    original = embedded("all-minilm-l6-v2")
    with starting(model=str(original), runner="pooling") as process:
        expected = result(process)["vectors"]

    stored = publish_empty(original, tmp_path)
    with ArrivingModel(stored, original) as arriving:
        arriving.bring_all()
        arriving.writer.seal()
    with starting(**from_store(stored, tmp_path), runner="pooling") as process:
        assert result(process)["vectors"] == expected


def test_a_fetch_that_fails_ends_the_start_with_its_reason(tmp_path: Path) -> None:
    original = embedded("smollm2-135m-instruct")
    stored = publish_empty(original, tmp_path)
    report = tmp_path / "why"
    with starting(**from_store(stored, tmp_path, headrace_report=str(report))) as process:
        with ArrivingModel(stored, original) as arriving:
            until_a_reader_waits(arriving, process)
            arriving.bring(arriving.writer.missing()[:100])
            arriving.writer.fail(SourceDenied("the registry wants other credentials"))
        assert "initialization failed" in result(process)["error"]
    assert take_report(report) == "the registry wants other credentials"
