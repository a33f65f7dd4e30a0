"""headrace_server.bench.process_table, listening and processes: /proc, and real processes in it."""

import os
import socket
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest

from headrace_server.bench.listening import Listener, eldest, find_server, loopback_addresses, parse_listeners
from headrace_server.bench.process_table import (
    CpuSource,
    Memory,
    ProcessEntry,
    ProcessId,
    ancestors,
    cpu_seconds,
    descendants,
    living_processes,
    memory_of,
    parse_memory,
    parse_stat,
)
from headrace_server.bench.processes import ServerProcesses
from tests.unit.headrace_server.bench_support import are_stopped, family

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")

TCP = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4242 1 0 100 0 0 10 0
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 17 1 0 100 0 0 10 0
   2: 0100007F:1F40 0100007F:9999 01 00000000:00000000 00:00000000 00000000  1000        0 18 1 0 100 0 0 10 0
"""
TCP6 = """  sl  local_address                         remote_address                        st and so on
   0: 00000000000000000000000001000000:1F40 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 99 1
"""


def entry(pid: int, parent: int, started: int = 0) -> ProcessEntry:
    return ProcessEntry(ProcessId(pid), ProcessId(parent), pid, "S", 0, started)


TABLE = {
    ProcessId(pid): entry(pid, parent, started)
    for pid, parent, started in ((1, 0, 0), (10, 1, 5), (11, 10, 6), (12, 11, 7), (20, 1, 4))
}


def test_a_process_name_with_parentheses_and_spaces_is_read_over() -> None:
    numbers = " ".join(str(number) for number in range(4, 53))
    found = parse_stat(f"42 (a) b (c)) S {numbers}")
    assert (found.pid, found.state, found.parent, found.group) == (42, "S", 4, 5)
    assert (found.cpu_ticks, found.started) == (14 + 15, 22)


def test_descendants_and_ancestors_are_found_over_generations_and_strangers_are_not() -> None:
    assert descendants(ProcessId(10), TABLE) == {10, 11, 12}
    assert descendants(ProcessId(99), TABLE) == set()
    assert ancestors(ProcessId(12), TABLE) == {12, 11, 10, 1}
    assert ancestors(ProcessId(99), TABLE) == set()


def test_memory_is_the_peak_what_is_resident_and_what_is_no_file_s() -> None:
    assert parse_memory("Name:\tx\nVmHWM:\t    8 kB\nVmRSS:\t 6 kB\nRssAnon:\t  4 kB\n") == Memory(8192, 6144, 4096)
    assert parse_memory("Name:\tkthreadd\n") == Memory(0, 0, 0)
    assert memory_of(ProcessId(2**22 + 1)) == Memory()
    assert 0 < memory_of(ProcessId(os.getpid())).anonymous_bytes <= memory_of(ProcessId(os.getpid())).peak_bytes


def test_listening_sockets_are_read_from_both_tables() -> None:
    assert list(parse_listeners(TCP)) == [
        Listener(ip_address("127.0.0.1"), 8000, 4242),
        Listener(ip_address("0.0.0.0"), 22, 17),
    ]
    assert list(parse_listeners(TCP6)) == [Listener(ip_address("::1"), 8000, 99)]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("bound", ["127.0.0.1", ""])
def test_the_server_of_a_loopback_url_is_the_process_that_listens_there(host: str, bound: str) -> None:
    with socket.create_server((bound, 0)) as listener:
        assert find_server(host, listener.getsockname()[1]) == os.getpid()


def test_an_ipv6_server_is_found() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        assert find_server("::1", listener.getsockname()[1]) == os.getpid()


def test_a_port_where_nobody_listens_and_an_address_elsewhere_have_no_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert find_server("192.0.2.1", port) is None
    assert find_server("127.0.0.1", port) is None
    assert loopback_addresses("no.such.host.invalid", 80) == set()


def test_of_a_server_and_the_children_that_inherited_its_socket_the_server_is_found() -> None:
    assert eldest({ProcessId(10), ProcessId(11), ProcessId(12)}, TABLE) == 10
    assert eldest({ProcessId(12), ProcessId(20)}, TABLE) == 20  # two that share a port: the one that was first
    assert eldest({ProcessId(99)}, TABLE) is None


def test_processor_time_of_threads_that_have_ended_counts() -> None:
    program = (
        "import threading, time\n"
        "def burn():\n"
        "    while time.thread_time() < 0.2: pass\n"
        "thread = threading.Thread(target=burn); thread.start(); thread.join()\n"
        "print('burnt', flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        seconds, source = cpu_seconds(living_processes()[ProcessId(process.pid)])
        process.communicate(b"\n")
    assert seconds >= 0.2
    assert source is CpuSource.CLOCK


def test_without_a_clock_of_the_process_its_ticks_count() -> None:
    ended = ProcessEntry(ProcessId(2**22 + 1), ProcessId(1), 1, "S", 150, 0)
    assert cpu_seconds(ended) == (150 / os.sysconf("SC_CLK_TCK"), CpuSource.TICKS)


async def test_pausing_stops_the_whole_family_and_resuming_continues_it(tmp_path: Path) -> None:
    with family(tmp_path) as (leader, child):
        processes = ServerProcesses(leader)
        assert processes.can_be_signalled
        await processes.pause()
        assert are_stopped(leader, child) == [True, True]
        processes.resume()
        assert are_stopped(leader, child) == [False, False]


async def test_a_child_that_outlives_its_leader_still_belongs_to_it(tmp_path: Path) -> None:
    with family(tmp_path) as (leader, child):
        processes = ServerProcesses(leader)
        assert {found.pid for found in processes.entries()} == {leader, child}
        os.kill(leader, 9)
        until_dead(leader)
        assert not processes.is_alive
        assert [found.pid for found in processes.entries()] == [child]
        await processes.kill()
        assert processes.entries() == []


def until_dead(pid: ProcessId) -> None:
    """Until it has ended; its own parent collects it."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def test_this_program_never_belongs_to_what_it_measures() -> None:
    """A script may have started the server and this program in one group, or this program from the server."""
    parent = ServerProcesses(ProcessId(os.getppid()))
    assert os.getpid() not in {found.pid for found in parent.entries()}
    assert os.getppid() not in {found.pid for found in parent.entries()}


def test_memory_of_the_server_is_part_of_the_sum_over_its_family(tmp_path: Path) -> None:
    with family(tmp_path) as (leader, _):
        own, together = ServerProcesses(leader).memory()
    assert 0 < own.peak_bytes < together.peak_bytes
    assert 0 < own.anonymous_bytes < together.anonymous_bytes


def test_a_process_that_is_not_there_has_nothing() -> None:
    nobody = ServerProcesses(ProcessId(2**22 + 1))
    assert not nobody.is_alive
    assert not nobody.can_be_signalled
    assert nobody.entries() == []
