"""Makes the Debian image that the Dockerfile begins with, under its name, where no registry can be reached.

debootstrap puts Debian's own minimal system together, and what Debian's slim images leave out (pages for reading,
translations, caches) is taken away. It needs root.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

LEFT_OUT = (
    "usr/share/info",
    "usr/share/locale",
    "usr/share/man",
    "var/cache/apt",
    "var/cache/ldconfig",
    "var/lib/apt/lists",
    "var/log",
)


class BaseImageError(Exception):
    """The base could not be made; the text says why and what to do."""


def suite_of(image: str) -> str:
    """`bookworm` of `docker.io/library/debian:bookworm-20260824-slim`. Raises BaseImageError for other images."""
    name, _, tag = image.partition("@")[0].rpartition(":")
    suite = tag.partition("-")[0]
    if name.rpartition("/")[2] != "debian" or not suite.isalpha():
        raise BaseImageError(f"{image} cannot be pulled, and only images called debian:SUITE-… can be made here")
    return suite


def make_base(image: str, buildah: list[str], scratch: Path, environment: Mapping[str, str]) -> None:
    """Make `image` in the storage that the command `buildah` uses. Takes a minute. Raises BaseImageError."""
    suite = suite_of(image)
    if os.geteuid() != 0:
        raise BaseImageError(f"{image} cannot be pulled; making it with debootstrap needs root")
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        root = Path(folder, "root")
        _run(["debootstrap", "--variant=minbase", suite, str(root)], environment)
        slim(root)
        container = _run([*buildah, "from", "scratch"], environment).strip()
        _run([*buildah, "add", "--quiet", container, str(root), "/"], environment)
        _run([*buildah, "config", "--cmd", "bash", container], environment)
        _run([*buildah, "commit", "--quiet", "--rm", container, image], environment)


def slim(root: Path) -> None:
    """Take away what a slim image does not have; the folders stay, as do the copyright files."""
    for name in LEFT_OUT:
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir(parents=True, exist_ok=True)
    for path in (root / "usr/share/doc").rglob("*"):
        if path.name != "copyright" and not path.is_dir():
            path.unlink()


def _run(command: list[str], environment: Mapping[str, str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    except FileNotFoundError as error:
        raise BaseImageError(f"{command[0]} is not installed") from error
    except subprocess.CalledProcessError as error:
        last = "\n  ".join((error.stdout + error.stderr).strip().splitlines()[-5:])
        raise BaseImageError(f"{' '.join(command[:4])} failed:\n  {last}") from error
    return done.stdout
