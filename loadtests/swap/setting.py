"""What the rows of `bench-swap` share: prepared models, folders, how often, answers, and what models take of memory.

Everything lies in one temporary folder, the model cache included, which goes with the run: no start finds anything that
an earlier run of the benchmark has left. Footprints are measured when a row first asks for them.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from headrace_server.settings.schema import LoadWhen
from loadtests.swap.asking import Answers
from loadtests.swap.footprints import Footprint, budget_for
from loadtests.swap.subjects import MODELS, BenchModel, configuration
from loadtests.swap.weighing import weigh


@dataclass(slots=True)
class Setting:
    """One run of the benchmark. `engine_lines` are vLLM's arguments, by the id of the model."""

    scratch: Path
    cache: Path
    engine_lines: dict[str, tuple[str, ...]]
    num_runs: int
    tell: Callable[[str], None]
    with_peers: bool = True
    answers: Answers = field(default_factory=Answers)
    _weighed: list[Footprint] = field(default_factory=list)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """An empty folder, gone afterwards."""
        with tempfile.TemporaryDirectory(dir=self.scratch, ignore_cleanup_errors=True) as name:
            yield Path(name)

    def configuration(
        self, models: Sequence[BenchModel], folder: Path, *, load: LoadWhen, budget_bytes: int | None = None
    ) -> str:
        """Headrace's configuration for a start in `folder`."""
        settings = [model.settings(load) for model in models]
        return configuration(settings, folder, cache=self.cache, budget_bytes=budget_bytes)

    async def budget_for(self, models: Sequence[BenchModel], num_places: int) -> int:
        """See `footprints.budget_for`. Raises HeadraceError."""
        footprints = {each.model: each for each in await self.footprints()}
        return budget_for([footprints[model.id] for model in models], num_places)

    async def footprints(self) -> list[Footprint]:
        """Of all models, measured once. Raises HeadraceError."""
        if not self._weighed:
            self._weighed = await self.weigh()
        return self._weighed

    async def weigh(self) -> list[Footprint]:
        """Measure them now. Raises HeadraceError."""
        self.tell("  what the models take of memory")
        with self.folder() as folder:
            return await weigh(self.configuration(MODELS, folder, load=LoadWhen.DEMAND), folder, self.answers)
