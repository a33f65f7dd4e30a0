"""Buildah as a child process, with its storage in a directory of the test, and images built from nothing."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from requirements.debian_tools import ensure_programs

SECONDS = 120.0
# What `make image` asks for, so that both find the same.
_PROGRAMS = ("buildah", "debootstrap")
_ANY_IMAGE = '{"default": [{"type": "insecureAcceptAnything"}]}'


class NoBuildah(Exception):
    """It cannot be used here; the text says why."""


@dataclass(frozen=True, slots=True)
class Buildah:
    """Its commands, on storage below `directory`."""

    directory: Path
    environment: Mapping[str, str] = field(repr=False)

    def run(self, command: str, *arguments: str) -> None:
        """One command to its end."""
        storage = ["--root", f"{self.directory}/root", "--runroot", f"{self.directory}/run", "--storage-driver", "vfs"]
        policy = self.directory / "policy.json"
        policy.write_text(_ANY_IMAGE)
        done = subprocess.run(
            ["buildah", *storage, command, "--signature-policy", str(policy), *arguments],
            cwd=self.directory,
            env={**self.environment, "HOME": str(self.directory), "XDG_RUNTIME_DIR": str(self.directory)},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]

    def build(self, dockerfile: str, files: Mapping[str, bytes], *, name: str) -> None:
        """Build an image from a Dockerfile and its context, with a layer for each instruction."""
        context = self.directory / "context"
        for path, data in files.items():
            (context / path).parent.mkdir(parents=True, exist_ok=True)
            (context / path).write_bytes(data)
        (context / "Dockerfile").write_text(dockerfile)
        self.run("bud", "--isolation", "chroot", "--layers", "-t", name, str(context))

    def push(self, name: str, target: str, *options: str) -> None:
        """Write an image to where `target` says, in Skopeo's notation."""
        self.run("push", "-q", "--tls-verify=false", *options, name, target)


@contextmanager
def buildah_in(directory: Path) -> Iterator[Buildah]:
    """Its storage is removed at the end. Raises NoBuildah."""
    if os.geteuid() != 0:
        raise NoBuildah("buildah needs root where there are no user namespaces to be had")
    environment = ensure_programs(_PROGRAMS)
    if environment is None:
        raise NoBuildah("no buildah here, and none to be had from apt")
    try:
        yield Buildah(directory, environment)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
