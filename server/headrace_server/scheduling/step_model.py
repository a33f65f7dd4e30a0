"""How long an engine's steps take: `a + b · decoding sequences + c · prompt tokens`, fitted to its own counters.

Least squares over windows between two looks at the counters, each window weighted by its steps and forgotten
exponentially; no coefficient is negative, whatever comes. Until the number of sequences has changed, a and b cannot be
told apart: what they explain together is a's, so that nobody concludes that fewer sequences would be faster.
"""

from dataclasses import dataclass

from headrace_server.domain import EngineStats

_FORGOTTEN_HALF_AFTER_STEPS = 2000
_RECENT_HALF_AFTER_STEPS = 16
_KNOWN_AFTER_STEPS = 16
_STEPS_BETWEEN_FITS = 8
_NUM_SWEEPS = 12  # each starts from the last result, so a few for each window are enough
_RIDGE = 1e-4  # of a coefficient's own weight: keeps one that nothing speaks for at 0


@dataclass(frozen=True, slots=True)
class StepTimes:
    """The coefficients, in seconds: of a step, of a sequence that decodes in it, of a prompt token computed in it."""

    per_step: float
    per_sequence: float
    per_prompt_token: float

    def decode_seconds(self, num_sequences: int) -> float:
        """Of a step that only decodes."""
        return self.per_step + self.per_sequence * num_sequences

    def seconds_per_output_token(self, num_sequences: int) -> float:
        """Of the engine's time, where so many sequences share its steps."""
        return self.per_step / max(1, num_sequences) + self.per_sequence


class StepModel:
    """Learns `StepTimes` from the counters of one engine. `recent_seconds`: the mean of the last steps, whatever was in
    them; None: there was none."""

    def __init__(self) -> None:
        self._last: EngineStats | None = None
        self._num_steps = self._num_steps_unused = 0
        self.recent_seconds: float | None = None
        self._matrix = [[0.0] * 3 for _ in range(3)]
        self._vector = [0.0] * 3
        self._coefficients = [0.0] * 3

    @property
    def times(self) -> StepTimes | None:
        """None: not enough has been seen."""
        if self._num_steps < _KNOWN_AFTER_STEPS:
            return None
        return StepTimes(*self._coefficients)

    def observe(self, stats: EngineStats) -> None:
        """Count what has happened since the last look, if anything has."""
        last, self._last = self._last, stats
        if last is None or stats.num_steps_total < last.num_steps_total:
            return
        num_steps = stats.num_steps_total - last.num_steps_total
        seconds = stats.step_seconds_total - last.step_seconds_total
        if num_steps == 0:
            self._last = last
        elif seconds > 0:
            decoded = stats.decode_tokens_total - last.decode_tokens_total
            prefilled = stats.prefill_tokens_total - last.prefill_tokens_total
            self._count((float(num_steps), float(decoded), float(prefilled)), seconds)

    def _count(self, amounts: tuple[float, float, float], seconds: float) -> None:
        num_steps = amounts[0]
        lately = 0.5 ** (num_steps / _RECENT_HALF_AFTER_STEPS) if self.recent_seconds is not None else 0.0
        self.recent_seconds = lately * (self.recent_seconds or 0.0) + (1 - lately) * seconds / num_steps
        kept = 0.5 ** (num_steps / _FORGOTTEN_HALF_AFTER_STEPS)
        for row, amount in enumerate(amounts):
            self._vector[row] = kept * self._vector[row] + amount * seconds / num_steps
            for column, other in enumerate(amounts):
                self._matrix[row][column] = kept * self._matrix[row][column] + amount * other / num_steps
        self._num_steps += int(num_steps)
        self._num_steps_unused += int(num_steps)
        if self._num_steps_unused >= _STEPS_BETWEEN_FITS:
            self._num_steps_unused = 0
            for _ in range(_NUM_SWEEPS):
                self._sweep()

    def _sweep(self) -> None:
        """Improve each coefficient given the others (coordinate descent of non-negative least squares)."""
        for row, products in enumerate(self._matrix):
            if products[row] <= 0:
                continue
            others = sum(products[k] * self._coefficients[k] for k in range(3) if k != row)
            own = products[row] * (1 + (_RIDGE if row else 0))
            self._coefficients[row] = max(0.0, (self._vector[row] - others) / own)
