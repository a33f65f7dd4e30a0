"""What a layer holds, from the instruction that made it (`created_by` in the image's history).

A guess for people to find their way, and for one question: whether weights lie in the same layer as what changes more
often. Patterns are of what builders write: `/bin/sh -c …` of Docker and Buildah, `RUN … # buildkit`. Pure.
"""

import re

from headrace_server.image.description import LayerKind

_WEIGHTS = re.compile(
    r"\.safetensors|\.gguf|\.ggml|huggingface|hf[ _-](?:hub[ _-])?download|snapshot_download|ollama pull"
    r"|docker model pull|headrace (?:pull|prepare)|\bweights?\b|(?:^|[\s/'\"=])models?(?:/|\b)|/hub/models--",
    re.IGNORECASE,
)
_PACKAGES = re.compile(
    r"\b(?:pip3?|uv|conda|mamba|poetry|npm|yarn|apt|apt-get|apk|dnf|yum|microdnf)\b.{0,80}?\b(?:install|sync|add|ci)\b"
    r"|site-packages|dist-packages|requirements[\w.-]*\.txt",
    re.IGNORECASE | re.DOTALL,
)
_COPIES = re.compile(r"(?:^|\s)(?:COPY|ADD)(?:\s|:)|#\(nop\)\s+(?:COPY|ADD)", re.IGNORECASE)
_BASE = re.compile(r"rootfs|debootstrap|debuerreotype|bazel build|#\(nop\) ADD file:\w+ in / ?$", re.IGNORECASE)


def kind_of(created_by: str, *, is_first: bool, is_last: bool) -> LayerKind:
    """The kind of a layer; the first is the lowest one. What is copied last is what changes most often: the app."""
    if is_first and (not created_by or _BASE.search(created_by) or _COPIES.search(created_by) is None):
        return LayerKind.BASE
    if names_weights(created_by):
        return LayerKind.MODEL
    if _PACKAGES.search(created_by):
        return LayerKind.PACKAGES
    if _COPIES.search(created_by) is None:
        return LayerKind.OTHER
    return LayerKind.APP if is_last else LayerKind.FILES


def names_weights(created_by: str) -> bool:
    """Whether the instruction speaks of a model's weights."""
    return _WEIGHTS.search(created_by) is not None


def mixes_weights(created_by: str) -> bool:
    """Whether the instruction puts weights beside packages in one layer."""
    return names_weights(created_by) and _PACKAGES.search(created_by) is not None
