"""Row `bytes`: what the origin sends, against what is needed.

Three things are wanted: a whole model; one of two pipeline stages of a model whose head has a matrix of its own; the
index alone, by `headrace index show`. Over plain HTTP, where a source lists nothing and has to be asked for each file
that a model may have. What is more than needed is the guess at the length of a shard's header, 128 KiB at most.
"""

import json
from pathlib import Path

from headrace_models.fetch.request import FetchRequest
from headrace_models.index_building import GUESSED_HEADER_BYTES
from headrace_models.layer_plan import Stage, layer_group, stage_groups
from headrace_models.store.model_store import ModelStore
from headrace_server.bench.measures import Measure
from loadtests.cache_children import running
from loadtests.cache_fetch import fetch
from loadtests.cache_findings import ORIGIN_BYTES, Findings, at_most
from loadtests.cache_served import ServedModel, WrongResult
from loadtests.cache_setting import Protocol, Setting, link_of, reference_of
from loadtests.origin.remote import RemoteOrigin, origin_process

WHOLE, SHARDS, FIRST, LAST, INDEX = "whole model", "its shards", "first stage", "last stage", "index show"
SHARE = Measure("bytes_share", "origin bytes / model", "×", digits=4)
EXTRA = Measure("bytes_beyond_need", "beyond need", "KiB", 1 / 1024, 1)
SMALL = Measure("index_bytes", "index", "KiB", 1 / 1024, 1)

_MIB_PER_SECOND = 200.0
# The definition: everything that comes over the shards' own bytes is the guess, once for each shard.
_MOST_SHARE = 1.005


async def measure_bytes(setting: Setting) -> Findings:
    """Bytes do not vary: each is fetched once. Raises HeadraceError."""
    findings, large = Findings(), setting.large()
    models = {model.name: model.directory for model in (setting.model, large)}
    with origin_process(models, link=link_of(_MIB_PER_SECOND)) as origin:
        await _whole(setting, origin, findings)
        num_layers = json.loads((large.directory / "config.json").read_text())["num_hidden_layers"]
        half = num_layers // 2
        await _stage(setting, origin, findings, FIRST, Stage(0, half, first=True, last=False))
        await _stage(setting, origin, findings, LAST, Stage(half, num_layers, first=False, last=True))
        await _index(setting, origin, findings)
    _add_lines(findings)
    return findings


async def _whole(setting: Setting, origin: RemoteOrigin, findings: Findings) -> None:
    model = setting.model
    with setting.folder() as cache:
        origin.reset()
        fetched = await fetch(FetchRequest(reference_of(Protocol.HTTP, origin.address, model.name), cache))
        model.check_stored(fetched.stored)
        needed = model.weight_bytes + model.skeleton_bytes(fetched.stored)
    sent, of_shards = origin.stats().body_bytes(), origin.stats().body_bytes("*.safetensors")
    _note(findings, WHOLE, sent, needed)
    _note(findings, SHARDS, of_shards, model.weight_bytes)
    findings.remarks.append(
        f"whole model: {sent:,} bytes in {origin.stats().num_requests()} requests for {needed:,} needed;"
        f" of its {model.num_shards} shard(s) {of_shards:,} for {model.weight_bytes:,}, since a header's length is"
        f" guessed ({GUESSED_HEADER_BYTES:,} bytes a shard); HTTP headers are not counted"
    )


async def _stage(setting: Setting, origin: RemoteOrigin, findings: Findings, side: str, stage: Stage) -> None:
    model = setting.large()
    groups = stage_groups(("embedding", "head", *map(layer_group, range(stage.begin, stage.end))), stage, tied=False)
    reference = reference_of(Protocol.HTTP, origin.address, model.name)
    with setting.folder() as cache:
        origin.reset()
        fetched = await fetch(FetchRequest(reference, cache, groups=tuple(sorted(groups))))
        model.check_stored(fetched.stored, partly=True)
        _check_groups(cache, fetched.stored.name, model, groups)
    sent = origin.stats().body_bytes("*.safetensors")
    findings.samples.add(ORIGIN_BYTES, side, sent)
    findings.samples.add(SHARE, side, sent / model.weight_bytes)


def _check_groups(cache: Path, key: str, model: ServedModel, groups: frozenset[str]) -> None:
    """Raise WrongResult unless the stage's tensors are there, and right."""
    stored = ModelStore(cache).open_key(key)
    present = {name: (here, total) for name, here, total in stored.status().present_by_group}
    missing = [name for name in groups if present[name][0] != present[name][1]]
    wrong = [tensor.name for tensor in stored.index.tensors if stored.index.groups[tensor.group] in groups]
    for tensor in stored.index.tensors:
        if stored.index.groups[tensor.group] in groups:
            path = stored.index.files[tensor.file].path
            size = (tensor.begin, tensor.end)
            if _part(stored.shard_path(tensor.file), *size) == _part(model.directory / path, *size):
                wrong.remove(tensor.name)
    if missing or wrong:
        raise WrongResult(f"a stage of {model.name} lacks {missing}, has wrong {wrong[:3]}")


def _part(path: Path, begin: int, end: int) -> bytes:
    with path.open("rb") as file:
        file.seek(begin)
        return file.read(end - begin)


async def _index(setting: Setting, origin: RemoteOrigin, findings: Findings) -> None:
    with setting.folder() as folder:
        config = folder / "headrace.yaml"
        config.write_text(json.dumps({"cache": {"dir": str(folder / "cache")}}))
        reference = reference_of(Protocol.HTTP, origin.address, setting.model.name)
        origin.reset()
        line = ("-m", "headrace_server", "index", "show", reference, "--json", "--tensors", "--config", str(config))
        async with running(line) as command:
            shown = json.loads("\n".join([text async for text in command.lines()]))
    if len(shown["tensors"]) != setting.model.num_tensors:
        raise WrongResult(f"headrace index show lists {len(shown['tensors'])} tensors")
    findings.samples.add(SMALL, INDEX, origin.stats().body_bytes())


def _note(findings: Findings, side: str, sent: int, needed: int) -> None:
    findings.samples.add(ORIGIN_BYTES, side, sent)
    findings.samples.add(SHARE, side, sent / needed)
    findings.samples.add(EXTRA, side, sent - needed)


def _add_lines(findings: Findings) -> None:
    findings.worst("whole model: bytes / needed", SHARE, WHOLE, at_most(_MOST_SHARE))
    findings.worst("whole model: beyond need", EXTRA, WHOLE, at_most(GUESSED_HEADER_BYTES + 1024))
    findings.worst("first of two stages / model", SHARE, FIRST, at_most(0.55))
    findings.worst("last of two stages / model", SHARE, LAST, at_most(0.55))
    findings.worst("headrace index show", SMALL, INDEX)
