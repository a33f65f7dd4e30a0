"""What the container's entry script runs, with a stand-in for `headrace`."""

import subprocess
from pathlib import Path

import pytest

from tests.unit.docker.programs import program


def run(repository: Path, folder: Path, *arguments: str) -> str:
    """The command that is run in the end."""
    program(folder / "bin", "headrace", 'echo headrace "$@"')
    environment = {"PATH": f"{folder}/bin:/usr/bin:/bin", "HEADRACE_CACHE__DIR": str(folder / "cache")}
    done = subprocess.run(
        [repository / "docker/entrypoint.sh", *arguments], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ((), "serve --make-key"),
        (("serve",), "serve --make-key"),
        (("serve", "--port", "1"), "serve --make-key --port 1"),
        (("--model", "a b"), "serve --make-key --model a b"),
        (("keys", "create"), "keys create"),
        (("version",), "version"),
    ],
)
def test_a_container_serves_unless_another_command_is_named(
    repository: Path, tmp_path: Path, arguments: tuple[str, ...], command: str
) -> None:
    assert run(repository, tmp_path, *arguments) == f"headrace {command}"


def test_a_cache_that_cannot_be_written_to_is_the_server_s_to_tell(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    assert run(repository, tmp_path) == "headrace serve --make-key"
