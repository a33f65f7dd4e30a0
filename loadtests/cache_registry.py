"""A real registry, Debian's docker-registry, with the model pushed into it as a ModelPack artifact.

It is a child process with its storage in a folder of the run, and ends with the context. The artifact is the one that
the origin's own registry serves, byte for byte.
"""

import http.client
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from loadtests.cache_children import ended_with_us
from loadtests.cache_served import ServedModel
from loadtests.origin.models import Shelf
from loadtests.origin.registry import MANIFEST_TYPE, build_artifact
from requirements.debian_tools import ensure_docker_registry

_CONFIG = """\
version: 0.1
log: {{level: error}}
storage:
  filesystem: {{rootdirectory: {storage}}}
http: {{addr: "{address}"}}
"""
_START_SECONDS, _END_SECONDS, _ANSWER_SECONDS = 20.0, 10.0, 60.0


class RegistryFailed(Exception):
    """There is no registry to be had, or it does not do what one does."""


@contextmanager
def registry_with(model: ServedModel, folder: Path) -> Iterator[str]:
    """Run a registry and push the model under its name and the tag `latest`; the address. Raises RegistryFailed."""
    binary = ensure_docker_registry()
    if binary is None:
        raise RegistryFailed("not installed, and not to be had from apt")
    address = f"127.0.0.1:{free_port()}"
    config = folder / "config.yml"
    config.write_text(_CONFIG.format(storage=folder / "storage", address=address))
    with subprocess.Popen(
        [binary, "serve", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder
    ) as process:
        try:
            with ended_with_us(process.pid):
                _wait_until_it_answers(process, address)
                _push(address, model)
                yield address
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)
            process.kill()


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_it_answers(process: subprocess.Popen[bytes], address: str) -> None:
    give_up_at = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < give_up_at:
        try:
            if _ask(address, "GET", "/v2/") == ("", 200):
                return
        except OSError:
            time.sleep(0.02)
    raise RegistryFailed("it does not start")


def _push(address: str, model: ServedModel) -> None:
    version = Shelf({model.name: model.directory}).versions(model.name)[0]
    artifact = build_artifact(version, index=False)
    for digest, blob in artifact.blobs.items():
        data = blob if isinstance(blob, bytes) else blob.location.read_bytes()
        location, status = _ask(address, "POST", f"/v2/{model.name}/blobs/uploads/")
        if status != http.client.ACCEPTED:
            raise RegistryFailed(f"it answers {status} to an upload")
        target = location.removeprefix(f"http://{address}")
        joint = "&" if "?" in target else "?"
        _expect_created(_ask(address, "PUT", f"{target}{joint}digest={digest}", data))
    _expect_created(_ask(address, "PUT", f"/v2/{model.name}/manifests/latest", artifact.manifest, MANIFEST_TYPE))


def _expect_created(answer: tuple[str, int]) -> None:
    if answer[1] != http.client.CREATED:
        raise RegistryFailed(f"it answers {answer[1]} to a push")


def _ask(
    address: str, method: str, path: str, body: bytes = b"", kind: str = "application/octet-stream"
) -> tuple[str, int]:
    """The answer's Location and status. Raises OSError, also for what is not HTTP."""
    with closing(http.client.HTTPConnection(address, timeout=_ANSWER_SECONDS)) as connection:
        try:
            connection.request(method, path, body, {"Content-Type": kind})
            answer = connection.getresponse()
            answer.read()
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error
        return answer.headers.get("Location", ""), answer.status
