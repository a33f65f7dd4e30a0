"""`pull`, `ls`, `rm`, `verify` and `index show` as a user meets them, against a real origin and a real cache."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace_models.embedded import embedded_source, find_sources
from headrace_models.fetch.events import Completed, Failed, FetchEvent
from headrace_models.fetch.request import FetchRequest
from headrace_models.fetch.session import run_session
from headrace_models.preparation import embedded_directory
from headrace_models.reference import parse_reference
from headrace_models.store.model_store import ModelStore
from headrace_models.store.stored_model import StoredModel
from headrace_server.cli.progress_display import size_text
from loadtests.origin.faults import Faults, Stall, Status, When
from loadtests.origin.server import Origin, running_origin
from tests.fakes.checkpoints import write_checkpoint

pytestmark = pytest.mark.timeout(120)

Finished = subprocess.CompletedProcess[str]

MINILM = embedded_source("all-minilm-l6-v2")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 8 MB in two shards."""
    directory = tmp_path_factory.mktemp("checkpoints") / "m"
    write_checkpoint(directory, num_layers=8, hidden=160, shards=2)
    return directory


@pytest.fixture
def origin(checkpoint: Path) -> Iterator[Origin]:
    with running_origin({"m": checkpoint}) as running:
        yield running


@dataclass(frozen=True, slots=True)
class Home:
    """A user's folder, with a configuration and a cache."""

    folder: Path

    @property
    def cache_dir(self) -> Path:
        return self.folder / "cache"

    def configure(self, *models: dict[str, Any], **cache: object) -> None:
        """Write headrace.yaml."""
        document = {"cache": {"dir": str(self.cache_dir), **cache}, "models": list(models)}
        (self.folder / "headrace.yaml").write_text(yaml.safe_dump(document))

    def run(self, *arguments: str) -> Finished:
        """Run the command to its end."""
        return subprocess.run(
            self.command(arguments),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            cwd=self.folder,
            timeout=60,
            check=False,
        )

    @staticmethod
    def command(arguments: Sequence[str]) -> list[str]:
        return [sys.executable, "-m", "headrace_server", *arguments]

    def fetch(self, *references: str) -> None:
        """What `pull` does, without the second that a command takes to start."""
        for reference in references:
            events: list[FetchEvent] = []
            run_session(FetchRequest(reference, self.cache_dir), events.append, stop=threading.Event())
            assert isinstance(events[-1], Completed | Failed), events

    def stored(self, reference: str) -> StoredModel:
        """What the cache has of a reference."""
        model = ModelStore(self.cache_dir).find(str(parse_reference(reference)))
        assert model is not None
        return model

    def listed(self, source: str) -> dict[str, Any]:
        """The row of `ls --json` with this source."""
        rows: list[dict[str, Any]] = json.loads(self.run("ls", "--json").stdout)
        return next(row for row in rows if row["source"] == source)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.configure()
    return home


def web(origin: Origin) -> str:
    return f"{origin.url}/files/m/"


def registry(origin: Origin) -> str:
    return str(parse_reference(f"oci://{origin.address}/m:latest"))


def one_line(done: Finished) -> str:
    """The one line that an error is."""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def weight_bytes_sent(origin: Origin) -> int:
    paths = origin.stats().paths.items()
    return sum(entry.body_bytes for path, entry in paths if path.endswith(".safetensors"))


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def fetching_children(parent: int) -> list[int]:
    listings = Path(f"/proc/{parent}/task").glob("*/children")
    return [int(pid) for listing in listings for pid in listing.read_text().split()]


def heed_interrupts() -> None:
    """What a shell starts in the background ignores them, and so would we, if that is where the tests run."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class TestPull:
    """headrace pull."""

    def test_a_model_arrives_whole_and_a_second_pull_asks_for_no_weights(
        self, home: Home, origin: Origin, checkpoint: Path
    ) -> None:
        done = home.run("pull", web(origin))
        assert done.returncode == 0, done.stderr
        assert f"{web(origin)} is complete: " in done.stdout
        assert "trust none" in done.stdout
        model = home.stored(web(origin))
        for number, file in enumerate(model.index.files):
            assert model.shard_path(number).read_bytes() == (checkpoint / file.path).read_bytes()
        sent = weight_bytes_sent(origin)
        again = home.run("pull", web(origin))
        assert again.returncode == 0
        assert "nothing had to be fetched" in again.stdout
        assert weight_bytes_sent(origin) - sent <= len(model.index.files)  # a byte each, for their sizes

    def test_a_configured_model_is_pulled_by_its_id_as_it_is_configured(self, home: Home, origin: Origin) -> None:
        home.configure({"id": "mine", "aliases": ["my"], "source": web(origin), "require_trust": "file"})
        refused = home.run("pull", "my")
        assert refused.returncode == 1
        assert "'file' is asked for" in one_line(refused)
        assert home.run("pull", "mine", "--require-trust", "none").returncode == 0

    def test_machines_get_a_line_of_json_for_each_model(self, home: Home, origin: Origin) -> None:
        done = home.run("pull", web(origin), registry(origin), "--json", "--pin")
        assert done.returncode == 0, done.stderr
        first, second = map(json.loads, done.stdout.splitlines())
        model = home.stored(web(origin))
        assert (first["reference"], first["key"], first["revision"]) == (web(origin), model.key, model.revision)
        assert (first["complete"], first["trust"], first["error"]) == (True, "none", None)
        assert first["total_bytes"] == model.index.weight_bytes
        assert (second["trust"], second["complete"]) == ("file", True)
        assert [first["pinned"], second["pinned"], model.status().pinned] == [True, True, True]

    def test_one_that_cannot_be_had_is_a_line_and_the_next_is_pulled_all_the_same(
        self, home: Home, origin: Origin
    ) -> None:
        done = home.run("pull", f"{origin.url}/files/absent/", web(origin))
        assert done.returncode == 1
        assert f"{origin.url}/files/absent/" in one_line(done)
        assert home.stored(web(origin)).status().complete

    def test_a_name_that_is_nothing_is_a_usage_error_and_nothing_is_pulled(self, home: Home, origin: Origin) -> None:
        done = home.run("pull", web(origin), "nope://x")
        assert done.returncode == 2
        assert "nope://x" in one_line(done)
        assert not home.cache_dir.exists()
        home.configure({"id": "words", "engine": "synthetic"})
        assert home.run("pull", "words").returncode == 2

    def test_a_failure_half_way_says_what_is_kept(self, home: Home, origin: Origin) -> None:
        origin.set_faults(Faults((Status(when=When(path="*/m/model-00002*", first=3), status=403),)))
        done = home.run("pull", web(origin))
        assert done.returncode == 1
        status = home.stored(web(origin)).status()
        line = one_line(done)
        assert "403" in line
        assert f"{size_text(status.present_bytes)} of {size_text(status.total_bytes)} are kept" in line
        assert "\n" not in line

    def test_interrupted_it_ends_at_once_keeps_what_came_and_the_next_pull_fetches_the_rest(
        self, home: Home, origin: Origin
    ) -> None:
        origin.set_faults(Faults((Stall(when=When(path="*/m/model-00002*", first=3), seconds=600),)))
        with subprocess.Popen(
            home.command(["pull", web(origin)]),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=home.folder,
            start_new_session=True,
            preexec_fn=heed_interrupts,
        ) as process:
            (child,) = self.until_half_is_here(process.pid, home, web(origin))
            process.send_signal(signal.SIGINT)
            _out, errors = process.communicate(timeout=30)
        assert process.returncode == 1
        assert not is_alive(child)
        left = home.stored(web(origin)).status()
        assert 0 < left.present_bytes < left.total_bytes
        kept = f"{size_text(left.present_bytes)} of {size_text(left.total_bytes)} are kept; pull again to go on"
        assert errors.splitlines()[-1] == f"headrace: interrupted; {kept}"
        assert "Traceback" not in errors
        origin.set_faults(Faults())
        origin.reset()
        again = home.run("pull", web(origin), "--json")
        fetched = json.loads(again.stdout)["fetched_bytes"]
        assert fetched == left.total_bytes - left.present_bytes
        assert weight_bytes_sent(origin) <= fetched + 2

    @staticmethod
    def until_half_is_here(pid: int, home: Home, reference: str) -> list[int]:
        """Wait until the first shard has come; the processes that fetch."""
        found = None
        while found is None or found.status().present_bytes < found.index.files[0].size_bytes // 2:
            time.sleep(0.02)
            if (home.cache_dir / "models").is_dir():
                found = ModelStore(home.cache_dir).find(reference)
        return fetching_children(pid)

    def test_limits_are_obeyed_and_bad_ones_refused(self, home: Home, origin: Origin) -> None:
        assert home.run("pull", web(origin), "--max-connections", "0").returncode == 2
        assert home.run("pull", web(origin), "--require-trust", "much").returncode == 2
        done = home.run("pull", web(origin), "--max-connections", "1", "--bytes-per-second", "100000000")
        assert done.returncode == 0, done.stderr


class TestList:
    """headrace ls."""

    def test_every_kind_of_model_is_listed_with_its_state(self, home: Home, origin: Origin, checkpoint: Path) -> None:
        home.configure(
            {"id": "words", "engine": "synthetic"},
            {"id": "far", "aliases": ["x"], "source": web(origin)},
            {"id": "here", "source": str(checkpoint)},
        )
        home.fetch(registry(origin))
        origin.reset()
        rows = json.loads(home.run("ls", "--json").stdout)
        by_source = {row["source"]: row for row in rows}
        assert [row["id"] for row in rows[:3]] == ["words", "far", "here"]
        assert (by_source["synthetic"]["engine"], by_source["synthetic"]["state"]) == ("synthetic", None)
        far = by_source[web(origin)]
        assert (far["state"], far["aliases"], far["total_bytes"], far["key"]) == ("cold", ["x"], None, None)
        here = by_source[checkpoint.as_uri()]
        assert (here["state"], here["trust"], here["key"]) == ("complete", "none", None)
        assert {"embedded:smollm2-135m-instruct", "embedded:all-minilm-l6-v2"} <= set(by_source)
        other = by_source[registry(origin)]
        assert (other["id"], other["state"], other["trust"]) == (None, "complete", "file")
        assert other["present_bytes"] == other["total_bytes"] == here["total_bytes"]
        assert other["last_used"].endswith("+00:00")
        assert origin.stats().paths == {}

    def test_it_is_a_table_for_people(self, home: Home, origin: Origin) -> None:
        home.configure({"id": "far", "source": web(origin)})
        home.run("pull", "far", "--pin")
        header, row, *_ = home.run("ls").stdout.splitlines()
        assert header.split("  ")[0] == "ID"
        assert [header[at:].startswith(word) for word in ("SIZE", "TRUST") if (at := header.index(word))]
        assert row.startswith("far")
        assert row.endswith("pinned")
        assert row[header.index("STATE") :].startswith("complete")
        assert row[header.index("TRUST") :].startswith("none")

    def test_a_model_that_is_here_in_part_says_how_much(self, home: Home, origin: Origin) -> None:
        origin.set_faults(Faults((Status(when=When(path="*/m/model-00002*", first=3), status=403),)))
        home.fetch(web(origin))
        row = home.listed(web(origin))
        percent = 100 * row["present_bytes"] // row["total_bytes"]
        assert 0 < percent < 100
        assert row["state"] == f"partial {percent} %"

    def test_listing_makes_no_cache(self, home: Home) -> None:
        assert home.run("ls").returncode == 0
        assert not home.cache_dir.exists()

    def test_a_damaged_model_is_listed_with_the_reason_and_can_be_removed(self, home: Home, origin: Origin) -> None:
        home.fetch(web(origin))
        model = home.stored(web(origin))
        (model.directory / "index.json").write_text("{}")
        row = home.listed(model.key)
        assert (row["state"], row["key"]) == ("damaged", model.key)
        assert row["problem"]
        assert home.run("rm", model.key).returncode == 0
        assert not model.directory.exists()


class TestRemove:
    """headrace rm."""

    def test_a_model_is_removed_by_reference_id_key_or_the_start_of_its_key(self, home: Home, origin: Origin) -> None:
        home.configure({"id": "mine", "source": web(origin)})
        for name in (web(origin), "mine", None, "m-"):
            home.fetch(web(origin))
            model = home.stored(web(origin))
            allocated_bytes = model.status().allocated_bytes
            done = home.run("rm", name or model.key)
            assert done.returncode == 0, done.stderr
            assert f"removed {model.key} ({web(origin)}): {size_text(allocated_bytes)} freed" in done.stdout
            assert not model.directory.exists()

    def test_a_model_in_use_stays_and_the_others_go(self, home: Home, origin: Origin) -> None:
        other = registry(origin)
        home.fetch(web(origin), other)
        model = home.stored(web(origin))
        with model.lease():
            done = home.run("rm", web(origin), other)
        assert done.returncode == 1
        assert "in use" in one_line(done)
        assert model.status().complete
        assert ModelStore(home.cache_dir).find(other) is None

    def test_nothing_is_removed_when_one_name_is_wrong(self, home: Home, origin: Origin) -> None:
        home.fetch(web(origin))
        done = home.run("rm", web(origin), "nonsense")
        assert done.returncode == 1
        assert "nonsense" in one_line(done)
        assert home.stored(web(origin)).status().complete

    def test_a_start_that_several_keys_have_is_refused(self, home: Home, origin: Origin) -> None:
        home.fetch(web(origin), registry(origin))
        done = home.run("rm", "m-")
        assert done.returncode == 2
        assert "could be any of m-" in one_line(done)

    def test_a_configured_model_that_is_not_here_means_no_other_one(self, home: Home, origin: Origin) -> None:
        home.configure({"id": "m", "source": "hf://org/other"})
        home.fetch(web(origin))
        assert home.stored(web(origin)).key.startswith("m-")
        done = home.run("rm", "m")
        assert done.returncode == 1
        assert "hf://org/other" in one_line(done)
        assert home.stored(web(origin)).status().complete

    def test_a_directory_of_the_user_stays_as_it_is(self, home: Home, checkpoint: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in checkpoint.rglob("*")}
        home.fetch(str(checkpoint))
        assert home.run("rm", str(checkpoint)).returncode == 0
        assert {path: path.stat().st_mtime_ns for path in checkpoint.rglob("*")} == before

    def test_an_empty_cache_is_one_line(self, home: Home) -> None:
        assert home.run("rm", "anything").returncode == 1
        assert not home.cache_dir.exists()


class TestVerify:
    """headrace verify."""

    @staticmethod
    def spoil(model: StoredModel) -> None:
        with model.shard_path(0).open("r+b") as shard:
            shard.seek(-100, os.SEEK_END)
            byte = shard.read(1)
            shard.seek(-1, os.SEEK_CUR)
            shard.write(bytes([byte[0] ^ 1]))

    def test_a_sound_cache_is_said_to_be_sound(self, home: Home, origin: Origin, checkpoint: Path) -> None:
        home.fetch(web(origin), str(checkpoint))
        done = home.run("verify")
        assert done.returncode == 0, done.stderr
        assert f"({web(origin)}): " in done.stdout
        assert "nothing is wrong" in done.stdout
        assert f"({checkpoint.as_uri()}): the sizes are right" in done.stdout

    def test_a_byte_that_has_changed_is_named_dropped_and_fetched_again(
        self, home: Home, origin: Origin, checkpoint: Path
    ) -> None:
        home.fetch(web(origin))
        model = home.stored(web(origin))
        self.spoil(model)
        kept = home.run("verify", "--keep")
        assert kept.returncode == 1
        assert "left as it is" in one_line(kept)
        assert model.status().complete
        done = home.run("verify", web(origin))
        assert done.returncode == 1
        line = one_line(done)
        assert model.index.files[0].path in line
        assert "dropped" in line
        assert not model.status().complete
        home.fetch(web(origin))
        path = model.index.files[0].path
        assert model.shard_path(0).read_bytes() == (checkpoint / path).read_bytes()
        assert home.run("verify").returncode == 0

    def test_an_empty_cache_has_nothing_wrong(self, home: Home) -> None:
        assert home.run("verify").returncode == 0
        assert home.run("verify", "anything").returncode == 1
        assert not (home.cache_dir / "models").exists()


class TestIndex:
    """headrace index show."""

    def test_of_a_model_that_is_elsewhere_only_headers_are_read(self, home: Home, origin: Origin) -> None:
        done = home.run("index", "show", web(origin), "--json", "--tensors")
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        assert (document["reference"], document["trust"]) == (web(origin), "none")
        groups = {group["name"]: group for group in document["groups"]}
        assert list(groups) == ["headers", "embedding", *(f"layer.{number}" for number in range(8)), "head"]
        assert sum(group["size_bytes"] for group in groups.values()) == document["weight_bytes"]
        assert (groups["embedding"]["num_tensors"], groups["layer.7"]["num_tensors"]) == (1, 9)
        assert document["tensors"][0]["name"] == "model.embed_tokens.weight"
        assert all(tensor["begin"] < tensor["end"] for tensor in document["tensors"])
        assert weight_bytes_sent(origin) < 2 * (128 << 10) + 10
        assert not (home.cache_dir / "models").exists()

    def test_of_a_model_in_the_cache_nobody_is_asked(self, home: Home, origin: Origin) -> None:
        home.fetch(web(origin))
        model = home.stored(web(origin))
        origin.reset()
        document = json.loads(home.run("index", "show", model.key, "--json").stdout)
        assert (document["revision"], "tensors" in document) == (model.revision, False)
        assert sum(group["num_chunks"] for group in document["groups"]) == sum(map(len, model.index.layouts))
        assert origin.stats().paths == {}

    def test_people_get_groups_and_on_demand_tensors(self, home: Home, checkpoint: Path) -> None:
        brief = home.run("index", "show", str(checkpoint)).stdout
        assert "architecture  LlamaForCausalLM" in brief
        assert "model.norm.weight" not in brief
        full = home.run("index", "show", str(checkpoint), "--tensors").stdout
        assert full.startswith(brief)
        assert "model.layers.7.mlp.up_proj.weight  BF16 640×160  " in full
        assert not home.cache_dir.exists()

    def test_what_cannot_be_shown_is_one_line(self, home: Home, origin: Origin, tmp_path: Path) -> None:
        absent = home.run("index", "show", f"{origin.url}/files/absent/")
        assert (absent.returncode, bool(one_line(absent))) == (1, True)
        assert home.run("index", "show", str(tmp_path / "absent")).returncode == 1
        assert home.run("index", "show", "nope://x").returncode == 2


@pytest.mark.skipif(find_sources(MINILM) is None, reason="the wheel of all-minilm-l6-v2 is not installed")
def test_an_embedded_model_is_verified_and_removed_with_the_directory_that_was_made_for_it(home: Home) -> None:
    reference = "embedded:all-minilm-l6-v2"
    assert home.run("pull", reference).returncode == 0
    row = home.listed(reference)
    assert (row["state"], row["trust"]) == ("complete", "file")
    sound = home.run("verify", reference)
    assert sound.returncode == 0, sound.stderr
    assert "every file has its digest" in sound.stdout
    directory = embedded_directory(MINILM, home.cache_dir)
    with (directory / "model.safetensors").open("r+b") as shard:
        shard.seek(5_000_000)
        shard.write(b"spoilt")
    wrong = home.run("verify", reference)
    assert wrong.returncode == 1
    assert "model.safetensors has digest" in wrong.stderr
    assert home.run("rm", reference).returncode == 0
    assert not directory.exists()
    assert home.listed(reference)["state"] == "cold"


def test_the_usual_errors_of_models_are_one_line(home: Home, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the cache should be")
    done = home.run("pull", "hf://org/name")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert one_line(done)
