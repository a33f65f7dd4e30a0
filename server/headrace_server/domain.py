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
    GATEWAY = "gateway"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is asking, as far as a key or its absence shows.

    `key` names the key or token in logs and lists, never the secret. The scope GATEWAY: it may name the tenant that a
    request is for.
    """

    tenant: TenantId
    scopes: frozenset[Scope] = frozenset({Scope.INFERENCE})
    key: str = ""


class ServiceClass(StrEnum):
    """How urgent a request is. A class gives way to those that stand before it."""

    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BATCH = "batch"

    @property
    def rank(self) -> int:
        """0 for the most urgent."""
        return _RANKS[self]


_RANKS = {service_class: rank for rank, service_class in enumerate(ServiceClass)}


@dataclass(frozen=True, slots=True)
class Tenant:
    """On what terms a tenant is served.

    Attributes:
        weight: its part of an engine beside those of others, while they all wait.
        classes: what it may ask for.
        models: the models that it may use; None: all.
        max_concurrency: requests that may be in engines at a time; more wait. None: no bound.
        tokens_per_minute: prompt tokens that were computed and output tokens; beyond them it is refused. None: no
        bound. queue_share: the part of each of the queue's bounds that its requests may take, of 1.
    """

    id: TenantId
    weight: float = 1.0
    classes: frozenset[ServiceClass] = frozenset(ServiceClass)
    models: frozenset[ModelId] | None = None
    max_concurrency: int | None = None
    tokens_per_minute: int | None = None
    queue_share: float = 1.0


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
    nobody wants the answer any more. `num_bytes` is the size of its body. `cache_salt` separates what the engine may
    reuse of earlier prompts; None: everybody shares.
    """

    operation: Operation
    model: ModelId
    request_id: RequestId
    caller: Caller
    payload: JsonObject = field(repr=False)
    stream: bool = False
    deadline: float | None = None
    service_class: ServiceClass = ServiceClass.STANDARD
    num_bytes: int = 0
    cache_salt: str | None = field(default=None, repr=False)


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
    engine one by one (embeddings, rerank, score), it is the first input's. `num_sequences`: choices of all prompts.
    """

    num_prompt_tokens: int | None
    max_output_tokens: int | None = None
    num_sequences: int = 1


class Seat(Protocol):
    """A request's claim to be served. The engine takes it after tokenising and before any other work, and says on it
    what it does for the request. Both sayings are cheap and never fail.

    `is_favoured`, once it is taken: the engine serves the request before others of its class that wait in it.
    """

    @property
    def is_favoured(self) -> bool: ...

    async def take(self, demand: Demand) -> None:
        """Return once the request is admitted. One HTTP request is admitted once: further calls return at once.

        Raises:
            Contended, Unavailable, DeadlineExpired: it is not admitted.
        """

    def began(self, num_computed_tokens: int, num_cached_tokens: int) -> None:
        """A prompt has been worked through: so many of its tokens were computed, so many were at hand. Said with
        the first token or vector of each prompt; further choices of a prompt say what they computed anew."""

    def generated(self, num_tokens: int) -> None:
        """So many output tokens have come, of any choice."""


@dataclass(frozen=True, slots=True)
class EngineCapacity:
    """What an engine can take at a time; None where nobody knows.

    `max_num_seqs` sequences in a step, `max_num_batched_tokens` tokens of prompts and sequences in a step,
    `kv_cache_tokens` tokens of prompts and outputs in the KV cache; `longest_chunk_tokens` tokens of one prompt in a
    step where there are others.
    """

    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    kv_cache_tokens: int | None = None
    longest_chunk_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class EngineStats:
    """An engine's own counters, read without asking its process. Totals count since the engine's start.

    `kv_cache_usage` is a share of 1. A step computes `prefill_tokens` of prompts and one token of each sequence that
    decodes (`decode_tokens`), and takes `step_seconds`; the three are 0 where the engine does not measure its steps.
    """

    num_requests_running: int = 0
    num_requests_waiting: int = 0
    kv_cache_usage: float = 0.0
    prompt_tokens_total: int = 0
    generation_tokens_total: int = 0
    num_steps_total: int = 0
    step_seconds_total: float = 0.0
    prefill_tokens_total: int = 0
    decode_tokens_total: int = 0
    num_preemptions_total: int = 0
