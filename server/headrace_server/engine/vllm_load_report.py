"""Why vLLM could not load a model: written by the process that loads, read by the server. Imports no vLLM.

Of an exception in a worker, vLLM hands its parent no more than "see root cause above". So the loader is told a path
(REPORT_KEY in vLLM's `model_loader_extra_config`) and the first process that fails leaves one line there.
"""

import contextlib
import os
from pathlib import Path

from headrace_models.errors import ModelError
from headrace_server.engine.base import EngineSpec

REPORT_KEY = "headrace_report"
MAX_REASON_CHARS = 300


def report_path(spec: EngineSpec) -> Path | None:
    """Where the loader of this engine leaves its reason; None when there is no place of ours or no loader of ours."""
    return None if spec.scratch is None or spec.store is None else spec.scratch / f"{spec.store.key}.failure"


def report_failure(report: Path, error: Exception) -> None:
    """Write why loading failed, unless another process was first."""
    lines = str(error).strip().splitlines()
    kind = [] if lines and isinstance(error, ModelError) else [type(error).__name__]
    reason = ": ".join([*kind, *lines[:1]])
    with contextlib.suppress(OSError):  # taken already, or a full disk; neither may hide the error itself
        descriptor = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(reason[:MAX_REASON_CHARS])


def take_report(report: Path) -> str | None:
    """The reason that is there, and remove it, so that a next start finds none; None when there is none."""
    try:
        reason = report.read_text(errors="replace")
        report.unlink()
    except OSError:
        return None
    return reason or None
