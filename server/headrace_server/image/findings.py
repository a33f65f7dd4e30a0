"""What a finding is: a code that stays, a severity, the figure, what to do; and the limits that it is about. Pure."""

from dataclasses import dataclass, field
from enum import StrEnum

_UNITS = (("GiB", 30), ("MiB", 20), ("KiB", 10))


class Severity(StrEnum):
    """What a finding means for the exit code: errors fail."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Code(StrEnum):
    """Names of findings; public."""

    LAYER_TOO_LARGE = "layer-too-large"
    TOO_MANY_LAYERS = "too-many-layers"
    TOO_FEW_LAYERS = "too-few-layers"
    DOMINANT_LAYER = "dominant-layer"
    LARGE_TOP_LAYER = "large-top-layer"
    WEIGHTS_IN_APP_LAYER = "weights-in-app-layer"
    WEIGHTS_IN_IMAGE = "weights-in-image"
    UNCOMPRESSED_LAYER = "uncompressed-layer"
    NO_LAZY_INDEX = "no-lazy-index"
    PARTIAL_LAZY_INDEX = "partial-lazy-index"
    TINY_IMAGE = "tiny-image"
    NOT_AS_PULLED = "not-as-pulled"


@dataclass(frozen=True, slots=True)
class Limits:
    """What is asked of an image. Bytes are compressed ones; `max_layer_share` is of the image's bytes.

    125 layers are Docker's own limit (moby, layer/layer_store.go: maxLayerDepth).
    """

    max_layer_bytes: int = 1 << 30
    max_layer_share: float = 0.6
    min_layers: int = 3
    max_layers: int = 125
    max_top_layer_bytes: int = 64 << 20
    min_image_bytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """`layer` is its number, lowest first from 1; None where it is about the image. `value` and `limit` are the figure
    and what it was held against, in the unit of the limit: bytes, layers or a share."""

    code: Code
    severity: Severity
    message: str
    advice: str
    layer: int | None = field(default=None, kw_only=True)
    value: float | None = field(default=None, kw_only=True)
    limit: float | None = field(default=None, kw_only=True)


def binary_size(num_bytes: int) -> str:
    """`272.6 MiB`, in the units that limits are given in."""
    if num_bytes < 1 << 10:
        return f"{num_bytes} B"
    unit, shift = next(((unit, shift) for unit, shift in _UNITS if num_bytes >= 1 << shift), _UNITS[-1])
    return f"{num_bytes / (1 << shift):.1f} {unit}"
