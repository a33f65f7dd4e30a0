"""The request batcher: before each model's engine a queue of its own, in the order that its policy decides.

The door is here. A request whose tenant has used up its tokens, or that the queue has no place for, is turned away
before anything is spent on it. What computes no prompt (counting tokens, for example) takes no place in a queue.
"""

from collections.abc import Callable, Iterator

from headrace_server.domain import GENERATING, POOLING, EngineRequest, ModelId, ServiceClass
from headrace_server.observability.request_metrics import QueueCounts
from headrace_server.queueing import QueuePolicy, Refusal, Stage
from headrace_server.serving.accounts import Accounts, Customer
from headrace_server.serving.admission import Occupant, OpenAdmission, Place
from headrace_server.serving.model_queue import ModelQueue, ModelQueueView
from headrace_server.serving.refusals import Refusals

_QUEUED = GENERATING | POOLING


class Batcher:
    """The `Admission` of the module's docstring; `build_policy` makes the policy of one model's queue."""

    def __init__(self, build_policy: Callable[[], QueuePolicy], accounts: Accounts, refusals: Refusals) -> None:
        self._build_policy = build_policy
        self._accounts = accounts
        self._refusals = refusals
        self._queues: dict[ModelId, ModelQueue] = {}
        self._unqueued = OpenAdmission()

    def enter(self, request: EngineRequest, occupant: Occupant) -> Place:
        """See `Admission.enter`.

        Raises:
            QuotaExceeded: the tenant has used up its tokens.
            Contended: the queue has no place, or the wait would be too long.
        """
        queue = self._queue(request.model)
        customer = Customer(request.caller.tenant, request.service_class, request.model)
        self._accounts.check(customer, queue.now())
        if request.operation not in _QUEUED:
            return self._unqueued.enter(request, occupant)
        account = self._accounts.open(customer, queue.now())
        place = queue.arrive(request, occupant, account)
        if isinstance(place, Refusal):
            account.count_refusal(place.reason)
            raise self._refusals.error(place, request.model)
        return place

    def _queue(self, model: ModelId) -> ModelQueue:
        if model not in self._queues:
            self._queues[model] = ModelQueue(model, self._build_policy(), self._refusals)
        return self._queues[model]

    @property
    def num_places(self) -> int:
        """Requests that have entered and are not over."""
        return sum(queue.num_places for queue in self._queues.values()) + self._unqueued.num_tickets

    def counts(self) -> QueueCounts:
        """How many requests wait and run, by model and class."""
        return dict(self._counts())

    def _counts(self) -> Iterator[tuple[tuple[ModelId, ServiceClass], tuple[int, int]]]:
        for model, queue in self._queues.items():
            for service_class in ServiceClass:
                waiting, running = (queue.count(service_class, stage) for stage in (Stage.WAITING, Stage.RUNNING))
                yield (model, service_class), (waiting, running)

    def views(self) -> tuple[ModelQueueView, ...]:
        """Every queue as it stands now."""
        return tuple(queue.view() for queue in self._queues.values())

    def check_integrity(self) -> None:
        """Raise AssertionError if the books of a queue do not agree."""
        for queue in self._queues.values():
            queue.check_integrity()
