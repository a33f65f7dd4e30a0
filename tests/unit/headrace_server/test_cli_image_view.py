"""How an image's layers are shown."""

import hashlib

import pytest

from headrace_models.digest import Sha256
from headrace_server.cli.image_view import report_lines
from headrace_server.image.description import Compression, Image, Layer

HASH = "0" * 64


def shown(created_by: str) -> str:
    """The last cell of the layer's row."""
    digest = Sha256(hashlib.sha256(b"x").hexdigest())
    layer = Layer(digest, "", Compression.GZIP, 1000, created_by=created_by)
    lines = list(report_lines(Image("image", (layer,)), ()))
    row = next(line for line in lines if line.startswith("1  "))
    return row[next(line for line in lines if line.startswith("#  ")).index("MADE BY") :]


@pytest.mark.parametrize(
    ("created_by", "text"),
    [
        ("RUN /bin/sh -c make # buildkit", "RUN /bin/sh -c make # buildkit"),
        ("/bin/sh -c apt-get update", "apt-get update"),
        ("|2 A=1 B= /bin/sh -c make", "make"),
        (f"/bin/sh -c #(nop) COPY dir:{HASH} in / ", "COPY dir in /"),
        ("a\n\tb\x1b[31m c", "a b [31m c"),
        ("x" * 100, "x" * 59 + "…"),
        ("", ""),
    ],
)
def test_an_instruction_is_one_short_line_without_what_builders_add(created_by: str, text: str) -> None:
    assert shown(created_by) == text


def test_an_image_without_layers_is_shown() -> None:
    assert "layers    0, 0 B stored, 0 B unpacked" in list(report_lines(Image("image", ()), ()))
