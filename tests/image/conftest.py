"""The image that `make image` built, in containers of runc: `make image-smoke`, which sets IMAGE_SMOKE.

Building and trying it takes ten minutes, so that no other run of the tests does it.
"""

import os
import shutil
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from docker.build import WORK, Buildah
from requirements.debian_tools import ensure_programs
from tests.image.runc import Image, mounted

IMAGE = "localhost/headrace:cpu"
PROGRAMS = ("buildah", "runc", "skopeo")
MIB = 1024**2


@dataclass(slots=True)
class Figures:
    """What the last line says."""

    unpacked_bytes: int = 0
    model_bytes: int = 0
    livez_seconds: list[float] = field(default_factory=list)
    first_answer_seconds: list[float] = field(default_factory=list)
    outside_seconds: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Time to the first answer inside by that outside, the median of the pairs."""
        pairs = zip(self.first_answer_seconds, self.outside_seconds, strict=True)
        return statistics.median(inside / outside for inside, outside in pairs)

    def line(self) -> str:
        """One line; empty where nothing was measured."""
        if not (self.unpacked_bytes and self.livez_seconds and self.first_answer_seconds and self.outside_seconds):
            return ""
        livez, inside, outside = map(
            statistics.median, (self.livez_seconds, self.first_answer_seconds, self.outside_seconds)
        )
        return (
            f"headrace:cpu: {self.unpacked_bytes / MIB:.0f} MiB unpacked, {self.model_bytes / MIB:.0f} MiB of models, "
            f"/livez after {livez:.2f} s, first answer after {inside:.1f} s, outside of a container {outside:.1f} s "
            f"(medians of {len(self.livez_seconds)} pairs, ratio {self.ratio:.2f})"
        )


_FIGURES = pytest.StashKey[Figures]()


def pytest_configure(config: pytest.Config) -> None:
    """One set of figures for the run."""
    config.stash[_FIGURES] = Figures()


def pytest_unconfigure(config: pytest.Config) -> None:
    """After everything else that pytest says."""
    if line := config.stash[_FIGURES].line():
        os.write(1, f"{line}\n".encode())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs the image, and no other test does."""
    here = Path(__file__).parent
    mine = [item for item in items if item.path.is_relative_to(here)]
    for item in mine:
        item.add_marker(pytest.mark.image)
        item.add_marker(pytest.mark.timeout(600))
        if "IMAGE_SMOKE" not in os.environ:
            item.add_marker(pytest.mark.skip(reason="`make image` builds the image and `make image-smoke` tries it"))


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> Figures:
    """Where tests leave what they measure."""
    return pytestconfig.stash[_FIGURES]


@pytest.fixture(scope="session")
def environment() -> Mapping[str, str]:
    """In which the container tools are found."""
    if os.geteuid() != 0:
        pytest.skip("containers of runc need root")
    found = ensure_programs(PROGRAMS)
    if found is None:
        pytest.skip(f"{', '.join(PROGRAMS)}: not installed, and not to be had from apt")
    return found


@pytest.fixture(scope="session")
def buildah(environment: Mapping[str, str]) -> Buildah:
    """The storage that `make image` fills."""
    tool = Buildah(environment)
    if not tool.has(IMAGE):
        pytest.fail(f"{IMAGE} is not there: make image")
    return tool


@pytest.fixture(scope="session")
def image(buildah: Buildah) -> Iterator[Image]:
    """Its file system and configuration."""
    with mounted(buildah.command, IMAGE, buildah.environment) as found:
        yield found


@pytest.fixture(scope="session")
def layout(buildah: Buildah) -> Path:
    """The image as it would lie in a registry: compressed layers, as an OCI layout."""
    folder = WORK / "layout"
    shutil.rmtree(folder, ignore_errors=True)
    assert buildah.run("push", "--quiet", "--format", "oci", IMAGE, f"oci:{folder}:cpu") == 0
    return folder
