"""What `/admin` says, on the wire: models in the listing and in events, memory, usage, the drain. Only shapes, read by
the commands that speak to a server too; the words behind them are in `domain`."""

from datetime import date

from pydantic import BaseModel

from headrace_models.trust import Trust
from headrace_server.domain import CachedModel, ModelState, ModelStatus, WeightsStatus


class Group(BaseModel):
    """A group of tensors (a layer, the embedding, ...) and how much of it is on this machine."""

    name: str
    present_bytes: int
    total_bytes: int


class Weights(BaseModel):
    """How far a model's weights are on this machine; `trust` is what is reached once everything is here."""

    key: str
    revision: str
    trust: Trust
    complete: bool
    present_bytes: int
    total_bytes: int
    fetched_bytes: int
    bytes_per_second: float
    eta_seconds: float | None
    problem: str
    groups: list[Group]


class AdminModel(BaseModel):
    """A model of the catalog. `weights` is null until the model has been found at its source, and where the engine
    loads none.

    `num_leases` requests use it, `num_held` wait for it. Null are `memory_bytes` while it takes no memory,
    `idle_seconds` while it is in use or not in memory, `keep_alive_seconds` where it stays until its memory is needed,
    `eta_seconds` (until it serves) where nobody knows, and `retry_in_seconds` unless it has failed.
    """

    id: str
    aliases: list[str]
    state: ModelState
    detail: str
    source: str
    num_leases: int
    num_held: int
    pinned: bool
    restarting: bool
    memory_bytes: int | None
    idle_seconds: float | None
    keep_alive_seconds: float | None
    eta_seconds: float | None
    retry_in_seconds: float | None
    weights: Weights | None


class Cached(BaseModel):
    """A model that the store holds, wholly or in part, beside the catalog; `trust` is what may be claimed of the bytes
    that are there, `last_used` in seconds since the epoch."""

    key: str
    reference: str
    revision: str
    trust: Trust
    complete: bool
    present_bytes: int
    total_bytes: int
    allocated_bytes: int
    last_used: float
    pinned: bool


class Memory(BaseModel):
    """The memory that engines share: what they may take (null: not bounded), and what they take."""

    budget_bytes: int | None
    used_bytes: int


class AdminModels(BaseModel):
    """The catalog, what its models take of memory, and what else is in the model cache."""

    memory: Memory
    models: list[AdminModel]
    cached: list[Cached]


class Drained(BaseModel):
    """The end: how many requests were cut because they took too long."""

    cut: int


class DrainStatus(BaseModel):
    """How far it is: requests that were admitted and are not over."""

    draining: bool
    num_open: int


class UsageCount(BaseModel):
    """What a tenant has used of a model in a day (UTC): requests that ended, prompt tokens that were computed and that
    were at hand, output tokens."""

    day: date
    tenant: str
    model: str
    requests: int
    computed_prompt_tokens: int
    cached_prompt_tokens: int
    output_tokens: int


class UsageReport(BaseModel):
    """Usage, by day, tenant and model."""

    usage: list[UsageCount]


def model_document(status: ModelStatus) -> AdminModel:
    """A model of the catalog as it is shown."""
    return AdminModel(
        id=status.id,
        aliases=list(status.aliases),
        state=status.state,
        detail=status.detail,
        source=status.source,
        num_leases=status.num_leases,
        num_held=status.num_held,
        pinned=status.is_pinned,
        restarting=status.is_restarting,
        memory_bytes=status.memory_bytes,
        idle_seconds=status.idle_seconds,
        keep_alive_seconds=status.keep_alive_seconds,
        eta_seconds=status.eta_seconds,
        retry_in_seconds=status.retry_in_seconds,
        weights=None if status.weights is None else _weights(status.weights),
    )


def _weights(weights: WeightsStatus) -> Weights:
    return Weights(
        key=weights.key,
        revision=weights.revision,
        trust=weights.trust,
        complete=weights.is_complete,
        present_bytes=weights.present_bytes,
        total_bytes=weights.total_bytes,
        fetched_bytes=weights.fetched_bytes,
        bytes_per_second=weights.bytes_per_second,
        eta_seconds=weights.eta_seconds,
        problem=weights.problem,
        groups=[
            Group(name=group.name, present_bytes=group.present_bytes, total_bytes=group.total_bytes)
            for group in weights.groups
        ],
    )


def cached_document(model: CachedModel) -> Cached:
    """A model of the store as it is shown."""
    return Cached(
        key=model.key,
        reference=model.reference,
        revision=model.revision,
        trust=model.trust,
        complete=model.is_complete,
        present_bytes=model.present_bytes,
        total_bytes=model.total_bytes,
        allocated_bytes=model.allocated_bytes,
        last_used=model.last_used,
        pinned=model.is_pinned,
    )
