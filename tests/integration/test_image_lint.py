"""`headrace image lint` as a user meets it, on images that Buildah has built and in the reference registry."""

import json
import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from requirements.debian_tools import ensure_docker_registry
from tests.fakes.buildah import Buildah, NoBuildah, buildah_in
from tests.fakes.command import headrace, one_line
from tests.fakes.images import FakeImage, FakeImageLayer, put_in_registry, tar_with, write_layout
from tests.fakes.real_registry import running_real_registry
from tests.fakes.registry import running_registry

NAME = "localhost/lint:v1"
DOCKERFILE = """\
FROM scratch AS base
COPY lib/zeros.so /usr/lib/
FROM base
ENV A=1
COPY lib/noise.so /usr/lib/
COPY models/m.safetensors /models/
COPY app /app
CMD ["/app/main.py"]
"""
NOISE = random.Random(7).randbytes(1 << 20)
FILES = {
    "lib/zeros.so": bytes(1 << 20),
    "lib/noise.so": NOISE,
    "models/m.safetensors": NOISE[: 1 << 19],
    "app/main.py": b"print(1)",
}
KINDS = ["files", "files", "model", "app"]


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    with ExitStack() as stack:
        try:
            running = stack.enter_context(buildah_in(tmp_path_factory.mktemp("buildah")))
        except NoBuildah as reason:
            pytest.skip(str(reason))
        running.build(DOCKERFILE, FILES, name=NAME)
        yield running


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    binary = ensure_docker_registry()
    if binary is None:
        pytest.skip("no docker-registry here, and none to be had from apt")
    with running_real_registry(binary, tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    layers = [FakeImageLayer(tar_with(name, NOISE + name.encode())) for name in "abc"]
    return write_layout(tmp_path / "layout", {"v1": FakeImage(layers)})


def linted(*arguments: str, code: int = 0, env: dict[str, str] | None = None) -> Any:
    done = headrace("image", "lint", *arguments, "--json", env=env)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("form", ["oci", "oci-archive", "docker-archive"])
def test_an_image_of_buildahs_is_described_in_every_form_that_it_writes(buildah: Buildah, form: str) -> None:
    path = buildah.directory / form
    buildah.push(NAME, f"{form}:{path}:{NAME if form == 'docker-archive' else 'v1'}")
    for text in (str(path), f"{form}:{path}", f"{form}:{path}:{NAME if form == 'docker-archive' else 'v1'}"):
        report = linted(text)
        assert (report["num_layers"], [layer["kind"] for layer in report["layers"]]) == (4, KINDS)
        assert report["is_as_pulled"] is (form != "docker-archive")
        assert 2_600_000 < report["unpacked_bytes"] < 2_700_000
        assert [finding["code"] for finding in report["findings"]][:1] == ["tiny-image"]


def test_an_image_is_described_from_the_reference_registry(buildah: Buildah, address: str) -> None:
    buildah.push(NAME, f"docker://{address}/team/lint:v1")
    layout = buildah.directory / "pushed"
    buildah.push(NAME, f"oci:{layout}:v1")
    there, here = linted(f"{address}/team/lint:v1"), linted(f"oci:{layout}:v1")
    assert [layer["size_bytes"] for layer in there["layers"]] == [layer["size_bytes"] for layer in here["layers"]]
    assert linted(f"{address}/team/lint@{there['digest']}")["digest"] == there["digest"]


def test_an_index_that_buildah_puts_into_layers_is_seen(buildah: Buildah) -> None:
    layout = buildah.directory / "chunked"
    buildah.push(NAME, f"oci:{layout}:v1", "--compression-format", "zstd:chunked")
    layers = linted(f"oci:{layout}:v1")["layers"]
    assert [(layer["compression"], layer["lazy_index"]) for layer in layers] == [("zstd", "zstd:chunked")] * 4


def test_people_get_a_table_and_what_to_do(layout: Path) -> None:
    done = headrace("image", "lint", f"oci:{layout}:v1", "--min-image-bytes", "1KiB", "--min-layers", "9")
    assert done.returncode == 0
    assert "#  KIND" in done.stdout
    assert "1.0 MiB" in done.stdout
    assert "warning: too-few-layers: 3 layer(s), fewer than 9" in done.stdout


def test_a_limit_that_is_exceeded_fails(layout: Path) -> None:
    report = linted(f"oci:{layout}:v1", "--max-layer-bytes", "1MB", code=1)
    errors = [finding for finding in report["findings"] if finding["severity"] == "error"]
    assert [(finding["code"], finding["layer"]) for finding in errors] == [
        ("layer-too-large", number) for number in (1, 2, 3)
    ]
    assert errors[0]["value"] == report["layers"][0]["size_bytes"]
    assert (errors[0]["limit"], report["limits"]["max_layer_bytes"]) == (1_000_000, 1_000_000)


def test_only_documents_are_fetched_from_a_registry() -> None:
    layers = [FakeImageLayer(tar_with(name, NOISE + name.encode())) for name in "abc"]
    with running_registry() as registry:
        put_in_registry(registry, FakeImage(layers), tag="v1")
        assert linted(f"{registry.address}/team/app:v1")["num_layers"] == 3
        assert len(registry.seen) == 2
        assert len(registry.blob_requests()) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["headrace:cpu"], 2, "docker save"),
        (["./absent"], 1, "cannot be read"),
        (["127.0.0.1:1/absent:v1"], 1, "cannot be reached"),
        (["registry.invalid/absent:v1", "--platform", "linux"], 2, "not a platform"),
    ],
)
def test_what_cannot_be_linted_is_one_line(arguments: list[str], code: int, said: str) -> None:
    done = headrace("image", "lint", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in one_line(done)


def test_a_limit_that_is_no_number_is_a_usage_error(layout: Path) -> None:
    done = headrace("image", "lint", str(layout), "--max-layer-bytes", "much")
    assert done.returncode == 2
    assert "no number of bytes" in done.stderr
