"""What the servers are asked, and what is read off their answers: the same for both sides.

Prompts are short and different in every stream of every block, so that neither side answers from its prefix cache.
Every stream has exactly as many tokens as it was asked for; a reply that does not is a failure, not a sample.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from loadtests.launcher import MODEL_NAME
from loadtests.sse_client import Address, ExchangeFailed, Reply, exchange
from loadtests.stats import percentile

RETRY_SECONDS = 0.05
BLOCK_TIMEOUT_SECONDS = 120.0

_CHAT = "/v1/chat/completions"
_NEVER_GETS_BETTER = frozenset({400, 401, 403, 405, 413, 415, 422})


@dataclass(frozen=True, slots=True)
class Load:
    """Concurrent streams, and tokens in each of them."""

    num_streams: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Stream:
    """What one stream did. Stamps are `time.monotonic()`; `token_stamps` has one for each event with text."""

    sent_at: float
    token_stamps: tuple[float, ...]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Block:
    """What a number of concurrent streams came to."""

    num_tokens: int
    tokens_per_second: float
    ttft_p50_seconds: float
    itl_p50_seconds: float
    itl_p99_seconds: float


async def first_success(address: Address, target: str, document: object = None) -> float:
    """Ask every 50 ms until the answer is 200; the stamp of that answer's last byte.

    Raises:
        ExchangeFailed: a refusal that no waiting changes.
    """
    while True:
        try:
            reply = await exchange(address, target, document)
        except ExchangeFailed:
            await asyncio.sleep(RETRY_SECONDS)
            continue
        if reply.status == 200:
            return reply.ended_at
        if reply.status in _NEVER_GETS_BETTER:
            raise _refused(target, reply)
        await asyncio.sleep(RETRY_SECONDS)


async def first_answer(address: Address) -> float:
    """When the first chat completion, of one token, was there."""
    return await first_success(address, _CHAT, _chat("Say something.", 1))


async def run_block(address: Address, load: Load, label: str) -> Block:
    """Start all streams at once and wait for all of them. `label` makes the prompts different.

    Raises:
        ExchangeFailed: a stream was refused, cut off, or had another length.
    """
    prompts = [f"Story {label}-{number}: tell me a long story about a river." for number in range(load.num_streams)]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_run_stream(address, prompt, load.num_tokens)) for prompt in prompts]
    except ExceptionGroup as errors:
        failures, others = errors.split(ExchangeFailed)
        if failures is None or others is not None:
            raise
        raise ExchangeFailed(str(failures.exceptions[0])) from errors
    return summarise([task.result() for task in tasks])


async def _run_stream(address: Address, prompt: str, num_tokens: int) -> Stream:
    document = {
        **_chat(prompt, num_tokens),
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    stream = read_stream(await exchange(address, _CHAT, document, timeout_seconds=BLOCK_TIMEOUT_SECONDS))
    if stream.num_tokens != num_tokens:
        raise ExchangeFailed(f"a stream had {stream.num_tokens} tokens in place of {num_tokens}")
    return stream


def _chat(prompt: str, num_tokens: int) -> dict[str, object]:
    messages = [{"role": "user", "content": prompt}]
    return {"model": MODEL_NAME, "messages": messages, "max_tokens": num_tokens, "temperature": 0}


def read_stream(reply: Reply) -> Stream:
    """A streamed chat completion with usage at its end.

    Raises:
        ExchangeFailed: another status, an error event, no text, or no `[DONE]`.
    """
    if reply.status != 200:
        raise _refused(_CHAT, reply)
    stamps: list[float] = []
    num_tokens = 0
    events = list(reply.events())
    complete = bool(events) and events[-1].data == b"[DONE]"
    for event in events[: -1 if complete else None]:
        item = json.loads(event.data)
        if "error" in item:
            raise ExchangeFailed(f"a stream ended in an error: {event.data[:300].decode(errors='replace')}")
        if any(choice["delta"].get("content") for choice in item["choices"]):
            stamps.append(event.at)
        num_tokens = (item.get("usage") or {}).get("completion_tokens", num_tokens)
    if not stamps or not complete:
        raise ExchangeFailed("a stream did not come to its end")
    return Stream(reply.sent_at, tuple(stamps), num_tokens)


def summarise(streams: Sequence[Stream]) -> Block:
    """Tokens per second from the first request sent to the last token; gaps are those between events with text."""
    num_tokens = sum(stream.num_tokens for stream in streams)
    began = min(stream.sent_at for stream in streams)
    ended = max(stream.token_stamps[-1] for stream in streams)
    gaps = [later - earlier for stream in streams for earlier, later in pairwise(stream.token_stamps)]
    return Block(
        num_tokens=num_tokens,
        tokens_per_second=num_tokens / (ended - began),
        ttft_p50_seconds=percentile([stream.token_stamps[0] - stream.sent_at for stream in streams], 50),
        itl_p50_seconds=percentile(gaps, 50),
        itl_p99_seconds=percentile(gaps, 99),
    )


def _refused(target: str, reply: Reply) -> ExchangeFailed:
    return ExchangeFailed(f"{target} answered {reply.status}: {reply.body[:300].decode(errors='replace')}")
