"""`headrace serve`: bind, run, say when it is ready, end cleanly.

The port is bound before anything slow happens, so that a port in use is one line at once. uvicorn runs inside our
loop; its signal handling is replaced, because it re-raises the signal after its shutdown: here the first Ctrl-C or
SIGTERM stops gracefully and exits 0, the second hastens.
"""

import asyncio
import logging
import signal
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path

import typer
import uvicorn

from headrace_server.api.metrics import metrics_app
from headrace_server.api.middleware import HttpLimits
from headrace_server.app import HttpOptions, create_app
from headrace_server.catalog import model_settings_of
from headrace_server.cli.listener import bind
from headrace_server.domain import ModelState, ModelStatus, Operation
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

logger = logging.getLogger(__name__)

_GRACEFUL_SECONDS = 10


def run_server(config: Path | None, references: list[str], flags: Mapping[str, object]) -> int:
    """Serve until a signal. Returns the exit code.

    Raises:
        UsageError: anything that is wrong before the server runs.
    """
    models = {"models": [model_settings_of(reference) for reference in references]} if references else {}
    settings = load_settings(config=config, flags={**models, **flags})
    setup_logging(settings.telemetry)
    plan = plan_runtime(settings)
    check_tls(settings.server.tls)
    with (
        _bind(settings.server, settings.server.port) as listener,
        asyncio.Runner(loop_factory=_new_event_loop()) as runner,
    ):
        return runner.run(ServerProcess(settings, plan, listener).run())


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
    """One run of the server: the HTTP front, the optional metrics front, and what the terminal is told."""

    def __init__(self, settings: Settings, plan: Plan, listener: socket.socket) -> None:
        self._settings = settings
        self._plan = plan
        self._listener = listener
        self._reporting = Reporting()
        self._began = time.monotonic()
        self._server = self._build_server()
        self._exit_code = 0

    async def run(self) -> int:
        with self._signals():
            async with self._metrics_server():
                await self._server.serve(sockets=[self._listener])
        return self._exit_code if self._server.started else 1

    def _build_server(self) -> uvicorn.Server:
        settings = self._settings.server
        options = HttpOptions(
            limits=HttpLimits(settings.max_body_bytes, settings.body_timeout_seconds),
            cors_origins=settings.cors.allow_origins,
            open_metrics=is_loopback(settings.host),
            access_log=self._settings.telemetry.access_log,
        )
        tls = settings.tls
        config = uvicorn.Config(
            create_app(self._open_runtime, options),
            log_config=None,
            access_log=False,
            http="httptools",
            lifespan="on",
            server_header=False,
            timeout_graceful_shutdown=_GRACEFUL_SECONDS,
            ssl_certfile=tls.cert_file,
            ssl_keyfile=tls.key_file,
        )
        return _Server(config, on_shutdown=self._reporting.feed.close)

    def _open_runtime(self) -> AbstractAsyncContextManager[Runtime]:
        return open_runtime(self._plan, self._reporting, Progress(on_settled=self._settle))

    def _settle(self, statuses: tuple[ModelStatus, ...]) -> None:
        ready = [status for status in statuses if status.state is ModelState.READY]
        if not ready:
            reasons = "; ".join(f"{status.id}: {status.detail}" for status in statuses)
            typer.echo(f"headrace: no model could be started: {reasons}", err=True)
            self._exit_code = 1
            self._server.should_exit = True
            return
        typer.echo(ready_line(self._base_url(), ready, time.monotonic() - self._began))
        sys.stdout.flush()

    def _base_url(self) -> str:
        host, port = self._listener.getsockname()[:2]
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
        self._server.force_exit = self._server.should_exit
        self._server.should_exit = True

    @asynccontextmanager
    async def _metrics_server(self) -> AsyncIterator[None]:
        port = self._settings.server.metrics_port
        if port is None:
            yield
            return
        with _bind(self._settings.server, port) as listener:
            config = uvicorn.Config(
                metrics_app(self._reporting.metrics), log_config=None, access_log=False, lifespan="off"
            )
            server = _Server(config)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(server.serve(sockets=[listener]))
                yield
                server.should_exit = True


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers. `on_shutdown` is called before connections are waited for: an answer that
    would go on for as long as the server does has to end by itself."""

    def __init__(self, config: uvicorn.Config, *, on_shutdown: Callable[[], None] = lambda: None) -> None:
        super().__init__(config)
        self._on_shutdown = on_shutdown

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_shutdown()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def ready_line(base_url: str, ready: Sequence[ModelStatus], seconds: float) -> str:
    """The one line that says where the server is and how to try it: a chat where a model chats, else an embedding."""
    model = next((status for status in ready if Operation.CHAT in status.operations), ready[0])
    operation, body = Operation.EMBEDDING, f'{{"model": "{model.id}", "input": "water"}}'
    if Operation.CHAT in model.operations:
        message = '{"role": "user", "content": "What is the capital of France?"}'
        operation, body = Operation.CHAT, f'{{"model": "{model.id}", "messages": [{message}]}}'
    names = ", ".join(status.id for status in ready)
    return (
        f"Headrace is ready at {base_url}/v1 with {names} after {seconds:.1f} s; try: "
        f"curl -s {base_url}{operation.value} -H 'content-type: application/json' -d '{body}'"
    )
