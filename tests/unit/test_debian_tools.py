"""Where the registry for tests comes from, with stand-ins for apt and dpkg."""

from pathlib import Path

import pytest

from requirements.debian_tools import ensure_docker_registry, ensure_programs

WORKS = '[ "$1" = --version ]'


def program(folder: Path, name: str, script: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_a_registry_on_the_path_is_used(path: Path, tmp_path: Path) -> None:
    installed = program(path, "docker-registry", WORKS)
    assert ensure_docker_registry(tmp_path / "tools") == installed
    assert not (tmp_path / "tools").exists()


def test_without_apt_there_is_none(path: Path, tmp_path: Path) -> None:
    assert ensure_docker_registry(tmp_path / "tools") is None


def test_the_package_is_unpacked_once_and_lists_are_renewed_only_if_that_is_needed(path: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    apt = f'for last; do :; done; echo "$last" >> {log}; [ "$last" = update ] && touch {log}.new && exit; '
    program(path, "apt-get", apt + f"[ -e {log}.new ] && touch docker-registry_1_all.deb")
    unpack = 'mkdir -p "$3/usr/bin"; printf "#!/bin/sh\\n" > "$3/usr/bin/docker-registry"; chmod 755 "$3/usr/bin/"*'
    program(path, "dpkg-deb", unpack)
    binary = ensure_docker_registry(tmp_path / "tools")
    assert binary == tmp_path / "tools/docker-registry/usr/bin/docker-registry"
    assert ensure_docker_registry(tmp_path / "tools") == binary
    assert log.read_text().split() == ["docker-registry", "update", "docker-registry"]
    assert [entry.name for entry in (tmp_path / "tools").iterdir()] == ["docker-registry"]


@pytest.mark.parametrize("broken", ["apt-get", "dpkg-deb"])
def test_where_it_cannot_be_had_there_is_none_and_nothing_stays(path: Path, tmp_path: Path, broken: str) -> None:
    program(path, "apt-get", "touch docker-registry_1_all.deb")
    program(path, "dpkg-deb", "exit 1")
    program(path, broken, "exit 1")
    assert ensure_docker_registry(tmp_path / "tools") is None
    assert list((tmp_path / "tools").iterdir()) == []


def test_a_registry_that_does_not_run_is_not_used(path: Path, tmp_path: Path) -> None:
    program(path, "docker-registry", "exit 1")
    assert ensure_docker_registry(tmp_path / "tools") is None


def test_programs_that_are_installed_are_used_as_they_are(path: Path, tmp_path: Path) -> None:
    program(path, "buildah", "")
    program(path, "runc", "")
    environment = ensure_programs(["buildah", "runc"], tmp_path / "tools")
    assert environment is not None
    assert environment["PATH"] == str(path)
    assert not (tmp_path / "tools").exists()


def test_programs_are_unpacked_with_what_they_need_and_found_there_again(path: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    cache = 'for word; do case "$word" in Dir::Cache=*) cache=${word#Dir::Cache=};; esac; done; '
    download = 'touch "$cache/archives/buildah_1_all.deb" "$cache/archives/libgpgme11_1_all.deb"'
    program(path, "apt-get", f'echo "$*" >> {log}; {cache}{download}')
    folders = 'mkdir -p "$3/usr/lib/x86_64-linux-gnu" "$3/usr/bin"; '
    program(path, "dpkg-deb", f'{folders}touch "$3/usr/bin/buildah"; chmod 755 "$3/usr/bin/buildah"')
    environment = ensure_programs(["buildah"], tmp_path / "tools")
    assert environment is not None
    folder = tmp_path / "tools/buildah"
    assert environment["PATH"].startswith(f"{folder}/usr/bin:")
    assert environment["LD_LIBRARY_PATH"] == f"{folder}/usr/lib/x86_64-linux-gnu"
    assert "--download-only" in log.read_text()
    assert ensure_programs(["buildah"], tmp_path / "tools") == environment
    assert len(log.read_text().splitlines()) == 1


def test_programs_that_cannot_be_had_are_none(path: Path, tmp_path: Path) -> None:
    assert ensure_programs(["buildah"], tmp_path / "tools") is None
    program(path, "apt-get", "exit 1")
    program(path, "dpkg-deb", "exit 1")
    assert ensure_programs(["buildah"], tmp_path / "tools") is None
    assert list((tmp_path / "tools").iterdir()) == []
