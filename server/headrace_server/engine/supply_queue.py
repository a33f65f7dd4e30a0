"""Which model is fetched next. Pure and synchronous: `model_supply` asks, and does it.

Models that engines wait for go first, in the order in which they were asked for; then those that are only ordered in
advance. A model is in each of the two lists once at most, and in none once it has been taken.
"""

from headrace_server.domain import ModelId


class FetchQueue:
    """Models to be fetched."""

    def __init__(self) -> None:
        self._wanted: list[ModelId] = []
        self._ordered: list[ModelId] = []

    @property
    def has_wanted(self) -> bool:
        """Whether an engine waits for any of them."""
        return bool(self._wanted)

    def want(self, model: ModelId) -> None:
        """An engine waits for it."""
        if model not in self._wanted:
            self._wanted.append(model)

    def unwant(self, model: ModelId) -> None:
        """No engine waits for it any more; if it was ordered in advance too, it still is."""
        if model in self._wanted:
            self._wanted.remove(model)

    def order(self, model: ModelId) -> None:
        """Fetch it in advance, as the last."""
        if model not in self._ordered:
            self._ordered.append(model)

    def put_back(self, model: ModelId) -> None:
        """It was taken, and had to make way: fetch it in advance, as the first."""
        if model in self._ordered:
            self._ordered.remove(model)
        self._ordered.insert(0, model)

    def take(self) -> ModelId | None:
        """What to fetch now; None: nothing."""
        for models in (self._wanted, self._ordered):
            if models:
                model = models[0]
                self._remove(model)
                return model
        return None

    def _remove(self, model: ModelId) -> None:
        for models in (self._wanted, self._ordered):
            if model in models:
                models.remove(model)
