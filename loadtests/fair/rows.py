"""The rows of the virtual half of `bench_fair`: their names, in their order, and who measures them."""

from collections.abc import Callable, Mapping
from enum import StrEnum

from loadtests.fair.comebacks import measure_burst, measure_stampede
from loadtests.fair.deadlines import measure_deadlines
from loadtests.fair.disconnects import measure_disconnects
from loadtests.fair.findings import Findings
from loadtests.fair.flood import measure_flood
from loadtests.fair.overload import measure_overload
from loadtests.fair.replay import measure_trace
from loadtests.fair.scale import Scale
from loadtests.fair.shares import measure_keys, measure_return, measure_shares, measure_weights
from loadtests.fair.waits import measure_waits


class RowName(StrEnum):
    """What is measured. REAL: on vLLM; all others are virtual."""

    FLOOD = "flood"
    SHARES = "shares"
    WEIGHTS = "weights"
    KEYS = "keys"
    RETURN = "return"
    OVERLOAD = "overload"
    BURST = "burst"
    STAMPEDE = "stampede"
    DEADLINES = "deadlines"
    WAITS = "waits"
    DISCONNECTS = "disconnects"
    TRACE = "trace"
    REAL = "real"


VIRTUAL: Mapping[RowName, Callable[[Scale], Findings]] = {
    RowName.FLOOD: measure_flood,
    RowName.SHARES: measure_shares,
    RowName.WEIGHTS: measure_weights,
    RowName.KEYS: measure_keys,
    RowName.RETURN: measure_return,
    RowName.OVERLOAD: measure_overload,
    RowName.BURST: measure_burst,
    RowName.STAMPEDE: measure_stampede,
    RowName.DEADLINES: measure_deadlines,
    RowName.WAITS: measure_waits,
    RowName.DISCONNECTS: measure_disconnects,
    RowName.TRACE: measure_trace,
}
