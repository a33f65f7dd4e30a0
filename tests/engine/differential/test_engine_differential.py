"""Our chat and text completions against vLLM's own serving objects: the same requests, on the same running engines.

The module's fixture asks both sides everything that the selected tests look at, in one event loop, and ends the
engines before the first test looks. A test then compares two answers and shows the first difference. The engines run
in this process, as in a server: they are closed and the environment is restored before any other test runs.
"""

import asyncio
import gc
import multiprocessing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.engine.differential.answers import Document, Frames, Refusal
from tests.engine.differential.capture import Capture, Pair, capture_all
from tests.engine.differential.cases import Case
from tests.engine.differential.chat_cases import CHAT_CASES
from tests.engine.differential.comparison import difference
from tests.engine.differential.completion_cases import COMPLETION_CASES
from tests.engine.differential.engines import engine_environment, open_stage
from tests.engine.differential.meaning import chunks_of
from tests.engine.differential.openai_schema import CHUNKS, DOCUMENTS, problem_with
from tests.engine.differential.reasoning_cases import REASONING_CASES
from tests.engine.differential.refusal_cases import REFUSAL_CASES
from tests.engine.differential.tool_cases import TOOL_CASES

CASES = (*CHAT_CASES, *TOOL_CASES, *COMPLETION_CASES, *REASONING_CASES)

pytestmark = pytest.mark.filterwarnings("ignore")  # importing vLLM warns about itself
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.sentence)


@pytest.fixture(scope="module")
def captures(request: pytest.FixtureRequest) -> Mapping[str, Capture]:
    """Both sides' answers to the cases of the tests that were selected, by sentence."""
    selected = (_case_of(item) for item in request.session.items if "captures" in getattr(item, "fixturenames", ()))
    cases = {case.sentence: case for case in selected if case is not None}
    with engine_environment() as scratch:
        found = asyncio.run(_captured(tuple(cases.values()), scratch))
        gc.collect()  # what is left of the engines goes now, not in the middle of another test
    assert not multiprocessing.active_children()
    return found


def _case_of(item: pytest.Item) -> Case | None:
    parameters: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
    return parameters.get("case")


async def _captured(cases: tuple[Case, ...], scratch: Path) -> dict[str, Capture]:
    async with open_stage(sorted({case.engine for case in cases}), scratch) as stage:
        return await capture_all(stage, cases)


@each_case
def test_both_answer_the_same(case: Case, captures: Mapping[str, Capture]) -> None:
    pair = captures[case.sentence].unary

    assert isinstance(pair.vllm, Document)
    show(difference(pair.ours, pair.vllm))


@each_case
def test_both_stream_the_same(case: Case, captures: Mapping[str, Capture]) -> None:
    pair = captures[case.sentence].stream

    assert isinstance(pair.vllm, Frames)
    show(difference(pair.ours, pair.vllm, exact_pieces=case.token_by_token))


@each_case
def test_both_keep_to_openais_schema(case: Case, captures: Mapping[str, Capture]) -> None:
    found = captures[case.sentence]

    for side, answer in sides(found.unary):
        assert isinstance(answer, Document)
        show(problem_with(DOCUMENTS[case.operation], answer.data), f"{side} document: ")
    for side, answer in sides(found.stream):
        assert isinstance(answer, Frames)
        for number, chunk in enumerate(chunks_of(answer.items)):
            show(problem_with(CHUNKS[case.operation], chunk), f"{side} chunk {number}: ")


@each_case
def test_the_case_is_about_what_it_says(case: Case, captures: Mapping[str, Capture]) -> None:
    answer = captures[case.sentence].unary.vllm

    assert isinstance(answer, Document)
    assert case.shows(answer.data), answer.data["choices"]


@pytest.mark.parametrize("case", REFUSAL_CASES, ids=lambda case: case.sentence)
@pytest.mark.parametrize("form", ["unary", "stream"])
def test_both_refuse(case: Case, form: str, captures: Mapping[str, Capture]) -> None:
    pair: Pair = getattr(captures[case.sentence], form)

    show(difference(pair.ours, pair.vllm))
    assert isinstance(pair.vllm, Refusal)
    assert pair.vllm.status == 400


def test_company_hardly_ever_changes_an_answer(captures: Mapping[str, Capture]) -> None:
    """Cases that agree only when they are asked alone are few, else requests get into each other's way."""
    agreeing = [found for found in captures.values() if not difference(found.stream.ours, found.stream.vllm)]

    assert sum(found.alone for found in agreeing) <= max(3, len(captures) // 5)


def test_no_two_cases_have_the_same_sentence() -> None:
    sentences = [case.sentence for case in (*CASES, *REFUSAL_CASES)]

    assert len(set(sentences)) == len(sentences)


def sides(pair: Pair) -> tuple[tuple[str, object], ...]:
    """Both answers with their names."""
    return ("our", pair.ours), ("vLLM's", pair.vllm)


def show(problem: str | None, whose: str = "") -> None:
    """Fail with a problem, if there is one, and nothing beside it."""
    if problem is not None:
        pytest.fail(whose + problem, pytrace=False)
