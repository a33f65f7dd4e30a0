"""huggingface_hub: the whole model to disk, then safetensors maps it. What vLLM does with a model of the hub.

The hub is the origin's, by HF_ENDPOINT; what is on disk is in HF_HOME, so that a second run finds the first one's.
"""

from pathlib import Path

import huggingface_hub
import torch  # noqa: F401, TID253 - imports are not measured
from safetensors import safe_open

from loadtests.peers.intake import Taker
from loadtests.peers.running import Errand, peer_main


def fetch(errand: Errand, taker: Taker) -> None:
    """Download, then load."""
    directory = Path(huggingface_hub.snapshot_download(errand.model, token=False))
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                taker.take(name, file.get_tensor(name))


if __name__ == "__main__":
    peer_main("huggingface_hub", huggingface_hub.__version__, fetch)
