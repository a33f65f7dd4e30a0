"""Runs a peer as a process of its own and reads what it measured.

Each peer is a module that is run with an `Errand` on its command line and prints an `Intake` as its last line. Beside
the environment that the caller has, a process gets the folder of peers on PYTHONPATH and what the peer wants to know of
the origin; credentials and proxies of the caller are kept from it.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from loadtests.origin.bucket import BUCKET
from loadtests.peers.installation import ROOT
from loadtests.peers.intake import Intake, Taker

_HIDDEN = ("HF_", "HUGGING_FACE_", "AWS_", "RUNAI_", "BOTO")
_PROXIES = {"http_proxy", "https_proxy", "all_proxy", "no_proxy"}


class Peer(StrEnum):
    """Who is compared with; the value is the module."""

    HUB = "hub_peer"
    RUNAI = "runai_peer"
    TENSORIZER = "tensorizer_peer"


class PeerFailed(Exception):
    """A peer's process ended without a result; the text is the end of what it said."""


@dataclass(frozen=True, slots=True)
class Errand:
    """What a peer is to fetch.

    Attributes:
        url: the origin's root.
        model: the name of the model there; for tensorizer, of one that `serialize` made.
        scratch: a folder for what the peer keeps on disk; empty for a first start.
        with_digest: whether the content is to be proved, which takes time of its own.
    """

    url: str
    model: str
    scratch: Path
    with_digest: bool = False


def run_peer(peer: Peer, errand: Errand, *, folder: Path, timeout_seconds: float = 600) -> Intake:
    """Fetch a model by `peer`, installed in `folder`. Raises PeerFailed, also when it takes longer than allowed."""
    answer = run_module(peer, _arguments(errand), environment=environment(errand, folder), seconds=timeout_seconds)
    return Intake(**json.loads(answer))


def start_peer(peer: Peer, errand: Errand, *, folder: Path) -> subprocess.Popen[bytes]:
    """The same, left running, to be watched or killed; what it prints is in its standard output."""
    command = [sys.executable, "-m", f"loadtests.peers.{peer}", *_arguments(errand)]
    return subprocess.Popen(command, cwd=ROOT, env=environment(errand, folder), stdout=subprocess.PIPE)


def run_module(peer: Peer, arguments: list[str], *, environment: Mapping[str, str], seconds: float) -> str:
    """The last line that a peer's module prints. Raises PeerFailed."""
    command = [sys.executable, "-m", f"loadtests.peers.{peer}", *arguments]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=seconds
        )
    except subprocess.CalledProcessError as error:
        raise PeerFailed(f"{peer} ended with {error.returncode}: {error.stderr.strip()[-2000:]}") from error
    except subprocess.TimeoutExpired as error:
        raise PeerFailed(f"{peer} was not done after {seconds:g} s") from error
    return (done.stdout.strip().splitlines() or [""])[-1]


def environment(errand: Errand, folder: Path) -> Mapping[str, str]:
    """What a peer's process finds; the variables are those that the peers document."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_HIDDEN) and name.lower() not in _PROXIES
    }
    return kept | {
        "PYTHONPATH": str(folder),
        "HF_ENDPOINT": f"{errand.url}/hub",
        "HF_HOME": str(errand.scratch),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "AWS_ENDPOINT_URL": f"{errand.url}/s3",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
        "RUNAI_STREAMER_S3_UNSIGNED": "1",
    }


def peer_main(name: str, version: str, fetch: Callable[[Errand, Taker], None]) -> None:
    """The main function of a peer's module: fetch what the command line says, print the result."""
    errand = _read_arguments()
    with Taker(name, version, errand.with_digest) as taker:
        fetch(errand, taker)
        print(json.dumps(asdict(taker.finish())))


def bucket_address(model: str) -> str:
    """Where the model is in the origin's bucket, with a slash at the end."""
    return f"s3://{BUCKET}/{model}/"


def _arguments(errand: Errand) -> list[str]:
    digest = ["--digest"] if errand.with_digest else []
    return [f"--url={errand.url}", f"--model={errand.model}", f"--scratch={errand.scratch}", *digest]


def _read_arguments() -> Errand:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--digest", action="store_true")
    options = parser.parse_args()
    return Errand(options.url, options.model, options.scratch, options.digest)
