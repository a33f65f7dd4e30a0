"""References: what is read, what is refused, and that the canonical text reads back."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_models import InvalidReference, ModelReference, Scheme, Sha256, parse_reference
from headrace_models.locations import HubLocation, OciLocation, S3Location, canonical_host
from headrace_models.reference import hub_location, oci_location, s3_location

SEGMENT = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"), exclude_characters="/"), min_size=1)
PATHS = st.lists(SEGMENT, max_size=4).map(lambda parts: os.path.normpath("/" + "/".join(parts)))
NAMES = st.from_regex(r"[a-z0-9]([a-z0-9_-]|\.[a-z0-9]){0,20}", fullmatch=True)
HOSTS = st.from_regex(r"[A-Za-z0-9]{1,9}(\.[a-z]{2,3}){1,2}(:[1-9][0-9]{0,3})?", fullmatch=True)
WORDS = st.from_regex(r"[a-z0-9]{1,6}([._-][a-z0-9]{1,4})?", fullmatch=True)
HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
SCHEMES = st.sampled_from(["oci", "hf", "s3", "https", "http"])


def joined(parts: st.SearchStrategy[str], separator: str = "/") -> st.SearchStrategy[str]:
    return st.lists(parts, min_size=1, max_size=3).map(separator.join)


SPELLINGS = st.one_of(
    st.builds(
        "{}://{}/{}{}".format, st.sampled_from(["https", "HTTP"]), HOSTS, joined(SEGMENT), st.sampled_from(["", "/"])
    ),
    st.builds("oci://{}/{}{}".format, HOSTS, joined(WORDS), st.sampled_from(["", ":latest", ":V_1.0-x"])),
    st.builds("oci://{}/{}@sha256:{}".format, HOSTS, joined(WORDS), HEX),
    st.builds("hf://{}/{}{}".format, WORDS, WORDS, st.sampled_from(["", "@main", "@refs/pr/1", "@" + "Ab" * 20])),
    st.builds("s3://{}/{}".format, st.from_regex(r"[a-z0-9]{3,9}", fullmatch=True), joined(SEGMENT)),
)
REFERENCES = st.one_of(
    NAMES.map(lambda name: ModelReference(Scheme.EMBEDDED, name)),
    PATHS.map(lambda path: ModelReference(Scheme.FILE, path)),
)


@given(REFERENCES)
def test_the_canonical_text_of_a_reference_parses_back_to_it(reference: ModelReference) -> None:
    assert parse_reference(str(reference)) == reference


@given(st.one_of(SPELLINGS, st.builds("{}://{}".format, SCHEMES, st.text(max_size=100)), st.text(max_size=200)))
def test_any_text_is_either_read_or_refused_with_one_line(text: str) -> None:
    message = ""
    try:
        reference = parse_reference(text)
    except InvalidReference as error:
        message = str(error)
    else:
        assert parse_reference(str(reference)) == reference
    assert len(message.splitlines()) <= 1


def test_spellings_of_one_directory_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my model").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = str(tmp_path / "my model")
    texts = {path, f"/{path}", f"{path}/", "./my model", "my model", "~/my model", f"file://{path}"}
    texts |= {f"file://{path.replace(' ', '%20')}", f"FILE://localhost{path}"}
    assert {parse_reference(text) for text in texts} == {ModelReference(Scheme.FILE, path)}
    assert parse_reference(path).display_name == "my model"


def test_bytes_that_are_not_utf8_survive() -> None:
    reference = parse_reference("file:///a%FFb")
    assert os.fsencode(reference.location) == b"/a\xffb"
    assert str(reference) == "file:///a%FFb"


@pytest.mark.parametrize(
    "texts",
    [
        {"https://a.example", "https://A.Example/", "HTTPS://a.example:443", "https://a.example:443/"},
        {"http://a.example/m/", "http://a.example:80/m"},
        {"https://a.example/m%2Fn/x%20%C3%A9/", "https://a.example/m%2fn/x é", "https://a.example/m%2Fn/%78%20%c3%a9"},
        {"https://[::1]:8/", "https://[0:0:0:0:0:0:0:1]:8"},
        {"hf://org/name", "hf://org/name@main", "HF://org/name"},
        {"hf://gpt2@" + "ab" * 20, "hf://gpt2@" + "AB" * 20},
        {"s3://bucket", "s3://bucket/", "S3://bucket/"},
        {"s3://bucket/a b/c", "s3://bucket/a b/c/"},
        {"oci://r.example/m", "oci://R.example/m:latest"},
        {f"oci://r.example/m{tag}@sha256:{'0' * 64}" for tag in ("", ":1", ":latest")},
    ],
)
def test_spellings_of_one_remote_model_are_equal(texts: set[str]) -> None:
    assert len({parse_reference(text) for text in texts}) == 1


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("https://a.example:8443/m", "https://a.example:8443/m/"),
        ("https://a.example/a%7Eb/%2525/$&'()*+,;=:@!", "https://a.example/a~b/%2525/$&'()*+,;=:@!/"),
        ("https://a.example/config.json/", "https://a.example/config.json/"),
        ("http://a.example:443/", "http://a.example:443/"),
        ("hf://org/name@feature/x", "hf://org/name@feature/x"),
        ("s3://my.bucket/A/%41", "s3://my.bucket/A/%41"),
        ("oci://localhost/m:v1", "oci://localhost/m:v1"),
        ("oci://r.example:443/a/b-c__d:X", "oci://r.example:443/a/b-c__d:X"),
    ],
)
def test_a_remote_reference_has_one_canonical_text(text: str, canonical: str) -> None:
    assert str(parse_reference(text)) == canonical


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hf://HuggingFaceTB/SmolLM2-135M@v1", "SmolLM2-135M"),
        ("hf://gpt2", "gpt2"),
        ("oci://r.example:5000/models/smollm2:1", "smollm2"),
        (f"oci://r.example/smollm2@sha256:{'0' * 64}", "smollm2"),
        ("s3://bucket/models/tiny/", "tiny"),
        ("s3://bucket", "bucket"),
        ("https://a.example/models/my%20model/", "my model"),
        ("https://a.example:8/", "a.example:8"),
    ],
)
def test_a_display_name_is_short(text: str, name: str) -> None:
    assert parse_reference(text).display_name == name


@pytest.mark.parametrize(
    ("text", "is_immutable"),
    [
        (f"oci://r.example/m@sha256:{'0' * 64}", True),
        ("oci://r.example/m:1", False),
        ("hf://org/name@" + "a" * 40, True),
        ("hf://org/name@" + "a" * 39, False),
        ("hf://org/name", False),
        ("s3://bucket", False),
        ("https://a.example/", False),
        ("embedded:name", False),
        ("/a", False),
    ],
)
def test_only_digests_and_commits_are_immutable(text: str, is_immutable: bool) -> None:
    assert parse_reference(text).is_immutable is is_immutable


def test_remote_references_come_apart() -> None:
    pinned = parse_reference(f"oci://r.example:5000/a/b:1@sha256:{'0' * 64}")
    assert oci_location(pinned) == OciLocation("r.example:5000", "a/b", None, Sha256("0" * 64))
    assert oci_location(parse_reference("oci://r.example/a")) == OciLocation("r.example", "a", "latest", None)
    assert hub_location(parse_reference("hf://org/name")) == HubLocation("org/name", "main")
    assert s3_location(parse_reference("s3://bucket/a/b/")) == S3Location("bucket", "a/b")
    with pytest.raises(ValueError, match="no s3://"):
        s3_location(pinned)


def test_a_host_is_canonical_without_its_default_port() -> None:
    assert canonical_host("A.example:443", 443) == "a.example"
    assert canonical_host("[FD00::0:1]:443") == "[fd00::1]:443"


@pytest.mark.parametrize(
    "text",
    ["https://user:s3cret@a.example/m/", "https://s3cret@a.example", "https://a.example/m/?X-Amz-Signature=s3cret"],
)
def test_credentials_in_an_address_are_refused_and_not_shown(text: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        parse_reference(text)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        " /a",
        "/a ",
        "/a\x00b",
        "/a\nb",
        "/a\x1b[31m",
        "file:///a%00b",
        "file:///a%0Ab",
        "file:///a%zz",
        "file:///a?b",
        "file:///a#b",
        "file://host/a",
        "file:a",
        "embedded:",
        "embedded:..",
        "embedded:a..b",
        "embedded:../a",
        "embedded:a/b",
        "embedded:A",
        "embedded:a b",
        "embedded:-a",
        "embedded:" + "a" * 101,
        "/" + "a" * 5000,
        "/" + "é" * 2000,
        "gs://bucket/a",
        "https:a.example",
        "https://",
        "https:///m",
        "https://a.example/../m",
        "https://a.example/m/%2e%2E/",
        "https://a.example/a//b",
        "https://a.example/./",
        "https://a.example/m#x",
        "https://a.example/%zz",
        "https://a.example/%00",
        "https://a.example/m/%0A",
        "https://a.example:0/",
        "https://a.example:65536/",
        "https://a.example:080/",
        "https://a.example:/",
        "https://a_.-.example/",
        "https://münchen.example/",
        "https://a..example/",
        "https://[::1/",
        "https://[::1%25eth0]/",
        "https://[fe80::1%eth0]/",
        "https://a.example/m/model.safetensors",
        "https://a.example/\udcff",
        "https://a.example/" + "é" * 2000,
        "hf://",
        "hf://a/b/c",
        "hf://org/",
        "hf:///name",
        "hf://-a/b",
        "hf://a/b.git",
        "hf://a/b--c",
        "hf://a/..",
        "hf://a/" + "b" * 97,
        "hf://a/b@",
        "hf://a/b@a..b",
        "hf://a/b@../x",
        "hf://a/b@/x",
        "hf://a/b@x/",
        "hf://a/b@a b",
        "hf://a/b@a?b",
        "hf://a/b@x.lock",
        "hf://a/b@-x",
        "s3://",
        "s3://ab",
        "s3://Bucket",
        "s3://a..b",
        "s3://10.0.0.1/x",
        "s3://-bucket",
        "s3://bucket//x",
        "s3://bucket/a/../b",
        "s3://bucket/a /",
        "oci://",
        "oci://library/name",
        "oci://r.example",
        "oci://r.example/",
        "oci://r.example/A",
        "oci://r.example/a//b",
        "oci://r.example/a..b",
        "oci://r.example/../a",
        "oci://r.example/a:",
        "oci://r.example/a:-x",
        "oci://r.example/a:" + "x" * 129,
        "oci://r.example/a@",
        "oci://r.example/a@sha256:abc",
        "oci://r.example/a@sha512:" + "0" * 128,
        "oci://r.example/" + "a" * 256,
        "oci://user@r.example/a",
        "oci://r.example:x/a",
        "no-such-directory",
        "org/name",
    ],
)
def test_hostile_and_mistaken_input_is_refused(text: str) -> None:
    with pytest.raises(InvalidReference):
        parse_reference(text)


def test_a_hub_name_gets_the_reference_that_was_meant() -> None:
    with pytest.raises(InvalidReference, match="hf://Qwen/Qwen3-0.6B"):
        parse_reference("Qwen/Qwen3-0.6B")


def test_an_embedded_name_gets_the_reference_that_was_meant() -> None:
    with pytest.raises(InvalidReference, match="embedded:smollm2-135m-instruct"):
        parse_reference("smollm2-135m-instruct")
