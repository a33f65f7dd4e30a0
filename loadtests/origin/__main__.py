"""The origin as a process: serves, prints its address as one line of JSON, and ends when its standard input closes.

    python -m loadtests.origin --model acme/tiny=DIR --bytes-per-second 20971520 --latency-ms 20
    {"url": "http://127.0.0.1:40123", "address": "127.0.0.1:40123"}

Digests of all files are computed before the address is printed: no client pays for them. `/control/...` on the same
port tells the figures and sets faults and the link, see `control`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from loadtests.origin.link import Link
from loadtests.origin.server import running_origin


def main(arguments: Sequence[str]) -> int:
    """Serve until the end of standard input."""
    options = _parser().parse_args(arguments)
    link = Link(
        bytes_per_second=options.bytes_per_second,
        connection_bytes_per_second=options.connection_bytes_per_second,
        latency_seconds=options.latency_ms / 1000,
    )
    with running_origin(dict(options.model), link=link, port=options.port) as origin:
        origin.site.shelf.compute_digests()
        print(json.dumps({"url": origin.url, "address": origin.address}), flush=True)
        sys.stdin.buffer.read()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.origin", description="A throttled origin of models.")
    parser.add_argument("--model", action="append", type=_model, required=True, metavar="NAME=DIR")
    parser.add_argument("--bytes-per-second", type=float, default=None)
    parser.add_argument("--connection-bytes-per-second", type=float, default=None)
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--port", type=int, default=0)
    return parser


def _model(text: str) -> tuple[str, Path]:
    name, found, directory = text.partition("=")
    if not (name and found and Path(directory).is_dir()):
        raise argparse.ArgumentTypeError(f"not NAME=DIR with a directory: {text}")
    return name, Path(directory)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
