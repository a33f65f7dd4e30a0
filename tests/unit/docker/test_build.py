"""Which tool builds the image, and what it is told."""

from pathlib import Path

import pytest

from docker import build
from docker.build import Buildah, Wish, build_arguments, docker_answers, provide_base
from docker.debian_base import BaseImageError
from docker.pip_sources import PipSources
from tests.unit.docker.programs import program

WISH = Wish("cpu", "headrace:cpu", make_base=False)


def test_a_docker_command_without_an_engine_is_no_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not docker_answers()
    program(tmp_path, "docker", "exit 1")
    assert not docker_answers()
    program(tmp_path, "docker", "exit 0")
    assert docker_answers()


def test_addresses_reach_the_build_as_secrets_only(tmp_path: Path) -> None:
    sources = PipSources("[global]\nindex-url = https://name:secret@a.example\n", tmp_path / "ca.crt", ())
    arguments = build_arguments(WISH, sources, tmp_path)
    assert not [argument for argument in arguments if "a.example" in argument]
    assert f"id=pip_conf,src={tmp_path}/pip.conf" in arguments
    assert f"id=ca_certificates,src={tmp_path}/ca.crt" in arguments
    assert (tmp_path / "pip.conf").read_text() == sources.conf
    assert (tmp_path / "pip.conf").stat().st_mode & 0o077 == 0


def test_the_image_knows_its_version_and_commit(tmp_path: Path) -> None:
    arguments = build_arguments(WISH, PipSources("", None, ()), tmp_path)
    assert f"VERSION={build.project_version()}" in arguments
    assert any(argument.startswith("REVISION=") and argument != "REVISION=" for argument in arguments)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a buildah was told that has no image and reaches no registry."""
    path = tmp_path / "log"
    path.touch()
    program(tmp_path / "bin", "buildah", f'shift 8; echo "$1 $2" >> {path}; exit 1')

    def made(image: str, *_others: object) -> None:
        path.write_text(f"{path.read_text()}made {image}\n")

    monkeypatch.setattr(build, "make_base", made)
    return path


def buildah(log: Path) -> Buildah:
    return Buildah({"PATH": f"{log.parent}/bin:/usr/bin:/bin"}, log.parent / "work")


def test_a_base_is_looked_for_pulled_and_only_then_made(log: Path) -> None:
    provide_base(buildah(log), "debian:x", anew=False)
    assert log.read_text().splitlines() == ["inspect --type", "pull --quiet", "made debian:x"]


def test_a_base_is_made_at_once_where_that_is_asked_for(log: Path) -> None:
    provide_base(buildah(log), "debian:x", anew=True)
    assert log.read_text().splitlines() == ["made debian:x"]


def test_a_base_that_is_there_is_taken(log: Path) -> None:
    program(log.parent / "bin", "buildah", "exit 0")
    provide_base(buildah(log), "debian:x", anew=False)
    assert log.read_text() == ""


def test_without_any_tool_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(build, "WORK", tmp_path / "work")
    monkeypatch.setattr(build, "build_arguments", lambda *_: [])
    monkeypatch.setattr(build, "ensure_programs", lambda _: None)
    with pytest.raises(BaseImageError, match="apt-get install"):
        build.build(WISH)


def test_the_bases_are_pinned_in_the_dockerfile() -> None:
    assert build.default_of("DEBIAN_IMAGE").startswith("docker.io/library/debian:bookworm-")
    assert build.default_of("CUDA_IMAGE").startswith("docker.io/nvidia/cuda:13.")
