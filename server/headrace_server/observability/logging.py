"""Log lines: an event name and fields, as JSON for machines or as text for people.

Messages are event names (`request_done`); what varies goes into `extra`. The request id comes from a ContextVar that
the middleware sets, so that every line of a request carries it.
"""

import json
import logging
import logging.config
import sys
import time
from contextvars import ContextVar

from headrace_server.domain import RequestId

current_request_id: ContextVar[RequestId | None] = ContextVar("current_request_id", default=None)

_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
    "color_message",
    "vllm_process_name",
}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC, RFC 3339), level, logger, event, request_id and the record's extra fields."""

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        if (request_id := current_request_id.get()) is not None:
            line["request_id"] = request_id
        line.update(_extra(record))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """`12:00:01 INFO model_state model=x state=ready`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base class's name
        fields = "".join(f" {name}={_one_line(value)}" for name, value in _extra(record).items() if value != "")
        return super().formatMessage(record) + fields


def _one_line(value: object) -> str:
    """Fields hold what clients sent: nothing in them may end the line or drive a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD_FIELDS}


def configure_logging(*, level: str, json_lines: bool | None) -> None:
    """Send this process's log lines to standard error. `json_lines` None: text on a terminal, JSON elsewhere."""
    as_json = not sys.stderr.isatty() if json_lines is None else json_lines
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("headrace_server").setLevel(level.upper())
    logging.getLogger("headrace_models").setLevel(level.upper())
