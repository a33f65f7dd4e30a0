"""Programs that come from Debian, not from PyPI: `python -m requirements.debian_tools [FOLDER]`.

`ensure_docker_registry` finds the reference registry (https://github.com/distribution/distribution): on PATH, in a
folder where it was put before, or from Debian's package, which is downloaded and unpacked there and never installed.
`ensure_programs` does the same for any packages and what they need of others, for which apt has to be root's.
Nothing outside the folder changes but apt's own lists. Where there is no apt, or no way out, there is None, no error.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

REGISTRY = "docker-registry"
DOWNLOAD_SECONDS = 60.0

# The sandbox's user could not write into the folder.
_APT = ("apt-get", "-o", "APT::Sandbox::User=root", "-o", "Acquire::http::Timeout=10", "-o", "Acquire::Retries=0")
_FOLDER = Path(__file__).resolve().parents[1] / ".tools"


def ensure_docker_registry(folder: Path = _FOLDER) -> Path | None:
    """The path of a `docker-registry` that runs; None where there is none and none can be had."""
    installed = shutil.which(REGISTRY)
    candidates = [Path(installed)] if installed else []
    unpacked = folder / REGISTRY / "usr/bin" / REGISTRY
    for candidate in [*candidates, unpacked]:
        if _runs(candidate):
            return candidate
    if not _can_unpack():
        return None
    return unpacked if _fetch(folder / REGISTRY) and _runs(unpacked) else None


def ensure_programs(names: Sequence[str], folder: Path = _FOLDER) -> dict[str, str] | None:
    """The environment in which the programs of these packages, called as the packages are, can be run: this process's
    where they are installed, else one that finds them where they were unpacked; None where they cannot be had."""
    if all(shutil.which(name) for name in names):
        return dict(os.environ)
    target = folder / "-".join(sorted(names))
    environment = _environment_in(target)
    if not _are_all_in(environment, names):
        if not _can_unpack() or not _fetch_with_dependencies(names, target):
            return None
        environment = _environment_in(target)
    return environment if _are_all_in(environment, names) else None


def _are_all_in(environment: dict[str, str], names: Sequence[str]) -> bool:
    return all(shutil.which(name, path=environment["PATH"]) for name in names)


def _environment_in(root: Path) -> dict[str, str]:
    """Debian's programs outside of Debian's places: their libraries, and debootstrap's scripts."""
    programs = [str(root / "usr/bin"), str(root / "usr/sbin")]
    libraries = sorted(map(str, [*root.glob("usr/lib/*-linux-gnu*"), *root.glob("lib/*-linux-gnu*")]))
    return {
        **os.environ,
        "PATH": os.pathsep.join([*programs, os.environ.get("PATH", os.defpath)]),
        "LD_LIBRARY_PATH": os.pathsep.join([*libraries, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]),
        "DEBOOTSTRAP_DIR": str(root / "usr/share/debootstrap"),
    }


def _can_unpack() -> bool:
    return shutil.which("apt-get") is not None and shutil.which("dpkg-deb") is not None


def _fetch_with_dependencies(names: Sequence[str], target: Path) -> bool:
    """Download the packages and those that they need and that are not installed here, and unpack them all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        temporary = Path(name)
        (temporary / "archives/partial").mkdir(parents=True)
        options = ["--download-only", "--yes", "--no-install-recommends", "-o", f"Dir::Cache={temporary}"]
        download, update = [*_APT, "install", *options, *names], [*_APT, "update"]
        if not _succeeds(download) and not (_succeeds(update) and _succeeds(download)):
            return False
        packages = sorted(temporary.glob("archives/*.deb"))
        unpacked = [_succeeds(["dpkg-deb", "-x", str(path), str(temporary / "root")]) for path in packages]
        if not packages or not all(unpacked):
            return False
        _put_in_place(temporary / "root", target)
    return True


def _put_in_place(unpacked: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    # Refused where somebody else has just done the same.
    with contextlib.suppress(OSError):
        unpacked.rename(target)


def _runs(binary: Path) -> bool:
    return binary.is_file() and _succeeds([str(binary), "--version"])


def _fetch(target: Path) -> bool:
    """Download and unpack; apt's lists are renewed only if it does not know the package, which needs root."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        temporary = Path(name)
        download, update = [*_APT, "download", REGISTRY], [*_APT, "update"]
        if not _succeeds(download, cwd=temporary) and not (_succeeds(update) and _succeeds(download, cwd=temporary)):
            return False
        packages = [str(path) for path in temporary.glob(f"{REGISTRY}_*.deb")]
        if not packages or not _succeeds(["dpkg-deb", "-x", packages[0], str(temporary / "root")]):
            return False
        _put_in_place(temporary / "root", target)
    return True


def _succeeds(command: list[str], *, cwd: Path | None = None) -> bool:
    try:
        ended = subprocess.run(command, cwd=cwd, capture_output=True, timeout=DOWNLOAD_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return ended.returncode == 0


def main() -> None:
    """Print where the registry is; exits with 1 where there is none."""
    parser = argparse.ArgumentParser(description="Fetch the programs that some tests need.")
    parser.add_argument("folder", nargs="?", type=Path, default=_FOLDER)
    binary = ensure_docker_registry(parser.parse_args().folder)
    print(binary or f"{REGISTRY}: not installed, and not to be had from apt")
    sys.exit(0 if binary else 1)


if __name__ == "__main__":
    main()
