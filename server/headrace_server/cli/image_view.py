"""`headrace image lint`: an image's layers and what can be said against them, for people and as JSON."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import typer

from headrace_server.cli.text_table import table_lines
from headrace_server.image.choosing import parse_platform
from headrace_server.image.description import Image, Layer
from headrace_server.image.findings import Finding, Limits, Severity, binary_size
from headrace_server.image.reading import read_image
from headrace_server.image.rules import findings_of, parallel_bound
from headrace_server.settings.loading import load_settings

_MAX_INSTRUCTION_CHARS = 60
# What builders write before an instruction, build arguments among it, and for the source of a COPY.
_SHELL = re.compile(r"^(?:\|\d+ (?:\S+=\S* )*)?/bin/sh -c (?:#\(nop\) +)?")
_CONTENT_HASH = re.compile(r"\b(file|dir|multi):[0-9a-f]{64}\b")


def lint_image(text: str, platform: str | None, limits: Limits, *, config: Path | None, as_json: bool) -> int:
    """Print the report; the exit code: 1 if there is an error among the findings.

    Raises:
        UsageError: the image's name, the platform or the configuration cannot be read.
        ImageUnreadable, ModelError: the image cannot be read.
    """
    image = read_image(
        text,
        platform=parse_platform(platform) if platform is not None else None,
        environ=os.environ,
        insecure_hosts=frozenset(load_settings(config=config).cache.insecure_hosts),
    )
    findings = findings_of(image, limits)
    if as_json:
        typer.echo(json.dumps(_document(image, findings, limits), indent=2))
    else:
        for line in report_lines(image, findings):
            typer.echo(line)
    return int(any(finding.severity is Severity.ERROR for finding in findings))


def report_lines(image: Image, findings: Sequence[Finding]) -> Iterator[str]:
    """The report for people."""
    yield f"image     {image.name}" + (f"  {image.digest}" if image.digest else "")
    yield f"platform  {image.platform or '-'}"
    yield f"layers    {len(image.layers)}, {_size(image.size_bytes)} stored, {_size(image.unpacked_bytes)} unpacked"
    yield f"parallel  at most {parallel_bound(image.layers):.1f} times as fast to unpack"
    yield ""
    yield from table_lines(
        [("#", "KIND", "COMPRESSION", "INDEX", "SIZE", "UNPACKED", "SHARE", "MADE BY"), *_rows(image)]
    )
    if findings:
        yield ""
    for finding in findings:
        yield f"{finding.severity.value}: {finding.code.value}: {finding.message}"
        yield f"    {finding.advice}"


def _rows(image: Image) -> Iterator[tuple[str, ...]]:
    for number, layer in enumerate(image.layers, 1):
        yield (
            str(number),
            layer.kind.value,
            layer.compression.value,
            layer.lazy_index.value if layer.lazy_index else "-",
            _size(layer.size_bytes),
            _size(layer.unpacked_bytes),
            f"{_share(layer, image):.0%}",
            _shortened(layer.created_by),
        )


def _shortened(instruction: str) -> str:
    """In one line of printable characters: the history is whoever built the image's."""
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in instruction).split())
    text = _CONTENT_HASH.sub(r"\1", _SHELL.sub("", text))
    return text if len(text) <= _MAX_INSTRUCTION_CHARS else f"{text[: _MAX_INSTRUCTION_CHARS - 1]}…"


def _size(num_bytes: int | None) -> str:
    return "-" if num_bytes is None else binary_size(num_bytes)


def _share(layer: Layer, image: Image) -> float:
    return layer.size_bytes / image.size_bytes if image.size_bytes else 0.0


def _document(image: Image, findings: Sequence[Finding], limits: Limits) -> dict[str, object]:
    return {
        "image": image.name,
        "digest": str(image.digest) if image.digest else None,
        "platform": str(image.platform) if image.platform else None,
        "num_layers": len(image.layers),
        "size_bytes": image.size_bytes,
        "unpacked_bytes": image.unpacked_bytes,
        "is_as_pulled": image.is_as_pulled,
        "parallel_bound": round(parallel_bound(image.layers), 2),
        "layers": [_layer(layer, image) for layer in image.layers],
        "findings": [asdict(finding) for finding in findings],
        "limits": asdict(limits),
    }


def _layer(layer: Layer, image: Image) -> dict[str, object]:
    return {
        "digest": str(layer.digest),
        "media_type": layer.media_type,
        "compression": layer.compression,
        "lazy_index": layer.lazy_index,
        "kind": layer.kind,
        "size_bytes": layer.size_bytes,
        "unpacked_bytes": layer.unpacked_bytes,
        "share": round(_share(layer, image), 4),
        "created_by": layer.created_by,
    }
