"""The reference registry (Debian's docker-registry) as a child process, with its storage in a directory of the test."""

import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import urllib3
from urllib3.exceptions import HTTPError

STARTING_SECONDS = 20.0
ENDING_SECONDS = 10.0

_CONFIG = """\
version: 0.1
log: {{level: error}}
storage:
  filesystem: {{rootdirectory: {storage}}}
http: {{addr: "{address}"}}
"""


@contextmanager
def running_real_registry(binary: Path, directory: Path) -> Iterator[str]:
    """Run it on a free port of 127.0.0.1; the address, once it answers."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = directory / "config.yml"
    config.write_text(_CONFIG.format(storage=directory / "storage", address=address))
    with (
        (directory / "log").open("wb") as log,
        subprocess.Popen([binary, "serve", config], stdout=log, stderr=log, cwd=directory) as process,
    ):
        try:
            _wait_until_it_answers(process, address, directory / "log")
            yield address
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(ENDING_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_it_answers(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    give_up_at = time.monotonic() + STARTING_SECONDS
    with closing(urllib3.HTTPConnectionPool(address.partition(":")[0], int(address.rpartition(":")[2]))) as pool:
        while process.poll() is None and time.monotonic() < give_up_at:
            try:
                if pool.request("GET", "/v2/", retries=False).status == 200:
                    return
            except HTTPError:
                time.sleep(0.02)
    raise AssertionError(f"the registry does not start: {log.read_text(errors='replace')[-2000:]}")
