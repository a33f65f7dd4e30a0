"""Installs the peers beside the project's environment, never into it: `.peers`, filled from requirements/peers.txt.

torch, NumPy, safetensors and botocore come from the environment that runs; the rest is in the folder, which only the
peers' own processes have on their path. The folder holds the digest of what it was made from, written last; one with
another digest, or without, is made again. `python -m loadtests.peers.installation` does just that.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".peers"
LOCK = ROOT / "requirements" / "peers.txt"

_STAMP = "headrace-peers"


class PeersNotInstalled(Exception):
    """The peers could not be installed; the text is pip's."""


def ensure_peers() -> Path:
    """The folder for PYTHONPATH; installs (31 MB) unless that was done for this lock. Raises PeersNotInstalled."""
    if installed_peers() is None:
        # A sibling first: an interrupted installation leaves no folder that looks complete.
        with tempfile.TemporaryDirectory(prefix=".peers-", dir=ROOT) as temporary:
            made = Path(temporary, "peers")
            _install(made)
            (made / _STAMP).write_text(wanted_stamp(LOCK.read_bytes()))
            shutil.rmtree(FOLDER, ignore_errors=True)
            made.rename(FOLDER)
    return FOLDER


def installed_peers(folder: Path = FOLDER, lock: Path = LOCK) -> Path | None:
    """`folder`, if it holds what `lock` says for this Python; else None."""
    try:
        return folder if (folder / _STAMP).read_text() == wanted_stamp(lock.read_bytes()) else None
    except FileNotFoundError:
        return None


def wanted_stamp(lock: bytes) -> str:
    """What a folder made from this lock by this Python says of itself."""
    return f"{hashlib.sha256(lock).hexdigest()} {sys.implementation.cache_tag}\n"


def _install(target: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    done = subprocess.run(
        [*command, f"--target={target}", f"--requirement={LOCK}", "--quiet", "--disable-pip-version-check"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise PeersNotInstalled(f"pip ended with {done.returncode}: {done.stderr.strip()[-2000:]}")


if __name__ == "__main__":
    print(ensure_peers())
