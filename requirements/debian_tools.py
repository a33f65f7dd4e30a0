"""Programs for tests that come from Debian, not from PyPI: `python -m requirements.debian_tools [FOLDER]`.

`ensure_docker_registry` finds the reference registry (https://github.com/distribution/distribution): on PATH, in a
folder where it was put before, or from Debian's package, which is downloaded and unpacked there and never installed.
Nothing outside the folder changes but apt's own lists. Where there is no apt, or no way out, there is None, no error.
"""

import argparse
import contextlib
import shutil
import subprocess
import sys
import tempfile
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
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return None
    return unpacked if _fetch(folder / REGISTRY) and _runs(unpacked) else None


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
        shutil.rmtree(target, ignore_errors=True)
        # Refused where somebody else has just done the same.
        with contextlib.suppress(OSError):
            (temporary / "root").rename(target)
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
