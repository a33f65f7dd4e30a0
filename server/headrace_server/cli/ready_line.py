"""The one line that says where the server is and how to try it, printed once the models that are loaded at startup have
been tried."""

from collections.abc import Sequence

from headrace_server.domain import ModelStatus, Operation


def ready_line(base_url: str, ready: Sequence[ModelStatus], on_demand: Sequence[ModelStatus], seconds: float) -> str:
    """Names the models that are `ready`, counts those that come `on_demand`, and suggests a request: a chat where a
    model chats, else an embedding. What a model that was not loaded yet does, nobody knows; most chat."""
    ids = ", ".join(status.id for status in ready)
    names = " and ".join(filter(None, (ids, f"{len(on_demand)} on demand" if on_demand else "")))
    to_try = _request(base_url, ready, on_demand)
    return f"Headrace is ready at {base_url}/v1 with {names} after {seconds:.1f} s; try: {to_try}"


def _request(base_url: str, ready: Sequence[ModelStatus], on_demand: Sequence[ModelStatus]) -> str:
    model = next((status for status in ready if Operation.CHAT in status.operations), (*ready, *on_demand)[0])
    operation, body = Operation.EMBEDDING, f'{{"model": "{model.id}", "input": "water"}}'
    if Operation.CHAT in model.operations or not model.operations:
        message = '{"role": "user", "content": "What is the capital of France?"}'
        operation, body = Operation.CHAT, f'{{"model": "{model.id}", "messages": [{message}]}}'
    return f"curl -s {base_url}{operation.value} -H 'content-type: application/json' -d '{body}'"
