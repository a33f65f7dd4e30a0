"""How long a model waits after it went wrong: a circuit breaker for each model.

A start that failed will most likely fail again (weights that do not fit, a bad argument), so it is not tried again at
once. An engine that died while it served may have met with bad luck, so the next one starts at once, twice; a model
whose engines keep dying costs others their processors and memory, so from the third death in a row there is a pause.
Pauses double from 10 s to 5 min. Trouble is in a row until a model has been up for `stable_seconds`.
"""

FIRST_PAUSE_SECONDS = 10.0  # no shorter than a start takes, so that a failing model has half of the time at most
LONGEST_PAUSE_SECONDS = 300.0  # how long a model may stay away after the cause is gone
FREE_RESTARTS = 2  # one fault of chance, and one that a request brings along that is sent again
STABLE_SECONDS = 300.0  # the longest pause: a model that lives as long as it has paused is no crash loop


class Restarts:
    """The `residency.RestartPolicy` of the module's docstring, for one model."""

    def __init__(self, *, stable_seconds: float = STABLE_SECONDS) -> None:
        """`stable_seconds`: trouble that comes so long after the model became ready is the first one again."""
        self._stable_seconds = stable_seconds
        self._ready_since: float | None = None
        self._num_failed_loads = 0
        self._num_deaths = 0

    def load_failed(self, now: float) -> float:
        """The engine did not start: seconds until it may be tried again."""
        self._forget_if_stable(now)
        self._num_failed_loads += 1
        return _pause_seconds(self._num_failed_loads)

    def died(self, now: float) -> float:
        """An engine that served is dead or hangs: seconds until the next one may start, 0 for at once."""
        self._forget_if_stable(now)
        self._num_deaths += 1
        return _pause_seconds(self._num_deaths - FREE_RESTARTS)

    def ready(self, now: float) -> None:
        """The engine serves. That it starts is proven, that it lives is not: deaths still count."""
        self._ready_since = now
        self._num_failed_loads = 0

    def _forget_if_stable(self, now: float) -> None:
        since, self._ready_since = self._ready_since, None
        if since is not None and now >= since + self._stable_seconds:
            self._num_deaths = 0


def _pause_seconds(num_troubles: int) -> float:
    """The pause after so many troubles that count; none without any."""
    pause = FIRST_PAUSE_SECONDS if num_troubles > 0 else 0.0
    for _ in range(num_troubles - 1):
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
    return pause
