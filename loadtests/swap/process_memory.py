"""What a process tree takes of the machine's memory, seen from outside (Linux).

PSS counts each shared page once, in equal parts for those who share it, so it may be added up. vLLM writes all of its
KV cache when it makes it, so nothing of what an engine has reserved is left out.
"""

import re
from collections.abc import Iterable
from contextlib import suppress

from headrace_server.bench.process_table import PROC, ProcessEntry

_PSS = re.compile(r"^Pss:\s+(\d+) kB$", re.MULTILINE)
_KIB = 1024


def pss_bytes(entries: Iterable[ProcessEntry]) -> int:
    """The sum over processes; one that has ended takes nothing."""
    return sum(map(_pss_bytes, entries))


def _pss_bytes(entry: ProcessEntry) -> int:
    with suppress(OSError):
        return parse_pss((PROC / str(entry.pid) / "smaps_rollup").read_text(encoding="utf-8"))
    return 0


def parse_pss(text: str) -> int:
    """What a /proc/PID/smaps_rollup says, in bytes; a kernel thread has none."""
    found = _PSS.search(text)
    return int(found[1]) * _KIB if found else 0
