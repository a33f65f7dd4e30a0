"""What a model is for. A hint for choosing the engine's runner and the endpoints; the engine has the last word."""

from enum import StrEnum


class Task(StrEnum):
    """GENERATE: continues text. EMBED: turns text into vectors (everything that vLLM calls pooling)."""

    GENERATE = "generate"
    EMBED = "embed"
