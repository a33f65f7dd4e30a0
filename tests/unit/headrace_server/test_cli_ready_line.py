"""What `headrace serve` tells the terminal once it is ready."""

import json
import re
import shlex

from headrace_server.cli.first_key import KeyNotice
from headrace_server.cli.ready_line import ready_line
from headrace_server.domain import GENERATING, POOLING, ModelId, ModelState, ModelStatus, Operation


def ready(name: str, operations: frozenset[Operation]) -> ModelStatus:
    return ModelStatus(ModelId(name), ModelState.READY, source="", created=0, operations=operations)


def tried(line: str) -> tuple[str, dict[str, object]]:
    """Address and body of the request that the line says to try, read as a shell would."""
    command = shlex.split(line.partition("try: ")[2])
    assert command[:2] == ["curl", "-s"]
    return command[2], json.loads(command[-1])


def test_the_ready_line_chats_with_a_model_that_chats_wherever_it_stands() -> None:
    line = ready_line("http://127.0.0.1:1", [ready("vectors", POOLING), ready("talker", GENERATING)], [], 1.0)
    address, body = tried(line)

    assert address == "http://127.0.0.1:1/v1/chat/completions"
    assert body["model"] == "talker"
    assert re.search(r"with vectors, talker after 1\.0 s", line)
    assert "\n" not in line


def test_the_ready_line_embeds_where_nothing_chats() -> None:
    address, body = tried(ready_line("http://127.0.0.1:1", [ready("vectors", POOLING)], [], 1.0))

    assert address == "http://127.0.0.1:1/v1/embeddings"
    assert body == {"model": "vectors", "input": "water"}


def cold(name: str) -> ModelStatus:
    return ModelStatus(ModelId(name), ModelState.COLD, source="", created=0)


def test_models_on_demand_are_counted_and_what_is_ready_is_tried() -> None:
    line = ready_line("http://127.0.0.1:1", [ready("vectors", POOLING)], [cold("a"), cold("b")], 1.0)
    assert "/v1 with vectors and 2 on demand after 1.0 s; try: " in line
    assert tried(line)[1]["model"] == "vectors"


def test_where_everything_is_on_demand_the_first_is_tried() -> None:
    line = ready_line("http://127.0.0.1:1", [], [cold("a"), cold("b")], 0.1)
    assert "/v1 with 2 on demand after 0.1 s; try: " in line
    address, body = tried(line)
    assert address == "http://127.0.0.1:1/v1/chat/completions"
    assert body["model"] == "a"


def test_a_key_that_was_just_made_stands_in_the_request_to_try() -> None:
    line = ready_line("http://127.0.0.1:1", [ready("talker", GENERATING)], [], 1.0, KeyNotice("hr-new"))
    assert "the key below is not shown again" in line
    assert "authorization: Bearer hr-new" in shlex.split(line.partition("try: ")[2])
    assert tried(line)[0] == "http://127.0.0.1:1/v1/chat/completions"


def test_where_keys_were_made_before_the_line_says_how_to_get_another() -> None:
    line = ready_line("http://127.0.0.1:1", [ready("talker", GENERATING)], [], 1.0, KeyNotice(None))
    assert "headrace keys create" in line
    assert "authorization: Bearer $HEADRACE_API_KEY" in shlex.split(line.partition("try: ")[2])
