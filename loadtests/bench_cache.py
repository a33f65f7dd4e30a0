"""What the model cache costs and saves, against targets, with other loaders in the same run.

    python loadtests/bench_cache.py [--rows NAME,...] [--runs N] [--no-peers] [--results FOLDER]

Everything comes from a throttled origin on this machine (`loadtests/origin`), so link and latency are known. Rows
follow one another; in each of them the sides take turns. It is bounded in time, every process that it starts ends with
it, and its files lie in one temporary folder. A run that was not interrupted is written to the results folder.

Exit codes: 0 measured (whether targets are met stands in the table), 1 a row failed, 2 usage, 130 interrupted.
"""

import asyncio
import sys
import tempfile
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TypeAlias

from rich.console import Console

if not __package__:  # run as a script: find the package, not its modules
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from headrace_server.bench import document
from headrace_server.bench.machine import is_busy, machine
from headrace_server.errors import HeadraceError
from headrace_server.settings.schema import DEFAULT_MODEL
from loadtests import cache_picture
from loadtests.cache_findings import Findings
from loadtests.cache_report import REPORT
from loadtests.cache_rows import MEASUREMENTS, RowName
from loadtests.cache_served import serve
from loadtests.cache_setting import Setting
from loadtests.command_line import RowOptions, measuring, parse_row_options, run_measurement
from loadtests.launcher import prepare_subject
from loadtests.peers.installation import FOLDER, PeersNotInstalled, ensure_peers

RESULTS = Path(__file__).resolve().with_name("results")
MODEL = "acme/smollm2"

_MOST_ROW_SECONDS = 900.0

progress = Console(stderr=True, highlight=False, markup=False)
_tell = partial(progress.print, soft_wrap=True)


Options: TypeAlias = RowOptions[RowName]


async def measure(options: Options, found: dict[str, Findings], failed: dict[str, str]) -> None:
    """All rows, into `found`; a row that fails is told in `failed`, and the next one goes on."""
    peers = await asyncio.to_thread(_peers) if options.with_peers else None
    subject = await prepare_subject(DEFAULT_MODEL)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as scratch:
        model = serve(MODEL, subject.directory)
        setting = Setting(model, Path(scratch), peers, options.num_runs, progress.print)
        for row in options.rows:
            with measuring(row, failed, _tell):
                found[row] = await asyncio.wait_for(MEASUREMENTS[row](setting), _MOST_ROW_SECONDS)


def _peers() -> Path | None:
    try:
        return ensure_peers()
    except PeersNotInstalled as error:
        progress.print(f"without peers: {error}", soft_wrap=True)
        return None


def _peer_versions() -> dict[str, str]:
    """Of the peers' folder, and of what they share with us."""
    own = ("huggingface_hub", "safetensors")
    installed = metadata.distributions(path=[str(FOLDER)])
    return {each.name: each.version for each in installed} | {name: metadata.version(name) for name in own}


async def measure_and_report(options: Options) -> None:
    """The whole run: prints the table, and writes the files unless it is interrupted.

    Raises:
        HeadraceError: a row failed; the others are written all the same.
    """
    began, measured_on = datetime.now(UTC), machine()
    found: dict[str, Findings] = {}
    failed: dict[str, str] = {}
    if is_busy():
        progress.print(f"this machine is busy (load {measured_on['load_average_1min']}): expect noise")
    try:
        await measure(options, found, failed)
    finally:
        REPORT.show(found)
    path = REPORT.path_in(options.folder)
    asked = {"num_runs": options.num_runs, "failed": failed, "peers": _peer_versions()}
    document.save(REPORT.content(found, asked, began=began, measured_on=measured_on), path)
    _tell(f"written to {path}")
    if cache_picture.can_draw(found):
        cache_picture.draw(found, path.with_suffix(".png"))
    if failed:
        raise HeadraceError(f"not measured: {', '.join(failed)}")


def parse_options(arguments: list[str]) -> Options:
    """Read the command line; exits with 2 where it is wrong."""
    return parse_row_options(__doc__, RowName, RESULTS, arguments)


def main() -> int:
    options = parse_options(sys.argv[1:])
    return run_measurement(lambda: measure_and_report(options), results=options.folder, prepare=lambda _stack: None)


if __name__ == "__main__":
    raise SystemExit(main())
