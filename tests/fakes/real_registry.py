"""The reference registry (Debian's docker-registry) as a child process, with its storage in a directory of the test.

It can ask for a password or for tokens of a service that is a thread of the test.
"""

import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import urllib3
from urllib3.exceptions import HTTPError

STARTING_SECONDS = 20.0
ENDING_SECONDS = 10.0

USER, PASSWORD = "pusher", "s3cret-word"
# What htpasswd -nbB makes of them.
_HTPASSWD = f"{USER}:$2b$05$abcdefghijklmnopqrstuuEpHRRKIlpAGo.iP7Bpa.htQEJMAAnRe\n"


def password_auth(directory: Path) -> Mapping[str, object]:
    """For `running_real_registry`: it lets USER in with PASSWORD."""
    file = directory / "htpasswd"
    file.write_text(_HTPASSWD)
    return {"htpasswd": {"realm": "tests", "path": str(file)}}


@contextmanager
def running_real_registry(binary: Path, directory: Path, *, auth: Mapping[str, object] | None = None) -> Iterator[str]:
    """Run it on a free port of 127.0.0.1, with `auth` of its configuration; the address, once it answers."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    document = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(directory / "storage")}},
        "http": {"addr": address},
        **({"auth": dict(auth)} if auth else {}),
    }
    config = directory / "config.yml"
    config.write_text(json.dumps(document))
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
                if pool.request("GET", "/v2/", retries=False).status in {200, 401}:
                    return
            except HTTPError:
                time.sleep(0.02)
    raise AssertionError(f"the registry does not start: {log.read_text(errors='replace')[-2000:]}")
