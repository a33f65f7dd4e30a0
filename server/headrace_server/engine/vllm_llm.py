"""vLLM's `AsyncLLM` for a process that has several: one that can be told that its processes are gone.

vLLM shuts an engine down on the assumption that its server ends with it: what waits for an answer waits for ever, and
the object shuts down again whenever it is collected, which fails while the interpreter is going away. Used on the event
loop, except where it says otherwise.
"""

from vllm.utils import func_utils
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError


class EngineLlm(AsyncLLM):
    """See the module."""

    def give_up(self) -> None:
        """Nothing comes any more: everything that waits for tokens or vectors ends in EngineDeadError, and so does
        whatever is asked from now on."""
        self.engine_core.resources.engine_dead = True
        if self.output_handler is not None:
            self.output_handler.cancel()
        self.output_processor.propagate_error(EngineDeadError())

    def shutdown(self, timeout: float | None = None) -> None:
        """As vLLM's, which keeps two tokenizers of every engine for ever: its memory of what functions accept holds
        functions that hold them (48 MB an engine for SmolLM2). Blocks; not on the event loop."""
        super().shutdown(timeout)
        func_utils._supports_kw.cache_clear()

    def release(self) -> None:
        """Give back the threads behind its sockets. After `shutdown`, once the event loop has come round: it closes the
        sockets. Blocks; not on the event loop."""
        self.engine_core.resources.ctx.term()

    def __del__(self) -> None:
        """Shutting down is for who made it."""
