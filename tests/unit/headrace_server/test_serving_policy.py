"""What a client may not ask of a model unless its settings say so."""

import pytest

from headrace_server.domain import JsonObject
from headrace_server.errors import InvalidRequest
from headrace_server.serving.policy import ModelPolicy

STRICT, LENIENT = ModelPolicy(), ModelPolicy(client_chat_template=True, remote_media=True)
DATA = "data:image/png;base64,AAAA"


def chat(*parts: JsonObject) -> JsonObject:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def payloads_with(address: str) -> dict[str, JsonObject]:
    """Every place where a request can name media."""
    source = {"type": "image", "source": {"type": "url", "url": address}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [source]}
    return {
        "chat image": chat({"type": "image_url", "image_url": {"url": address}}),
        "chat image as text": chat({"type": "image_url", "image_url": address}),
        "chat audio": chat({"type": "audio_url", "audio_url": {"url": address}}),
        "chat video": chat({"type": "video_url", "video_url": {"url": address}}),
        "second message": {"messages": [{"role": "user", "content": "hi"}, *chat_messages(address)]},
        "after text": chat({"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": address}}),
        "message image": chat(source),
        "message document": chat({"type": "document", "source": {"type": "url", "url": address}}),
        "message tool result": chat(result),
        "tool result in a tool result": chat({**result, "content": [result]}),
        "document of blocks": chat({"type": "document", "source": {"type": "content", "content": [source]}}),
        "system block": {"system": [source], "messages": []},
        "response image": {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": address}]}]},
        "response file": {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": address}]}]},
        "response part": {"input": [{"type": "input_image", "image_url": address}]},
        "response tool output": {
            "input": [{"type": "function_call_output", "output": [{"type": "input_image", "image_url": address}]}]
        },
    }


def chat_messages(address: str) -> list[JsonObject]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": address}}]}]


PLACES = sorted(payloads_with(""))
LOCAL = ["file:///etc/passwd", "FILE:///etc/passwd", "/etc/passwd", "", "ftp://host/x", "s3://bucket/x", "javascript:0"]
REMOTE = ["http://host/x.png", "https://host/x.png", "HTTPS://host/x.png", " http://169.254.169.254/"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("address", REMOTE + LOCAL)
def test_an_address_is_refused_wherever_it_stands(place: str, address: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        STRICT.check(payloads_with(address)[place])
    assert caught.value.code == "remote_media_off"
    assert not address.strip() or address not in caught.value.message


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("policy", [STRICT, LENIENT])
def test_media_inside_the_request_is_always_allowed(place: str, policy: ModelPolicy) -> None:
    policy.check(payloads_with(DATA)[place])
    policy.check(payloads_with("DATA:image/png;base64,AAAA")[place])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("address", REMOTE)
def test_remote_addresses_are_allowed_where_the_model_says_so(place: str, address: str) -> None:
    LENIENT.check(payloads_with(address)[place])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("address", LOCAL)
def test_files_and_other_schemes_are_never_allowed(place: str, address: str) -> None:
    with pytest.raises(InvalidRequest):
        LENIENT.check(payloads_with(address)[place])


@pytest.mark.parametrize(
    "payload",
    [
        {"messages": [{"role": "user", "content": "see http://host/x.png and file:///etc/passwd"}]},
        chat({"type": "text", "text": "http://host/x.png"}),
        {"input": "http://host/x.png"},
        {"prompt": "file:///etc/passwd"},
        {"system": "http://host", "messages": []},
        chat({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}),
        chat({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}),
        {"messages": [{"role": "user", "content": None}, 17, "text"]},
    ],
)
def test_text_is_not_looked_into(payload: JsonObject) -> None:
    STRICT.check(payload)


@pytest.mark.parametrize("name", ["chat_template", "chat_template_kwargs"])
@pytest.mark.parametrize("value", ["{{ messages }}", "", {}, {"enable_thinking": False}])
def test_templates_are_refused_by_name_unless_the_model_allows_them(name: str, value: object) -> None:
    payload: JsonObject = {"messages": [], name: value}
    with pytest.raises(InvalidRequest, match=name) as caught:
        STRICT.check(payload)
    assert (caught.value.code, caught.value.param) == ("chat_template_off", name)
    LENIENT.check(payload)


def test_a_template_that_is_null_is_no_template() -> None:
    STRICT.check({"messages": [], "chat_template": None, "chat_template_kwargs": None})


def test_each_switch_opens_its_own_door_only() -> None:
    with pytest.raises(InvalidRequest, match="media"):
        ModelPolicy(client_chat_template=True).check(payloads_with("http://h/")["chat image"])
    with pytest.raises(InvalidRequest, match="chat_template"):
        ModelPolicy(remote_media=True).check({"chat_template": "x"})
