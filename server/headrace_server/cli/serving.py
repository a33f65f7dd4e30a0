"""`headrace serve`: bind, run, say when it is ready, end cleanly.

The port is bound before anything slow happens, so that a port in use is one line at once. uvicorn runs inside our
loop; its signal handling is replaced, because it re-raises the signal after its shutdown. Here the first Ctrl-C or
SIGTERM drains the server, which ends at once where nothing is open, and exits 0; the second cuts what is still open,
the third waits for nothing.
"""

import asyncio
import gc
import signal
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import typer
import uvicorn

from headrace_server.api.ending import Ending
from headrace_server.api.health import can_serve
from headrace_server.api.metrics import metrics_app
from headrace_server.api.middleware import HttpLimits
from headrace_server.app import HttpOptions, create_app, create_control_app
from headrace_server.catalog import model_settings_of
from headrace_server.cli.busy_threads import BusyThreads, leave
from headrace_server.cli.control_socket import control_listener
from headrace_server.cli.first_key import KeyNotice, make_first_key
from headrace_server.cli.http_front import HttpFront
from headrace_server.cli.listener import bind
from headrace_server.cli.ready_line import ready_line
from headrace_server.domain import ModelState, ModelStatus
from headrace_server.errors import UsageError
from headrace_server.observability.logging import configure_logging
from headrace_server.runtime import Plan, Progress, Reporting, Runtime, open_runtime, plan_runtime
from headrace_server.settings.loading import load_settings
from headrace_server.settings.schema import (
    LogFormat,
    ServerSettings,
    Settings,
    TelemetrySettings,
    TlsSettings,
    is_loopback,
)

# For answers that are being sent once nothing is open any more.
_GRACEFUL_SECONDS = 5

# What stands for every address is none that a client can be told.
_LOOPBACK_OF = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def run_server(
    config: Path | None, references: list[str], flags: Mapping[str, object], *, make_key: bool = False
) -> int:
    """Serve until a signal. Returns the exit code. `make_key`: see `first_key`.

    Raises:
        UsageError: anything that is wrong before the server runs.
    """
    models = {"models": [model_settings_of(reference) for reference in references]} if references else {}
    settings = load_settings(config=config, flags={**models, **flags})
    setup_logging(settings.telemetry)
    notice = make_first_key(settings) if make_key else None
    plan = plan_runtime(settings)
    check_tls(settings.server.tls)
    threads = BusyThreads()
    with (
        _bind(settings.server, settings.server.port) as listener,
        control_listener(settings.server.state_dir, listener.getsockname()[1]) as control,
        asyncio.Runner(loop_factory=_new_event_loop()) as runner,
    ):
        runner.get_loop().set_default_executor(threads)
        try:
            exit_code = runner.run(ServerProcess(settings, plan, listener, control, notice).run())
        finally:
            if threads.num_busy:
                runner.get_loop().set_default_executor(ThreadPoolExecutor())  # which the loop need not wait for
    if threads.num_busy:
        leave(exit_code)
    gc.freeze()  # the interpreter's last collection took 0.2 to 0.35 s, so 0.03 s
    return exit_code


def _bind(server: ServerSettings, port: int) -> socket.socket:
    return bind(server.host, port, stalled_client_seconds=server.stalled_client_seconds)


def _new_event_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where there is one: on asyncio's own loop a token costs twice the processor time. None: that loop."""
    try:
        import uvloop
    except ImportError:  # no build for this platform
        return None
    return uvloop.new_event_loop


def setup_logging(telemetry: TelemetrySettings) -> None:
    """Log as the settings say."""
    json_lines = {LogFormat.JSON: True, LogFormat.TEXT: False}.get(telemetry.log_format)
    configure_logging(level=telemetry.log_level, json_lines=json_lines)


def check_tls(tls: TlsSettings) -> None:
    """Raise UsageError where the certificate and its key cannot be used."""
    if tls.cert_file is None or tls.key_file is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.cert_file, tls.key_file)
    except OSError as error:  # ssl.SSLError is one
        raise UsageError(
            f"server.tls: {tls.cert_file} and {tls.key_file} cannot be used: {error.strerror or error}"
        ) from error


class ServerProcess:
    """One run of the server: the HTTP front, the operator's, the optional one for metrics, and what the terminal is
    told. `control` is the control socket; None: there is none. `notice` is what the ready line says about keys."""

    def __init__(
        self,
        settings: Settings,
        plan: Plan,
        listener: socket.socket,
        control: socket.socket | None = None,
        notice: KeyNotice | None = None,
    ) -> None:
        self._settings = settings
        self._plan = plan
        self._listener = listener
        self._control = control
        self._notice = notice
        self._reporting = Reporting()
        self._began = time.monotonic()
        self._ending = Ending(seconds=settings.server.drain_seconds, stop=lambda: self._front.stop())
        self._options = self._http_options()
        self._front = self._build_front()
        self._other_fronts: list[HttpFront] = []
        self._num_signals = 0
        self._exit_code = 0

    async def run(self) -> int:
        with self._signals():
            async with self._metrics_front():
                await self._front.serve(sockets=[self._listener])
        return self._exit_code if self._front.started else 1

    def _http_options(self) -> HttpOptions:
        settings = self._settings.server
        return HttpOptions(
            limits=HttpLimits(settings.max_body_bytes, settings.body_timeout_seconds),
            cors_origins=settings.cors.allow_origins,
            open_metrics=is_loopback(settings.host),
            access_log=self._settings.telemetry.access_log,
        )

    def _build_front(self) -> HttpFront:
        tls = self._settings.server.tls
        config = uvicorn.Config(
            create_app(self._open_runtime, self._options, self._ending),
            log_config=None,
            access_log=False,
            http="httptools",
            lifespan="on",
            server_header=False,
            timeout_graceful_shutdown=_GRACEFUL_SECONDS,
            ssl_certfile=tls.cert_file,
            ssl_keyfile=tls.key_file,
        )
        return HttpFront(config, on_shutdown=self._end)

    def _end(self) -> None:
        """Nothing is open any more, but for those who listen and wait for as long as there is a server."""
        self._reporting.feed.close()
        self._ending.end()
        for front in self._other_fronts:  # all at once: each takes uvicorn a tenth of a second
            front.stop()

    @asynccontextmanager
    async def _open_runtime(self) -> AsyncIterator[Runtime]:
        async with open_runtime(self._plan, self._reporting, Progress(on_settled=self._settle)) as runtime:
            self._reporting.metrics.watch_server(
                models=[model.id for model in self._plan.models],
                memory_budget_bytes=runtime.pool.memory_budget_bytes,
                is_draining=lambda: runtime.drain.is_draining,
            )
            async with self._control_front(runtime):
                yield runtime

    def _settle(self, statuses: tuple[ModelStatus, ...]) -> None:
        ready = [status for status in statuses if status.state is ModelState.READY]
        on_demand = [status for status in statuses if status.state is not ModelState.READY and can_serve(status)]
        if not ready and not on_demand:
            reasons = "; ".join(f"{status.id}: {status.detail}" for status in statuses)
            typer.echo(f"headrace: no model could be started: {reasons}", err=True)
            self._exit_code = 1
            self._front.stop()
            return
        typer.echo(ready_line(self._base_url(), ready, on_demand, time.monotonic() - self._began, self._notice))
        sys.stdout.flush()

    def _base_url(self) -> str:
        host, port = self._listener.getsockname()[:2]
        host = _LOOPBACK_OF.get(host, host)
        shown = f"[{host}]" if ":" in host else host
        return f"{'https' if self._settings.server.tls.cert_file else 'http'}://{shown}:{port}"

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        self._num_signals += 1
        if self._num_signals == 1:
            self._ending.begin()
        elif self._num_signals == 2:
            self._ending.hasten()
        else:
            self._front.force()

    @asynccontextmanager
    async def _control_front(self, runtime: Runtime) -> AsyncIterator[None]:
        """The operator's front, for as long as there is a runtime: also while the server drains."""
        if self._control is None:
            yield
            return
        config = uvicorn.Config(
            create_control_app(runtime, self._ending, self._options),
            log_config=None,
            access_log=False,
            http="httptools",
            lifespan="on",
            server_header=False,
            timeout_graceful_shutdown=_GRACEFUL_SECONDS,
        )
        async with self._running(HttpFront(config), self._control):
            yield

    @asynccontextmanager
    async def _metrics_front(self) -> AsyncIterator[None]:
        port = self._settings.server.metrics_port
        if port is None:
            yield
            return
        config = uvicorn.Config(metrics_app(self._reporting.metrics), log_config=None, access_log=False, lifespan="off")
        with _bind(self._settings.server, port) as listener:
            async with self._running(HttpFront(config), listener):
                yield

    @asynccontextmanager
    async def _running(self, front: HttpFront, listener: socket.socket) -> AsyncIterator[None]:
        self._other_fronts.append(front)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(front.serve(sockets=[listener]))
            try:
                yield
            finally:
                front.stop()
