"""Which start of the machine this is: what was written but not flushed survives a process, not the machine."""

import ctypes
import sys
from pathlib import Path

from headrace_models.errors import StoreUnusable

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def current_boot_id() -> str:
    """The same text until the machine starts again, another one after that; shared by all containers of a host.

    Raises StoreUnusable where the system does not tell.
    """
    boot_id = _from_sysctl() if sys.platform == "darwin" else _from_proc()
    if not boot_id:
        raise StoreUnusable("the system does not tell when it was started, so the model cache cannot survive a crash")
    return boot_id


def _from_proc() -> str:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _from_sysctl() -> str:
    size = ctypes.c_size_t(128)
    buffer = ctypes.create_string_buffer(size.value)
    library = ctypes.CDLL(None, use_errno=True)
    if library.sysctlbyname(b"kern.bootsessionuuid", buffer, ctypes.byref(size), None, ctypes.c_size_t(0)) != 0:
        return ""
    return buffer.value.decode("ascii", errors="replace")
