"""What can go wrong with a request or with the server, told apart by what the client should do about it.

    HeadraceError
    ├── UsageError                  the operator's input: configuration, port, files (exit code 2, one line)
    └── RequestError                one request; `api.error_mapping` gives each class its HTTP status
        ├── InvalidRequest          the request can never work as it is
        │   └── UnsupportedOperation    this model does not do that
        ├── Unauthenticated         no key or a bad one
        ├── NotAllowed              a good key without the right
        ├── ModelNotFound           no such model here
        ├── SlowRequest             the body did not arrive in time
        ├── RequestTooLarge         body or headers over the bound
        ├── UnsupportedMediaType    not JSON
        ├── Contended               others are being served first; try again later
        │   ├── DeadlineUnmeetable  it would be served, but not before its deadline
        │   └── QuotaExceeded       the tenant has used up what it may use for now
        ├── Unavailable             no capacity now, whoever asks
        │   ├── ModelLoading        not ready yet
        │   ├── Draining            this server is going away
        │   ├── NoRoomForModel      it does not fit in memory beside what has to stay
        │   └── EngineDown          the engine hangs, cannot be reached or cannot be started
        │       └── EngineDied      the engine is gone for good; another one may take its place
        ├── DeadlineExpired         the client's deadline has passed
        └── EngineFault             the engine answered with a failure of its own
            └── RequestQuarantined  the engine died twice while it worked on this request
    ClientGone                      not an error: the client left, nobody reads an answer

Messages are written for the client: they never echo the request's content, addresses, paths or tracebacks.
"""

from typing import ClassVar


class HeadraceError(Exception):
    """Root of everything that this project raises on purpose."""


class UsageError(HeadraceError):
    """The operator asked for something impossible; the message is the one line to print."""


class RequestError(HeadraceError):
    """One request cannot be served; carries what the error envelope shows.

    `param` names the request's field at fault, `code` is machine-readable and stable, `retry_after_seconds` is an
    honest estimate where there is one.
    """

    default_code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.param = param
        self.retry_after_seconds = retry_after_seconds


class InvalidRequest(RequestError):
    default_code = "invalid_request"


class UnsupportedOperation(InvalidRequest):
    default_code = "unsupported_operation"


class Unauthenticated(RequestError):
    default_code = "invalid_api_key"


class NotAllowed(RequestError):
    default_code = "not_allowed"


class ModelNotFound(RequestError):
    default_code = "model_not_found"


class SlowRequest(RequestError):
    default_code = "request_timeout"


class RequestTooLarge(RequestError):
    default_code = "request_too_large"


class UnsupportedMediaType(RequestError):
    default_code = "unsupported_media_type"


class Contended(RequestError):
    default_code = "contended"


class DeadlineUnmeetable(Contended):
    default_code = "deadline_unmeetable"


class QuotaExceeded(Contended):
    """A tenant's tokens per minute: `limit_tokens` of them, `remaining_tokens` left, all of them again in
    `reset_seconds`."""

    default_code = "quota_exceeded"

    def __init__(
        self,
        message: str,
        *,
        limit_tokens: int,
        remaining_tokens: int,
        reset_seconds: float,
        retry_after_seconds: float,
    ) -> None:
        super().__init__(message, retry_after_seconds=retry_after_seconds)
        self.limit_tokens = limit_tokens
        self.remaining_tokens = remaining_tokens
        self.reset_seconds = reset_seconds


class Unavailable(RequestError):
    default_code = "unavailable"


class ModelLoading(Unavailable):
    default_code = "model_loading"


class Draining(Unavailable):
    default_code = "draining"


class EngineDown(Unavailable):
    default_code = "engine_down"


class EngineDied(EngineDown):
    """To a client the same as its parent."""


class NoRoomForModel(Unavailable):
    default_code = "no_room"


class DeadlineExpired(RequestError):
    default_code = "deadline_expired"


class EngineFault(RequestError):
    default_code = "engine_fault"


class RequestQuarantined(EngineFault):
    default_code = "request_quarantined"


class ClientGone(Exception):
    """The client closed its connection; whatever it asked for is to be stopped."""
