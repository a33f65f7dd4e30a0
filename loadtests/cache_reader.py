"""Opens a model and reads all of it, as a process of its own: what a loader on our library costs.

    python -m loadtests.cache_reader [--as-torch] < REQUEST

The first line of standard input is a `FetchRequest`. Once everything is imported `ready` is printed, and the next line
is the signal to begin; then one `Intake` is printed. With `--as-torch` tensors are taken as those of the peers are, by
the same `Taker`; without, torch is not imported, so that many readers can begin at the same time. Ends with its parent.
"""

import hashlib
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict

from headrace_models.child_process import exit_with_parent
from headrace_models.fetch.request import FetchRequest
from headrace_models.reading.open_model import open_request
from headrace_models.reading.tensors import TensorBytes
from headrace_server import __version__
from loadtests.cache_served import digest_of_tensors
from loadtests.peers.intake import Intake, Taker, anonymous_bytes

NAME = "Headrace"


def read_plainly(request: FetchRequest) -> Intake:
    """Read and hash every tensor where it lies. Raises ModelError."""
    before = anonymous_bytes()
    began, first, num_bytes, digests = time.monotonic(), 0.0, 0, {}
    with open_request(request) as model:
        for tensor in model.tensors():
            digests[tensor.name] = hashlib.sha256(tensor.data).hexdigest()
            first = first or time.monotonic()
            num_bytes += len(tensor.data)
    seconds = time.monotonic() - began
    digest = digest_of_tensors(digests)
    after = anonymous_bytes()
    return Intake(NAME, __version__, seconds, first - began, len(digests), num_bytes, before, after, digest)


def read_as_torch(request: FetchRequest) -> Intake:
    """Take every tensor as an engine would. Raises ModelError."""
    import torch  # noqa: F401 - imports are not measured

    _ready()
    with Taker(NAME, __version__, with_digest=True) as taker:
        with open_request(request) as model:
            _take(taker, model.tensors())
            intake = taker.finish()
        return intake


def _take(taker: Taker, tensors: Iterable[TensorBytes]) -> None:
    import torch

    for tensor in tensors:
        taker.take(tensor.name, torch.frombuffer(tensor.data, dtype=torch.uint8))


def _ready() -> None:
    print("ready", flush=True)
    sys.stdin.readline()
    exit_with_parent()


def main() -> None:
    """Read what the command line and standard input say; prints the Intake."""
    request = FetchRequest.from_json(sys.stdin.readline())
    if sys.argv[1:] == ["--as-torch"]:
        intake = read_as_torch(request)
    else:
        _ready()
        intake = read_plainly(request)
    print(json.dumps(asdict(intake)), flush=True)


if __name__ == "__main__":
    main()
