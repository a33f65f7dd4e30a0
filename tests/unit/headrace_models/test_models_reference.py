"""References: what is read, what is refused, and that the canonical text reads back."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_models import InvalidReference, ModelReference, Scheme, UnsupportedReference, parse_reference

SEGMENT = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"), exclude_characters="/"), min_size=1)
PATHS = st.lists(SEGMENT, max_size=4).map(lambda parts: os.path.normpath("/" + "/".join(parts)))
NAMES = st.from_regex(r"[a-z0-9]([a-z0-9_-]|\.[a-z0-9]){0,20}", fullmatch=True)
REFERENCES = st.one_of(
    NAMES.map(lambda name: ModelReference(Scheme.EMBEDDED, name)),
    PATHS.map(lambda path: ModelReference(Scheme.FILE, path)),
)


@given(REFERENCES)
def test_the_canonical_text_of_a_reference_parses_back_to_it(reference: ModelReference) -> None:
    assert parse_reference(str(reference)) == reference


@given(st.text(max_size=200))
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


@pytest.mark.parametrize("scheme", ["oci", "hf", "s3", "https"])
def test_schemes_for_later_are_named_in_the_refusal(scheme: str) -> None:
    with pytest.raises(UnsupportedReference, match=f"^{scheme}:// models cannot be fetched yet"):
        parse_reference(f"{scheme}://host/name")


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
        "http://host/a",
        "gs://bucket/a",
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
