"""How a body is sent: first a plan, made from the faults that hit it, then its steps, one after the other.

`plan_delivery` is pure. `deliver` sends: files by the kernel (`sendfile`), in blocks for which the link is asked, and
counts what the socket took. Offsets are those of the body, but for files those of the file.
"""

import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

from loadtests.origin.link import OpenLink, TokenBucket
from loadtests.origin.messages import FilePart


@dataclass(frozen=True, slots=True)
class Disturbance:
    """What happens to a body before its byte `at`: `action` there."""

    at: int
    action: "FlipByte | Pause | Break"


@dataclass(frozen=True, slots=True)
class FlipByte:
    """The next byte has a wrong bit."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing is sent for so long."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Break:
    """The connection ends here; `reset`: by RST, else in order."""

    reset: bool


@dataclass(frozen=True, slots=True)
class Send:
    """Bytes `begin` to `end` (not included); `flipped`: with their lowest bits wrong."""

    begin: int
    end: int
    flipped: bool = False


Step = Send | Pause | Break


class ConnectionBroken(Exception):
    """The connection is to be closed before the answer is complete, because a fault says so."""


@dataclass(frozen=True, slots=True)
class Wire:
    """Where a body goes: `sent` is told of every block that the socket took, `pause` sleeps."""

    connection: socket.socket
    link: OpenLink
    own_rate: TokenBucket | None
    sent: Callable[[int], None]
    pause: Callable[[float], None]


def plan_delivery(begin: int, end: int, disturbances: list[Disturbance]) -> list[Step]:
    """The steps that send bytes `begin` to `end` (not included) with what disturbs them; what lies outside does not."""
    steps: list[Step] = []
    for disturbance in sorted(disturbances, key=lambda disturbance: disturbance.at):
        if not begin <= disturbance.at < end:
            continue
        if begin < disturbance.at:
            steps.append(Send(begin, disturbance.at))
            begin = disturbance.at
        match disturbance.action:
            case FlipByte():
                steps.append(Send(begin, begin + 1, flipped=True))
                begin += 1
            case Pause() as pause:
                steps.append(pause)
            case Break() as end_of_connection:
                return [*steps, end_of_connection]
            case _:
                assert_never(disturbance.action)
    return [*steps, Send(begin, end)] if begin < end else steps


def deliver(body: bytes | FilePart, steps: list[Step], wire: Wire) -> None:
    """Send a body. Raises ConnectionBroken where the plan says so, and OSError when the client is gone."""
    if isinstance(body, bytes):
        _take_steps(_BytesSender(body), steps, wire)
        return
    descriptor = os.open(body.location, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _take_steps(_FileSender(descriptor), steps, wire)
    finally:
        os.close(descriptor)


class _BytesSender:
    """Sends from memory."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def send(self, connection: socket.socket, begin: int, end: int) -> int:
        return connection.send(self._data[begin:end])

    def read(self, begin: int, end: int) -> bytes:
        return bytes(self._data[begin:end])


class _FileSender:
    """Sends from a file, without copying."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def send(self, connection: socket.socket, begin: int, end: int) -> int:
        return os.sendfile(connection.fileno(), self._descriptor, begin, end - begin)

    def read(self, begin: int, end: int) -> bytes:
        return os.pread(self._descriptor, end - begin, begin)


def _take_steps(sender: _BytesSender | _FileSender, steps: list[Step], wire: Wire) -> None:
    for step in steps:
        match step:
            case Send(begin, end, flipped) if not flipped:
                _send(sender, begin, end, wire)
            case Send(begin, end):
                wrong = bytes(byte ^ 1 for byte in sender.read(begin, end))
                _send(_BytesSender(wrong), 0, len(wrong), wire)
            case Pause(seconds):
                wire.pause(seconds)
            case Break(reset):
                if reset:
                    # Closing with a linger time of 0 sends RST instead of FIN.
                    wire.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                raise ConnectionBroken
            case _:
                assert_never(step)


def _send(sender: _BytesSender | _FileSender, begin: int, end: int, wire: Wire) -> None:
    while begin < end:
        block_end = min(end, begin + wire.link.block_bytes)
        wire.link.wait_for_turn(block_end - begin, wire.own_rate)
        while begin < block_end:
            begin += _send_once(sender, begin, block_end, wire)


def _send_once(sender: _BytesSender | _FileSender, begin: int, end: int, wire: Wire) -> int:
    """How much the socket took. Counted before, and put right after: whoever has a body finds all of it counted."""
    wire.sent(end - begin)
    taken = 0
    try:
        taken = sender.send(wire.connection, begin, end)
    finally:
        wire.sent(taken - (end - begin))
    if taken == 0:
        raise ConnectionResetError("the file is shorter than it was")
    return taken
