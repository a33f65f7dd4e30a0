"""The origin as an S3 bucket, asked by botocore."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError

from loadtests.origin.access import Access
from loadtests.origin.bucket import BUCKET
from loadtests.origin.server import Origin, running_origin
from loadtests.origin.tiny_model import write_tiny_model

KEY = "tiny/model.safetensors"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model", num_shards=3)


@pytest.fixture
def origin(model: Path, tmp_path: Path) -> Iterator[Origin]:
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "a <b> & c.txt").write_text("odd")
    with running_origin({"tiny": model, "odd": odd}) as origin:
        yield origin


@pytest.fixture
def s3(origin: Origin) -> Iterator[Any]:
    client = client_of(origin, signature_version="s3v4")
    yield client
    client.close()


def client_of(origin: Origin, *, signature_version: object) -> Any:
    return botocore.session.Session().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url=f"{origin.url}/s3",
        aws_access_key_id="any",
        aws_secret_access_key="any",
        config=Config(
            signature_version=signature_version, s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}
        ),
    )


def keys(listing: Any) -> list[str]:
    return [entry["Key"] for entry in listing.get("Contents", ())]


def test_a_model_is_listed_with_sizes_and_etags(s3: Any, model: Path) -> None:
    listing = s3.list_objects_v2(Bucket=BUCKET, Prefix="tiny/")
    assert keys(listing) == [f"tiny/{path.name}" for path in sorted(model.iterdir())]
    for entry in listing["Contents"]:
        assert entry["Size"] == (model / entry["Key"].removeprefix("tiny/")).stat().st_size
        assert entry["ETag"] == s3.head_object(Bucket=BUCKET, Key=entry["Key"])["ETag"]


def test_a_listing_comes_in_pages(s3: Any) -> None:
    whole = keys(s3.list_objects_v2(Bucket=BUCKET))
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, PaginationConfig={"PageSize": 2})
    found = [keys(page) for page in pages]
    assert [key for page in found for key in page] == whole
    assert {len(page) for page in found[:-1]} == {2}
    assert keys(s3.list_objects_v2(Bucket=BUCKET, StartAfter=whole[2])) == whole[3:]


def test_names_with_special_characters_survive(s3: Any) -> None:
    (key,) = keys(s3.list_objects_v2(Bucket=BUCKET, Prefix="odd/"))
    assert key == "odd/a <b> & c.txt"
    assert s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() == b"odd"


def test_a_delimiter_gives_folders(s3: Any) -> None:
    listing = s3.list_objects_v2(Bucket=BUCKET, Delimiter="/")
    assert [entry["Prefix"] for entry in listing["CommonPrefixes"]] == ["odd/", "tiny/"]
    assert keys(listing) == []
    within = s3.list_objects_v2(Bucket=BUCKET, Delimiter="/", Prefix="tiny/")
    assert "CommonPrefixes" not in within
    assert len(keys(within)) == 6


def test_objects_come_whole_or_in_part_and_only_if_they_match(s3: Any, model: Path) -> None:
    key = "tiny/model-00001-of-00003.safetensors"
    data = (model / "model-00001-of-00003.safetensors").read_bytes()
    whole = s3.get_object(Bucket=BUCKET, Key=key)
    assert whole["Body"].read() == data
    part = s3.get_object(Bucket=BUCKET, Key=key, Range="bytes=10-19", IfMatch=whole["ETag"])
    assert part["Body"].read() == data[10:20]
    with pytest.raises(ClientError, match="PreconditionFailed"):
        s3.get_object(Bucket=BUCKET, Key=key, IfMatch='"other"')


def test_what_is_not_there_is_told_in_s3_s_words(s3: Any) -> None:
    with pytest.raises(s3.exceptions.NoSuchKey):
        s3.get_object(Bucket=BUCKET, Key="tiny/absent")
    with pytest.raises(s3.exceptions.NoSuchBucket):
        s3.list_objects_v2(Bucket="other")
    with pytest.raises(ClientError, match="404"):
        s3.head_object(Bucket=BUCKET, Key="tiny/absent")


def test_the_bucket_itself_is_there(s3: Any) -> None:
    assert s3.head_bucket(Bucket=BUCKET)["BucketRegion"] == "us-east-1"
    assert s3.get_bucket_location(Bucket=BUCKET)["ResponseMetadata"]["HTTPStatusCode"] == 200


def test_a_signature_may_be_wanted(model: Path) -> None:
    with running_origin({"tiny": model}, access=Access(signed_bucket=True)) as origin:
        signed, unsigned = (client_of(origin, signature_version=version) for version in ("s3v4", UNSIGNED))
        assert keys(signed.list_objects_v2(Bucket=BUCKET))
        with pytest.raises(ClientError, match="AccessDenied"):
            unsigned.list_objects_v2(Bucket=BUCKET)
        signed.close()
        unsigned.close()


def test_without_that_nobody_needs_one(origin: Origin) -> None:
    unsigned = client_of(origin, signature_version=UNSIGNED)
    assert keys(unsigned.list_objects_v2(Bucket=BUCKET))
    unsigned.close()
