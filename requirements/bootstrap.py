"""Sets up .venv for `make serve` and `make test` (--dev): needs Python 3.11 or newer and nothing else.

It chooses a set of locks for the accelerator it finds, installs them with `--no-deps --require-hashes` from the
sources that pip is configured for, and installs this checkout in place. Each finished step leaves its digest in
.venv/headrace-setup.json; a step whose digest is there is not repeated, so that a second run only reads files and an
interrupted one goes on where it stopped. Two runs at once take turns (.venv.lock).
`plan` decides, `execute` acts. Nothing outside the checkout is written, apart from pip's own cache.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - this file is the first thing that an older Python meets
    raise SystemExit(
        f"Headrace needs Python 3.11 or newer; this is {sys.version_info[0]}.{sys.version_info[1]} ({sys.executable})."
        " Name another one: make serve PYTHON=python3.12"
    )

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from pathlib import Path

PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
VLLM_ON_METAL = (
    "no vLLM wheel for this system: the server is set up without an engine of its own.\n"
    "  On Apple silicon run vllm-metal's server and name it in headrace.yaml as an upstream engine (see README.md)."
)


class SetupError(Exception):
    """The set-up cannot go on; the text tells the user what to do."""


class Accelerator(StrEnum):
    """What the engine will run on. NONE: the server alone."""

    CPU = "cpu"
    CUDA = "cuda"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Host:
    """What is known about the machine before anything is installed."""

    system: str
    machine: str
    nvidia: bool


@dataclass(frozen=True, slots=True)
class Step:
    """One part of the set-up. `digest` covers everything that it depends on; no `pip_arguments`: make the venv."""

    name: str
    title: str
    digest: str
    pip_arguments: tuple[str, ...] = ()
    num_packages: int = 0


class Cause(Enum):
    """Why pip failed."""

    NOT_FOUND = auto()
    UNREACHABLE = auto()
    HASH_MISMATCH = auto()
    DISK_FULL = auto()
    OTHER = auto()


@dataclass(frozen=True, slots=True)
class Failure:
    """What pip's output says about its failure. `package` is None where it names none."""

    cause: Cause
    package: str | None


# ---------------------------------------------------------------------------------------------------- what to do


def choose_accelerator(requested: str, host: Host) -> Accelerator:
    """`requested` (HEADRACE_ACCELERATOR) if given, else what the host has. Raises SetupError for an unknown name."""
    if requested:
        if requested not in list(Accelerator):
            raise SetupError(f"HEADRACE_ACCELERATOR is {requested!r}; it can be cpu, cuda or none.")
        return Accelerator(requested)
    if host.system != "Linux" or host.machine not in {"x86_64", "aarch64"}:
        return Accelerator.NONE
    if host.nvidia and host.machine == "x86_64":
        return Accelerator.CUDA
    return Accelerator.CPU


def lock_names(accelerator: Accelerator, *, dev: bool) -> tuple[str, ...]:
    """The locks to install, in order. The model wheels are of no use without an engine."""
    engine = ("core",) if accelerator is Accelerator.NONE else (str(accelerator), "models")
    return ("build", *engine, *(("dev",) if dev else ()))


TITLES = {
    "build": "build tools",
    "torch": "torch for the CPU (190 MB)",
    "core": "the server without an engine",
    "cpu": "the server and vLLM for the CPU",
    "cuda": "the server and vLLM for CUDA (several GB)",
    "models": "the embedded models",
    "dev": "tools for tests and lint",
}


def plan(root: Path, accelerator: Accelerator, *, dev: bool) -> list[Step]:
    """Every step of a complete set-up of the checkout `root`, done or not."""
    steps = [Step("venv", "virtual environment", _digest(sys.version, str(accelerator), str(root)))]
    for name in lock_names(accelerator, dev=dev):
        lock = (root / "requirements" / f"{name}.txt").read_text()
        if name == "cpu":
            steps.append(_install("torch", torch_alone(lock), ".venv/torch.txt"))
        steps.append(_install(name, lock, f"requirements/{name}.txt"))
    project = _digest((root / "pyproject.toml").read_text())
    in_place = ("--no-deps", "--no-build-isolation", "--no-index", "-e", ".")
    return [*steps, Step("headrace", "this checkout", project, in_place)]


def torch_alone(lock: str) -> str:
    """The part of a lock that pins torch: its CPU build is the one package that the usual indexes do not have."""
    match = re.search(r"^torch==.*\\\n(?: +--hash=.*\n?)+", lock, flags=re.MULTILINE)
    return match[0] if match else ""


def pending(steps: Sequence[Step], stamp: Mapping[str, str]) -> list[Step]:
    """The steps that `stamp` does not show as done. With another venv (Python, accelerator, place) that is all."""
    if stamp.get(steps[0].name) != steps[0].digest:
        return list(steps)
    return [step for step in steps if stamp.get(step.name) != step.digest]


def _install(name: str, lock: str, file: str) -> Step:
    arguments = ("--no-deps", "--require-hashes", "-r", file)
    return Step(name, TITLES[name], _digest(lock), arguments, lock.count("=="))


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------- pip's failures

_NAME = r"([A-Za-z0-9][A-Za-z0-9._-]*)"
_NOT_FOUND = re.compile(
    rf"(?:No matching distribution found for|Could not find a version that satisfies the requirement) {_NAME}"
)
_MISMATCH = re.compile(rf"DO NOT MATCH THE HASHES[^\n]*\n\s+{_NAME}")
_BUILD = re.compile(rf"Failed building wheel for {_NAME}")
_CONNECTION = re.compile(
    r"connection broken by|Max retries exceeded|Failed to establish a new connection|Read timed out|ProxyError"
    r"|Temporary failure in name resolution|Name or service not known|Connection refused|problem confirming the ssl",
    flags=re.IGNORECASE,
)
_ASKED_FOR = re.compile(rf"/{_NAME}/?\s*$", flags=re.MULTILINE)


def parse_failure(output: str) -> Failure:
    """Read the cause and the package out of what pip printed."""
    if "No space left on device" in output:
        return Failure(Cause.DISK_FULL, _first(_BUILD, output))
    if mismatch := _first(_MISMATCH, output):
        return Failure(Cause.HASH_MISMATCH, mismatch)
    missing = _first(_NOT_FOUND, output)
    if _CONNECTION.search(output):
        return Failure(Cause.UNREACHABLE, missing or _first(_ASKED_FOR, output))
    if missing:
        return Failure(Cause.NOT_FOUND, missing)
    return Failure(Cause.OTHER, _first(_BUILD, output))


def _first(pattern: re.Pattern[str], text: str) -> str | None:
    match = pattern.search(text)
    return match[1] if match else None


def advice(failure: Failure, output: str) -> str:
    """One message for the user: which package, and what to do."""
    package = failure.package or "a package"
    if failure.package == "torch" and failure.cause in {Cause.NOT_FOUND, Cause.UNREACHABLE}:
        return (
            f"torch was found neither where pip looks nor on {PYTORCH_CPU_INDEX}.\n"
            "  Check the network, or give pip a folder that holds the wheel named in requirements/cpu.txt:\n"
            "  PIP_FIND_LINKS=/folder make serve"
        )
    messages = {
        Cause.NOT_FOUND: f"no file of {package} for this Python and processor, with a digest in the lock, where pip"
        " looks.\n  Check `pip config list`: an index that lacks it, or a mirror with other files?",
        Cause.UNREACHABLE: f"no package index answered (asked for {package}).\n"
        "  Check the network and the proxy, or point pip at a mirror: PIP_INDEX_URL, PIP_FIND_LINKS.",
        Cause.HASH_MISMATCH: f"{package} is not the file that the lock was made for, and was not installed.\n"
        "  A mirror with other files, or a broken download: try `pip cache purge`, then another index.",
        Cause.DISK_FULL: "the disk is full. .venv takes 2.4 GB for the CPU, several times that for CUDA.",
        Cause.OTHER: "pip failed:\n  " + "\n  ".join(output.strip().splitlines()[-8:]),
    }
    return messages[failure.cause]


# ----------------------------------------------------------------------------------------------------- doing it


def read_stamp(venv: Path) -> dict[str, str]:
    """Digests of the finished steps; empty where the venv is missing, broken or half made."""
    try:
        stamp = json.loads((venv / "headrace-setup.json").read_text())
    except (OSError, ValueError):
        return {}
    usable = isinstance(stamp, dict) and (venv / "bin" / "python").exists()
    return stamp if usable else {}


def write_stamp(venv: Path, stamp: Mapping[str, str]) -> None:
    """Replace the stamp in one piece."""
    partial = venv / "headrace-setup.json.part"
    partial.write_text(json.dumps(stamp, indent=1))
    partial.replace(venv / "headrace-setup.json")


def execute(steps: Sequence[Step], venv: Path, perform: Callable[[Step, str], None]) -> None:
    """Perform the steps in order, each marked as done after it, never before. `perform` raises SetupError."""
    stamp = read_stamp(venv)
    for number, step in enumerate(steps, start=1):
        label = f"[{number}/{len(steps)}] {step.title}"
        print(label, file=sys.stderr, flush=True)
        stamp.pop(step.name, None)
        if stamp:
            write_stamp(venv, stamp)
        perform(step, label)
        stamp[step.name] = step.digest
        write_stamp(venv, stamp)


def perform_in(root: Path) -> Callable[[Step, str], None]:
    """How a step is done in the checkout `root`."""

    def perform(step: Step, label: str) -> None:
        if step.name == "venv":
            make_venv(root / ".venv")
        elif step.name == "torch":
            (root / ".venv/torch.txt").write_text(torch_alone((root / "requirements/cpu.txt").read_text()))
            install(root, step, label, retry=("--index-url", PYTORCH_CPU_INDEX, "--timeout", "20", "--retries", "1"))
        else:
            install(root, step, label)

    return perform


def install(root: Path, step: Step, label: str, *, retry: tuple[str, ...] = ()) -> None:
    """Run pip for `step`; if it fails, once more with the options `retry`, if any. Raises SetupError."""
    returncode, output = run_pip(root, step, label)
    if returncode and retry:
        print(f"      not where pip looks; trying {PYTORCH_CPU_INDEX}", file=sys.stderr, flush=True)
        returncode, output = run_pip(root, step, label, *retry)
    if returncode:
        raise SetupError(advice(parse_failure(output), output))


def make_venv(venv: Path) -> None:
    """Make an empty one, in place of any that is there."""
    if not importlib.util.find_spec("ensurepip") or not importlib.util.find_spec("venv"):
        raise SetupError(
            f"{sys.executable} cannot make virtual environments.\n"
            "  On Debian and Ubuntu: apt install python3-venv. Elsewhere: a Python with venv and ensurepip."
        )
    made = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(venv)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        raise SetupError(f"could not make {venv}:\n  {(made.stdout + made.stderr).strip()}")


def run_pip(root: Path, step: Step, label: str, *extra: str) -> tuple[int, str]:
    """Run the venv's pip, showing how far it is on a terminal. Returns its exit status and all that it printed."""
    command = [str(root / ".venv/bin/python"), "-m", "pip", "install", *step.pip_arguments, *extra]
    environment = os.environ | {
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        "PIP_USER": "0",
        "PYTHONUNBUFFERED": "1",
    }
    lines = []
    with subprocess.Popen(
        command, cwd=root, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as pip:
        assert pip.stdout is not None  # noqa: S101 - for the type checker: it is a pipe
        for line in pip.stdout:
            lines.append(line)
            show_progress(label, step, lines)
    return pip.returncode, "".join(lines)


def show_progress(label: str, step: Step, lines: Sequence[str]) -> None:
    """Rewrite the terminal's last line; print nothing where standard error is no terminal."""
    if not sys.stderr.isatty():
        return
    first_words = ("Collecting", "Ignoring", "Requirement")
    if lines[-1].startswith("Installing collected packages"):
        print(f"\r{label}: unpacking\033[K", end="\n", file=sys.stderr, flush=True)
    elif lines[-1].startswith(first_words):
        done = sum(line.startswith(first_words) for line in lines)
        package = lines[-1].split()[1].removesuffix(":")
        print(f"\r{label}: {done}/{step.num_packages} {package}\033[K", end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def turn(path: Path) -> Iterator[None]:
    """Wait until no other set-up of this checkout is running."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another set-up is running in this checkout; waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def find_nvidia() -> bool:
    """A device file, or an nvidia-smi that runs (WSL has no device file)."""
    if Path("/dev/nvidia0").exists():
        return True
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool, "-L"], capture_output=True, check=False).returncode == 0


def set_up(root: Path, *, dev: bool) -> None:
    """Bring .venv to what the locks say. Returns at once where it is. Raises SetupError."""
    host = Host(platform.system(), platform.machine(), find_nvidia())
    accelerator = choose_accelerator(os.environ.get("HEADRACE_ACCELERATOR", ""), host)
    steps = plan(root, accelerator, dev=dev)
    venv = root / ".venv"
    if not pending(steps, read_stamp(venv)):
        return
    with turn(root / ".venv.lock"):
        todo = pending(steps, read_stamp(venv))
        print(f"setting up {venv} for {accelerator} (HEADRACE_ACCELERATOR=cpu|cuda|none overrides)", file=sys.stderr)
        if accelerator is Accelerator.NONE:
            print(VLLM_ON_METAL, file=sys.stderr)
        execute(todo, venv, perform_in(root))


def main() -> int:
    """The exit status: 0 done, 1 failed, 130 interrupted."""
    parser = argparse.ArgumentParser(description="Set up .venv for Headrace.")
    parser.add_argument("--dev", action="store_true", help="with the tools for tests and lint")
    options = parser.parse_args()
    try:
        set_up(Path(__file__).resolve().parent.parent, dev=options.dev)
    except SetupError as error:
        print(f"\nset-up failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up interrupted; the next run goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
