"""What a client reads while its request is held: the comment in its stream, made from its place in the queue or the
state of its model. Says nothing of what was asked."""

from headrace_server.api.sse import KEEP_ALIVE, comment_frame
from headrace_server.domain import ModelState, ModelStatus
from headrace_server.queueing import Outlook


def queue_comment(outlook: Outlook) -> bytes:
    """One comment frame: `: queued, position 3, about 2 s`."""
    return comment_frame(f"queued, position {outlook.position}{_about(outlook.wait_seconds)}")


def held_comment(status: ModelStatus) -> bytes:
    """One comment frame: `: loading smollm2, about 7 s`."""
    doing = _doing(status)
    return comment_frame(f"{doing} {status.id}{_about(status.eta_seconds)}") if doing else KEEP_ALIVE


def _about(seconds: float | None) -> str:
    return "" if seconds is None else f", about {max(1, round(seconds))} s"


def _doing(status: ModelStatus) -> str:
    match status.state:
        case ModelState.COLD | ModelState.DRAINING:
            return "waiting for"
        case ModelState.FETCHING:
            return "fetching"
        case ModelState.LOADING:
            return "restarting" if status.is_restarting else "loading"
        case ModelState.READY | ModelState.FAILED:
            return ""
