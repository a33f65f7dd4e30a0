"""Builds the container image: `python -m docker.build`, or `make image`. Standard library only.

Docker builds where its engine answers, else buildah, which Debian's packages bring. A base image that buildah cannot
pull is made here (`debian_base`). The Dockerfile is the same for both, and is given pip's sources (`pip_sources`).
Everything that buildah keeps lies in .tools/image.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from docker.debian_base import BaseImageError, make_base
from docker.pip_sources import PipSources, configured_sources, gather_wheels
from requirements.debian_tools import ensure_programs

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".tools" / "image"
DOCKERFILE = "docker/Dockerfile"
IGNORED = "docker/Dockerfile.dockerignore"
NO_ENGINE = (
    "neither a Docker engine nor buildah is here, and buildah is not to be had from apt.\n"
    "  Start Docker, or on Debian and Ubuntu as root: apt-get install --no-install-recommends buildah debootstrap"
)
PROGRAMS = ("buildah", "debootstrap")


@dataclass(frozen=True, slots=True)
class Wish:
    """What to build: a stage of the Dockerfile, and the name of the result. `make_base`: without trying to pull it."""

    target: str
    tag: str
    make_base: bool


class Buildah:
    """buildah, with storage of its own, as root and without a daemon. `environment`: in which it is found."""

    def __init__(self, environment: Mapping[str, str], work: Path = WORK) -> None:
        places = ("--root", str(work / "storage"), "--runroot", str(work / "run"))
        # Else its folder stays mounted on itself.
        how = ("--storage-driver", "overlay", "--storage-opt", "overlay.skip_mount_home=true")
        self.command = ["buildah", *places, *how]
        self.environment = environment

    def has(self, image: str) -> bool:
        """Whether the storage holds it."""
        return self._succeeds("inspect", "--type", "image", image)

    def pull(self, image: str) -> bool:
        """Whether it could be pulled."""
        return self._succeeds("pull", "--quiet", image)

    def build(self, arguments: list[str]) -> int:
        """The exit status."""
        how = ["bud", "--isolation", "chroot", "--network", "host", "--layers", "--force-rm", "--format", "docker"]
        how += ["--pull-never", "--ignorefile", IGNORED]
        return self.run(*how, *arguments)

    def run(self, *arguments: str) -> int:
        """The exit status; what it prints is shown."""
        return subprocess.run([*self.command, *arguments], cwd=ROOT, env=self.environment, check=False).returncode

    def _succeeds(self, *arguments: str) -> bool:
        command = [*self.command, *arguments]
        return subprocess.run(command, capture_output=True, env=self.environment, check=False).returncode == 0


def build(wish: Wish) -> int:
    """Build it; the exit status. Raises BaseImageError."""
    WORK.mkdir(parents=True, exist_ok=True)
    sources = configured_sources(sys.executable)
    arguments = [*build_arguments(wish, sources), "."]
    if docker_answers():
        return subprocess.run(
            ["docker", "build", *arguments], cwd=ROOT, env=os.environ | {"DOCKER_BUILDKIT": "1"}, check=False
        ).returncode
    environment = ensure_programs(PROGRAMS)
    if environment is None:
        raise BaseImageError(NO_ENGINE)
    buildah = Buildah(environment)
    provide_base(buildah, default_of("DEBIAN_IMAGE"), anew=wish.make_base)
    return buildah.build(arguments)


def docker_answers() -> bool:
    """Whether there is a Docker engine, and not just its command."""
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0


def provide_base(buildah: Buildah, image: str, *, anew: bool) -> None:
    """Have the base in the storage: as it is there, from its registry, or made here. Raises BaseImageError."""
    if not anew and (buildah.has(image) or buildah.pull(image)):
        return
    print(f"{image} cannot be pulled: making it from Debian's packages", file=sys.stderr, flush=True)
    make_base(image, buildah.command, WORK, buildah.environment)


def build_arguments(wish: Wish, sources: PipSources, work: Path = WORK) -> list[str]:
    """What both tools are told, less the context. Writes the files that it names into `work`."""
    conf, wheels = work / "pip.conf", work / "wheels"
    conf.write_text(sources.conf)
    conf.chmod(0o600)
    gather_wheels(sources.folders, wheels, (ROOT / f"requirements/{wish.target}.txt").read_text())
    arguments = ["--file", DOCKERFILE, "--target", wish.target, "--tag", wish.tag]
    arguments += ["--secret", f"id=pip_conf,src={conf}", "--build-context", f"wheels={wheels}"]
    if sources.certificates is not None:
        arguments += ["--secret", f"id=ca_certificates,src={sources.certificates}"]
    arguments += ["--build-arg", f"VERSION={project_version()}", "--build-arg", f"REVISION={revision()}"]
    return arguments


def default_of(name: str) -> str:
    """The default of one of the Dockerfile's build arguments."""
    lines = (ROOT / DOCKERFILE).read_text().splitlines()
    return next(line.partition("=")[2] for line in lines if line.startswith(f"ARG {name}="))


def project_version() -> str:
    """Of pyproject.toml."""
    version: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return version


def revision() -> str:
    """The commit of the checkout, marked where files differ from it; `unknown` where git does not know."""
    described = subprocess.run(
        ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def main() -> int:
    """The exit status: 0 built, 1 failed."""
    parser = argparse.ArgumentParser(description="Build the container image.")
    parser.add_argument("--target", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tag", help="name of the image (default: headrace:TARGET)")
    parser.add_argument("--make-base", action="store_true", help="make the Debian base without trying to pull it")
    options = parser.parse_args()
    try:
        return build(Wish(options.target, options.tag or f"headrace:{options.target}", options.make_base))
    except BaseImageError as error:
        print(f"image: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
