"""Everything behind the sockets: which service answers a path, what the faults make of its answer, and the counts.

One `Site` for each origin, used by all of its threads. `handle` returns an answer and the plan by which its body is
sent; it sends nothing. The order is: count, faults that change the world, errors, access, the service, redirects,
faults of the body. Paths under /control are the caller's own: neither counted nor spoilt nor slowed.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import assert_never

from loadtests.origin import faults as of
from loadtests.origin.access import CDN, Access, Gate
from loadtests.origin.bucket import Bucket
from loadtests.origin.counters import Counters
from loadtests.origin.delivery import Break, Disturbance, FlipByte, Pause, Step, plan_delivery
from loadtests.origin.faults import Fault, FaultPlan, Faults
from loadtests.origin.hub import Hub
from loadtests.origin.messages import Answer, FilePart, Headers, Request, Service, plain
from loadtests.origin.models import Shelf
from loadtests.origin.plain_files import PlainFiles
from loadtests.origin.registry import Registry


@dataclass(frozen=True, slots=True)
class Outcome:
    """An answer, and how its body is sent."""

    answer: Answer
    steps: list[Step]


class Site:
    """The services over one shelf, with their faults and counters."""

    def __init__(self, shelf: Shelf, access: Access, *, clock: Callable[[], float]) -> None:
        self.shelf = shelf
        self.counters = Counters()
        self._gate = Gate(access, clock=clock)
        self._plan = FaultPlan(Faults())
        self._services: dict[str, Service] = {
            "files": PlainFiles(shelf),
            "v2": Registry(shelf),
            "s3": Bucket(shelf),
            "hub": Hub(shelf),
        }

    def set_faults(self, faults: Faults) -> None:
        """From the next request on; counts of matching requests begin anew."""
        self._plan = FaultPlan(faults)

    def handle(self, request: Request) -> Outcome:
        """Answer a request, as the faults that hit it allow."""
        range_header = request.header("range")
        self.counters.asked(request.path, range_header)
        plan = self._plan
        hits = plan.hits(request.method, request.path, range_header)
        self._change(hits)
        answer = self._answer(_spoilt_request(request, hits), hits)
        self.counters.answered(request.path, answer.status)
        begin, end = _bounds(answer)
        return Outcome(answer, plan_delivery(begin, end, _disturbances(request, answer, hits, plan)))

    def _change(self, hits: Iterable[Fault]) -> None:
        for fault in hits:
            match fault:
                case of.Change(model=model, directory=directory):
                    self.shelf.replace(model, directory)
                case of.ExpireTokens():
                    self._gate.expire_tokens()
                case _:
                    pass

    def _answer(self, request: Request, hits: Iterable[Fault]) -> Answer:
        for fault in hits:
            if isinstance(fault, of.Status):
                after = fault.retry_after_seconds
                return plain(fault.status, headers=() if after is None else (("Retry-After", str(after)),))
        if request.path.startswith(f"{CDN}/") and request.header("authorization"):
            self.counters.leaked()
        refusal = self._gate.refusal(request)
        if refusal is not None:
            return refusal
        answer = self._service_answer(request.below(CDN))
        for fault in hits:
            answer = self._spoilt_answer(answer, request, fault)
        return answer

    def _service_answer(self, request: Request) -> Answer:
        name = request.path.split("/", 2)[1]
        if name == "token":
            return self._gate.token(request)
        service = self._services.get(name)
        return plain(404) if service is None else service.answer(request)

    def _spoilt_answer(self, answer: Answer, request: Request, fault: Fault) -> Answer:
        match fault:
            case of.Redirect() if isinstance(answer.body, FilePart) and not request.path.startswith(f"{CDN}/"):
                location = self._gate.signed_address(request, fault.valid_seconds)
                # A hub tells what a file is beside the redirect.
                kept = tuple((name, value) for name, value in answer.headers if name.startswith("X-"))
                return Answer(fault.status, (("Location", location), *kept))
            case of.WrongRange() if answer.status == 206:
                return replace(answer, headers=tuple(_one_further(answer.headers)))
            case _:
                return answer


def _spoilt_request(request: Request, hits: Iterable[Fault]) -> Request:
    ignored = any(isinstance(fault, of.IgnoreRange) for fault in hits)
    return request.without("range") if ignored else request


def _one_further(headers: Headers) -> Iterable[tuple[str, str]]:
    for name, value in headers:
        if name == "Content-Range":
            span, _, size = value.removeprefix("bytes ").partition("/")
            first, _, last = span.partition("-")
            yield name, f"bytes {int(first) + 1}-{int(last) + 1}/{size}"
        else:
            yield name, value


def _bounds(answer: Answer) -> tuple[int, int]:
    body = answer.body
    return (0, len(body)) if isinstance(body, bytes) else (body.begin, body.end)


def _disturbances(request: Request, answer: Answer, hits: Iterable[Fault], plan: FaultPlan) -> list[Disturbance]:
    if answer.status not in (200, 206):
        return []
    begin, end = _bounds(answer)
    found = []
    for fault in hits:
        match fault:
            case of.Reset(after_bytes=after) | of.Truncate(after_bytes=after):
                found.append(Disturbance(_place(begin, end, after), Break(isinstance(fault, of.Reset))))
            case of.Stall(after_bytes=after, seconds=seconds):
                found.append(Disturbance(_place(begin, end, after), Pause(seconds)))
            case of.Flip():
                wrong = plan.flips(fault, request.path, begin, end)
                found.extend(Disturbance(at, FlipByte()) for at in wrong)
            case of.Status() | of.IgnoreRange() | of.WrongRange() | of.Change() | of.Redirect() | of.ExpireTokens():
                pass
            case _:
                assert_never(fault)
    return found


def _place(begin: int, end: int, after_bytes: int | None) -> int:
    return (begin + end) // 2 if after_bytes is None else begin + after_bytes
