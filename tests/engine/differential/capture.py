"""Asks both sides. Judges nothing, except whether a first look was spoilt by being taken in company."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from headrace_server.api.error_mapping import outcome
from headrace_server.domain import Caller, EngineRequest, ModelId, Operation, RequestId, StreamReply, TenantId
from headrace_server.errors import RequestError
from tests.engine.differential.answers import Answer, Defect, Document, Frames, Refusal
from tests.engine.differential.cases import Case
from tests.engine.differential.comparison import difference
from tests.engine.differential.engines import Stage

_CASES_AT_ONCE = 4  # of four requests each
_ATTEMPTS_ALONE = 3
_ANSWER_SECONDS = 90.0
_VLLM_METHODS = {
    Operation.CHAT: ("openai_serving_chat", "create_chat_completion"),
    Operation.COMPLETION: ("openai_serving_completion", "create_completion"),
}


@dataclass(frozen=True, slots=True)
class Pair:
    """Both sides' answers to one request."""

    ours: Answer
    vllm: Answer


@dataclass(frozen=True, slots=True)
class Capture:
    """Both forms of a case. `alone`: asked again, without company."""

    unary: Pair
    stream: Pair
    alone: bool = False


async def capture_all(stage: Stage, cases: Sequence[Case]) -> dict[str, Capture]:
    """Ask both sides everything, by sentence: first in company, which takes a fraction of the time, then those alone
    that have shown a difference.

    Requests that do not enter the engine's batch in the same step see batches of other shapes, which move bfloat16
    logits (log-probabilities by up to 0.14, and with them near ties of the greedy choice). And a reader that is kept
    from reading gets several tokens in one piece. Alone, the same request always gives the same tokens.
    """
    found: dict[str, Capture] = {}
    places = asyncio.Semaphore(_CASES_AT_ONCE)

    async def in_company(case: Case) -> None:
        async with places:
            unary, stream = await asyncio.gather(*(_together(stage, case, stream=stream) for stream in (False, True)))
            found[case.sentence] = Capture(unary, stream)

    async with asyncio.TaskGroup() as group:
        for case in cases:
            group.create_task(in_company(case))
    for case in cases:
        if differences := _differences(case, found[case.sentence]):
            found[case.sentence] = await _capture_alone(stage, case, differences)
    return found


async def _capture_alone(stage: Stage, case: Case, before: Sequence[str]) -> Capture:
    """Ask until the difference is gone, or is the same as `before`."""
    for _ in range(_ATTEMPTS_ALONE):
        unary = await _in_turn(stage, case, stream=False)
        found = Capture(unary, await _in_turn(stage, case, stream=True), alone=True)
        after = _differences(case, found)
        if not after or after == before:
            break
        before = after
    return found


def _differences(case: Case, found: Capture) -> list[str]:
    compared = (
        difference(pair.ours, pair.vllm, exact_pieces=case.token_by_token) for pair in (found.unary, found.stream)
    )
    return [problem for problem in compared if problem is not None]


async def _together(stage: Stage, case: Case, *, stream: bool) -> Pair:
    asked = (_in_time(side(stage, case, stream)) for side in _SIDES)
    return _pair(await asyncio.gather(*asked, return_exceptions=True))


async def _in_turn(stage: Stage, case: Case, *, stream: bool) -> Pair:
    answers: list[Answer | BaseException] = []
    for side in _SIDES:
        answers += await asyncio.gather(_in_time(side(stage, case, stream)), return_exceptions=True)
    return _pair(answers)


async def _in_time(answer: Awaitable[Answer]) -> Answer:
    async with asyncio.timeout(_ANSWER_SECONDS):
        return await answer


def _pair(answers: Sequence[Answer | BaseException]) -> Pair:
    return Pair(*(Defect(repr(answer)) if isinstance(answer, BaseException) else answer for answer in answers))


async def _ours(stage: Stage, case: Case, stream: bool) -> Answer:
    request = EngineRequest(
        operation=case.operation,
        model=ModelId(case.engine),
        request_id=RequestId(uuid4().hex),
        caller=Caller(TenantId("tests")),
        payload=case.payload(stream=stream),
        stream=stream,
    )
    try:
        reply = await stage.inference.submit(request)
        if isinstance(reply, StreamReply):
            return Frames(tuple([item async for item in reply.events]))
        return Document(json.loads(reply.body))
    except RequestError as error:
        return Refusal(outcome(error).status, error.message)


async def _vllms(stage: Stage, case: Case, stream: bool) -> Answer:
    """As vLLM's own routes do it: what is raised becomes the error document that its exception handlers make."""
    from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
    from vllm.exceptions import VLLMError

    try:
        return await _vllm_answer(await _call_vllm(stage, case, stream))
    except (ValueError, TypeError, NotImplementedError, VLLMError) as error:
        return _refusal(create_error_response(error).model_dump())


async def _call_vllm(stage: Stage, case: Case, stream: bool) -> Any:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    request_class = {Operation.CHAT: ChatCompletionRequest, Operation.COMPLETION: CompletionRequest}[case.operation]
    attribute, method = _VLLM_METHODS[case.operation]
    request = request_class.model_validate(case.payload(stream=stream))
    return await getattr(getattr(stage.vllm[case.engine], attribute), method)(request, None)


async def _vllm_answer(answer: Any) -> Answer:
    if isinstance(answer, AsyncIterator):
        items = tuple([item.encode() async for item in answer])
        return _refusal(json.loads(items[0][6:])) if items[0].startswith(b'data: {"error"') else Frames(items)
    document = json.loads(answer.model_dump_json())
    return _refusal(document) if "error" in document else Document(document)


def _refusal(document: Any) -> Refusal:
    return Refusal(document["error"]["code"], document["error"]["message"])


_SIDES: tuple[Callable[[Stage, Case, bool], Awaitable[Answer]], ...] = (_ours, _vllms)
