"""What a client reads while its request is held: the comment in its stream, made from the state of its model."""

from headrace_server.api.sse import KEEP_ALIVE, comment_frame
from headrace_server.domain import ModelState, ModelStatus


def held_comment(status: ModelStatus) -> bytes:
    """One comment frame: `: loading smollm2, about 7 s`. Says nothing of what was asked."""
    doing = _doing(status)
    if not doing:
        return KEEP_ALIVE
    eta = "" if status.eta_seconds is None else f", about {max(1, round(status.eta_seconds))} s"
    return comment_frame(f"{doing} {status.id}{eta}")


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
