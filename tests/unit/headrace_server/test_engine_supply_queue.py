"""Which model is fetched next."""

from headrace_server.domain import ModelId
from headrace_server.engine.supply_queue import FetchQueue

A, B, C = ModelId("a"), ModelId("b"), ModelId("c")


def taken(queue: FetchQueue) -> list[ModelId]:
    models = []
    while (model := queue.take()) is not None:
        models.append(model)
    return models


def test_what_is_ordered_comes_in_the_order_of_its_ordering_and_once() -> None:
    queue = FetchQueue()
    for model in (B, A, B, C):
        queue.order(model)
    assert taken(queue) == [B, A, C]


def test_what_is_wanted_goes_before_what_is_ordered() -> None:
    queue = FetchQueue()
    queue.order(A)
    queue.order(B)
    queue.want(C)
    queue.want(B)
    assert queue.has_wanted
    assert taken(queue) == [C, B, A]
    assert not queue.has_wanted


def test_what_is_not_wanted_any_more_is_still_ordered_if_it_was() -> None:
    queue = FetchQueue()
    queue.want(A)
    queue.order(A)
    queue.want(B)
    queue.unwant(A)
    queue.unwant(B)
    queue.unwant(B)
    assert taken(queue) == [A]


def test_what_is_taken_is_in_neither_list_any_more() -> None:
    queue = FetchQueue()
    queue.want(A)
    queue.order(A)
    assert taken(queue) == [A]


def test_what_had_to_make_way_is_the_first_of_the_ordered_ones() -> None:
    queue = FetchQueue()
    queue.order(A)
    queue.order(B)
    queue.want(C)
    queue.put_back(B)
    assert taken(queue) == [C, B, A]
