"""The contract between the server and whatever generates tokens.

An engine is one-shot: `start` once, `close` once; restarts belong to the pool, which makes a new one. All methods
are called from the server's event loop. An engine never sees HTTP, keys or configuration files: it is built from a
frozen `EngineSpec` and speaks `domain` values. Failures are raised as `errors.RequestError`; anything else that
escapes is a defect.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from headrace_server.domain import EngineCapacity, EngineReply, EngineRequest, EngineStats, ModelId, Operation, Seat

_LONGEST_CHUNK = 1 / 2  # of a step


def longest_chunk(step_tokens: int) -> int:
    """Of a step's tokens, those that one prompt takes at most where others want some, too."""
    return max(1, int(step_tokens * _LONGEST_CHUNK))


def urgency(request: EngineRequest, seat: Seat) -> int:
    """In what order an engine serves the requests that wait in it, the lowest first: by class, then the favoured. Where
    it has to throw some out of its KV cache, it begins with the highest."""
    return 2 * request.service_class.rank + (not seat.is_favoured)


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """Which model of which store holds the weights; they may still be on their way, the loader waits for them."""

    cache_dir: Path
    key: str


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What an engine is built from.

    Attributes:
        model: the id under which the engine serves its model.
        kind: which engine (`registry` knows the names).
        directory: config and tokenizer of the model, and its weights unless `store` has them; None for engines that
            load nothing.
        url: base address of an upstream server, `http(s)://host:port[/path]` or `unix:///path/to/socket`.
        arguments: engine arguments from the configuration's allow-list, by name; may hold a key, so never shown.
        aliases: further names under which requests may reach the model.
        scratch: a folder for sockets and the like, removed when the server ends; None: the system's.
        store: where the weights are read from; None: from `directory`.
        cpus: processors for its computing threads, as in `taskset -c` ("0-3,8"); None: the engine decides.
        compile_cache: where what is compiled for this model is kept between starts; None: nowhere.
        fast_start: its processes may be forked from one that has imported everything; otherwise each imports anew.
    """

    model: ModelId
    kind: str
    directory: Path | None = None
    url: str | None = None
    arguments: Mapping[str, object] = field(default_factory=dict, repr=False)
    aliases: tuple[ModelId, ...] = ()
    scratch: Path | None = None
    store: StoredWeights | None = None
    cpus: str | None = None
    compile_cache: Path | None = None
    fast_start: bool = True


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a started engine can do. `max_model_len` is in tokens, prompt and output together.

    `memory_bytes` is what it takes, measured, with memory that it has reserved and not touched yet; None where it takes
    none here, or nobody can tell.
    """

    operations: frozenset[Operation]
    max_model_len: int | None = None
    memory_bytes: int | None = None
    capacity: EngineCapacity = EngineCapacity()


class Engine(Protocol):
    """One model being served."""

    async def start(self) -> EngineInfo:
        """Make the engine ready and say what it can do. Does not block the event loop.

        Raises:
            EngineFault: it could not start; the message says why in one line. `close` must still be called.
        """

    async def submit(self, request: EngineRequest, seat: Seat) -> EngineReply:
        """Serve one request. Cancelling the call, or closing a reply's stream, stops the work within one engine step.

        Takes `seat` after tokenising and before any other work, at the latest when a stream's first item is asked for.
        Returns when the whole reply (unary), the stream object or the generation exists; the first item of either comes
        with the first token.

        Raises:
            InvalidRequest: the engine refuses the request (too long for the context, bad schema, ...).
            UnsupportedOperation: this model does not do that.
            EngineDied: the engine is dead; nothing that was asked of it will be answered.
            EngineDown: the engine cannot be reached.
            EngineFault: the engine failed on this request.
            RequestError: of another class: the seat was refused.
        """

    def stats(self) -> EngineStats:
        """The latest counters; costs no round trip."""

    async def check(self) -> None:
        """Return while the engine can serve, as far as is known without asking it. Called sixteen times a second.

        Raises:
            EngineDied: it never will again; the message says why.
            EngineDown: it cannot now.
        """

    async def heartbeat(self) -> None:
        """Return once everything that a request needs has moved: a round trip through every process of the engine. May
        wait behind the engine's current step, or for ever where something hangs; the caller sets the bound. Cancelling
        it is safe.

        Raises:
            EngineDied, EngineDown: see `check`.
        """

    async def close(self) -> None:
        """Stop the engine and everything it started: processes, sockets, shared memory. Safe to call twice, and while
        it starts or hangs. Whatever is still being served ends in `EngineDied`."""
