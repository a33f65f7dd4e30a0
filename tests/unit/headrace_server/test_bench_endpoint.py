"""headrace_server.bench.endpoint: URLs and requests."""

import json

import pytest

from headrace_server.bench.command import read_targets
from headrace_server.bench.endpoint import Api, Endpoint, http_request, parse_target
from headrace_server.errors import UsageError


@pytest.mark.parametrize(
    ("text", "name", "endpoint"),
    [
        ("http://127.0.0.1:8000", "server", Endpoint("127.0.0.1", 8000)),
        ("http://127.0.0.1:8000/v1/", "server", Endpoint("127.0.0.1", 8000)),
        ("ours=http://host/llm/v1", "ours", Endpoint("host", 80, prefix="/llm")),
        ("https://host", "server", Endpoint("host", 443, secure=True)),
        ("http://[::1]:9", "server", Endpoint("::1", 9)),
    ],
)
def test_a_base_url_may_have_a_name_a_prefix_and_a_v1(text: str, name: str, endpoint: Endpoint) -> None:
    assert parse_target(text, "server") == (name, endpoint)


@pytest.mark.parametrize(
    "text",
    ["127.0.0.1:8000", "ftp://host", "http://", "http://host:port", "http://me@host", "http://host?key=1", "a=b"],
)
def test_what_is_no_base_url_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="URL"):
        parse_target(text, "server")


def test_two_servers_have_two_names() -> None:
    assert list(read_targets(["http://a", "http://b"])) == ["server", "baseline"]
    with pytest.raises(UsageError, match="the same name"):
        read_targets(["x=http://a", "x=http://b"])


def test_a_request_is_written_with_its_host_key_and_length() -> None:
    raw = http_request(Endpoint("::1", 9, prefix="/p"), "/v1/x", {"name": "ä"}, api_key="k")
    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"POST /p/v1/x HTTP/1.1",
        b"host: [::1]:9",
        b"content-type: application/json",
        b"content-length: %d" % len(body),
        b"authorization: Bearer k",
    ]
    assert json.loads(body) == {"name": "ä"}


def test_without_a_document_it_is_a_get() -> None:
    assert http_request(Endpoint("h", 1), "/livez") == b"GET /livez HTTP/1.1\r\nhost: h:1\r\n\r\n"


def test_every_request_is_greedy_and_of_a_fixed_length_and_a_stream_tells_its_usage() -> None:
    chat = Api.CHAT.document("m", "hi", num_tokens=5, stream=True)
    assert chat["messages"] == [{"role": "user", "content": "hi"}]
    assert (chat["max_tokens"], chat["ignore_eos"], chat["temperature"]) == (5, True, 0)
    assert chat["stream_options"] == {"include_usage": True}
    text = Api.COMPLETIONS.document("m", "hi", num_tokens=5, stream=False)
    assert text["prompt"] == "hi"
    assert "stream" not in text
