"""In which order a model uses its tensors: embedding, then what is around the layers, layer by layer, head.

Files do not hold tensors in this order (safetensors sorts by data type, then by name, so that layer 10 comes before
layer 2). Pure: names and sizes in, groups out. An unknown name is never dropped: it goes into `other`, which comes
early and which every pipeline stage takes.

Of several stacks of layers one is the model's; the others are `other`. Encoders and towers for images and sound run
before what generates, so a stack that is named like one is the model's only if there is nothing else: of T5 and Whisper
the decoder's layers are the layers, of BERT the encoder's. Among the rest the one with most bytes wins.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

EMBEDDING = "embedding"
OTHER = "other"
HEAD = "head"

# The outermost number is the layer: experts (`layers.3.mlp.experts.17.`), T5's parts (`block.3.layer.1.`) lie inside.
_STACK = re.compile(r"(?P<stack>(?:^|.*?\.)(?:layers|layer|h|blocks|block))\.(?P<number>[0-9]{1,5})\.")
_BESIDE = re.compile(r"vision|visual|image|audio|speech|encoder|(?:^|\.)vit\.")
_EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|wte|wpe|word_embeddings|tok_embeddings|embeddings?|embed_in|shared)(\.|$)"
)
_HEAD = re.compile(
    r"(^|\.)(lm_head|embed_out|output|output_layer|proj_out|head|score|classifier|pooler|cls"
    r"|norm|norm_f|final_norm|ln_f|ln_out|final_layernorm|final_layer_norm)(\.|$)"
)
_OUTPUT = re.compile(r"(^|\.)(lm_head|embed_out|output|output_layer|proj_out|head)(\.|$)")
_LAYER = re.compile(r"layer\.(0|[1-9][0-9]{0,4})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Stage:
    """What one pipeline stage of a model needs: layers `begin` to `end` (not included), and what is at the ends."""

    begin: int
    end: int
    first: bool
    last: bool


def layer_group(number: int) -> str:
    """The name of the group of a layer, counted from 0."""
    return f"layer.{number}"


def is_group(name: str) -> bool:
    """Whether a group can have this name."""
    return name in {EMBEDDING, OTHER, HEAD} or _LAYER.fullmatch(name) is not None


def plan_groups(sizes: Mapping[str, int]) -> Mapping[str, str]:
    """The group of each tensor; `sizes` are in bytes, by tensor name."""
    stacks: Counter[str] = Counter()
    for name, size in sizes.items():
        if match := _STACK.match(name):
            stacks[match["stack"]] += size
    main = max(stacks, key=lambda stack: (not _BESIDE.search(stack), stacks[stack], stack), default="")
    return {name: _group(name, main) for name in sizes}


def group_order(groups: Iterable[str]) -> tuple[str, ...]:
    """The distinct `groups`, each of which `is_group`, in execution order."""
    return tuple(sorted(set(groups), key=_rank))


def stage_groups(groups: Iterable[str], stage: Stage, *, tied: bool) -> frozenset[str]:
    """Of `groups` those that a pipeline stage needs. `tied`: the head uses the embedding's weights."""
    wanted = {OTHER, *(layer_group(number) for number in range(stage.begin, stage.end))}
    if stage.first or (stage.last and tied):
        wanted.add(EMBEDDING)
    if stage.last:
        wanted.add(HEAD)
    return frozenset(wanted.intersection(groups))


def is_tied(names: Iterable[str]) -> bool:
    """Whether a checkpoint with these tensors has no output matrix of its own, in which case the head uses the
    embedding's."""
    return not any(_OUTPUT.search(name) and not _STACK.match(name) and not _BESIDE.search(name) for name in names)


def _group(name: str, main: str) -> str:
    if match := _STACK.match(name):
        return layer_group(int(match["number"])) if match["stack"] == main else OTHER
    if _BESIDE.search(name) and not _BESIDE.search(main):
        return OTHER
    if _EMBEDDING.search(name):
        return EMBEDDING
    return HEAD if _HEAD.search(name) else OTHER


def _rank(group: str) -> tuple[int, int]:
    if match := _LAYER.fullmatch(group):
        return 2, int(match[1])
    return {EMBEDDING: 0, OTHER: 1, HEAD: 3}[group], 0
