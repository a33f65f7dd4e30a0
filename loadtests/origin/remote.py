"""An origin in a process of its own, so that it does not share an interpreter with whoever is measured.

`origin_process` starts `python -m loadtests.origin`, waits for its address and gives the same control over it as an
`Origin` has. The process ends when its standard input closes, and so with its parent, however that ends.
"""

import contextlib
import http.client
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter

from loadtests.origin.control import PREFIX, load_stats
from loadtests.origin.counters import Stats
from loadtests.origin.faults import Faults
from loadtests.origin.link import UNLIMITED, Link

ROOT = Path(__file__).resolve().parents[2]

_ENDING_SECONDS = 10


class OriginFailed(Exception):
    """The process did not start, or did not take what it was told."""


class RemoteOrigin:
    """Controls an origin over HTTP."""

    def __init__(self, address: str) -> None:
        self.address = address

    @property
    def url(self) -> str:
        """The root of all services, without a slash at its end."""
        return f"http://{self.address}"

    def stats(self) -> Stats:
        """What was asked and sent since the start or the last reset."""
        return self._ask("GET", "stats")

    def reset(self) -> None:
        """Set all counters to nothing."""
        self._ask("POST", "reset")

    def set_faults(self, faults: Faults) -> None:
        """Let these faults hit, and no others, from the next request on."""
        self._ask("POST", "faults", TypeAdapter(Faults).dump_json(faults))

    def set_link(self, link: Link) -> None:
        """Be as fast as `link` says, from the next request on."""
        self._ask("POST", "link", json.dumps(asdict(link)).encode())

    def _ask(self, method: str, name: str, body: bytes = b"") -> Stats:
        with contextlib.closing(http.client.HTTPConnection(self.address)) as connection:
            connection.request(method, f"{PREFIX}{name}", body)
            response = connection.getresponse()
            data = response.read()
        if response.status != http.HTTPStatus.OK:
            raise OriginFailed(f"the origin answers {response.status}: {data.decode()}")
        return load_stats(data)


@contextlib.contextmanager
def origin_process(models: Mapping[str, Path], *, link: Link = UNLIMITED) -> Iterator[RemoteOrigin]:
    """An origin of `models` (directories by name); their digests are known when it is there. Raises OriginFailed."""
    command = [sys.executable, "-m", "loadtests.origin", *_arguments(models, link)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            line = process.stdout.readline() if process.stdout else b""
            if not line:
                raise OriginFailed(f"the origin ended with {process.wait(_ENDING_SECONDS)}")
            yield RemoteOrigin(json.loads(line)["address"])
        finally:
            if process.stdin:
                process.stdin.close()
            process.wait(_ENDING_SECONDS)


def _arguments(models: Mapping[str, Path], link: Link) -> Iterator[str]:
    for name, directory in models.items():
        yield f"--model={name}={directory.resolve()}"
    if link.bytes_per_second is not None:
        yield f"--bytes-per-second={link.bytes_per_second}"
    if link.connection_bytes_per_second is not None:
        yield f"--connection-bytes-per-second={link.connection_bytes_per_second}"
    yield f"--latency-ms={link.latency_seconds * 1000}"
