"""Models below a prefix of a bucket: what pins them, how they are read, and what stores answer."""

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from headrace_models.digest import Sha256
from headrace_models.errors import (
    ModelError,
    ModelNotFound,
    SourceChanged,
    SourceDenied,
    SourceUnavailable,
    SourceUnusable,
    UnsafeModel,
)
from headrace_models.reference import parse_reference
from headrace_models.sources.base import SourceFile, SourceOptions, read_exactly
from headrace_models.sources.s3 import S3Source, open_s3
from tests.fakes.bucket import BUCKET, Failure, FakeBucket, SeenRequest, running_bucket

SECRET = "s3cret-word"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeBucket]:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with running_bucket() as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", running.url)
        yield running


@contextmanager
def opened(tmp_path: Path, prefix: str = "team/model") -> Iterator[S3Source]:
    reference = parse_reference(f"s3://{BUCKET}/{prefix}")
    with closing(open_s3(reference, SourceOptions(tmp_path, stall_seconds=5, connect_seconds=5))) as source:
        yield source


def put_model(bucket: FakeBucket) -> dict[str, bytes]:
    files = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 40, "sub dir/ä+b.json": b"[1]"}
    for path, data in files.items():
        bucket.put(f"team/model/{path}", data)
    return files


def contents(source: S3Source) -> dict[str, bytes]:
    return {file.path: read_exactly(source, file, 0, file.size_bytes) for file in source.files}


def reads(bucket: FakeBucket) -> list[SeenRequest]:
    return [seen for seen in bucket.seen if seen.method == "GET" and "list-type" not in seen.query]


def test_the_objects_below_the_prefix_are_the_files(bucket: FakeBucket, tmp_path: Path) -> None:
    files = put_model(bucket)
    bucket.put("team/model2/config.json", b"another")
    bucket.put("team/model", b"a file of the prefix's name")
    bucket.put("team/model/", b"")
    bucket.put("team/model/.cache/x", b"hidden")
    with opened(tmp_path) as source:
        assert contents(source) == files
        assert (source.proofs, source.pinned_index, source.max_connections) == ((), None, 16)


def test_a_bucket_as_a_whole_may_be_a_model(bucket: FakeBucket, tmp_path: Path) -> None:
    bucket.put("config.json", b"{}")
    with opened(tmp_path, "") as source:
        assert contents(source) == {"config.json": b"{}"}


def test_listings_are_read_to_their_end(bucket: FakeBucket, tmp_path: Path) -> None:
    bucket.page_size = 2
    for number in range(5):
        bucket.put(f"team/model/{number}.json", b"{}")
    with opened(tmp_path) as source:
        assert [file.path for file in source.files] == [f"{number}.json" for number in range(5)]


def test_a_listing_without_end_is_left(bucket: FakeBucket, tmp_path: Path) -> None:
    bucket.endless = True
    with pytest.raises(SourceUnusable, match="does not end"), opened(tmp_path):
        pass


def test_ranges_are_read_with_what_pins_the_object(bucket: FakeBucket, tmp_path: Path) -> None:
    data = put_model(bucket)["model.safetensors"]
    with opened(tmp_path) as source:
        file = next(file for file in source.files if file.path == "model.safetensors")
        assert file.validator == bucket.objects["team/model/model.safetensors"][0].etag
        for begin, end in ((0, 1), (100, 5000), (len(data) - 1, len(data)), (7, 7)):
            assert read_exactly(source, file, begin, end) == data[begin:end]
        assert {seen.if_match for seen in reads(bucket)} == {file.validator}
        assert [seen.range for seen in reads(bucket)] == ["bytes=0-0", "bytes=100-4999", "bytes=10239-10239"]


def test_a_store_that_ignores_ranges_gives_the_whole_object(bucket: FakeBucket, tmp_path: Path) -> None:
    data = put_model(bucket)["model.safetensors"]
    bucket.ignores_ranges = True
    with opened(tmp_path) as source:
        file = next(file for file in source.files if file.path == "model.safetensors")
        with source.read(file, 100, 200) as body:
            assert (body.begin, body.end) == (0, len(data))
        assert read_exactly(source, file, 100, 200) == data[100:200]


@pytest.mark.parametrize("ignores_conditions", [False, True])
def test_an_object_that_changed_is_not_read(bucket: FakeBucket, tmp_path: Path, ignores_conditions: bool) -> None:
    put_model(bucket)
    bucket.ignores_conditions = ignores_conditions
    with opened(tmp_path) as source:
        before = source.revision
        bucket.put("team/model/model.safetensors", bytes(256 * 40))
        file = next(file for file in source.files if file.path == "model.safetensors")
        with pytest.raises(SourceChanged):
            read_exactly(source, file, 0, 10)
    with opened(tmp_path) as source:
        assert source.revision != before
        with pytest.raises(SourceChanged):
            read_exactly(source, file, 0, 10)
        with pytest.raises(ModelNotFound):
            read_exactly(source, SourceFile("other", 1), 0, 1)


def test_an_object_that_is_gone_is_not_found(bucket: FakeBucket, tmp_path: Path) -> None:
    put_model(bucket)
    with opened(tmp_path) as source:
        bucket.objects.clear()
        with pytest.raises(ModelNotFound, match="s3://models/team/model/config.json"):
            read_exactly(source, source.files[0], 0, 1)


def test_a_bucket_with_versions_is_read_to_the_end_although_it_changes(bucket: FakeBucket, tmp_path: Path) -> None:
    bucket.keeps_versions = True
    files = put_model(bucket)
    with opened(tmp_path) as source:
        assert {file.validator for file in source.files} == {"version v1"}
        for path in files:
            bucket.put(f"team/model/{path}", b"new")
        assert contents(source) == files


def test_versions_that_may_not_be_read_are_not_asked_for(bucket: FakeBucket, tmp_path: Path) -> None:
    bucket.keeps_versions = True
    files = put_model(bucket)
    bucket.put("team/model/proven.json", b"1", has_digest=True)
    bucket.fail = lambda seen: Failure(403, "AccessDenied") if "versionId" in seen.query else None
    with opened(tmp_path) as source:
        assert contents(source) == {**files, "proven.json": b"1"}


def test_a_stored_sha256_of_the_whole_object_proves_it(bucket: FakeBucket, tmp_path: Path) -> None:
    bucket.put("team/model/config.json", b"{}")
    bucket.put("team/model/model.safetensors", b"weights", has_digest=True)
    with opened(tmp_path) as source:
        digests = {file.path: file.digest for file in source.files}
        assert digests == {"config.json": None, "model.safetensors": Sha256(hashlib.sha256(b"weights").hexdigest())}
        assert [proof.paths for proof in source.proofs] == [{"model.safetensors"}]


@pytest.mark.parametrize("key", ["../x", "a//b", "a\\b", "a/./b"])
def test_a_key_that_is_no_path_refuses_the_model(bucket: FakeBucket, tmp_path: Path, key: str) -> None:
    bucket.put(f"team/model/{key}", b"")
    with pytest.raises(UnsafeModel, match="a file name"), opened(tmp_path):
        pass


def test_a_key_that_is_a_directory_too_refuses_the_model(bucket: FakeBucket, tmp_path: Path) -> None:
    bucket.put("team/model/a", b"")
    bucket.put("team/model/a/b", b"")
    with pytest.raises(UnsafeModel, match="the path of a directory"), opened(tmp_path):
        pass


def test_where_nothing_is_there_is_no_model(bucket: FakeBucket, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="s3://models/team/model"), opened(tmp_path):
        pass
    with pytest.raises(ModelNotFound), closing(open_s3(parse_reference("s3://other/x"), SourceOptions(tmp_path))):
        pass


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (Failure(403, "AccessDenied"), SourceDenied),
        (Failure(403, "SignatureDoesNotMatch"), SourceDenied),
        (Failure(403, "InvalidAccessKeyId"), SourceDenied),
        (Failure(401, "Unauthorized"), SourceDenied),
        (Failure(404, "NoSuchKey"), ModelNotFound),
        (Failure(412, "PreconditionFailed"), SourceChanged),
        (Failure(416, "InvalidRange"), SourceChanged),
        (Failure(503, "SlowDown"), SourceUnavailable),
        (Failure(500, "InternalError"), SourceUnavailable),
        (Failure(429, "TooManyRequests"), SourceUnavailable),
        (Failure(400, "RequestTimeout"), SourceUnavailable),
        (Failure(400, "AuthorizationHeaderMalformed"), SourceUnusable),
        (Failure(400, "InvalidRequest"), SourceUnusable),
    ],
)
def test_refusals_are_told_apart_and_nothing_is_tried_twice(
    bucket: FakeBucket, tmp_path: Path, failure: Failure, error: type[ModelError]
) -> None:
    put_model(bucket)
    with opened(tmp_path) as source:
        bucket.fail = lambda _seen: failure
        with pytest.raises(error) as raised:
            read_exactly(source, source.files[0], 0, 1)
        assert type(raised.value) is error
        assert "AKIDEXAMPLE" not in str(raised.value)
        assert len(reads(bucket)) == 1


def test_how_long_to_wait_is_passed_on(bucket: FakeBucket, tmp_path: Path) -> None:
    bucket.fail = lambda _seen: Failure(503, "SlowDown", {"Retry-After": "7"})
    with pytest.raises(SourceUnavailable) as raised, opened(tmp_path):
        pass
    assert raised.value.retry_after_seconds == 7


def test_a_body_that_breaks_off_may_be_tried_again(bucket: FakeBucket, tmp_path: Path) -> None:
    data = put_model(bucket)["model.safetensors"]
    with opened(tmp_path) as source:
        file = next(file for file in source.files if file.path == "model.safetensors")
        bucket.breaks_after = 1000
        with pytest.raises(SourceUnavailable):
            read_exactly(source, file, 0, 5000)
        assert read_exactly(source, file, 0, 5000) == data[:5000]


def test_reads_under_way_fail_when_the_source_is_closed(bucket: FakeBucket, tmp_path: Path) -> None:
    put_model(bucket)
    with opened(tmp_path) as source:
        file = next(file for file in source.files if file.path == "model.safetensors")
        with source.read(file, 0, 5000) as body:
            body.read(10)
            source.close()
            with pytest.raises(SourceUnavailable, match="closed"):
                body.read(10)


def test_a_store_that_is_not_there_is_unavailable(
    bucket: FakeBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    with pytest.raises(SourceUnavailable, match="s3://models"), opened(tmp_path):
        pass


def test_plain_http_to_a_host_that_the_operator_did_not_name_is_refused(
    bucket: FakeBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://store.invalid")
    with pytest.raises(SourceUnusable, match=r"plain HTTP to store\.invalid"), opened(tmp_path):
        pass


def test_without_credentials_requests_are_not_signed(bucket: FakeBucket, tmp_path: Path) -> None:
    put_model(bucket)
    with opened(tmp_path) as source:
        contents(source)
    assert {seen.authorization for seen in bucket.seen} == {""}


@pytest.mark.parametrize("no_sign", ["", "true", "YES"])
def test_credentials_of_the_environment_sign_requests_unless_that_is_not_wanted(
    bucket: FakeBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, no_sign: str
) -> None:
    put_model(bucket)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", no_sign)
    with caplog.at_level(logging.DEBUG), opened(tmp_path) as source:
        contents(source)
    signed = {seen.authorization.partition(",")[0] for seen in bucket.seen}
    assert all("AKIDEXAMPLE" in text and "us-east-1" in text for text in signed) is (not no_sign)
    assert "Signature" not in caplog.text
    assert SECRET not in caplog.text


def test_an_encoding_that_is_stored_with_an_object_changes_nothing(bucket: FakeBucket, tmp_path: Path) -> None:
    files = put_model(bucket)
    bucket.stored_encoding = "aws-chunked"
    with opened(tmp_path) as source:
        assert contents(source) == files


def test_credentials_that_cannot_be_used_are_a_denial(
    bucket: FakeBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "missing")
    with pytest.raises(SourceDenied, match="ProfileNotFound"), opened(tmp_path):
        pass


def test_endpoints_other_than_amazons_get_the_bucket_in_the_path(
    bucket: FakeBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_model(bucket)
    url = bucket.url.replace("127.0.0.1", "localhost")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
    with opened(tmp_path):
        pass
    assert {seen.host for seen in bucket.seen} == {url.removeprefix("http://")}
