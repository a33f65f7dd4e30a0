"""What is measured of each subject: which sides, under which loads, how often, and what that is judged by."""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import assert_never

from headrace_server.bench.arrivals import ClosedLoop, Load
from headrace_server.errors import HeadraceError
from headrace_server.settings.schema import DEFAULT_MODEL
from loadtests.launcher import SideName, Subject, prepare_subject
from loadtests.rows import ONE_LAYER_ROWS, SMOLLM2_ROWS, RowPlan

ONE_LAYER_MODEL = Path(__file__).resolve().with_name("one_layer_model.py")
START = "start"

_SERVERS = (SideName.HEADRACE, SideName.VLLM)
_NUM_TOKENS = 128
_NUM_UNARY_TOKENS = 8


class SubjectName(StrEnum):
    """What is served.

    `smollm2` is a model that people use: on a CPU its engine is the bottleneck, and what is to be shown is that nothing
    is lost. `one-layer` is a model whose engine is so fast that the API layer is the bottleneck.
    """

    SMOLLM2 = "smollm2"
    ONE_LAYER = "one-layer"


@dataclass(frozen=True, slots=True)
class Programme:
    """How a subject is measured: `num_runs` starts of all sides, and in each `num_blocks` of every load."""

    subject: SubjectName
    title: str
    sides: tuple[SideName, ...]
    loads: Mapping[str, Load]
    rows: Mapping[str, Sequence[RowPlan]]
    num_runs: int
    num_blocks: int


def programme_of(subject: SubjectName, *, num_blocks: int | None = None, num_runs: int | None = None) -> Programme:
    """The programme of a subject, with fewer or more blocks and runs where they are given."""
    match subject:
        case SubjectName.SMOLLM2:
            return Programme(
                subject=subject,
                title="SmolLM2-135M",
                sides=_SERVERS,
                loads={"16 streams": _streams(16, num_requests=16)},
                rows=SMOLLM2_ROWS,
                num_runs=num_runs or 3,
                num_blocks=num_blocks or 4,
            )
        case SubjectName.ONE_LAYER:
            return Programme(
                subject=subject,
                title="one-layer model",
                sides=(*_SERVERS, SideName.ENGINE),
                loads={
                    "16 streams": _streams(16, num_requests=128),
                    "32 streams": _streams(32, num_requests=128),
                    "64 streams": _streams(64, num_requests=128),
                    "unary": Load(
                        ClosedLoop(1), num_requests=200, num_tokens=_NUM_UNARY_TOKENS, num_warm_up=20, stream=False
                    ),
                },
                rows=ONE_LAYER_ROWS,
                num_runs=num_runs or 1,
                num_blocks=num_blocks or 6,
            )
        case _:
            assert_never(subject)


def _streams(num_streams: int, *, num_requests: int) -> Load:
    return Load(ClosedLoop(num_streams), num_requests, num_tokens=_NUM_TOKENS, num_warm_up=num_streams)


async def prepare(name: SubjectName, folder: Path) -> Subject:
    """The subject, ready to be served; the one-layer model is made in `folder`, with SmolLM2's tokenizer.

    Raises:
        HeadraceError: a model cannot be made or prepared.
    """
    embedded = await prepare_subject(DEFAULT_MODEL)
    if name is SubjectName.SMOLLM2:
        return embedded
    model = folder / "one-layer"
    await _make_one_layer_model(model, tokenizer_from=embedded.directory)
    return await prepare_subject(str(model))


async def _make_one_layer_model(folder: Path, *, tokenizer_from: Path) -> None:
    """In a process of its own: making it imports torch."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(ONE_LAYER_MODEL), str(folder), str(tokenizer_from), stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    if process.returncode != 0:
        raise HeadraceError(f"the one-layer model cannot be made: {errors.decode(errors='replace').strip()[-500:]}")
