"""A TCP proxy that cuts connections, or holds them, when a client has sent so many bytes."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field

_BLOCK_BYTES = 64 << 10


@dataclass(eq=False)
class CuttingProxy:
    """`cut_after`: how many bytes of a client pass before its connection is cut; one for each connection that sends so
    many. `hold_after`: connections say nothing more after so many, and `held` is set."""

    address: str
    cut_after: list[int] = field(default_factory=list)
    hold_after: int | None = None
    held: threading.Event = field(default_factory=threading.Event)
    num_cut: int = 0
    ended: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def may_pass(self, sent_bytes: int) -> bool:
        """Whether a connection whose client has sent so many bytes goes on; waits where it is held."""
        if self.hold_after is not None and sent_bytes > self.hold_after:
            self.held.set()
            self.ended.wait()
            return False
        with self.lock:
            if self.cut_after and sent_bytes > self.cut_after[0]:
                self.cut_after.pop(0)
                self.num_cut += 1
                return False
        return True


@contextmanager
def running_cutting_proxy(target: str) -> Iterator[CuttingProxy]:
    """A proxy for `target` (host:port) on a free port of 127.0.0.1."""
    host, _colon, port = target.rpartition(":")
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        proxy = CuttingProxy(f"127.0.0.1:{listener.getsockname()[1]}")
        acceptor = threading.Thread(target=_accept, args=(listener, (host, int(port)), proxy), daemon=True)
        acceptor.start()
        try:
            yield proxy
        finally:
            proxy.ended.set()
            listener.shutdown(socket.SHUT_RDWR)
            acceptor.join()


def _accept(listener: socket.socket, target: tuple[str, int], proxy: CuttingProxy) -> None:
    while not proxy.ended.is_set():
        try:
            client, _address = listener.accept()
        except OSError:
            return
        server = socket.create_connection(target)
        for source, sink, is_client in ((client, server, True), (server, client, False)):
            threading.Thread(target=_pump, args=(source, sink, proxy, is_client), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket, proxy: CuttingProxy, is_client: bool) -> None:
    sent_bytes = 0
    with suppress(OSError):
        while data := source.recv(_BLOCK_BYTES):
            sent_bytes += len(data)
            if is_client and not proxy.may_pass(sent_bytes):
                break
            sink.sendall(data)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
    if not is_client:
        source.close()
        sink.close()
