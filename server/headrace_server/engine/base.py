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

from headrace_server.domain import EngineReply, EngineRequest, EngineStats, ModelId, Operation, Seat


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
    """

    model: ModelId
    kind: str
    directory: Path | None = None
    url: str | None = None
    arguments: Mapping[str, object] = field(default_factory=dict, repr=False)
    aliases: tuple[ModelId, ...] = ()
    scratch: Path | None = None
    store: StoredWeights | None = None


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a started engine can do. `max_model_len` is in tokens, prompt and output together."""

    operations: frozenset[Operation]
    max_model_len: int | None = None


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
            EngineDown: the engine is dead or cannot be reached.
            EngineFault: the engine failed on this request.
            RequestError: of another class: the seat was refused.
        """

    def stats(self) -> EngineStats:
        """The latest counters; costs no round trip."""

    async def check(self) -> None:
        """Return while the engine can serve.

        Raises:
            EngineDown: it cannot; the message says why.
        """

    async def close(self) -> None:
        """Stop the engine and everything it started: processes, sockets, shared memory. Safe to call twice."""
