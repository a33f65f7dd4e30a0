"""Sends a load to a server over HTTP, and says what became of each request.

The same bytes go to both sides: vLLM's server takes no notice of keys and of Headrace's headers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headrace_server.bench.arrivals import BlockPlan, PlannedRequest
from headrace_server.bench.endpoint import Api, Endpoint, http_request
from headrace_server.bench.generator import Exchange, send_block
from headrace_server.bench.http_client import ConnectionPool, Reception
from headrace_server.bench.outcomes import Complete, Failed, judge
from headrace_server.bench.outcomes import Refused as RefusedReply
from headrace_server.bench.prompts import make_prompt
from headrace_server.bench.stats import percentile
from headrace_server.bench.summary import BUSY_CORE_SHARE, LATE_SECONDS
from loadtests.fair.answers import Answer, Refused
from loadtests.fair.loads import Ask, Due

_HEAD_END = b"\r\n\r\n"
# vLLM refuses a stream after it has answered 200.
_ERROR_EVENT = "a stream ended in an error"


@dataclass(frozen=True, slots=True)
class Sent:
    """A load that is over. `began_at`: what its times are counted from; `client_is_late`: this process may be what was
    measured."""

    answers: tuple[Answer, ...]
    began_at: float
    client_is_late: bool

    @property
    def seconds(self) -> float:
        """From the first request to the end of the last answer."""
        return max((answer.ended_at or 0.0 for answer in self.answers), default=0.0) - self.began_at

    @property
    def tokens_per_second(self) -> float:
        """Output tokens of whole answers."""
        return sum(answer.ask.num_output_tokens for answer in self.answers if answer.is_complete) / self.seconds


class Sender:
    """Sends loads to one server. `keys` are the API keys of the tenants; prompts differ in each request ever sent."""

    def __init__(self, endpoint: Endpoint, model: str, keys: Mapping[str, str], *, timeout_seconds: float) -> None:
        self._endpoint = endpoint
        self._model = model
        self._keys = keys
        self._timeout_seconds = timeout_seconds
        self._num_sent = 0

    async def open_loop(self, load: Sequence[Due]) -> Sent:
        """Each request when it is due."""
        return await self._send([due.ask for due in load], [due.at_seconds for due in load], None)

    async def closed_loop(self, ask: Ask, num_requests: int, num_streams: int) -> Sent:
        """Equal requests, so many at a time."""
        return await self._send([ask] * num_requests, None, num_streams)

    async def _send(self, asks: Sequence[Ask], times: Sequence[float] | None, num_streams: int | None) -> Sent:
        requests = [self._bytes(ask) for ask in asks]
        due: Sequence[float | None] = [None] * len(asks) if times is None else times
        plan = BlockPlan(
            tuple(PlannedRequest("", ask.num_output_tokens, at) for ask, at in zip(asks, due, strict=True)), num_streams
        )
        with ConnectionPool(self._endpoint) as pool:
            traffic = await send_block(pool, plan, requests, timeout_seconds=self._timeout_seconds)
        answers = tuple(_answer(exchange, asks[exchange.place]) for exchange in traffic.exchanges)
        late = [
            exchange.came.sent_at - exchange.due_at
            for exchange in traffic.exchanges
            if isinstance(exchange.came, Reception) and exchange.due_at is not None
        ]
        is_late = bool(late) and percentile(late, 99) > LATE_SECONDS
        is_busy = traffic.cpu_seconds > BUSY_CORE_SHARE * traffic.wall_seconds
        return Sent(answers, min(answer.due_at for answer in answers), is_late or is_busy)

    def _bytes(self, ask: Ask) -> bytes:
        self._num_sent += 1
        prompt = make_prompt(ask.num_prompt_tokens, f"{self._endpoint.port}/{self._num_sent}")
        document = Api.COMPLETIONS.document(self._model, prompt, num_tokens=ask.num_output_tokens, stream=True)
        plain = http_request(self._endpoint, Api.COMPLETIONS.path, document, api_key=self._keys[ask.tenant])
        return plain.replace(_HEAD_END, b"\r\nx-headrace-class: " + ask.service_class.encode() + _HEAD_END, 1)


def _answer(exchange: Exchange, ask: Ask) -> Answer:
    outcome = judge(exchange, ask.num_output_tokens, stream=True)
    due_at = exchange.due_at
    if due_at is None:
        due_at = exchange.came.sent_at if isinstance(exchange.came, Reception) else 0.0
    match outcome:
        case Complete():
            return Answer(ask, due_at, outcome.text_stamps[0], outcome.ended_at)
        case RefusedReply(status, _):
            return Answer(ask, due_at, refused=Refused(str(status), cost_seconds=_seconds(exchange.came)))
        case Failed(reason) if _ERROR_EVENT in reason:
            return Answer(ask, due_at, refused=Refused("error event", cost_seconds=_seconds(exchange.came)))
        case Failed(reason):
            return Answer(ask, due_at, failure=reason)


def _seconds(came: object) -> float:
    return came.stamps[-1] - came.sent_at if isinstance(came, Reception) else 0.0
