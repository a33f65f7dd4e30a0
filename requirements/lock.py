"""Renews the lock files: `make lock`, or `make lock ARGS=--upgrade` to move to the newest allowed versions.

Each lock is one `uv pip compile` of NAME.in, constrained by the locks made before it, so that locks which are
installed together agree. Afterwards the digests of torch's CPU wheels (torch-cpu.hashes) are merged into cpu.txt:
an index or a folder of wheels for one platform shows only that platform's file.
Nothing about where packages came from is written into a lock.
"""

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from requirements.bootstrap import PYTORCH_CPU_INDEX

FOLDER = Path(__file__).resolve().parent
UV_OPTIONS = (
    "--universal",
    "--generate-hashes",
    "--python-version=3.11",
    "--no-config",
    "--no-annotate",
    "--custom-compile-command=make lock",
    "--quiet",
)


@dataclass(frozen=True, slots=True)
class Lock:
    """How one NAME.in becomes NAME.txt. `constrained_by` names locks that come earlier in `LOCKS`."""

    name: str
    constrained_by: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


LOCKS = (
    Lock(
        "cpu",
        options=(
            "--override=overrides.txt",
            "--override=overrides-cpu.txt",
            "--excludes=excludes.txt",
            "--excludes=excludes-cpu.txt",
        ),
    ),
    Lock("core", constrained_by=("cpu",)),
    Lock("build", constrained_by=("cpu",)),
    Lock("dev", constrained_by=("cpu", "core", "build")),
    Lock(
        "cuda",
        constrained_by=("core", "build", "dev"),
        options=("--override=overrides.txt", "--excludes=excludes.txt"),
    ),
    Lock("models", options=("--no-deps",)),
    Lock("peers", constrained_by=("cpu",), options=("--no-deps",)),
    Lock("audit"),
)


def pins(lock_text: str) -> str:
    """The `name==version ; marker` lines of a lock, without digests and without torch, as a constraints file."""
    lines = [line.removesuffix("\\").rstrip() for line in lock_text.splitlines() if re.match(r"[a-z0-9]", line)]
    return "\n".join(line for line in lines if not line.startswith("torch==")) + "\n"


def torch_digests(table: str) -> list[str]:
    """The sha256 column of torch-cpu.hashes."""
    return [line.split()[2] for line in table.splitlines() if line and not line.startswith("#")]


def merge_digests(lock_text: str, requirement: str, digests: list[str]) -> str:
    """Replace the digests under `requirement` by the union of theirs and `digests`, sorted."""
    match = re.search(rf"^{re.escape(requirement)} \\\n(?:    --hash=.*\n)+", lock_text, flags=re.MULTILINE)
    if match is None:
        raise SystemExit(f"lock: no {requirement} in the lock")
    known = re.findall(r"--hash=sha256:([0-9a-f]{64})", match[0])
    hashes = " \\\n".join(f"    --hash=sha256:{digest}" for digest in sorted({*known, *digests}))
    return lock_text[: match.start()] + f"{requirement} \\\n{hashes}\n" + lock_text[match.end() :]


def torch_source() -> list[str]:
    """Where uv finds torch's CPU wheels: pip's find-links folder if there is one, else PyTorch's index."""
    answer = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.find-links"],
        capture_output=True,
        text=True,
        check=False,
    )
    folders = os.environ.get("PIP_FIND_LINKS", answer.stdout).split()
    if folders:
        return [f"--find-links={folder}" for folder in folders]
    return [f"--index={PYTORCH_CPU_INDEX}", "--index-strategy=unsafe-best-match"]


def compile_lock(lock: Lock, scratch: Path, extra: list[str]) -> None:
    """Write NAME.txt. Existing pins are kept where they still hold, unless `extra` holds --upgrade."""
    constraints = []
    for name in lock.constrained_by:
        constraint = scratch / f"{name}.txt"
        constraint.write_text(pins((FOLDER / f"{name}.txt").read_text()))
        constraints.append(f"--constraints={constraint}")
    sources = torch_source() if lock.name == "cpu" else []
    command = [sys.executable, "-m", "uv", "pip", "compile", f"{lock.name}.in", f"--output-file={lock.name}.txt"]
    subprocess.run([*command, *UV_OPTIONS, *lock.options, *constraints, *sources, *extra], cwd=FOLDER, check=True)


def main() -> None:
    """Renew every lock, in order."""
    with tempfile.TemporaryDirectory() as scratch:
        for number, lock in enumerate(LOCKS, start=1):
            print(f"lock {number}/{len(LOCKS)}: {lock.name}.txt", file=sys.stderr)
            compile_lock(lock, Path(scratch), sys.argv[1:])
            if lock.name == "cpu":
                path = FOLDER / "cpu.txt"
                digests = torch_digests((FOLDER / "torch-cpu.hashes").read_text())
                path.write_text(merge_digests(path.read_text(), "torch==2.13.0+cpu", digests))


if __name__ == "__main__":
    main()
