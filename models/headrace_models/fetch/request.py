"""What a fetch is asked to do. Crosses a process boundary as one line of JSON; never holds a credential."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from headrace_models.trust import Trust

DEFAULT_STALL_SECONDS = 20.0
DEFAULT_PATIENCE_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """One model to fetch.

    `max_bytes` is the store's budget; `max_connections` and `bytes_per_second` are limits below the source's own;
    `patience_seconds` is how long a source may go without giving a byte. `require_trust`: refuse a model whose bytes
    cannot be checked so far. `groups`: fetch only these groups of tensors (a pipeline stage); None: all. A part of a
    model whose digests are of whole files is never proven, so it cannot be given to a loader that waits for that. With
    `on_demand` nothing is fetched but headers and what readers wait for.
    """

    reference: str
    cache_dir: Path
    max_bytes: int | None = None
    max_connections: int | None = None
    bytes_per_second: float | None = None
    stall_seconds: float = DEFAULT_STALL_SECONDS
    patience_seconds: float = DEFAULT_PATIENCE_SECONDS
    require_trust: Trust = Trust.NONE
    insecure_hosts: tuple[str, ...] = ()
    groups: tuple[str, ...] | None = None
    on_demand: bool = False

    def to_json(self) -> str:
        """One line."""
        return json.dumps({**asdict(self), "cache_dir": str(self.cache_dir)})

    @classmethod
    def from_json(cls, line: str) -> "FetchRequest":
        """Read what `to_json` wrote."""
        values = json.loads(line)
        groups = values["groups"]
        return cls(
            **{
                **values,
                "cache_dir": Path(values["cache_dir"]),
                "require_trust": Trust(values["require_trust"]),
                "insecure_hosts": tuple(values["insecure_hosts"]),
                "groups": None if groups is None else tuple(groups),
            }
        )
