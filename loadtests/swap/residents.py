"""Who is in memory, as `/admin/models` says."""

import json
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Resident:
    """A model of the catalog. `memory_bytes` is what it takes of the budget, None while it takes none."""

    state: str
    memory_bytes: int | None
    num_leases: int


@dataclass(frozen=True, slots=True)
class Residents:
    """All models by id."""

    models: Mapping[str, Resident]

    def are(self, *ids: str) -> bool:
        """Whether exactly these are in memory, ready and used by nobody."""
        in_memory = {name for name, model in self.models.items() if model.memory_bytes is not None}
        return in_memory == set(ids) and all(
            self.models[name].state == "ready" and self.models[name].num_leases == 0 for name in ids
        )

    def __str__(self) -> str:
        return ", ".join(f"{name} {model.state} ({model.num_leases})" for name, model in self.models.items())


def parse_residents(body: bytes) -> Residents:
    """Read a `/admin/models`."""
    return Residents(
        {
            str(model["id"]): Resident(str(model["state"]), model["memory_bytes"], int(model["num_leases"]))
            for model in json.loads(body)["models"]
        }
    )
