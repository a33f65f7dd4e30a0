"""What a client is told when the queue does not serve its request.

A hint when to come back is spread a little, so that those who were sent away together do not return together, and stays
under the two minutes beyond which the common SDKs do not come back at all.
"""

import math
import random
from typing import assert_never

from headrace_server.domain import ModelId
from headrace_server.errors import Contended, DeadlineExpired, DeadlineUnmeetable, RequestError
from headrace_server.queueing import Refusal, RefusalReason

MAX_RETRY_SECONDS = 120.0
_SPREAD = 0.1
_MOST_SPREAD_SECONDS = 0.5  # hints are spaced already, and who comes late finds another in its place
_UNKNOWN_RETRY_SECONDS = 1.0


class Refusals:
    """Makes errors of refusals; `chance` spreads the hints."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def error(self, refusal: Refusal, model: ModelId) -> RequestError:
        """What the client is told."""
        match refusal.reason:
            case RefusalReason.DEADLINE_EXPIRED:
                return DeadlineExpired(f"the deadline has passed before the model {model!r} was done with the request")
            case RefusalReason.DEADLINE_UNMEETABLE:
                return DeadlineUnmeetable(f"the model {model!r} has too much to do to meet this request's deadline")
            case RefusalReason.QUEUE_FULL:
                return self._contended(refusal, f"too many requests wait for the model {model!r}")
            case RefusalReason.TENANT_QUEUE_FULL:
                return self._contended(refusal, f"too many of your requests wait for the model {model!r}")
            case RefusalReason.WAIT_TOO_LONG:
                return self._contended(refusal, f"the wait for the model {model!r} is too long at present")
            case _:
                assert_never(refusal.reason)

    def _contended(self, refusal: Refusal, message: str) -> Contended:
        seconds = _UNKNOWN_RETRY_SECONDS if refusal.retry_after_seconds is None else refusal.retry_after_seconds
        return Contended(message, code=refusal.reason, retry_after_seconds=self._spread(seconds))

    def _spread(self, seconds: float) -> float:
        """Up to a tenth or half a second later, in whole milliseconds."""
        later = seconds + min(_SPREAD * seconds, _MOST_SPREAD_SECONDS) * self._chance.random()
        return min(MAX_RETRY_SECONDS, math.ceil(later * 1000) / 1000)
