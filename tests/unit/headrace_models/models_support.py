"""Tiny models, fake wheels and fake recipes, for tests in this process and in children that get killed."""

import json
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace_models.digest import sha256_of_file
from headrace_models.embedded import EmbeddedModel
from headrace_models.manifest import FileEntry
from headrace_models.preparation import prepare
from headrace_models.recipes import CopyFiles, Recipe
from headrace_models.reference import parse_reference
from headrace_models.task import Task

PACKAGE = "headrace_fake_wheel"
NAME = "tiny"
CONFIG: Mapping[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
    "max_position_embeddings": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "num_key_value_heads": 1,
    "vocab_size": 16,
}


def shard_bytes(header: object, data: bytes = b"") -> bytes:
    """A safetensors file with any header."""
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def tiny_shard() -> bytes:
    """A safetensors file with one bfloat16 tensor of two by three."""
    return shard_bytes({"weight": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}, bytes(12))


def write_model(directory: Path) -> Path:
    """A directory that passes inspection."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "model.safetensors").write_bytes(tiny_shard())
    return directory


def fake_wheel(site: Path) -> Path:
    """An importable package in `site` that must never be imported; returns the folder with its model files."""
    folder = write_model(site / PACKAGE / "model")
    (site / PACKAGE / "__init__.py").write_text("raise AssertionError('the package was imported')")
    return folder


def tiny_model(folder: Path, recipe: Recipe | None = None) -> EmbeddedModel:
    """The embedded model of `fake_wheel`."""
    names = ("config.json", "model.safetensors")
    files = tuple(FileEntry(name, (folder / name).stat().st_size, sha256_of_file(folder / name)) for name in names)
    return EmbeddedModel(
        name=NAME,
        display_name="Tiny",
        task=Task.GENERATE,
        requirement="headrace-fake-wheel==1.0",
        package=PACKAGE,
        folder="model",
        files=files,
        recipe=recipe or CopyFiles(),
        prepared_bytes=1000,
    )


@dataclass(frozen=True, slots=True)
class ScriptedRecipe:
    """Copies, adds a line to `log`, and then does what the test wants."""

    log: Path
    then: Callable[[Path], None]
    id: str = "copy/1"

    def make(self, sources: Path, paths: Sequence[str], destination: Path, *, report: Callable[[int], None]) -> None:
        """See Recipe."""
        CopyFiles().make(sources, paths, destination, report=report)
        with self.log.open("a") as log:
            log.write("made\n")
        self.then(destination)


def say(line: str) -> None:
    """Tell the parent where we are."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def prepare_in_child() -> None:
    """What the tests' child processes run: SITE CACHE LOG; the recipe says "half made" and waits for a line."""
    site, cache, log = map(Path, sys.argv[1:4])
    sys.path.insert(0, str(site))

    def wait(_destination: Path) -> None:
        say("half made")
        sys.stdin.readline()

    model = tiny_model(site / PACKAGE / "model", ScriptedRecipe(log, wait))
    prepared = prepare(parse_reference(f"embedded:{NAME}"), cache, on_progress=say, models=[model])
    say(f"done {prepared.directory}")


if __name__ == "__main__":
    prepare_in_child()
