"""What a layer holds, from instructions as builders write them."""

import pytest

from headrace_server.image.description import LayerKind
from headrace_server.image.layer_kinds import kind_of, mixes_weights

HASH = "0" * 64


@pytest.mark.parametrize(
    ("created_by", "kind"),
    [
        ("RUN /bin/sh -c apt-get update && apt-get install -y --no-install-recommends tini # buildkit", "packages"),
        ("/bin/sh -c pip install --no-cache-dir -r requirements.txt", "packages"),
        ("RUN /bin/sh -c uv sync --frozen # buildkit", "packages"),
        (f"/bin/sh -c #(nop) COPY file:{HASH} in /models/ ", "model"),
        ("COPY /models/model.safetensors /models/ # buildkit", "model"),
        ("RUN /bin/sh -c huggingface-cli download org/name # buildkit", "model"),
        ("/bin/sh -c #(nop) COPY --from=models-cpu /layer /", "model"),
        (f"/bin/sh -c #(nop) COPY dir:{HASH} in / ", "files"),
        ("COPY . /app # buildkit", "files"),
        ("/bin/sh -c useradd headrace", "other"),
        ("", "other"),
    ],
)
def test_an_instruction_tells_the_kind(created_by: str, kind: str) -> None:
    assert kind_of(created_by, is_first=False, is_last=False) == LayerKind(kind)


def test_what_is_copied_last_is_the_app() -> None:
    assert kind_of("COPY . /srv # buildkit", is_first=False, is_last=True) is LayerKind.APP
    assert kind_of("COPY x.gguf /srv # buildkit", is_first=False, is_last=True) is LayerKind.MODEL
    assert kind_of("RUN make # buildkit", is_first=False, is_last=True) is LayerKind.OTHER


@pytest.mark.parametrize(
    "created_by",
    [
        "",
        "# debian.sh --arch 'amd64' out/ 'bookworm'",
        "RUN /bin/sh -c debootstrap bookworm /",
        f"/bin/sh -c #(nop) ADD file:{HASH} in / ",
    ],
)
def test_what_is_lowest_and_not_copied_is_the_base(created_by: str) -> None:
    assert kind_of(created_by, is_first=True, is_last=False) is LayerKind.BASE


def test_what_is_copied_to_scratch_is_no_base() -> None:
    assert kind_of("COPY lib /usr/lib # buildkit", is_first=True, is_last=False) is LayerKind.FILES


@pytest.mark.parametrize(
    ("created_by", "is_mixed"),
    [
        ("RUN pip install vllm && hf download org/name", True),
        ("RUN pip install huggingface_hub", True),
        ("RUN pip install vllm", False),
        ("COPY model.safetensors /m", False),
    ],
)
def test_weights_beside_packages_are_seen(created_by: str, is_mixed: bool) -> None:
    assert mixes_weights(created_by) is is_mixed
