"""Chats of text alone are rendered and tokenised in one visit to vLLM's render thread.

vLLM visits it once for the template and once for the tokenizer; each visit costs the event loop about 0.1 ms, most of
it waiting for the thread to let go of the interpreter. What has media in it goes vLLM's own way.
"""

import asyncio
from functools import partial
from typing import Any

from vllm.renderers.chat_utils import has_non_text_content


class OneVisitRenderer:
    """vLLM's renderer with another `render_chat_async`."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def render_chat_async(self, conversations: Any, *args: Any, **kwargs: Any) -> Any:
        """As vLLM's, with its bound on the time that a template may take."""
        if any(has_non_text_content(messages) for messages in conversations):
            return await self._inner.render_chat_async(conversations, *args, **kwargs)
        work = partial(self._inner.render_chat, conversations, *args, **kwargs)
        visit = asyncio.get_running_loop().run_in_executor(self._inner._executor, work)
        bounded = getattr(self._inner, "_render_with_timeout", None)
        return await (visit if bounded is None else bounded(visit))
