"""tensorizer: tensors over HTTP from a file in its own format, into which a model has to be converted first.

`serialize` does that, in a process like the others'; the result is a directory that the origin can serve as a model.
Used as vLLM's `tensorizer` loader uses it on a CPU. It reads through curl, which must be there.
"""

import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

from loadtests.peers.intake import Taker
from loadtests.peers.running import Errand, Peer, environment, peer_main, run_module

FILE_NAME = "model.tensors"


def serialize(model: Path, directory: Path, *, folder: Path) -> Path:
    """Write the tensors of `model` to a file in `directory`, unless it is there; returns `directory`.

    `folder` is where the peers are installed. Raises PeerFailed.
    """
    if not (directory / FILE_NAME).exists():
        directory.mkdir(parents=True, exist_ok=True)
        nowhere = environment(Errand("", "", directory), folder)
        run_module(Peer.TENSORIZER, ["serialize", str(model), str(directory)], environment=nowhere, seconds=600)
    return directory


def fetch(errand: Errand, taker: Taker) -> None:
    """Open the stream, then take what comes."""
    from tensorizer import TensorDeserializer  # type: ignore[import-not-found]
    from tensorizer.stream_io import open_stream  # type: ignore[import-not-found]

    address = f"{errand.url}/files/{quote(errand.model)}/{FILE_NAME}"
    with open_stream(address, mode="rb") as stream, TensorDeserializer(stream, device="cpu") as tensors:
        for name, tensor in tensors.items():
            taker.take(name, tensor)


def _write(model: Path, directory: Path) -> None:
    from safetensors.torch import load_file
    from tensorizer import TensorSerializer

    temporary = directory / f"{FILE_NAME}.partial"
    state = {name: tensor for path in sorted(model.glob("*.safetensors")) for name, tensor in load_file(path).items()}
    serializer = TensorSerializer(str(temporary))
    serializer.write_state_dict(state)
    serializer.close()
    temporary.rename(directory / FILE_NAME)


def _main(arguments: Sequence[str]) -> None:
    import tensorizer  # noqa: F401 - imports are not measured

    match arguments:
        case ["serialize", model, directory]:
            _write(Path(model), Path(directory))
        case _:
            peer_main("tensorizer", version("tensorizer"), fetch)


if __name__ == "__main__":
    _main(sys.argv[1:])
