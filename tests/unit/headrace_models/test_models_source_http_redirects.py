"""Redirects and credentials: where they lead, what is remembered, and who gets to see a token."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from headrace_models.errors import (
    ModelNotFound,
    SourceDenied,
    SourceUnavailable,
    SourceUnusable,
)
from headrace_models.sources.http_auth import basic, bearer
from headrace_models.sources.http_transport import MAX_REDIRECTS
from tests.fakes.origin_http import Answer, Ask, Reply, origin_http, ranged
from tests.unit.headrace_models.http_support import (
    DATA,
    SECRET,
    Bench,
    authorizations,
    file_server,
    read,
    read_any,
    redirect,
)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(stack, tmp_path)


def test_where_a_file_was_found_is_remembered(bench: Bench) -> None:
    content = bench.start(file_server())
    origin = bench.start(redirect(f"{content.url}/blob?{SECRET}"))
    transport = bench.connect()
    for begin in (0, 10, 20):
        assert read(transport, f"{origin.url}/w", begin, begin + 10) == DATA[begin : begin + 10]
    assert (len(origin.asked), len(content.asked)) == (1, 3)
    assert content.asked[2].query == SECRET


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_an_expired_address_is_asked_for_again_once(bench: Bench, status: int) -> None:
    valid, given = ["1"], ["1"]

    def content_answer(ask: Ask) -> Reply:
        return ranged(ask, DATA, {"ETag": '"one"'}) if ask.query == f"key={valid[0]}" else Reply(status)

    content, transport = bench.start(content_answer), bench.connect()
    origin = bench.start(lambda ask: Reply(302, headers={"Location": f"{content.url}/blob?key={given[0]}"}))
    read(transport, f"{origin.url}/w", 0, 10)
    valid[0] = given[0] = "2"
    assert read(transport, f"{origin.url}/w", 10, 20) == DATA[10:20]
    assert (len(origin.asked), len(content.asked)) == (2, 3)
    valid[0] = "3"
    with pytest.raises((SourceDenied, ModelNotFound, SourceUnusable)):
        read(transport, f"{origin.url}/w", 10, 20)
    assert (len(origin.asked), len(content.asked)) == (3, 5)


def test_a_remembered_host_that_is_gone_is_forgotten(bench: Bench) -> None:
    second = bench.start(file_server())
    with origin_http(file_server({"ETag": '"one"', "Connection": "close"})) as first:
        origin, transport = bench.start(redirect(f"{first.url}/blob")), bench.connect()
        read(transport, f"{origin.url}/w", 0, 10)
    origin.answer = redirect(f"{second.url}/blob")
    with pytest.raises(SourceUnavailable):
        read(transport, f"{origin.url}/w", 0, 10)
    assert read(transport, f"{origin.url}/w", 0, 10) == DATA[:10]


def test_a_remembered_place_that_is_out_of_order_is_forgotten(bench: Bench) -> None:
    first, second = bench.start(file_server()), bench.start(file_server())
    origin, transport = bench.start(redirect(f"{first.url}/blob")), bench.connect()
    read(transport, f"{origin.url}/w", 0, 10)
    first.answer = lambda _ask: Reply(503)
    origin.answer = redirect(f"{second.url}/blob")
    with pytest.raises(SourceUnavailable):
        read(transport, f"{origin.url}/w", 0, 10)
    assert read(transport, f"{origin.url}/w", 0, 10) == DATA[:10]


def test_redirects_in_a_circle_end(bench: Bench) -> None:
    origin = bench.start(redirect("/w"))
    with pytest.raises(SourceUnusable, match=f"more than {MAX_REDIRECTS} times"):
        read_any(bench.connect(), f"{origin.url}/w")
    assert len(origin.asked) == MAX_REDIRECTS + 1


@pytest.mark.parametrize(
    "location", ["", "file:///etc/passwd", "ftp://127.0.0.1/", "http://u:p@127.0.0.1/", "http://[", "//127.0.0.1:x/"]
)
def test_redirects_to_what_is_no_web_address_are_refused(bench: Bench, location: str) -> None:
    origin = bench.start(redirect(location))
    with pytest.raises(SourceUnusable):
        read_any(bench.connect(), f"{origin.url}/w")


def test_a_redirect_to_plain_http_elsewhere_is_refused(bench: Bench) -> None:
    origin = bench.start(redirect(f"http://models.example/w?{SECRET}"))
    with pytest.raises(SourceUnusable, match=r"plain HTTP to models\.example:80") as caught:
        read_any(bench.connect(), f"{origin.url}/w")
    assert SECRET not in str(caught.value)


def test_plain_http_is_spoken_to_named_hosts(bench: Bench) -> None:
    proxy = bench.start(file_server())
    named = bench.connect(insecure_hosts=frozenset({"models.example"}), environ={"http_proxy": proxy.url})
    assert read(named, "http://models.example/w", 0, 10) == DATA[:10]
    with pytest.raises(SourceUnusable, match="plain HTTP"):
        read(named, "http://other.example/w", 0, 10)


# ------------------------------------------------------------------------------------------------------ credentials


def test_credentials_go_to_their_origin_only(bench: Bench) -> None:
    content = bench.start(file_server())
    origin = bench.start(
        lambda ask: Reply(302, headers={"Location": "/2" if ask.path == "/w" else f"{content.url}/blob"})
    )
    transport = bench.connect(bearer(origin.url, "s3cret"))
    read(transport, f"{origin.url}/w", 0, 10)
    read(transport, f"{origin.url}/w", 0, 10)
    assert authorizations(origin) == ["Bearer s3cret"] * 2
    assert authorizations(content) == [None] * 2


def test_credentials_stay_dropped_when_somebody_else_leads_back(bench: Bench) -> None:
    origin = bench.start(file_server())
    other = bench.start(redirect(f"{origin.url}/back"))

    def leads_away(ask: Ask) -> Reply:
        return ranged(ask, DATA, {"ETag": '"one"'}) if ask.path == "/back" else redirect(f"{other.url}/")(ask)

    origin.answer = leads_away

    transport = bench.connect(bearer(origin.url, "s3cret"))
    read(transport, f"{origin.url}/w", 0, 10)
    read(transport, f"{origin.url}/w", 0, 10)
    assert list(zip(origin.paths(), authorizations(origin), strict=True)) == [
        ("/w", "Bearer s3cret"),
        ("/back", None),
        ("/back", None),
    ]


def test_secret_headers_of_the_caller_do_not_follow_a_redirect_elsewhere(bench: Bench) -> None:
    content = bench.start(lambda ask: Reply(200, b"x"))
    origin = bench.start(redirect(f"{content.url}/"))
    bench.connect().get(f"{origin.url}/d", max_bytes=9, headers={"Cookie": "a=b", "Accept": "text/plain"})
    assert "cookie" in origin.asked[0].headers
    assert "cookie" not in content.asked[0].headers
    assert content.asked[0].headers["accept"] == "text/plain"


def test_a_password_goes_to_its_origin_as_basic_credentials(bench: Bench) -> None:
    origin, other = bench.start(lambda ask: Reply(200)), bench.start(lambda ask: Reply(200))
    transport = bench.connect(basic(origin.url, "user", "pa:ss"))
    for server in (origin, other):
        transport.get_bytes(f"{server.url}/d", max_bytes=9)
    assert (authorizations(origin), authorizations(other)) == (["Basic dXNlcjpwYTpzcw=="], [None])


def test_a_token_that_no_header_can_hold_is_refused_without_showing_it() -> None:
    with pytest.raises(SourceDenied) as caught:
        bearer("https://hub.example", "s3c\r\nret")
    assert "s3c" not in str(caught.value)


class Renewing:
    """Gives `token N`, where N is how often it was renewed."""

    def __init__(self, *, gives_up_after: int = 100) -> None:
        self.renewals: list[tuple[tuple[str, ...], Mapping[str, str]]] = []
        self._most = gives_up_after

    def headers(self, url: str) -> Mapping[str, str]:
        """See Authorizer."""
        return {"Authorization": f"token {len(self.renewals)}"}

    def renew(self, url: str, challenges: tuple[str, ...], sent: Mapping[str, str]) -> bool:
        """See Authorizer."""
        if len(self.renewals) == self._most:
            return False
        self.renewals.append((challenges, sent))
        return True


def guarded(token: str) -> Answer:
    def answer(ask: Ask) -> Reply:
        if ask.headers.get("authorization") == token:
            return ranged(ask, DATA, {"ETag": '"one"'})
        return Reply(401, b"no", {"WWW-Authenticate": 'Bearer realm="r"'})

    return answer


def test_a_refused_token_is_renewed_once_with_the_challenge(bench: Bench) -> None:
    authorizer, origin = Renewing(), bench.start(guarded("token 1"))
    assert read(bench.connect(authorizer), f"{origin.url}/w", 0, 10) == DATA[:10]
    assert authorizer.renewals == [(('Bearer realm="r"',), {"Authorization": "token 0"})]
    assert authorizations(origin) == ["token 0", "token 1"]
    assert origin.connections == 1


@pytest.mark.parametrize("authorizer", [Renewing(), Renewing(gives_up_after=0)])
def test_a_token_that_stays_refused_is_denied(bench: Bench, authorizer: Renewing) -> None:
    origin = bench.start(guarded("another"))
    with pytest.raises(SourceDenied):
        read(bench.connect(authorizer), f"{origin.url}/w", 0, 10)
    assert len(origin.asked) == 1 + len(authorizer.renewals) <= 2


def test_a_token_that_expires_under_way_is_renewed(bench: Bench) -> None:
    origin = bench.start(guarded("token 0"))
    transport = bench.connect(Renewing())
    read(transport, f"{origin.url}/w", 0, 10)
    origin.answer = guarded("token 1")
    assert read(transport, f"{origin.url}/w", 0, 10) == DATA[:10]


def test_a_renewal_that_fails_says_why(bench: Bench) -> None:
    class Failing(Renewing):
        def renew(self, url: str, challenges: tuple[str, ...], sent: Mapping[str, str]) -> bool:
            raise SourceDenied("the password is wrong")

    origin = bench.start(guarded("another"))
    with pytest.raises(SourceDenied, match="the password is wrong"):
        read(bench.connect(Failing()), f"{origin.url}/w", 0, 10)


def test_another_host_cannot_make_us_renew(bench: Bench) -> None:
    content, authorizer = bench.start(guarded("token 1")), Renewing()
    origin = bench.start(redirect(f"{content.url}/blob"))
    with pytest.raises(SourceDenied):
        read(bench.connect(authorizer), f"{origin.url}/w", 0, 10)
    assert authorizer.renewals == []
