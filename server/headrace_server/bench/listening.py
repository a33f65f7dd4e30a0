"""Finds the process that serves a URL of this machine: who has the listening socket open, as /proc tells (Linux)."""

import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TypeAlias

from headrace_server.bench.process_table import (
    PROC,
    ProcessEntry,
    ProcessId,
    ancestors,
    living_processes,
    process_folders,
)

IpAddress: TypeAlias = IPv4Address | IPv6Address

_LISTEN = "0A"


@dataclass(frozen=True, slots=True)
class Listener:
    """A TCP socket that listens."""

    address: IpAddress
    port: int
    inode: int


def find_server(host: str, port: int) -> ProcessId | None:
    """The process that listens on a loopback address; None where the address is another machine's, or nobody's we may
    look into. A server whose children inherited its socket is found, not they.
    """
    addresses = loopback_addresses(host, port)
    inodes = {found.inode for found in listeners() if found.port == port and _serves(found.address, addresses)}
    return eldest(holders_of(inodes), living_processes()) if addresses and inodes else None


def loopback_addresses(host: str, port: int) -> set[IpAddress]:
    """What a host name means, if that is this machine itself; else nothing."""
    try:
        found = {ip_address(str(info[4][0])) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, ValueError):
        return set()
    return found if all(address.is_loopback for address in found) else set()


def _serves(bound: IpAddress, wanted: set[IpAddress]) -> bool:
    return bound in wanted or bound.is_unspecified


def eldest(holders: set[ProcessId], table: Mapping[ProcessId, ProcessEntry]) -> ProcessId | None:
    """The one that no other of them started; where several did not, the one that started first."""
    roots = [pid for pid in holders & table.keys() if not (ancestors(table[pid].parent, table) & holders)]
    return min(roots, key=lambda pid: (table[pid].started, pid), default=None)


def listeners() -> Iterator[Listener]:
    """Every TCP socket of this network namespace that listens."""
    for name in ("tcp", "tcp6"):
        with suppress(OSError):
            yield from parse_listeners((PROC / "net" / name).read_text(encoding="utf-8"))


def parse_listeners(text: str) -> Iterator[Listener]:
    """The listening ones among the lines of a /proc/net/tcp or tcp6."""
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == _LISTEN:
            address, _, port = fields[1].rpartition(":")
            yield Listener(_kernel_address(address), int(port, 16), int(fields[9]))


def _kernel_address(digits: str) -> IpAddress:
    """An address as the kernel prints it: 32-bit words, each in the byte order of this machine."""
    words = [int(digits[place : place + 8], 16) for place in range(0, len(digits), 8)]
    return ip_address(b"".join(word.to_bytes(4, sys.byteorder) for word in words))


def holders_of(inodes: set[int]) -> set[ProcessId]:
    """The processes that have one of these sockets open, as far as we may look into them."""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    return {ProcessId(int(folder.name)) for folder in process_folders() if not wanted.isdisjoint(_open_files(folder))}


def _open_files(process: Path) -> Iterator[str]:
    with suppress(OSError):
        for link in (process / "fd").iterdir():
            with suppress(OSError):
                yield str(link.readlink())
