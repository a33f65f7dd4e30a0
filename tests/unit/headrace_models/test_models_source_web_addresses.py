"""Addresses and proxies: who may be spoken to, where a redirect may lead, what is shown, which proxy is asked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_models.errors import SourceUnusable
from headrace_models.sources.proxies import Proxy, proxy_for
from headrace_models.sources.web_addresses import (
    Origin,
    check_clear,
    is_loopback,
    origin_of,
    redirect_target,
    shown,
)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://A.example/x", Origin("https", "a.example", 443)),
        ("http://a.example", Origin("http", "a.example", 80)),
        ("https://[::1]:8443/", Origin("https", "::1", 8443)),
        ("HTTPS://a.example:443", Origin("https", "a.example", 443)),
    ],
)
def test_an_origin_is_scheme_host_and_port(url: str, origin: Origin) -> None:
    assert origin_of(url) == origin


@pytest.mark.parametrize(
    "url",
    ["", "/x", "a.example", "ftp://a.example/", "https://", "https:///x", "https://u@a.example/", "https://[x/"]
    + ["https://a.example:99999/", "https://a.example:x/", "https://u:s3cret@a.example/"],
)
def test_what_is_no_address_or_has_credentials_is_refused_without_showing_them(url: str) -> None:
    with pytest.raises(SourceUnusable) as caught:
        origin_of(url)
    assert "s3cret" not in str(caught.value)


@given(st.text(max_size=60))
def test_what_is_shown_of_an_address_is_one_line_without_its_query(text: str) -> None:
    line = shown(f"https://user:s3cret@host.example/{text}?{text}&X-Sig=s3cret")
    assert "s3cret" not in line
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]"])
def test_loopback_is_what_stays_on_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["localhost.example", "128.0.0.1", "0.0.0.0", "::", "127.1", "2130706433", ""])
def test_whatever_only_looks_like_loopback_is_not(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("named", ["a.example", "a.example:80"])
def test_plain_http_goes_to_loopback_and_to_named_hosts(named: str) -> None:
    for url in (
        "https://b.example/",
        "http://127.0.0.1/",
        "http://localhost:9/",
        "http://[::1]:9/",
        "http://A.example/",
    ):
        check_clear(url, {named})
    for url in ("http://b.example/", "http://a.example.evil/", "http://127.0.0.1.evil/"):
        with pytest.raises(SourceUnusable, match="plain HTTP"):
            check_clear(url, {named})


def test_a_host_named_with_its_port_is_allowed_there_only() -> None:
    check_clear("http://a.example:5000/", {"a.example:5000"})
    check_clear("http://[fd00::1]:5000/", {"[fd00::1]:5000"})
    with pytest.raises(SourceUnusable):
        check_clear("http://a.example/", {"a.example:5000"})


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/b?c", "https://a.example/b?c"),
        ("b", "https://a.example/x/b"),
        ("//c.example/", "https://c.example/"),
        ("https://c.example/", "https://c.example/"),
    ],
)
def test_redirects_lead_on(location: str, target: str) -> None:
    assert redirect_target("https://a.example/x/y", location) == target


@pytest.mark.parametrize(
    "location",
    [
        None,
        "",
        "http://a.example/",
        "http://127.0.0.1/",
        "file:///x",
        "javascript:x",
        "https://u:p@c.example/",
        "https://[",
    ]
    + ["/a b", "/a\r\nX: y", "/a\x00", "/" + "a" * 20_000],
)
def test_redirects_that_must_not_be_followed_are_refused(location: str | None) -> None:
    with pytest.raises(SourceUnusable):
        redirect_target("https://a.example/x/y", location)


PROXIES = {"https_proxy": "http://p1:3128", "HTTP_PROXY": "p2:3128", "NO_PROXY": "inside.example,.corp.example:8443"}


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("https://a.example/", "http://p1:3128"),
        ("http://a.example/", "http://p2:3128"),
        ("https://inside.example/", None),
        ("https://x.inside.example/", None),
        ("https://notinside.example/", "http://p1:3128"),
        ("https://x.corp.example/", "http://p1:3128"),
        ("https://x.corp.example:8443/", None),
        ("https://127.0.0.1/", None),
        ("http://localhost:99/", None),
    ],
)
def test_the_proxy_follows_from_scheme_and_host(url: str, proxy: str | None) -> None:
    assert proxy_for(url, PROXIES) == (Proxy(proxy, None) if proxy else None)


def test_lower_case_comes_first_and_all_proxy_last() -> None:
    assert proxy_for("https://a.example/", {"ALL_PROXY": "http://last"}) == Proxy("http://last", None)
    both = {"HTTPS_PROXY": "http://upper", "https_proxy": "http://lower", "ALL_PROXY": "http://last"}
    assert proxy_for("https://a.example/", both) == Proxy("http://lower", None)
    assert proxy_for("https://a.example/", {}) is None
    assert proxy_for("https://a.example/", {"https_proxy": "http://p", "no_proxy": "x, *"}) is None


def test_a_cgi_request_cannot_set_the_proxy() -> None:
    assert proxy_for("http://a.example/", {"HTTP_PROXY": "http://evil", "REQUEST_METHOD": "GET"}) is None


@pytest.mark.parametrize("setting", ["socks5://p:1", "http://", "http://u:s3cret@[x", "http://u:s3cret@p:x"])
def test_a_proxy_that_cannot_be_used_is_refused_without_its_password(setting: str) -> None:
    with pytest.raises(SourceUnusable) as caught:
        proxy_for("https://a.example/", {"https_proxy": setting})
    assert "s3cret" not in str(caught.value)


def test_credentials_of_a_proxy_are_taken_out_of_its_address() -> None:
    assert proxy_for("https://a.example/", {"https_proxy": "http://u:p%40:s@[::1]:8"}) == Proxy(
        "http://[::1]:8", "u:p@:s"
    )
