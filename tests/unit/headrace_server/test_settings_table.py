"""README's table of keys is the schema, word for word."""

import re
from pathlib import Path

from headrace_server.settings.loading import scalar_keys
from headrace_server.settings.schema import Settings
from headrace_server.settings.table import markdown_table


def rows() -> dict[str, tuple[str, str]]:
    cells = [line.strip("|").split(" | ", 2) for line in markdown_table().splitlines()[2:]]
    return {key.strip(" `"): (default.strip(), meaning.strip()) for key, default, meaning in cells}


def test_the_table_in_the_readme_is_the_one_made_from_the_schema(repository: Path) -> None:
    text = (repository / "README.md").read_text(encoding="utf-8")
    found = re.search("<!-- config table -->(.*?)<!-- /config table -->", text, re.DOTALL)
    assert found, "README.md has no <!-- config table --> … <!-- /config table -->"
    assert found[1].strip() == markdown_table()


def test_every_key_has_a_row_with_a_meaning() -> None:
    table = rows()
    assert set(scalar_keys(Settings)) <= set(table)
    assert "models[].arguments.max_model_len" in table
    assert all(meaning for _, meaning in table.values())


def test_defaults_are_shown_as_they_would_be_written() -> None:
    table = rows()
    assert table["server.port"][0] == "`8000`"
    assert table["server.host"][0] == '`"127.0.0.1"`'
    assert table["server.tls.cert_file"][0] == "unset"
    assert table["models[].id"][0] == "required"
    assert table["telemetry.access_log"][0] == "`true`"
    assert table["telemetry.log_format"][0] == '`"auto"`'


def test_no_cell_breaks_the_table() -> None:
    lines = markdown_table().splitlines()
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {4}
