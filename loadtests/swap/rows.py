"""The rows of `bench-swap`: their names, in the order in which they are measured, and who measures them."""

from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum

from loadtests.swap.cold_start import measure_cold_start
from loadtests.swap.compiled_start import measure_compiled
from loadtests.swap.engine_kill import measure_restart
from loadtests.swap.exchange import measure_swap
from loadtests.swap.findings import Findings
from loadtests.swap.memory import measure_memory
from loadtests.swap.orders import measure_orders
from loadtests.swap.rush import measure_rush
from loadtests.swap.setting import Setting


class RowName(StrEnum):
    """What is measured."""

    COLD_START = "cold-start"
    SWAP = "swap"
    RESTART = "restart"
    COMPILED = "compiled"
    RUSH = "rush"
    ORDERS = "orders"
    MEMORY = "memory"


MEASUREMENTS: Mapping[RowName, Callable[[Setting], Awaitable[Findings]]] = {
    RowName.COLD_START: measure_cold_start,
    RowName.SWAP: measure_swap,
    RowName.RESTART: measure_restart,
    RowName.COMPILED: measure_compiled,
    RowName.RUSH: measure_rush,
    RowName.ORDERS: measure_orders,
    RowName.MEMORY: measure_memory,
}
