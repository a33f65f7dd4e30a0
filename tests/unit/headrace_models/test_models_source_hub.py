"""The Hugging Face hub as a source, against a fake hub and a fake content network."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from headrace_models.digest import Sha256
from headrace_models.errors import (
    ModelNotFound,
    SourceChanged,
    SourceDenied,
    SourceUnavailable,
    SourceUnusable,
    UnsafeModel,
)
from headrace_models.reference import parse_reference
from headrace_models.sources import hub_listing, listing
from headrace_models.sources.base import FileRange, Proof, Source, SourceFile, SourceOptions, read_exactly
from headrace_models.sources.hub import HubModel, open_hub
from headrace_models.sources.hub_settings import HubSettings
from tests.fakes.origin_http import Ask, OriginHttp, Reply, origin_http, ranged

COMMIT = "c0ffee" + "0" * 34
BLOB = "b10b" + "0" * 36
CONFIG = b'{"a": 1}'
WEIGHTS = bytes(range(250))
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()
ENTRIES: list[object] = [
    {"type": "directory", "path": "folder", "size": 0, "oid": BLOB},
    {"type": "file", "path": "config.json", "size": len(CONFIG), "oid": BLOB},
    {
        "type": "file",
        "path": "folder/w 1.safetensors",
        "size": len(WEIGHTS),
        "oid": BLOB,
        "lfs": {"oid": DIGEST, "size": len(WEIGHTS), "pointerSize": 130},
    },
]


@dataclass
class FakeHub:
    """A hub with one model, org/name, whose large file is at another host, as on the real one."""

    content: OriginHttp
    entries: list[object] = field(default_factory=lambda: list(ENTRIES))
    page_size: int = 100
    next_page: str = ""
    linked: dict[str, str] = field(default_factory=lambda: {"X-Linked-Etag": f'"{DIGEST}"', "X-Linked-Size": "250"})
    small: dict[str, str] = field(default_factory=lambda: {"ETag": f'"{BLOB}"', "X-Repo-Commit": COMMIT})
    refuses: Mapping[str, Reply] = field(default_factory=dict)

    def answer(self, ask: Ask) -> Reply:
        """Answer as the hub does."""
        for prefix, reply in self.refuses.items():
            if ask.path.startswith(prefix):
                return reply
        match ask.path:
            case "/api/models/org/name/revision/refs/pr/1" | "/api/models/org/name/revision/main":
                return Reply(200, json.dumps({"id": "org/name", "sha": COMMIT}).encode())
            case path if path == f"/api/models/org/name/tree/{COMMIT}":
                return self._page(ask)
            case path if path == f"/org/name/resolve/{COMMIT}/config.json":
                return ranged(ask, CONFIG, self.small)
            case path if path == f"/org/name/resolve/{COMMIT}/folder/w 1.safetensors":
                return Reply(302, b"see", {**self.linked, "Location": f"{self.content.url}/{DIGEST}?Signature=s"})
            case _:
                return Reply(404, headers={"X-Error-Code": "RepoNotFound"})

    def _page(self, ask: Ask) -> Reply:
        begin = int(parse_qs(ask.query).get("cursor", ["0"])[0])
        end, headers = begin + self.page_size, {}
        if end < len(self.entries):
            following = self.next_page or f"http://{ask.headers['host']}{ask.path}"
            headers["Link"] = f'<{following}?recursive=true&cursor={end}>; rel="next"'
        return Reply(200, json.dumps(self.entries[begin:end]).encode(), headers)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def fake(stack: ExitStack) -> FakeHub:
    return FakeHub(stack.enter_context(origin_http(lambda ask: ranged(ask, WEIGHTS, {"ETag": '"cdn"'}))))


@pytest.fixture
def hub(stack: ExitStack, fake: FakeHub) -> OriginHttp:
    return stack.enter_context(origin_http(fake.answer))


@dataclass
class Opener:
    """Opens models of the fake hub and closes them."""

    hub: OriginHttp
    stack: ExitStack
    spool: Path
    environ: dict[str, str] = field(default_factory=dict)

    def __call__(self, text: str = "hf://org/name") -> HubModel:
        options = SourceOptions(self.spool, environ={"HF_ENDPOINT": f"{self.hub.url}/", **self.environ})
        model = open_hub(parse_reference(text), options)
        self.stack.callback(model.close)
        return model


@pytest.fixture
def opened(hub: OriginHttp, stack: ExitStack, tmp_path: Path) -> Opener:
    return Opener(hub, stack, tmp_path)


WEIGHTS_FILE = SourceFile("folder/w 1.safetensors", 250, f"sha256:{DIGEST}", Sha256(DIGEST))


def test_a_revision_is_a_commit_and_its_files_are_proved(opened: Opener) -> None:
    model: Source = opened()
    assert model.revision == COMMIT
    assert model.files == (SourceFile("config.json", len(CONFIG), f"git:{BLOB}"), WEIGHTS_FILE)
    assert model.proofs == (Proof(Sha256(DIGEST), (FileRange(WEIGHTS_FILE.path, 0, 250),)),)
    assert model.pinned_index is None


def test_small_and_large_files_are_read(opened: Opener) -> None:
    model = opened()
    small, large = model.files
    assert read_exactly(model, small, 2, 5) == CONFIG[2:5]
    assert read_exactly(model, large, 100, 110) == WEIGHTS[100:110]
    assert read_exactly(model, large, 3, 3) == b""


def test_a_revision_with_slashes_is_escaped(opened: Opener, hub: OriginHttp, fake: FakeHub) -> None:
    assert opened("hf://org/name@refs/pr/1").revision == COMMIT
    assert hub.asked[0].path == "/api/models/org/name/revision/refs/pr/1"


def test_the_token_goes_to_the_hub_and_nowhere_else(opened: Opener, hub: OriginHttp, fake: FakeHub) -> None:
    opened.environ["HF_TOKEN"] = " hf_s3cret\n"
    model = opened()
    for begin in (0, 10):
        read_exactly(model, model.files[1], begin, begin + 10)
    assert {ask.headers.get("authorization") for ask in hub.asked} == {"Bearer hf_s3cret"}
    assert [ask.headers.get("authorization") for ask in fake.content.asked] == [None, None]
    assert len([path for path in hub.paths() if "resolve" in path]) == 1


def test_without_a_token_none_is_sent(opened: Opener, hub: OriginHttp) -> None:
    opened()
    assert {ask.headers.get("authorization") for ask in hub.asked} == {None}


def test_a_listing_goes_on_over_pages(opened: Opener, fake: FakeHub) -> None:
    fake.page_size = 1
    assert [file.path for file in opened().files] == ["config.json", "folder/w 1.safetensors"]


def test_a_listing_that_goes_on_at_another_host_is_refused(opened: Opener, fake: FakeHub) -> None:
    fake.page_size, fake.next_page = 1, f"{fake.content.url}/api"
    with pytest.raises(SourceUnusable, match="another host"):
        opened()
    assert fake.content.asked == []


def test_a_listing_without_end_is_ended(opened: Opener, fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.page_size = 0
    monkeypatch.setattr(hub_listing, "MAX_PAGES", 5)
    with pytest.raises(SourceUnusable, match="more than 5 pages"):
        opened()


def test_the_number_of_files_is_bounded(opened: Opener, fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MAX_FILES", 1)
    with pytest.raises(UnsafeModel, match="more than 1 files"):
        opened()


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "a\\b", "a\x00b", "a//b", "", ".", "a/./b", "a\nb", "\ud800", "x" * 300]
)
def test_hostile_names_refuse_the_model(opened: Opener, fake: FakeHub, path: str) -> None:
    fake.entries.append({"type": "file", "path": path, "size": 1, "oid": BLOB})
    with pytest.raises(UnsafeModel):
        opened()


@pytest.mark.parametrize("path", ["config.json", "config.json/x", "folder"])
def test_two_files_in_one_place_refuse_the_model(opened: Opener, fake: FakeHub, path: str) -> None:
    fake.entries.append({"type": "file", "path": path, "size": 1, "oid": BLOB})
    with pytest.raises(UnsafeModel):
        opened()


@pytest.mark.parametrize(
    "entry",
    [
        3,
        {},
        {"type": "file", "path": "x", "size": -1, "oid": BLOB},
        {"type": "file", "path": "x", "size": True, "oid": BLOB},
        {"type": "file", "path": "x", "size": 1.5, "oid": BLOB},
        {"type": "file", "path": "x", "size": 1, "oid": "short"},
        {"type": "file", "path": ["x"], "size": 1, "oid": BLOB},
        {"type": "file", "path": "x", "size": 1, "oid": BLOB, "lfs": {"oid": "short", "size": 1}},
        {"type": "submodule", "path": "x", "size": 1, "oid": BLOB},
    ],
)
def test_entries_that_make_no_sense_are_unusable(opened: Opener, fake: FakeHub, entry: object) -> None:
    fake.entries.append(entry)
    with pytest.raises(SourceUnusable):
        opened()


@pytest.mark.parametrize("body", [b"{}", b"[]", b'{"sha": "main"}', b'{"sha": 3}', b"<html>"])
def test_a_revision_that_is_no_commit_is_unusable(opened: Opener, fake: FakeHub, body: bytes) -> None:
    fake.refuses = {"/api/models/org/name/revision": Reply(200, body)}
    with pytest.raises(SourceUnusable):
        opened()


# --------------------------------------------------------------------------------------------- content that changed


@pytest.mark.parametrize(
    "linked", [{"X-Linked-Etag": f'"{"0" * 64}"'}, {"X-Linked-Size": "251"}, {"X-Repo-Commit": "0" * 40}]
)
def test_a_redirect_to_other_content_is_refused(opened: Opener, fake: FakeHub, linked: dict[str, str]) -> None:
    model = opened()
    fake.linked |= linked
    with pytest.raises(SourceChanged):
        read_exactly(model, WEIGHTS_FILE, 0, 10)
    assert fake.content.asked == []


def test_an_etag_that_changes_between_ranges_is_noticed(opened: Opener, fake: FakeHub) -> None:
    model = opened()
    read_exactly(model, WEIGHTS_FILE, 0, 10)
    fake.content.answer = lambda ask: ranged(ask, WEIGHTS, {"ETag": '"another"'})
    with pytest.raises(SourceChanged, match="ETag"):
        read_exactly(model, WEIGHTS_FILE, 10, 20)


def test_etags_of_a_mirror_mean_nothing_but_themselves(opened: Opener, fake: FakeHub) -> None:
    fake.small = {"ETag": f'"{hashlib.sha1(CONFIG, usedforsecurity=False).hexdigest()}"'}
    model = opened()
    for _time in range(2):
        assert read_exactly(model, model.files[0], 0, 8) == CONFIG


def test_another_size_is_noticed(opened: Opener, fake: FakeHub) -> None:
    model = opened()
    fake.content.answer = lambda ask: ranged(ask, WEIGHTS + b"x")
    with pytest.raises(SourceChanged):
        read_exactly(model, WEIGHTS_FILE, 0, 10)


def test_an_address_that_expires_is_asked_for_again(opened: Opener, hub: OriginHttp, fake: FakeHub) -> None:
    model = opened()
    read_exactly(model, WEIGHTS_FILE, 0, 10)
    replies = [Reply(403)]
    fake.content.answer = lambda ask: replies.pop() if replies else ranged(ask, WEIGHTS, {"ETag": '"cdn"'})
    assert read_exactly(model, WEIGHTS_FILE, 10, 20) == WEIGHTS[10:20]


# ---------------------------------------------------------------------------------------------------------- refusals


def refused(fake: FakeHub, status: int, code: str = "") -> None:
    fake.refuses = {"/": Reply(status, headers={"X-Error-Code": code} if code else {})}


def test_a_stranger_is_told_about_tokens_and_names(opened: Opener, fake: FakeHub) -> None:
    refused(fake, 401, "RepoNotFound")
    with pytest.raises(SourceDenied, match="there is no such model.*HF_TOKEN"):
        opened()


def test_a_gated_model_says_where_its_conditions_are(opened: Opener, hub: OriginHttp, fake: FakeHub) -> None:
    model = opened()
    refused(fake, 403, "GatedRepo")
    with pytest.raises(SourceDenied, match=f"accept its conditions at {hub.url}/org/name, and set HF_TOKEN"):
        read_exactly(model, model.files[0], 0, 1)


def test_a_refused_token_is_not_shown(opened: Opener, fake: FakeHub) -> None:
    opened.environ["HF_TOKEN"] = "hf_s3cret"
    refused(fake, 403)
    with pytest.raises(SourceDenied, match="to this token") as caught:
        opened()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "says"), [("RevisionNotFound", "no revision v9"), ("RepoNotFound", "knows no"), ("", "knows no")]
)
def test_what_is_not_there_is_not_found(opened: Opener, fake: FakeHub, code: str, says: str) -> None:
    refused(fake, 404, code)
    with pytest.raises(ModelNotFound, match=says):
        opened("hf://org/name@v9")


def test_a_lost_file_is_not_found(opened: Opener, fake: FakeHub) -> None:
    model = opened()
    refused(fake, 404, "EntryNotFound")
    with pytest.raises(ModelNotFound, match="lost a file"):
        read_exactly(model, model.files[0], 0, 1)


def test_a_busy_hub_says_when_to_come_back(opened: Opener, fake: FakeHub) -> None:
    fake.refuses = {"/": Reply(429, headers={"Retry-After": "3"})}
    with pytest.raises(SourceUnavailable) as caught:
        opened()
    assert caught.value.retry_after_seconds == 3.0


@pytest.mark.parametrize("value", ["1", "true", "YES", "On"])
def test_offline_the_hub_is_not_asked(opened: Opener, hub: OriginHttp, value: str) -> None:
    opened.environ["HF_HUB_OFFLINE"] = value
    with pytest.raises(SourceUnavailable, match="HF_HUB_OFFLINE"):
        opened()
    assert hub.asked == []


# ---------------------------------------------------------------------------------------------------------- settings


def test_the_default_is_the_public_hub_without_a_token() -> None:
    assert HubSettings.from_environ({}) == HubSettings("https://huggingface.co", None, is_offline=False)


@pytest.mark.parametrize("endpoint", ["hub.example", "ftp://hub.example", "https://user:s3cret@hub.example"])
def test_an_endpoint_that_is_none_is_refused(endpoint: str) -> None:
    with pytest.raises(SourceUnusable) as caught:
        HubSettings.from_environ({"HF_ENDPOINT": endpoint})
    assert "s3cret" not in str(caught.value)


def test_the_token_comes_from_the_first_place_that_is_named(tmp_path: Path) -> None:
    for place in ("path", "hf/token", "xdg/huggingface/token", ".cache/huggingface/token"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(f"{place}\n")
    environ = {
        "HF_TOKEN": "variable",
        "HUGGING_FACE_HUB_TOKEN": "old variable",
        "HF_TOKEN_PATH": str(tmp_path / "path"),
        "HF_HOME": str(tmp_path / "hf"),
        "XDG_CACHE_HOME": str(tmp_path / "xdg"),
        "HOME": str(tmp_path),
    }
    found = []
    for name in tuple(environ):
        found.append(HubSettings.from_environ(environ).token)
        del environ[name]
    expected = ["variable", "old variable", "path", "hf/token", "xdg/huggingface/token", ".cache/huggingface/token"]
    assert found == expected


def test_a_token_is_not_shown_and_an_empty_file_is_none(tmp_path: Path) -> None:
    assert "s3cret" not in repr(HubSettings.from_environ({"HF_TOKEN": "hf_s3cret"}))
    (tmp_path / "token").touch()
    assert HubSettings.from_environ({"HF_HOME": str(tmp_path)}).token is None
    assert HubSettings.from_environ({"HF_HOME": str(tmp_path / "absent")}).token is None
