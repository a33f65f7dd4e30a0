"""Which files make up a model: names and sizes in, shards and skeleton out, everything else left where it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_models.errors import UnsafeModel
from headrace_models.model_files import ModelFiles, choose_files
from headrace_models.sources.base import SourceFile
from headrace_models.weights_index import parse_weights_index

MIB = 1 << 20
INDEX = "model.safetensors.index.json"


def choose(*paths: str, **sizes: int) -> ModelFiles:
    """The choice among files of 100 bytes beside config.json; `sizes` in bytes by path, `__` for a dot."""
    sized = {path.replace("__", "."): size for path, size in sizes.items()}
    listed = {"config.json": 100, **dict.fromkeys(paths, 100), **sized}
    return choose_files([SourceFile(path, size) for path, size in listed.items()])


def shards(files: ModelFiles) -> list[str]:
    assert files.shards is not None
    return [file.path for file in files.shards]


def skeleton(files: ModelFiles) -> list[str]:
    return [file.path for file in files.skeleton if file.path != "config.json"]


@pytest.mark.parametrize(
    ("paths", "chosen"),
    [
        (["model.safetensors"], ["model.safetensors"]),
        (
            ["model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors"],
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ),
        (["model.safetensors", "consolidated.safetensors"], ["model.safetensors"]),
        (["model-1-of-1.safetensors", "consolidated-00001-of-00009.safetensors"], ["model-1-of-1.safetensors"]),
        (["consolidated.safetensors"], ["consolidated.safetensors"]),
        (["model.safetensors", "adapter_model.safetensors"], ["model.safetensors"]),
        (["model.safetensors", "model.fp16.safetensors"], ["model.safetensors"]),
        (["model.safetensors", "mtp.safetensors"], ["model.safetensors", "mtp.safetensors"]),
        (["weights.safetensors"], ["weights.safetensors"]),
        (["model.safetensors", "onnx/model.safetensors", ".model.safetensors"], ["model.safetensors"]),
    ],
)
def test_without_an_index_the_shards_are_what_lies_at_the_top_once(paths: list[str], chosen: list[str]) -> None:
    assert shards(choose(*paths)) == chosen


def test_what_is_left_out_of_the_weights_is_said() -> None:
    notes = choose("model.safetensors", "consolidated.safetensors", "model.gguf", "onnx/model.bin").notes
    assert [note.split(" is not used")[0] for note in notes] == [
        "model.gguf",
        "onnx/model.bin",
        "consolidated.safetensors",
    ]


def test_with_an_index_the_shards_are_those_that_it_names() -> None:
    files = choose("a.safetensors", "b.safetensors", "consolidated.safetensors", INDEX)
    assert files.shards is None
    named = files.shards_named(parse_weights_index(b'{"weight_map":{"x":"b.safetensors","y":"a.safetensors"}}'))
    assert [file.path for file in named] == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize(
    ("weight_map", "reason"),
    [(b'{"x":"c.safetensors"}', "c.safetensors, which is missing"), (b"{}", "in 0 shards")],
)
def test_an_index_that_names_no_shard_or_a_missing_one_is_refused(weight_map: bytes, reason: str) -> None:
    files = choose("a.safetensors", INDEX)
    with pytest.raises(UnsafeModel, match=reason):
        files.shards_named(parse_weights_index(b'{"weight_map":' + weight_map + b"}"))


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        (b"", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "no map"),
        (b'{"weight_map":{"x":1}}', "no map"),
        (b'{"weight_map":{"x":"a.safetensors","x":"b.safetensors"}}', "stands twice"),
        (b'{"weight_map":{"x":"../a.safetensors"}}', "not the name"),
        (b'{"weight_map":{"x":"a\\u0000.safetensors"}}', "not the name"),
        (b'{"weight_map":{"x":"\\ud800.safetensors"}}', "not the name"),
        (b'{"weight_map":{"x":"a.bin"}}', "not the name"),
        (b" " * 100_000_001, "larger than"),
    ],
)
def test_a_weights_index_that_is_none_is_refused(index: bytes, reason: str) -> None:
    with pytest.raises(UnsafeModel, match=reason):
        parse_weights_index(index)


ENGINES_READ = [
    "additional_chat_templates/tools.jinja",
    "chat_template.jinja",
    "chat_template.json",
    "config_sentence_transformers.json",
    "generation_config.json",
    "merges.txt",
    "params.json",
    "preprocessor_config.json",
    "qwen.tiktoken",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v3",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
]
NOBODY_NEEDS = [
    ".gitattributes",
    ".hidden.json",
    "LICENSE",
    "README.md",
    "adapter_config.json",
    "chat_template.py",
    "configuration_custom.py",
    "figures/plot.png",
    "headrace.seekindex.json",
    "model.gguf",
    "onnx/config.json",
    "original/params.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "runs/events.out.tfevents",
    "training_args.bin",
    "1_Pooling/config.json",
]


def test_the_skeleton_is_what_engines_read_and_nothing_else() -> None:
    files = choose("model.safetensors", *ENGINES_READ, *NOBODY_NEEDS, INDEX)
    assert skeleton(files) == ENGINES_READ
    assert files.config in files.skeleton
    assert files.weights_index is not None


def test_modules_of_a_sentence_transformers_model_belong_to_the_skeleton() -> None:
    modules = ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"]
    others = ["2_Dense/pytorch_model.bin", "2_Dense/notes.json", "other/config.json", "1_Pooling/deeper/config.json"]
    assert skeleton(choose("model.safetensors", "modules.json", *modules, *others)) == ["modules.json", *modules]


def test_a_module_with_pickled_weights_only_is_refused() -> None:
    with pytest.raises(UnsafeModel, match="2_Dense/pytorch_model.bin: pickle"):
        choose("model.safetensors", "modules.json", "2_Dense/config.json", "2_Dense/pytorch_model.bin")


@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        ([], "no .safetensors file"),
        (["pytorch_model.bin"], "pickle"),
        (["model.gguf", "pytorch_model.bin"], "GGUF"),
        (["adapter_model.safetensors", "adapter_config.json"], "an adapter without its model"),
        (["onnx/model.safetensors"], "no .safetensors file"),
        (["model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"], "model-00002-of-00003.*missing"),
        (["model-00001-of-99999.safetensors"], "model-00002-of-99999.safetensors is missing"),
        (["model.safetensors", "../config.json"], "leaves the model|control characters"),
        (["model.safetensors", "/etc/config.json"], "leaves the model|control characters"),
        (["model.safetensors", "a\nb.json"], "leaves the model|control characters"),
        (["model.safetensors", "a\\b.json"], "leaves the model|control characters"),
        (["model.safetensors", "tokenizer.json", "tokenizer.json/x"], "path of a directory"),
        (["model.safetensors", "vocab.json", "Vocab.json"], "upper and lower case"),
    ],
)
def test_a_listing_that_is_no_model_is_refused_with_its_reason(paths: list[str], reason: str) -> None:
    with pytest.raises(UnsafeModel, match=reason):
        choose(*paths)


def test_a_file_that_is_listed_twice_is_refused() -> None:
    with pytest.raises(UnsafeModel, match="one path"):
        choose_files([SourceFile("config.json", 1), SourceFile("m.safetensors", 100), SourceFile("config.json", 2)])


def test_a_listing_without_a_config_is_refused() -> None:
    with pytest.raises(UnsafeModel, match=r"config\.json is missing"):
        choose_files([SourceFile("model.safetensors", 100)])


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"model__safetensors": -1}, "listed with -1 bytes"),
        ({"model__safetensors": 7}, "it has 7 bytes"),
        ({"config__json": 17 * MIB}, "larger than"),
        ({INDEX.replace(".", "__"): 100_000_001}, "larger than"),
        ({"modules__json": 1, "2_Dense/model__safetensors": (1 << 30) + 1}, "a module may have"),
        ({f"a{n}__json": 100 * MIB for n in range(21)}, "2147483648 bytes are possible"),
        ({f"a{n}__json": 1 for n in range(500)}, "501 files"),
        ({f"a{n}": 1 for n in range(20_000)}, "more than 20000 files"),
    ],
)
def test_sizes_and_numbers_are_bounded(sizes: dict[str, int], reason: str) -> None:
    with pytest.raises(UnsafeModel, match=reason):
        choose(**{"model__safetensors": 100, **sizes})


def test_a_file_beside_the_weights_that_is_too_large_is_left_out_and_said() -> None:
    files = choose("model.safetensors", dump__json=101 * MIB)
    assert skeleton(files) == []
    assert files.notes == (f"dump.json is not used: it has more than {100 * MIB} bytes",)


paths = st.lists(
    st.sampled_from([*ENGINES_READ, *NOBODY_NEEDS, "model.safetensors", "x-1-of-2.safetensors", "modules.json", INDEX])
    | st.text("a./_1\\\n", min_size=1, max_size=8),
    max_size=12,
)


@given(listed=paths)
def test_whatever_is_listed_the_skeleton_has_no_weights_and_nothing_that_runs(listed: list[str]) -> None:
    try:
        files = choose(*listed)
    except UnsafeModel:
        return
    chosen = {file.path for file in files.skeleton}
    assert chosen <= {"config.json", *listed}
    assert not any(path.endswith((".safetensors", ".bin", ".gguf", ".py", ".index.json")) for path in chosen)
    assert files.shards is None or {file.path for file in files.shards} <= set(listed)
