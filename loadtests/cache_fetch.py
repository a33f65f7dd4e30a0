"""One fetch of ours, to its end: the fetching process that a server has, started and listened to from here.

Its clock is its own (`Completed.seconds`, from its first event on), its processor time what the kernel says once it has
ended, with everything that it imported.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from headrace_models.fetch.events import Completed, Failed, from_json
from headrace_models.fetch.request import FetchRequest
from headrace_models.trust import Trust
from loadtests.cache_children import ChildFailed, cpu_seconds_of_ended_children, running

HASHED = ("-P", "-m", "headrace_models.fetch")


@dataclass(frozen=True, slots=True)
class Fetched:
    """A fetch that is complete.

    Attributes:
        stored: the model's directory in the store.
        seconds: from its first event to its last; `process_seconds` from the start of the process to its end.
        cpu_seconds: of the process, user and system.
        fetched_bytes: of weights, as it counts them itself.
    """

    stored: Path
    trust: Trust
    seconds: float
    process_seconds: float
    cpu_seconds: float
    fetched_bytes: int


async def fetch(
    request: FetchRequest, *, environment: Mapping[str, str] | None = None, program: tuple[str, ...] = HASHED
) -> Fetched:
    """Fetch a model by a process of its own. One at a time: processor time is told apart by who ended meanwhile.

    Raises:
        ChildFailed: it failed; its one line.
    """
    before, began = cpu_seconds_of_ended_children(), time.monotonic()
    completed: Completed | None = None
    async with running(program, environment=environment) as child:
        await child.tell(request.to_json())
        async for line in child.lines():
            match from_json(line):
                case Completed() as completed:
                    pass
                case Failed(kind, message):
                    raise ChildFailed(f"a fetch failed: {kind}: {message}")
                case _:
                    pass
        await child.ended()
        if completed is None:
            raise await child.failure("fetched, but did not complete")
    seconds = time.monotonic() - began
    return Fetched(
        stored=request.cache_dir / "models" / completed.key,
        trust=completed.trust,
        seconds=completed.seconds,
        process_seconds=seconds,
        cpu_seconds=cpu_seconds_of_ended_children() - before,
        fetched_bytes=completed.fetched_bytes,
    )
