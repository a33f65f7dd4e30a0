"""The headers of a model's shards as files without data, beside its configuration.

vLLM asks the safetensors files of a model directory for names and data types before it loads anything: whether a
"tied" model has an output matrix of its own after all, which layers of a GPTQ or AWQ model are quantised, what the
data type is where config.json is silent. Without these files it guesses, and a tied model with its own output matrix
would lose it without a word. They end where the data would begin, so that no loader can take them for weights.
"""

import contextlib
import json
from pathlib import Path

from headrace_models.safetensors_header import LENGTH_BYTES
from headrace_models.seek_index import SeekIndex


def write_header_files(index: SeekIndex, directory: Path) -> None:
    """Write one per shard below `directory`, under the shard's path; what exists already stays. Raises OSError."""
    for number, shard in enumerate(index.files):
        path = directory / shard.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError), path.open("xb") as file:
            file.write(_header(index, number))


def _header(index: SeekIndex, number: int) -> bytes:
    """A header that says of the shard's tensors what its own says; without its metadata."""
    data_begin = index.files[number].data_begin
    entries = {
        tensor.name: {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [tensor.begin - data_begin, tensor.end - data_begin],
        }
        for tensor in index.tensors
        if tensor.file == number
    }
    content = json.dumps(entries, separators=(",", ":")).encode()
    content += b" " * (-len(content) % LENGTH_BYTES)
    return len(content).to_bytes(LENGTH_BYTES, "little") + content
