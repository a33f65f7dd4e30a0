"""Asking a credential helper, a program `docker-credential-NAME`, for one server's user and secret.

Protocol: https://github.com/docker/docker-credential-helpers. The name comes from a config file and becomes part of a
program's: it is checked. The program gets HELPER_SECONDS and may write MAX_OUTPUT_BYTES; then it, and what it started
in its process group, is ended. Nothing that it wrote is ever shown: it may be the secret.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from headrace_models.errors import SourceUnusable

HELPER_SECONDS = 30.0
MAX_OUTPUT_BYTES = 64 << 10

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_NOT_FOUND = b"credentials not found"


@dataclass(frozen=True, slots=True)
class HelperAnswer:
    """What a helper keeps for a server."""

    user: str
    secret: str = field(repr=False)


def run_helper(
    name: str, server: str, environ: Mapping[str, str], *, timeout_seconds: float = HELPER_SECONDS
) -> HelperAnswer | None:
    """Ask helper `name` about `server`; None where it keeps nothing for it, or is not installed.

    A config copied from a desktop often names a helper of that desktop; public models are still to be had then.
    Raises SourceUnusable for a name that is refused and a helper that fails, writes too much or takes too long.
    """
    if _NAME.fullmatch(name) is None:
        raise SourceUnusable(f"not the name of a credential helper: {name[:100]!a}")
    program = shutil.which(f"docker-credential-{name}", path=environ.get("PATH", os.defpath))
    if program is None:
        return None
    try:
        returncode, output = _run(program, server, environ, timeout_seconds)
    except OSError as error:
        raise SourceUnusable(f"docker-credential-{name} cannot be run: {error.strerror}") from error
    if returncode != 0 and _NOT_FOUND in output:
        return None
    if returncode != 0 or len(output) > MAX_OUTPUT_BYTES:
        raise SourceUnusable(f"docker-credential-{name} failed, wrote too much or took over {timeout_seconds:.0f} s")
    return _answer(name, output)


def _run(program: str, server: str, environ: Mapping[str, str], timeout_seconds: float) -> tuple[int, bytes]:
    with subprocess.Popen(
        [program, "get"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=dict(environ),
        process_group=0,
    ) as process:
        timer = threading.Timer(timeout_seconds, _end, [process])
        timer.start()
        try:
            output = _converse(process, server)
        finally:
            timer.cancel()
            timer.join()
            _end(process)
        return process.wait(), output


def _converse(process: subprocess.Popen[bytes], server: str) -> bytes:
    """What it writes, at most one byte more than is allowed; ends when nobody can write any more."""
    if process.stdin is None or process.stdout is None:
        raise ValueError("a helper is run with pipes")
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(server.encode())
        process.stdin.close()
    output = process.stdout.read(MAX_OUTPUT_BYTES + 1)
    if len(output) <= MAX_OUTPUT_BYTES:
        process.wait()
    return output


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the whole group: what the helper started may hold the pipe that is being read."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _answer(name: str, output: bytes) -> HelperAnswer:
    try:
        answer = json.loads(output)
    except (ValueError, RecursionError):
        answer = None
    match answer:
        case {"Username": str(user), "Secret": str(secret)}:
            return HelperAnswer(user, secret)
        case _:
            raise SourceUnusable(f"docker-credential-{name} answered something that is not understood")
