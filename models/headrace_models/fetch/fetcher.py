"""Several connections at once bring a model's chunks into the store, until everything asked for is there.

Threads: each takes a run from the plan, reads it and puts its chunks; the caller's thread looks for readers' demands,
reports progress and decides when it is over. The plan is touched under one lock; hashing and writing are not. What a
source cannot do now is tried again as long as patience lasts; a chunk that arrives with another digest than its own is
thrown away and asked for again; everything else ends the fetch. Nothing is lost then: what has arrived stays.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from headrace_models.errors import DigestMismatch, SourceUnavailable
from headrace_models.fetch.pace import BandwidthLimit, is_straggling
from headrace_models.fetch.patience import Patience
from headrace_models.fetch.plan import FetchPlan, Run
from headrace_models.fetch.transfer import arriving
from headrace_models.seek_index import SeekIndex
from headrace_models.sources.base import Body, Source, SourceFile
from headrace_models.store.model_writer import ModelWriter

TICK_SECONDS = 0.02
MAX_WRONG_TIMES = 3


@dataclass(frozen=True, slots=True)
class Transport:
    """What a fetch may use: the source, the shards as it lists them, how many connections, how fast, how long, and
    after how many seconds a connection that brings next to nothing is given up."""

    source: Source
    shards: tuple[SourceFile, ...]
    num_connections: int
    limit: BandwidthLimit
    patience: Patience
    stall_seconds: float


class Fetcher:
    """One fetch of one model."""

    def __init__(
        self,
        index: SeekIndex,
        plan: FetchPlan,
        writer: ModelWriter,
        transport: Transport,
        *,
        make_room: Callable[[int], None],
    ) -> None:
        """`make_room` is called with all that is to come when a demand adds to it; there is room for `plan` already."""
        self._index = index
        self._make_room = make_room
        self._plan = plan
        self._writer = writer
        self._transport = transport
        self._wrong_times: Counter[tuple[int, int]] = Counter()
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._stop = threading.Event()
        self.fetched_bytes = 0

    def run(self, *, on_tick: Callable[[], None], is_over: Callable[[bool], bool]) -> None:
        """Fetch until `is_over(whether the plan is done)`; `on_tick` is called every TICK_SECONDS.

        Raises ModelError: the first one that a thread could do nothing about.
        """
        num_connections = self._transport.num_connections
        with ThreadPoolExecutor(num_connections + 1, thread_name_prefix="fetch") as threads:
            working = [threads.submit(self._take_runs) for _ in range(num_connections)]
            working.append(threads.submit(self._prove))
            try:
                while not is_over(self._plan.is_done):
                    self._take_demands()
                    on_tick()
                    for ended in (thread for thread in working if thread.done()):
                        ended.result()
                    time.sleep(TICK_SECONDS)
            finally:
                self._end()

    def _end(self) -> None:
        self._stop.set()
        with self._work:
            is_done = self._plan.is_done
            self._work.notify_all()
        if not is_done:
            self._transport.source.close()  # whoever waits for bytes waits no longer

    def _take_demands(self) -> None:
        demands = self._writer.take_wanted()
        if not demands:
            return
        with self._lock:
            more_bytes = self._plan.left_out_bytes(demands)
            open_bytes = self._plan.open_bytes if more_bytes else 0
        if more_bytes:
            self._make_room(open_bytes + more_bytes)
        with self._work:
            for file, chunks in demands:
                self._plan.want(file, chunks)
            self._work.notify_all()

    def _take_runs(self) -> None:
        while not self._stop.is_set():
            with self._work:
                run = self._plan.next_run()
                if run is None:
                    self._work.wait(timeout=TICK_SECONDS * 5)
                    continue
            self._transfer(run)

    def _prove(self) -> None:
        """Hash what whole-file digests vouch for behind the bytes as they come; at the end it would take longer."""
        while not self._stop.is_set():
            if not self._writer.advance_proofs():
                self._stop.wait(TICK_SECONDS)

    def _transfer(self, run: Run) -> None:
        """Bring one run; what did not arrive waits again."""
        self._transport.patience.asked()
        try:
            with self._transport.source.read(self._transport.shards[run.file], run.begin_byte, run.end_byte) as body:
                if (body.begin, body.end) == (run.begin_byte, run.end_byte):
                    self._keep(run.file, body)
                else:
                    self._stream(run.file, body)
        except SourceUnavailable as error:
            self._give_back(run)
            if not self._stop.is_set():
                self._stop.wait(self._transport.patience.wait_seconds(error))
        else:
            self._give_back(run)

    def _stream(self, file: int, body: Body) -> None:
        """The source ignores ranges: one thread keeps the whole shard, the others leave it alone."""
        with self._lock:
            claimed = self._plan.claim_stream(file)
        if claimed is None:
            return
        try:
            self._keep(file, body)
        finally:
            with self._lock:
                self._plan.release_stream(file)

    def _keep(self, file: int, body: Body) -> None:
        layout = self._index.layouts[file]
        count = self._counter()
        for chunk in arriving(
            body, layout, is_wanted=lambda number: self._plan.is_needed(file, number), on_bytes=count
        ):
            try:
                self._writer.put(file, chunk.number, chunk.data)
            except DigestMismatch as error:
                self._note_wrong(file, chunk.number, error)
            else:
                self._transport.patience.kept()
                with self._lock:
                    self._plan.settle(file, chunk.number)
            if self._stop.is_set():
                return

    def _counter(self) -> Callable[[int], None]:
        """Counts the bytes of one answer as they come, and keeps them to the limit. What it returns raises
        SourceUnavailable when they come far too slowly."""
        began, began_bytes, own_bytes = time.monotonic(), self.fetched_bytes, 0

        def count(num_bytes: int) -> None:
            nonlocal own_bytes
            own_bytes += num_bytes
            self._transport.patience.progress()
            with self._lock:
                self.fetched_bytes += num_bytes
                all_bytes = self.fetched_bytes - began_bytes
            self._transport.limit.take(num_bytes)
            if is_straggling(
                own_bytes,
                all_bytes,
                num_connections=self._transport.num_connections,
                seconds=time.monotonic() - began,
                after_seconds=self._transport.stall_seconds,
            ):
                raise SourceUnavailable("one connection brought next to nothing while others did")

        return count

    def _note_wrong(self, file: int, chunk: int, error: DigestMismatch) -> None:
        with self._lock:
            self._wrong_times[file, chunk] += 1
            times = self._wrong_times[file, chunk]
        if times >= MAX_WRONG_TIMES:
            raise error

    def _give_back(self, run: Run) -> None:
        with self._work:
            self._plan.give_back(run.file, range(run.first, run.end))
            self._work.notify_all()
