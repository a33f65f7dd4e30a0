"""The one line that says where the server is and how to try it, printed once the models that are loaded at startup have
been tried."""

from collections.abc import Sequence

from headrace_server.cli.first_key import KeyNotice
from headrace_server.domain import ModelStatus, Operation

_KEYS = {
    True: "the key below is not shown again; ",
    False: "callers need one of the keys made before (another one: headrace keys create); ",
}


def ready_line(
    base_url: str,
    ready: Sequence[ModelStatus],
    on_demand: Sequence[ModelStatus],
    seconds: float,
    notice: KeyNotice | None = None,
) -> str:
    """Names the models that are `ready`, counts those that come `on_demand`, and suggests a request: a chat where a
    model chats, else an embedding. What a model that was not loaded yet does, nobody knows; most chat. `notice`: of a
    server that makes its first key itself."""
    ids = ", ".join(status.id for status in ready)
    names = " and ".join(filter(None, (ids, f"{len(on_demand)} on demand" if on_demand else "")))
    keys = _KEYS[notice.key is not None] if notice is not None else ""
    to_try = f"curl -s {base_url}{_request(ready, on_demand, _authorization(notice))}"
    return f"Headrace is ready at {base_url}/v1 with {names} after {seconds:.1f} s; {keys}try: {to_try}"


def _authorization(notice: KeyNotice | None) -> str:
    if notice is None:
        return ""
    return f' -H "authorization: Bearer {notice.key or "$HEADRACE_API_KEY"}"'


def _request(ready: Sequence[ModelStatus], on_demand: Sequence[ModelStatus], authorization: str) -> str:
    model = next((status for status in ready if Operation.CHAT in status.operations), (*ready, *on_demand)[0])
    operation, body = Operation.EMBEDDING, f'{{"model": "{model.id}", "input": "water"}}'
    if Operation.CHAT in model.operations or not model.operations:
        message = '{"role": "user", "content": "What is the capital of France?"}'
        operation, body = Operation.CHAT, f'{{"model": "{model.id}", "messages": [{message}]}}'
    return f"{operation.value}{authorization} -H 'content-type: application/json' -d '{body}'"
