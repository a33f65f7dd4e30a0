"""runai-model-streamer: tensors straight from S3 into memory, nothing on disk. Used as vLLM's `runai_streamer` does.

vLLM clones each tensor; since 0.17 the tensors are the caller's own, so that is left out here, to the peer's advantage.
"""

from importlib.metadata import version

import torch  # noqa: F401, TID253 - imports are not measured
from runai_model_streamer import SafetensorsStreamer, list_safetensors  # type: ignore[import-not-found]

from loadtests.peers.intake import Taker
from loadtests.peers.running import Errand, bucket_address, peer_main


def fetch(errand: Errand, taker: Taker) -> None:
    """List the shards, then stream them."""
    with SafetensorsStreamer() as streamer:
        streamer.stream_files(sorted(list_safetensors(bucket_address(errand.model))), device="cpu")
        for name, tensor in streamer.get_tensors():
            taker.take(name, tensor)


if __name__ == "__main__":
    peer_main("runai-model-streamer", version("runai-model-streamer"), fetch)
