"""Every refusal of a model directory, and the facts of one that is accepted."""

import json
import os
import struct
from pathlib import Path

import pytest

from headrace_models import ModelNotFound, Task, UnsafeModel, inspect
from headrace_models.index_building import index_of_directory
from headrace_models.inspection import facts_of, inspect_skeleton
from tests.fakes.checkpoints import write_checkpoint
from tests.unit.headrace_models.models_support import CONFIG, shard_bytes, tiny_shard, write_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12], **changes}


def test_the_facts_come_from_config_and_headers(model: Path) -> None:
    facts = inspect(model)
    assert (facts.architecture, facts.task, facts.dtype) == ("LlamaForCausalLM", Task.GENERATE, "bfloat16")
    assert (facts.num_parameters, facts.weight_bytes) == (6, len(tiny_shard()))
    assert (facts.max_length, facts.num_layers, facts.vocab_size) == (64, 1, 16)
    assert (facts.hidden_size, facts.num_kv_heads, facts.head_dim) == (8, 1, 4)
    assert facts.notes == ()


def test_absent_and_senseless_values_are_none(model: Path) -> None:
    write_json(model / "config.json", {"num_hidden_layers": True, "vocab_size": -1, "hidden_size": "8"})
    facts = inspect(model)
    assert facts.architecture is None
    assert facts.task is Task.EMBED
    values = (facts.max_length, facts.num_layers, facts.vocab_size, facts.hidden_size, facts.num_kv_heads)
    assert (*values, facts.head_dim) == (None,) * 6


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("Qwen2_5_VLForConditionalGeneration", Task.GENERATE),
        ("GPT2LMHeadModel", Task.GENERATE),
        ("BertModel", Task.EMBED),
        ("BertForSequenceClassification", Task.EMBED),
    ],
)
def test_the_task_is_told_by_the_architecture(model: Path, architecture: str, task: Task) -> None:
    write_json(model / "config.json", {"architectures": [architecture]})
    assert inspect(model).task is task


def test_a_text_config_inside_the_config_counts(model: Path) -> None:
    write_json(model / "config.json", {"text_config": dict(CONFIG)})
    assert inspect(model).num_layers == 1


def test_the_length_of_a_sentence_model_wins(model: Path) -> None:
    write_json(model / "sentence_bert_config.json", {"max_seq_length": 32})
    assert inspect(model).max_length == 32


def test_a_missing_directory_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no such directory"):
        inspect(tmp_path / "absent")


@pytest.mark.parametrize(("name", "reason"), [("a.gguf", "GGUF"), ("a.bin", "pickle"), ("a.txt", "is a file")])
def test_a_single_file_is_refused_with_its_reason(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UnsafeModel, match=reason):
        inspect(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("model.gguf", "GGUF is not loaded"),
        ("pytorch_model.bin", "pickle"),
        ("model.pt", "pickle"),
        ("model.pth", "pickle"),
        ("model.ckpt", "pickle"),
        ("model.pkl", "pickle"),
        ("README.md", "no .safetensors file"),
    ],
)
def test_weights_that_are_not_safetensors_are_refused(model: Path, name: str, reason: str) -> None:
    (model / "model.safetensors").rename(model / name)
    with pytest.raises(UnsafeModel, match=reason):
        inspect(model)


def test_pickle_and_gguf_beside_safetensors_are_stated(model: Path) -> None:
    (model / "pytorch_model.bin").touch()
    (model / "model.gguf").touch()
    assert [note.split()[0] for note in inspect(model).notes] == ["model.gguf", "pytorch_model.bin"]


def test_a_missing_config_is_refused(model: Path) -> None:
    (model / "config.json").unlink()
    with pytest.raises(UnsafeModel, match=r"config\.json is missing"):
        inspect(model)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[]", "not a JSON object"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b" " * (16 << 20) + b"{}", "larger than"),
    ],
)
def test_a_config_that_is_no_bounded_json_object_is_refused(model: Path, content: bytes, reason: str) -> None:
    (model / "config.json").write_bytes(content)
    with pytest.raises(UnsafeModel, match=reason):
        inspect(model)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "preprocessor_config.json", "sub/config.json"]
)
@pytest.mark.parametrize(
    "content", [{"auto_map": {"AutoModel": "code.Model"}}, {"vision_config": [{"auto_map": {"AutoConfig": "c.C"}}]}]
)
def test_a_config_that_names_code_is_refused(model: Path, name: str, content: object) -> None:
    write_json(model / name, content)
    with pytest.raises(UnsafeModel, match="auto_map"):
        inspect(model)


def test_a_link_that_leaves_the_directory_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").touch()
    (model / "tokenizer.json").symlink_to("../secret")
    with pytest.raises(UnsafeModel, match="link that leaves"):
        inspect(model)


def test_a_folder_link_that_leaves_the_directory_is_refused(model: Path, tmp_path: Path) -> None:
    (model / "sub").symlink_to(tmp_path)
    with pytest.raises(UnsafeModel, match="link that leaves"):
        inspect(model)


def test_a_link_inside_the_directory_is_followed(model: Path) -> None:
    (model / "model.safetensors").rename(model / "blob")
    (model / "model.safetensors").symlink_to("blob")
    assert inspect(model).num_parameters == 6


def test_a_link_to_nothing_is_refused(model: Path) -> None:
    (model / "tokenizer.json").symlink_to("absent")
    with pytest.raises(UnsafeModel, match="link to nothing"):
        inspect(model)


def test_a_file_that_is_not_regular_is_refused_without_opening_it(model: Path) -> None:
    os.mkfifo(model / "tokenizer_config.json")
    with pytest.raises(UnsafeModel, match="not a regular file"):
        inspect(model)


def test_only_the_shards_of_the_index_count(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-1.safetensors")
    (model / "consolidated.safetensors").write_bytes(tiny_shard())
    write_json(model / "model.safetensors.index.json", {"weight_map": {"weight": "model-1.safetensors"}})
    assert inspect(model).num_parameters == 6


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ({"weight_map": {"a": "absent.safetensors"}}, "is missing"),
        ({"weight_map": {"a": "../model.safetensors"}}, "not the name of"),
        ({"weight_map": {"a": "/model.safetensors"}}, "not the name of"),
        ({"weight_map": {"a": "pytorch_model.bin"}}, "not the name of"),
        ({"weight_map": {"a": 1}}, "no map"),
        ({"weight_map": []}, "no map"),
        ({}, "no map"),
        ([], "not a JSON object"),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(model: Path, index: object, reason: str) -> None:
    write_json(model / "model.safetensors.index.json", index)
    with pytest.raises(UnsafeModel, match=reason):
        inspect(model)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it has 0 bytes"),
        (b"1234567", "it has 7 bytes"),
        (struct.pack("<Q", 100_000_001), "its header would have"),
        (struct.pack("<Q", 2**64 - 1), "its header would have"),
        (struct.pack("<Q", 3) + b"{}", "cut off"),
        (struct.pack("<Q", 1) + b"{", "not JSON"),
        (shard_bytes([]), "not a JSON object"),
        (shard_bytes({"w": 1}), "malformed"),
        (shard_bytes({"w": entry(dtype=1)}, bytes(12)), "malformed"),
        (shard_bytes({"w": entry(data_offsets=[0])}, bytes(12)), "malformed"),
        (shard_bytes({"w": entry()}, bytes(11)), "cut off"),
        (shard_bytes({"w": entry(data_offsets=[12, 0])}, bytes(12)), "bytes 12 to 0"),
        (shard_bytes({"w": entry(data_offsets=[-1, 2])}, bytes(12)), "bytes -1 to 2"),
        (shard_bytes({"w": entry(shape=[2, -3])}, bytes(12)), "shape"),
        (shard_bytes({"w": entry(shape=[True])}, bytes(12)), "shape"),
        (shard_bytes({"w": entry(shape=[10**18])}, bytes(12)), "shape"),
        (shard_bytes({"w": entry(shape=[10**30])}, bytes(12)), "not an integer"),
        (shard_bytes({"w": entry(shape=[1] * 33)}, bytes(12)), "shape"),
    ],
)
def test_a_shard_whose_header_does_not_fit_is_refused(model: Path, content: bytes, reason: str) -> None:
    (model / "model.safetensors").write_bytes(content)
    with pytest.raises(UnsafeModel, match=reason):
        inspect(model)


def test_the_metadata_of_a_shard_is_no_tensor(model: Path) -> None:
    (model / "model.safetensors").write_bytes(shard_bytes({"__metadata__": {"format": "pt"}, "w": entry()}, bytes(12)))
    assert inspect(model).num_parameters == 6


@pytest.mark.parametrize("path", ["../other", "/etc", 1, None])
def test_a_module_outside_the_directory_is_refused(model: Path, path: object) -> None:
    write_json(model / "modules.json", [{"path": path}])
    with pytest.raises(UnsafeModel, match="modules"):
        inspect(model)


def test_a_module_with_pickled_weights_is_refused(model: Path) -> None:
    (model / "2_Dense").mkdir()
    (model / "2_Dense" / "pytorch_model.bin").touch()
    write_json(model / "modules.json", [{"path": ""}, {"path": "2_Dense"}])
    with pytest.raises(UnsafeModel, match="pickle"):
        inspect(model)


def test_modules_without_a_type_need_no_weights(model: Path) -> None:
    write_json(
        model / "modules.json", [{"path": ""}, {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    )
    assert inspect(model).num_parameters == 6


DENSE = [{"path": "2_Dense/", "type": "sentence_transformers.models.Dense"}]


def test_a_dense_module_without_its_weights_is_refused(model: Path) -> None:
    write_json(model / "modules.json", DENSE)
    with pytest.raises(UnsafeModel, match="2_Dense/model.safetensors"):
        inspect(model)


def test_the_weights_of_a_module_are_inspected_too(model: Path) -> None:
    write_json(model / "modules.json", DENSE)
    (model / "2_Dense").mkdir()
    (model / "2_Dense" / "model.safetensors").write_bytes(shard_bytes({"w": entry()}, bytes(11)))
    with pytest.raises(UnsafeModel, match="cut off"):
        inspect(model)
    (model / "2_Dense" / "model.safetensors").write_bytes(tiny_shard())
    assert inspect(model).num_parameters == 6


def test_a_config_nested_as_deeply_as_json_can_be_is_looked_through(model: Path) -> None:
    depth = 900
    content = '{"a":[' * (depth // 2) + '{"auto_map":{"A":"b.C"}}' + "]}" * (depth // 2)
    (model / "config.json").write_text(content)
    with pytest.raises(UnsafeModel, match="auto_map"):
        inspect(model)


def test_an_empty_auto_map_names_no_code(model: Path) -> None:
    write_json(model / "tokenizer_config.json", {"auto_map": {}})
    assert inspect(model).num_parameters == 6


@pytest.mark.parametrize(
    ("second", "weight_map", "reason"),
    [
        ("weight", {}, "in two shards"),
        ("other", {"weight": "b.safetensors"}, "which it does not"),
        ("other", {"third": "a.safetensors"}, "which it does not"),
    ],
)
def test_shards_that_contradict_each_other_or_their_index_are_refused(
    model: Path, second: str, weight_map: dict[str, str], reason: str
) -> None:
    (model / "model.safetensors").rename(model / "a.safetensors")
    (model / "b.safetensors").write_bytes(shard_bytes({second: entry()}, bytes(12)))
    if weight_map:
        write_json(model / "model.safetensors.index.json", {"weight_map": {second: "b.safetensors", **weight_map}})
    with pytest.raises(UnsafeModel, match=reason):
        inspect(model)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_skeleton_and_an_index_say_what_the_directory_says(tmp_path: Path, shards: int) -> None:
    write_checkpoint(tmp_path, shards=shards, hidden=32, num_layers=3)
    index = index_of_directory(tmp_path, "file:///model", digests=False)
    skeleton = tmp_path / "skeleton"
    skeleton.mkdir()
    (tmp_path / "config.json").rename(skeleton / "config.json")
    write_json(skeleton / "sentence_bert_config.json", {"max_seq_length": 32})
    inspect_skeleton(skeleton)
    facts = facts_of(skeleton, index)
    (skeleton / "config.json").rename(tmp_path / "config.json")
    (skeleton / "sentence_bert_config.json").rename(tmp_path / "sentence_bert_config.json")
    assert facts == inspect(tmp_path)
    assert facts.max_length == 32


@pytest.fixture
def skeleton(model: Path) -> Path:
    (model / "model.safetensors").unlink()
    write_json(model / "tokenizer.json", {})
    return model


def test_a_skeleton_needs_no_weights(skeleton: Path) -> None:
    inspect_skeleton(skeleton)


def test_a_link_in_a_skeleton_is_refused_even_inside_it(skeleton: Path) -> None:
    (skeleton / "vocab.json").symlink_to("tokenizer.json")
    with pytest.raises(UnsafeModel, match=r"vocab\.json is a link"):
        inspect_skeleton(skeleton)


def test_a_linked_folder_in_a_skeleton_is_refused(skeleton: Path) -> None:
    (skeleton / "real").mkdir()
    write_json(skeleton / "real" / "config.json", {})
    (skeleton / "1_Pooling").symlink_to("real")
    with pytest.raises(UnsafeModel, match="1_Pooling"):
        inspect_skeleton(skeleton)


def test_a_skeleton_that_is_not_what_it_must_be_is_refused(skeleton: Path) -> None:
    write_json(skeleton / "tokenizer_config.json", {"deep": [{"auto_map": {"A": "b.C"}}]})
    with pytest.raises(UnsafeModel, match="auto_map"):
        inspect_skeleton(skeleton)
    os.remove(skeleton / "tokenizer_config.json")
    os.mkfifo(skeleton / "vocab.txt")
    with pytest.raises(UnsafeModel, match="not a regular file"):
        inspect_skeleton(skeleton)
    os.remove(skeleton / "vocab.txt")
    (skeleton / "pytorch_model.bin").touch()
    with pytest.raises(UnsafeModel, match="pickle"):
        inspect_skeleton(skeleton)


@pytest.mark.parametrize(("content", "reason"), [(None, "cannot be read"), ("[]", "not a JSON object")])
def test_a_skeleton_without_a_config_is_refused(skeleton: Path, content: str | None, reason: str) -> None:
    (skeleton / "config.json").unlink()
    if content is not None:
        (skeleton / "config.json").write_text(content)
    with pytest.raises(UnsafeModel, match=reason):
        inspect_skeleton(skeleton)


def test_facts_of_a_skeleton_without_a_config_are_refused(model: Path, tmp_path: Path) -> None:
    index = index_of_directory(model, "file:///model", digests=False)
    with pytest.raises(UnsafeModel, match="cannot be read"):
        facts_of(tmp_path, index)
