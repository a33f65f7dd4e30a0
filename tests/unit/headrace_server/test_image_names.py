"""How an image is named, and what is said of names that are none."""

from pathlib import Path

import pytest

from headrace_models.locations import OciLocation
from headrace_server.errors import UsageError
from headrace_server.image.choosing import parse_platform
from headrace_server.image.description import Platform
from headrace_server.image.names import LocalImage, parse_image_name


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "layout").mkdir()
    (tmp_path / "im:age.tar").write_bytes(b"")


@pytest.mark.parametrize(
    ("text", "path", "tag"),
    [
        ("layout", "layout", ""),
        ("./absent", "absent", ""),
        ("/absent/image.tar", "/absent/image.tar", ""),
        ("absent.tar", "absent.tar", ""),
        ("absent.tar.gz", "absent.tar.gz", ""),
        ("oci:layout", "layout", ""),
        ("oci:layout:v1", "layout", "v1"),
        ("oci:absent:v1", "absent", "v1"),
        ("oci-archive:im:age.tar", "im:age.tar", ""),
        ("oci-archive:im:age.tar:v1", "im:age.tar", "v1"),
        ("docker-archive:x.tar:localhost:5000/a/b:v1", "x.tar", "localhost:5000/a/b:v1"),
    ],
)
def test_paths_are_images_on_this_machine(text: str, path: str, tag: str) -> None:
    assert parse_image_name(text) == LocalImage(Path(path), tag)


def test_a_path_may_begin_at_home() -> None:
    assert parse_image_name("~/x") == LocalImage(Path.home() / "x")


DIGEST = f"sha256:{'a' * 64}"


@pytest.mark.parametrize(
    ("text", "location"),
    [
        ("127.0.0.1:5000/team/app:v1", "127.0.0.1:5000/team/app:v1"),
        ("docker://quay.io/a/b", "quay.io/a/b"),
        ("oci://quay.io/a/b:v1", "quay.io/a/b:v1"),
        (f"quay.io/a/b:v1@{DIGEST}", f"quay.io/a/b@{DIGEST}"),
        ("localhost/lint:v1", "localhost/lint:v1"),
    ],
)
def test_the_rest_are_references_to_a_registry(text: str, location: str) -> None:
    found = parse_image_name(text)
    assert isinstance(found, OciLocation)
    assert str(found) == location


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no image"),
        ("a\nb", "no image"),
        ("oci:", "no path"),
        ("oci::v1", "no path"),
        ("headrace:cpu", "docker save"),
        ("python", "docker save"),
        ("docker-daemon:headrace:cpu", "not read from docker-daemon"),
        ("containers-storage:localhost/x", "not read from containers-storage"),
        ("quay.io/UPPER", "not a repository"),
        ("quay.io/a@sha256:short", "not a digest"),
    ],
)
def test_what_names_no_image_is_refused_with_a_way_out(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse_image_name(text)


def test_platforms_are_written_as_docker_writes_them() -> None:
    assert parse_platform("linux/arm64") == Platform("linux", "arm64")
    assert str(parse_platform("linux/arm/v7")) == "linux/arm/v7"


@pytest.mark.parametrize("text", ["", "linux", "linux/", "a/b/c/d", "/amd64", "linux/am\nd64"])
def test_a_platform_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a platform"):
        parse_platform(text)
