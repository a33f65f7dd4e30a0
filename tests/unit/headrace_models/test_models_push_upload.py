"""One blob into a registry: nothing is sent twice that need not be, and refusals are told in the registry's words."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from headrace_models.digest import Sha256
from headrace_models.errors import (
    DigestMismatch,
    ModelError,
    ModelNotFound,
    SourceDenied,
    SourceUnavailable,
    SourceUnusable,
)
from headrace_models.fetch.patience import Patience
from headrace_models.locations import OciLocation
from headrace_models.push.blob_upload import Blob, BlobUpload, Outcome, UploadSettings
from headrace_models.push.contents import BytesContent
from headrace_models.push.registry_writer import RegistryWriter
from headrace_models.sources.base import SourceOptions
from tests.fakes.upload_registry import Asked, Refusal, UploadRegistry, refused, running_upload_registry

REPOSITORY = "team/model"
PIECE_BYTES = 1 << 20
LARGE = b"".join(hashlib.sha256(number.to_bytes(4)).digest() for number in range(100_000))  # 3.05 pieces
SMALL = b"a small file"


@pytest.fixture
def registry() -> Iterator[UploadRegistry]:
    with running_upload_registry() as running:
        yield running


@dataclass
class Bench:
    """Uploads to a registry, and how it went on."""

    registry: UploadRegistry
    spool: Path
    stop: threading.Event = field(default_factory=threading.Event)
    positions: list[int] = field(default_factory=list)
    patience_seconds: float = 5.0

    def upload(self, data: bytes, *, mount_from: str | None = None) -> Outcome:
        digest = Sha256(hashlib.sha256(data).hexdigest())
        location = OciLocation.parse(f"{self.registry.address}/{REPOSITORY}")
        patience = Patience(self.patience_seconds, chance=lambda: 0.0)
        settings = UploadSettings(patience, self.stop, self._sent, PIECE_BYTES)
        with closing(RegistryWriter(location, SourceOptions(self.spool), mount_from=mount_from)) as writer:
            return BlobUpload(writer, Blob("a.safetensors", digest, BytesContent(data)), settings).run()

    def _sent(self, num_bytes: int) -> None:
        self.positions.append((self.positions[-1] if self.positions else 0) + num_bytes)

    def holds(self, data: bytes) -> bool:
        return data in self.registry.blobs.get(REPOSITORY, {}).values()


@pytest.fixture
def bench(registry: UploadRegistry, tmp_path: Path) -> Bench:
    return Bench(registry, tmp_path)


def test_what_is_there_is_not_sent(bench: Bench) -> None:
    bench.registry.put(REPOSITORY, SMALL)
    assert bench.upload(SMALL) is Outcome.PRESENT
    assert [asked.method for asked in bench.registry.asked] == ["HEAD"]


def test_a_redirect_to_a_blob_means_that_it_is_there(bench: Bench) -> None:
    bench.registry.judge = lambda _asked: Refusal(307, headers={"Location": "http://127.0.0.1:1/elsewhere"})
    assert bench.upload(SMALL) is Outcome.PRESENT


@pytest.mark.parametrize("data", [SMALL, b""])
def test_a_small_blob_goes_in_one_request(bench: Bench, data: bytes) -> None:
    assert bench.upload(data) is Outcome.UPLOADED
    assert bench.holds(data)
    assert [asked.method for asked in bench.registry.asked] == ["HEAD", "POST", "PUT"]


def test_a_large_blob_goes_in_pieces_one_after_the_other(bench: Bench) -> None:
    assert bench.upload(LARGE) is Outcome.UPLOADED
    assert bench.holds(LARGE)
    ranges = [asked.headers["content-range"] for asked in bench.registry.asked if asked.method == "PATCH"]
    begins = range(0, len(LARGE), PIECE_BYTES)
    assert ranges == [f"{begin}-{min(len(LARGE), begin + PIECE_BYTES) - 1}" for begin in begins]
    assert bench.positions[-1] == len(LARGE)


def test_what_another_repository_has_is_taken_over(bench: Bench) -> None:
    bench.registry.put("other/model", LARGE)
    assert bench.upload(LARGE, mount_from="other/model") is Outcome.MOUNTED
    assert bench.holds(LARGE)
    assert not bench.registry.methods("PUT", "PATCH")


def test_what_another_repository_has_no_longer_is_sent(bench: Bench) -> None:
    assert bench.upload(SMALL, mount_from="other/model") is Outcome.UPLOADED
    assert bench.holds(SMALL)


def test_a_broken_piece_goes_on_where_the_registry_says(bench: Bench) -> None:
    bench.registry.breaks_after = [PIECE_BYTES, PIECE_BYTES // 2]
    assert bench.upload(LARGE) is Outcome.UPLOADED
    assert bench.holds(LARGE)
    begins = [
        int(asked.headers["content-range"].partition("-")[0])
        for asked in bench.registry.asked
        if asked.method == "PATCH"
    ]
    assert begins[:3] == [0, PIECE_BYTES, PIECE_BYTES * 3 // 2]
    assert bench.positions[-1] == len(LARGE)


def test_an_upload_that_was_forgotten_begins_again(bench: Bench) -> None:
    bench.registry.breaks_after, bench.registry.forgets = [PIECE_BYTES, 10], True
    assert bench.upload(LARGE) is Outcome.UPLOADED
    assert bench.holds(LARGE)
    assert len(bench.registry.methods("POST")) == 2
    assert bench.positions[-1] == len(LARGE)


def test_a_small_blob_that_breaks_is_sent_again(bench: Bench) -> None:
    bench.registry.breaks_after = [4]
    assert bench.upload(SMALL) is Outcome.UPLOADED
    assert bench.holds(SMALL)


@pytest.mark.parametrize("status", [400, 404, 405, 416, 501])
def test_a_registry_that_takes_no_pieces_gets_the_whole(bench: Bench, status: int) -> None:
    bench.registry.judge = lambda asked: Refusal(status) if asked.method == "PATCH" else None
    assert bench.upload(LARGE) is Outcome.UPLOADED
    assert bench.holds(LARGE)
    assert bench.positions[-1] == len(LARGE)


def test_bytes_that_arrived_wrong_are_sent_once_more_and_no_more_than_that(bench: Bench) -> None:
    bench.registry.corrupts = 1
    assert bench.upload(LARGE) is Outcome.UPLOADED
    assert bench.holds(LARGE)
    bench.registry.blobs.clear()
    bench.registry.corrupts = 2
    with pytest.raises(DigestMismatch, match="did not match uploaded content"):
        bench.upload(SMALL)
    assert not bench.holds(SMALL)


@pytest.mark.parametrize("status", [429, 503, 408])
def test_a_registry_that_cannot_answer_now_is_asked_again_not_before_it_says(bench: Bench, status: int) -> None:
    answers = [refused(status, "later", **{"Retry-After": "0"})] * 3

    bench.registry.judge = lambda asked: answers.pop() if asked.method == "PUT" and answers else None
    assert bench.upload(SMALL) is Outcome.UPLOADED
    assert bench.holds(SMALL)


def test_a_registry_that_never_can_ends_it_in_its_words(bench: Bench) -> None:
    bench.patience_seconds = 0.0
    bench.registry.judge = lambda _asked: refused(429, "pull rate limit") if _asked.method == "POST" else None
    with pytest.raises(SourceUnavailable, match="pull rate limit"):
        bench.upload(SMALL)


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (401, SourceDenied, "docker login 127.0.0.1"),
        (403, SourceDenied, "may not be pushed to"),
        (404, ModelNotFound, "no such repository"),
        (413, SourceUnusable, "larger than the registry takes"),
        (507, SourceUnusable, "larger than the registry takes"),
        (412, SourceUnusable, "it answered 412"),
    ],
)
def test_a_refusal_is_told_in_the_first_line_of_the_registry_s_words(
    bench: Bench, status: int, kind: type[ModelError], said: str
) -> None:
    words = "adding 1.0 MiB would exceed the quota\x1b[31m\nsecond line"
    bench.registry.judge = lambda asked: refused(status, words) if asked.method == "POST" else None
    with pytest.raises(kind) as raised:
        bench.upload(SMALL)
    message = str(raised.value)
    assert said in message
    assert "(adding 1.0 MiB would exceed the quota [31m)" in message
    assert "second" not in message
    assert len(bench.registry.methods("POST")) == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"plainly no\nmore", "(plainly no)"),
        (b"<html><body>nginx</body></html>", None),
        (b'{"errors": "odd"}', None),
        (b'{"errors": [{"message": 3}]}', None),
        (b"[" * 100_000, None),
        (b"\xff\xfe", "\ufffd"),
        (b"", None),
    ],
)
def test_words_in_any_form_make_one_line(bench: Bench, body: bytes, said: str | None) -> None:
    bench.registry.judge = lambda asked: Refusal(403, body) if asked.method == "POST" else None
    with pytest.raises(SourceDenied) as raised:
        bench.upload(SMALL)
    message = str(raised.value)
    assert message.isprintable()
    assert (said in message) if said else ("(" not in message)


def test_a_registry_that_refuses_while_bytes_are_on_their_way_is_heard(bench: Bench) -> None:
    bench.registry.judge = lambda asked: refused(413, "at most 1 MB") if asked.method == "PATCH" else None
    with pytest.raises(SourceUnusable, match="at most 1 MB"):
        bench.upload(LARGE)


def test_who_stops_is_not_waited_for(bench: Bench) -> None:
    def stop(asked: Asked) -> Refusal | None:
        if asked.method == "PATCH":
            bench.stop.set()
        return None

    bench.registry.judge = stop
    with pytest.raises(SourceUnavailable, match="stopped"):
        bench.upload(LARGE)
    assert len(bench.registry.methods("PATCH")) <= 2, "of the second, no more than its head was sent"
    assert not bench.registry.blobs
