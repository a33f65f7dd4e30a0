"""The words that every layer shares: ids, operations, callers, requests and replies.

Owns only frozen values and protocols; it never does I/O. Wire formats are converted to these types once, at the edge
(`api`), and engines speak nothing else. The payload of an `EngineRequest` is the
one exception to "no dicts across modules": it is the client's JSON object after validation, because upstream
servers and vLLM's own serving classes take exactly that.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import NewType, Protocol, TypeAlias

from headrace_models.trust import Trust
from headrace_server.generation import Generation

ModelId = NewType("ModelId", str)
RequestId = NewType("RequestId", str)
TenantId = NewType("TenantId", str)

JsonObject: TypeAlias = Mapping[str, object]


class Operation(StrEnum):
    """What a client may ask of a model; the value is its path in the public HTTP contract."""

    CHAT = "/v1/chat/completions"
    COMPLETION = "/v1/completions"
    RESPONSE = "/v1/responses"
    MESSAGE = "/v1/messages"
    COUNT_TOKENS = "/v1/messages/count_tokens"
    EMBEDDING = "/v1/embeddings"
    RERANK = "/v1/rerank"
    SCORE = "/v1/score"
    TOKENIZE = "/tokenize"
    DETOKENIZE = "/detokenize"


GENERATING = frozenset({Operation.CHAT, Operation.COMPLETION, Operation.RESPONSE, Operation.MESSAGE})
POOLING = frozenset({Operation.EMBEDDING, Operation.RERANK, Operation.SCORE})


class Scope(StrEnum):
    """What a key may be used for."""

    INFERENCE = "inference"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is asking, as far as a key or its absence shows."""

    tenant: TenantId
    scopes: frozenset[Scope] = frozenset({Scope.INFERENCE})


class ModelState(Enum):
    """Where a model stands between its source and an engine that answers."""

    COLD = "cold"
    FETCHING = "fetching"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class GroupBytes:
    """How much of one group of tensors (a layer, the embedding, ...) is on this machine."""

    name: str
    present_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class WeightsStatus:
    """How far a model's weights are on their way to this machine.

    `key` is the model's name in the store. `trust` is what is reached once everything is here. `fetched_bytes` came
    since this server started, at `bytes_per_second` lately; `eta_seconds` is None while nothing comes and once
    everything is here. `problem`: why the fetch failed, one line, or empty. `groups` are in execution order.
    """

    key: str
    revision: str
    trust: Trust
    present_bytes: int
    total_bytes: int
    is_complete: bool = False
    fetched_bytes: int = 0
    bytes_per_second: float = 0.0
    eta_seconds: float | None = None
    problem: str = ""
    groups: tuple[GroupBytes, ...] = ()


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A model as the store on disk holds it, whoever put it there.

    `trust` is what may be claimed of the bytes that are present. `allocated_bytes` is what the disk gives it;
    `last_used` is in seconds since the epoch. A pinned one is never evicted.
    """

    key: str
    reference: str
    revision: str
    trust: Trust
    present_bytes: int
    total_bytes: int
    allocated_bytes: int
    last_used: float
    is_complete: bool
    is_pinned: bool
    is_leased: bool
    is_fetching: bool


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model as `/v1/models`, `/readyz` and `/admin/models` show it.

    `detail` is one line for people (why it failed, what it waits for) or empty. `operations` is empty until the engine
    has said what it can. `max_model_len` is in tokens, `created` in seconds since the epoch. `weights` is None until
    the model has been found at its source, and where the engine loads none.

    `num_leases` requests use it, `num_held` wait for it. `memory_bytes` is what it takes of the memory budget, None
    while it takes none. `idle_seconds`: since its last use, None while it is in use or not in memory. `eta_seconds`:
    until it is expected to serve, None where nobody is bringing it up or nothing is known. `retry_in_seconds`: until a
    model that failed may be tried again. `is_restarting`: its engine died, hung or did not start, and it
    has not been ready since.
    `keep_alive_seconds`: how long it stays in memory unused, None: until its memory is needed.
    """

    id: ModelId
    state: ModelState
    source: str
    created: int
    aliases: tuple[ModelId, ...] = ()
    detail: str = ""
    operations: frozenset[Operation] = frozenset()
    max_model_len: int | None = None
    num_leases: int = 0
    weights: WeightsStatus | None = None
    num_held: int = 0
    is_pinned: bool = False
    memory_bytes: int | None = None
    idle_seconds: float | None = None
    eta_seconds: float | None = None
    retry_in_seconds: float | None = None
    is_restarting: bool = False
    keep_alive_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One validated HTTP request on its way to an engine.

    `payload` is the client's JSON object with unknown and refused fields removed; `model` is the name under which
    the engine serves the model, and already stands in the payload. `deadline` is on the event loop's clock; after it
    nobody wants the answer any more.
    """

    operation: Operation
    model: ModelId
    request_id: RequestId
    caller: Caller
    payload: JsonObject = field(repr=False)
    stream: bool = False
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class UnaryReply:
    """A complete JSON document, UTF-8 encoded."""

    body: bytes = field(repr=False)


class EventStream(Protocol):
    """Server-sent events, each item one or more whole frames (`data: …\\n\\n`), UTF-8 encoded.

    The receiver iterates to the end or calls `aclose()`, which aborts the generation in the engine; it does one of
    the two even if it never asked for an item. A failure after the first event is raised by the iteration and never
    followed by `[DONE]`. An async generator is one.
    """

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def __anext__(self) -> bytes: ...

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class StreamReply:
    """An answer that comes piece by piece."""

    events: EventStream = field(repr=False)


Reply: TypeAlias = UnaryReply | StreamReply
"""What a client gets."""

EngineReply: TypeAlias = Generation | Reply
"""What an engine answers: text that `serving` writes down, or a reply that is written already."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request asks of its engine, known once it has been tokenised.

    `num_prompt_tokens` is over all prompts, None where the engine does not tokenise itself; `max_output_tokens` over
    all choices, None where neither the request nor the engine sets a bound. Of a request whose inputs vLLM hands to its
    engine one by one (embeddings, rerank, score), it is the first input's.
    """

    num_prompt_tokens: int | None
    max_output_tokens: int | None = None


class Seat(Protocol):
    """A request's claim to be served. The engine takes it after tokenising and before any other work."""

    async def take(self, demand: Demand) -> None:
        """Return once the request is admitted. One HTTP request is admitted once: further calls return at once.

        Raises:
            Contended, Unavailable, DeadlineExpired: it is not admitted.
        """


@dataclass(frozen=True, slots=True)
class EngineStats:
    """An engine's own counters, read without asking its process. Totals count since the engine's start.

    `kv_cache_usage` is a share of 1.
    """

    num_requests_running: int = 0
    num_requests_waiting: int = 0
    kv_cache_usage: float = 0.0
    prompt_tokens_total: int = 0
    generation_tokens_total: int = 0
