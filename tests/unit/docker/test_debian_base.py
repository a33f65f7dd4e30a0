"""The Debian image that is made where none can be pulled."""

import os
from pathlib import Path

import pytest

from docker.debian_base import BaseImageError, make_base, slim, suite_of
from tests.unit.docker.programs import program

IMAGE = "docker.io/library/debian:bookworm-20260824-slim"


def test_the_suite_stands_in_the_tag() -> None:
    assert suite_of(IMAGE) == "bookworm"
    assert suite_of("debian:trixie@sha256:00") == "trixie"


@pytest.mark.parametrize("image", ["docker.io/library/ubuntu:24.04", "debian", "registry.example:5000/debian"])
def test_only_debian_s_images_can_be_made(image: str) -> None:
    with pytest.raises(BaseImageError, match="cannot be pulled"):
        suite_of(image)


def test_what_slim_images_leave_out_is_taken_away_and_licences_stay(tmp_path: Path) -> None:
    for name in ("usr/share/man/man1/ls.1", "var/cache/apt/pkgcache.bin", "usr/share/doc/tar/README", "bin/sh"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "usr/share/doc/tar/copyright").touch()
    slim(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == {
        "bin/sh",
        "usr/share/doc/tar/copyright",
    }
    assert (tmp_path / "var/cache/apt").is_dir()


def test_it_is_committed_under_the_name_that_the_dockerfile_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    log = tmp_path / "log"
    program(tmp_path, "debootstrap", f'echo "$2" >> {log}; for root; do :; done; mkdir -p "$root/usr/share/doc"')
    program(tmp_path, "buildah", f'echo "$*" >> {log}; [ "$2" != from ] || echo a-container')
    make_base(IMAGE, ["buildah", "--root=x"], tmp_path, {"PATH": f"{tmp_path}:/usr/bin:/bin"})
    lines = log.read_text().splitlines()
    assert lines[0] == "bookworm"
    assert lines[-1] == f"--root=x commit --quiet --rm a-container {IMAGE}"


def test_a_step_that_fails_is_said_with_its_last_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    program(tmp_path, "debootstrap", "echo 'E: no mirror' >&2; exit 1")
    with pytest.raises(BaseImageError, match=r"(?s)debootstrap .* failed:.*E: no mirror"):
        make_base(IMAGE, ["buildah"], tmp_path, {"PATH": f"{tmp_path}:/usr/bin:/bin"})


def test_it_needs_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(BaseImageError, match="needs root"):
        make_base(IMAGE, ["buildah"], tmp_path, {})
