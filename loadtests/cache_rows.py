"""The rows of `bench-cache`: their names, in the order in which they are measured, and who measures them."""

from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum

from loadtests.cache_bytes import measure_bytes
from loadtests.cache_fetching import measure_fetching
from loadtests.cache_findings import Findings
from loadtests.cache_first_token import measure_first_token
from loadtests.cache_kill import measure_kill
from loadtests.cache_readers import measure_readers
from loadtests.cache_second_start import measure_second_start
from loadtests.cache_setting import Setting
from loadtests.cache_swap import measure_swap
from loadtests.cache_verification import measure_verification


class RowName(StrEnum):
    """What is measured."""

    FIRST_TOKEN = "first-token"
    BYTES = "bytes"
    KILL = "kill"
    READERS = "readers"
    SECOND_START = "second-start"
    VERIFICATION = "verification"
    SWAP = "swap"
    FETCH = "fetch"


MEASUREMENTS: Mapping[RowName, Callable[[Setting], Awaitable[Findings]]] = {
    RowName.FIRST_TOKEN: measure_first_token,
    RowName.BYTES: measure_bytes,
    RowName.KILL: measure_kill,
    RowName.READERS: measure_readers,
    RowName.SECOND_START: measure_second_start,
    RowName.VERIFICATION: measure_verification,
    RowName.SWAP: measure_swap,
    RowName.FETCH: measure_fetching,
}
