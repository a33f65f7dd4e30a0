"""What a build is told of pip's sources: addresses that it can reach, and nothing of this machine's files."""

from pathlib import Path

import pytest

from docker.pip_sources import configured_sources, gather_wheels, read_sources

INDEX = "https://name:secret@mirror.example/simple"


def test_addresses_are_kept_and_paths_of_this_machine_are_not(tmp_path: Path) -> None:
    listed = (
        f"global.index-url='{INDEX}'\n"
        "global.extra-index-url='file:///srv/simple https://more.example/simple'\n"
        f"global.find-links='file://{tmp_path} /no/such/folder https://links.example'\n"
        "install.no-build-isolation='true'\n"
    )
    sources = read_sources(listed)
    assert sources.conf == f"[global]\nindex-url = {INDEX}\nextra-index-url = https://more.example/simple\n"
    assert sources.folders == (tmp_path,)
    assert sources.certificates is None


def test_variables_win_over_files(tmp_path: Path) -> None:
    certificates = tmp_path / "ca.crt"
    certificates.touch()
    listed = f":env:.timeout='9'\n:env:.cert='{certificates}'\nglobal.cert='/no/such/file'\nglobal.timeout='5'\n"
    sources = read_sources(listed)
    assert sources.conf == "[global]\ntimeout = 9\n"
    assert sources.certificates == certificates


def test_without_any_configuration_nothing_is_said() -> None:
    assert read_sources("").conf == "[global]\n"


def test_pip_itself_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\n[ \"$*\" = '-m pip config list' ] && echo \"global.index-url='https://a.example'\"\n")
    python.chmod(0o755)
    assert configured_sources(str(python)).conf == "[global]\nindex-url = https://a.example\n"


def test_of_the_folders_only_wheels_that_the_lock_names_are_gathered(tmp_path: Path) -> None:
    folder, target = tmp_path / "wheels", tmp_path / "target"
    for name in ("torch-2-py3-none-any.whl", "some_thing-1-py3-none-any.whl", "other-1-py3-none-any.whl", "notes"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    target.mkdir()
    (target / "old-1-py3-none-any.whl").touch()
    gather_wheels((folder,), target, "torch==2 \\\n    --hash=sha256:00\nsome-thing==1 ; marker \\\n")
    assert {path.name for path in target.iterdir()} == {"torch-2-py3-none-any.whl", "some_thing-1-py3-none-any.whl"}
