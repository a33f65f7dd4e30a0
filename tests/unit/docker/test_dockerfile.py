"""The Dockerfile: linted, and in accord with what stands elsewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from docker.build import default_of
from requirements.bootstrap import PYTORCH_CPU_INDEX


@pytest.fixture
def dockerfile(repository: Path) -> str:
    return (repository / "docker/Dockerfile").read_text()


def hadolint(repository: Path, text: str) -> "subprocess.CompletedProcess[str]":
    program, config = Path(sys.executable).with_name("hadolint"), repository / "docker/hadolint.yaml"
    command = [str(program), "--config", str(config), "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def test_hadolint_finds_nothing(repository: Path, dockerfile: str) -> None:
    done = hadolint(repository, dockerfile)
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_would_find_something(repository: Path, dockerfile: str) -> None:
    done = hadolint(repository, dockerfile.replace(" --no-install-recommends", ""))
    assert done.returncode == 1
    assert "DL3015" in done.stdout


def test_the_index_of_torch_is_the_one_that_the_set_up_asks(dockerfile: str) -> None:
    assert default_of("TORCH_INDEX") == PYTORCH_CPU_INDEX


def test_images_run_as_a_numeric_user_that_is_not_root(dockerfile: str) -> None:
    users = re.findall(r"^USER (.+)$", dockerfile, flags=re.MULTILINE)
    assert users == ["10001:0", "10001:0"]
    targets = re.findall(r"^FROM \S+ AS (cpu|cuda)$", dockerfile, flags=re.MULTILINE)
    assert targets == ["cpu", "cuda"]


def test_what_is_copied_from_the_checkout_is_let_through_by_the_ignore_file(repository: Path, dockerfile: str) -> None:
    let_through = [
        line.removeprefix("!")
        for line in (repository / "docker/Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", dockerfile, flags=re.MULTILINE)
        for source in line.split()[:-1]
        if not source.startswith("--")
    ]
    assert "pyproject.toml" in copied
    for source in copied:
        assert (repository / source).exists()
        assert any(
            Path(source).match(pattern) or source.startswith(f"{pattern}/") or source == pattern
            for pattern in let_through
        ), f"{source} is not let through"
