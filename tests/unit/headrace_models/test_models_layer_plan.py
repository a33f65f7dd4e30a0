"""Groups of tensors, on the names that real models use: which layer, which end, and what is beside the model."""

import pytest

from headrace_models.layer_plan import (
    EMBEDDING,
    HEAD,
    OTHER,
    Stage,
    group_order,
    is_group,
    is_tied,
    plan_groups,
    stage_groups,
)

# By architecture: names as in published checkpoints, their sizes where they matter, and the group of each.
MODELS: dict[str, dict[str, tuple[int, str]]] = {
    "llama": {
        "model.embed_tokens.weight": (9, EMBEDDING),
        "model.layers.0.self_attn.q_proj.weight": (1, "layer.0"),
        "model.layers.10.mlp.down_proj.weight": (1, "layer.10"),
        "model.layers.2.input_layernorm.weight": (1, "layer.2"),
        "model.norm.weight": (1, HEAD),
        "model.rotary_emb.inv_freq": (1, OTHER),
        "lm_head.weight": (9, HEAD),
    },
    "qwen2 and qwen3": {
        "model.embed_tokens.weight": (9, EMBEDDING),
        "model.layers.0.self_attn.q_proj.bias": (1, "layer.0"),
        "model.layers.1.self_attn.q_norm.weight": (1, "layer.1"),
        "model.norm.weight": (1, HEAD),
    },
    "mixtral": {
        "model.layers.3.block_sparse_moe.experts.7.w1.weight": (1, "layer.3"),
        "model.layers.3.block_sparse_moe.gate.weight": (1, "layer.3"),
    },
    "deepseek": {
        "model.layers.3.mlp.experts.255.down_proj.weight_scale_inv": (1, "layer.3"),
        "model.layers.3.mlp.shared_experts.up_proj.weight": (1, "layer.3"),
        "model.layers.61.shared_head.norm.weight": (1, "layer.61"),
    },
    "gpt-oss": {"model.layers.5.mlp.experts.gate_up_proj_blocks": (1, "layer.5")},
    "gpt2": {
        "wte.weight": (9, EMBEDDING),
        "wpe.weight": (1, EMBEDDING),
        "h.0.attn.c_attn.weight": (1, "layer.0"),
        "h.11.mlp.c_fc.weight": (1, "layer.11"),
        "ln_f.weight": (1, HEAD),
    },
    "gpt-neox": {
        "gpt_neox.embed_in.weight": (9, EMBEDDING),
        "gpt_neox.layers.0.attention.query_key_value.weight": (1, "layer.0"),
        "gpt_neox.final_layer_norm.weight": (1, HEAD),
        "embed_out.weight": (9, HEAD),
    },
    "falcon": {
        "transformer.word_embeddings.weight": (9, EMBEDDING),
        "transformer.h.31.self_attention.dense.weight": (1, "layer.31"),
        "transformer.ln_f.bias": (1, HEAD),
        "lm_head.weight": (9, HEAD),
    },
    "phi": {
        "model.embed_tokens.weight": (9, EMBEDDING),
        "model.layers.0.mlp.fc1.bias": (1, "layer.0"),
        "model.final_layernorm.weight": (1, HEAD),
        "lm_head.bias": (1, HEAD),
    },
    "chatglm": {
        "transformer.embedding.word_embeddings.weight": (9, EMBEDDING),
        "transformer.encoder.layers.4.mlp.dense_h_to_4h.weight": (1, "layer.4"),
        "transformer.encoder.final_layernorm.weight": (1, HEAD),
        "transformer.output_layer.weight": (9, HEAD),
    },
    "bert": {
        "bert.embeddings.word_embeddings.weight": (9, EMBEDDING),
        "bert.encoder.layer.0.attention.output.dense.weight": (1, "layer.0"),
        "bert.pooler.dense.weight": (1, HEAD),
        "cls.predictions.bias": (1, HEAD),
    },
    "MiniLM": {
        "embeddings.LayerNorm.weight": (1, EMBEDDING),
        "embeddings.position_ids": (1, EMBEDDING),
        "encoder.layer.5.output.dense.weight": (1, "layer.5"),
        "pooler.dense.bias": (1, HEAD),
    },
    "ModernBERT": {
        "model.embeddings.tok_embeddings.weight": (9, EMBEDDING),
        "model.layers.0.attn.Wqkv.weight": (1, "layer.0"),
        "model.final_norm.weight": (1, HEAD),
        "head.dense.weight": (1, HEAD),
    },
    "llava, with a tower that is larger than the model": {
        "language_model.model.embed_tokens.weight": (9, EMBEDDING),
        "language_model.model.layers.0.mlp.up_proj.weight": (1, "layer.0"),
        "language_model.model.norm.weight": (1, HEAD),
        "language_model.lm_head.weight": (9, HEAD),
        "multi_modal_projector.linear_1.weight": (1, OTHER),
        "vision_tower.vision_model.embeddings.patch_embedding.weight": (1, OTHER),
        "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight": (100, OTHER),
        "vision_tower.vision_model.post_layernorm.weight": (1, OTHER),
    },
    "qwen-vl": {
        "model.embed_tokens.weight": (9, EMBEDDING),
        "model.layers.0.mlp.up_proj.weight": (1, "layer.0"),
        "visual.blocks.0.attn.qkv.weight": (100, OTHER),
        "visual.merger.mlp.0.weight": (1, OTHER),
        "visual.norm.weight": (1, OTHER),
    },
    "mamba": {
        "backbone.embeddings.weight": (9, EMBEDDING),
        "backbone.layers.0.mixer.A_log": (1, "layer.0"),
        "backbone.norm_f.weight": (1, HEAD),
    },
    "T5, whose encoder runs first": {
        "shared.weight": (9, EMBEDDING),
        "encoder.block.0.layer.0.SelfAttention.q.weight": (100, OTHER),
        "encoder.final_layer_norm.weight": (1, OTHER),
        "decoder.block.3.layer.1.EncDecAttention.k.weight": (1, "layer.3"),
        "decoder.final_layer_norm.weight": (1, HEAD),
        "lm_head.weight": (9, HEAD),
    },
    "whisper": {
        "model.encoder.conv1.weight": (1, OTHER),
        "model.encoder.layers.0.fc1.weight": (100, OTHER),
        "model.encoder.embed_positions.weight": (1, OTHER),
        "model.decoder.embed_tokens.weight": (9, EMBEDDING),
        "model.decoder.layers.0.encoder_attn.k_proj.weight": (1, "layer.0"),
        "model.decoder.layers.1.fc1.weight": (1, "layer.1"),
        "proj_out.weight": (9, HEAD),
    },
    "two stacks of equals: the larger one": {
        "model.layers.0.weight": (2, "layer.0"),
        "mtp.layers.0.weight": (1, OTHER),
    },
    "no layers at all": {"weight": (1, OTHER), "blocks.weight": (1, OTHER), "layers.x.weight": (1, OTHER)},
    "numbers that are no layers": {"layers.123456.weight": (1, OTHER), "layers.١.weight": (1, OTHER)},
}


@pytest.mark.parametrize("model", MODELS)
def test_tensors_are_in_the_group_that_uses_them(model: str) -> None:
    tensors = MODELS[model]
    assert plan_groups({name: size for name, (size, _) in tensors.items()}) == {
        name: group for name, (_, group) in tensors.items()
    }


def test_groups_are_in_execution_order() -> None:
    groups = ["head", "layer.10", "layer.2", "other", "embedding", "layer.2", "layer.0"]
    assert group_order(groups) == ("embedding", "other", "layer.0", "layer.2", "layer.10", "head")


@pytest.mark.parametrize("name", ["embedding", "other", "head", "layer.0", "layer.99999"])
def test_the_names_of_groups(name: str) -> None:
    assert is_group(name)


@pytest.mark.parametrize("name", ["", "layer", "layer.", "layer.00", "layer.01", "layer.-1", "layer.١", "layer.100000"])
def test_other_names_are_no_groups(name: str) -> None:
    assert not is_group(name)


@pytest.mark.parametrize(
    ("stage", "tied", "wanted"),
    [
        (Stage(0, 2, first=True, last=False), False, {"embedding", "other", "layer.0", "layer.1"}),
        (Stage(2, 4, first=False, last=True), False, {"other", "layer.2", "layer.3", "head"}),
        (Stage(2, 4, first=False, last=True), True, {"embedding", "other", "layer.2", "layer.3", "head"}),
        (Stage(1, 2, first=False, last=False), True, {"other", "layer.1"}),
        (Stage(0, 99, first=True, last=True), True, None),
    ],
)
def test_a_stage_takes_its_layers_and_what_is_at_its_ends(stage: Stage, tied: bool, wanted: set[str] | None) -> None:
    groups = {"embedding", "other", "head", *(f"layer.{number}" for number in range(4))}
    assert stage_groups(groups, stage, tied=tied) == (groups if wanted is None else wanted)


@pytest.mark.parametrize(
    ("names", "tied"),
    [
        (["model.embed_tokens.weight", "model.norm.weight"], True),
        (["wte.weight", "h.0.attn.c_attn.weight"], True),
        (["bert.encoder.layer.0.output.dense.weight"], True),
        (["model.embed_tokens.weight", "vision_tower.output.weight"], True),
        (["model.decoder.embed_tokens.weight", "model.encoder.layers.0.fc1.weight"], True),
        (["lm_head.weight"], False),
        (["language_model.lm_head.weight"], False),
        (["gpt_neox.embed_in.weight", "embed_out.weight"], False),
        (["tok_embeddings.weight", "output.weight"], False),
        (["transformer.output_layer.weight"], False),
        (["lm_head.qweight", "lm_head.scales"], False),
    ],
)
def test_a_checkpoint_without_an_output_matrix_is_tied(names: list[str], tied: bool) -> None:
    assert is_tied(names) is tied
