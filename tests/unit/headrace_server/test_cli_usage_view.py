"""What `headrace usage` shows."""

from datetime import date

from headrace_server.api.admin_documents import UsageCount, UsageReport
from headrace_server.cli.usage_view import lines


def test_a_line_for_each_day_tenant_and_model() -> None:
    count = UsageCount(
        day=date(2026, 3, 1),
        tenant="a",
        model="m",
        requests=2,
        computed_prompt_tokens=20,
        cached_prompt_tokens=4,
        output_tokens=6,
    )
    head, line = (line.split() for line in lines(UsageReport(usage=[count])))
    assert head == ["DAY", "TENANT", "MODEL", "REQUESTS", "PROMPT", "CACHED", "OUTPUT"]
    assert line == ["2026-03-01", "a", "m", "2", "20", "4", "6"]


def test_without_usage_there_is_only_the_head() -> None:
    assert len(list(lines(UsageReport(usage=[])))) == 1
