"""The `scheduling` section: how much may wait, who goes first, and for how long anybody waits."""

from pydantic import ByteSize, Field, PositiveFloat, PositiveInt

from headrace_server.domain import ServiceClass
from headrace_server.settings.sections import MIB, Section, Size

_MAX_WAIT = "refuse requests that would wait for longer; unset: no bound"
_DEADLINE = "deadline of requests that name none; unset: none"


class InteractiveClass(Section):
    """Somebody waits for the answer."""

    max_wait_seconds: PositiveFloat | None = Field(1.0, description=_MAX_WAIT)
    deadline_seconds: PositiveFloat | None = Field(None, description=_DEADLINE)


class StandardClass(Section):
    """Whatever says nothing of itself."""

    max_wait_seconds: PositiveFloat | None = Field(120.0, description=_MAX_WAIT)
    deadline_seconds: PositiveFloat | None = Field(None, description=_DEADLINE)


class BatchClass(Section):
    """It runs where nobody else wants to."""

    max_wait_seconds: PositiveFloat | None = Field(None, description=_MAX_WAIT)
    deadline_seconds: PositiveFloat | None = Field(None, description=_DEADLINE)


class ClassesSettings(Section):
    """What holds for each class."""

    interactive: InteractiveClass = Field(InteractiveClass())
    standard: StandardClass = Field(StandardClass())
    batch: BatchClass = Field(BatchClass())


class SchedulingSettings(Section):
    """The queue before each engine."""

    max_requests: PositiveInt = Field(2048, description="requests that may wait for one model; more are refused")
    max_tokens: PositiveInt = Field(4_000_000, description="prompt and output tokens that may wait for one model")
    max_bytes: Size = Field(ByteSize(256 * MIB), description="request bodies that may wait for one model")
    slot_limit: PositiveInt | None = Field(
        None, description="most sequences in an engine at a time; unset: what the engine turns out to do well"
    )
    interactive_reserve: float = Field(
        0.125, ge=0, le=0.5, description="part of the slots that is kept free of what can wait"
    )
    target_step_seconds: PositiveFloat = Field(
        0.15, description="how long a step of the engine may take before fewer sequences are let in"
    )
    default_class: ServiceClass = Field(
        ServiceClass.STANDARD, description="class of requests that name none: `interactive`, `standard` or `batch`"
    )
    classes: ClassesSettings = Field(ClassesSettings())
