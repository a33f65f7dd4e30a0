"""Proxies, TLS, and what the transport logs."""

import logging
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from headrace_models.errors import (
    SourceUnavailable,
    SourceUnusable,
)
from headrace_models.sources.http_auth import bearer
from tests.fakes.origin_http import Reply, origin_http
from tests.unit.headrace_models.http_support import (
    DATA,
    SECRET,
    Bench,
    file_server,
    read,
    redirect,
)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(stack, tmp_path)


def test_a_proxy_is_asked_for_what_it_is_meant_for(bench: Bench) -> None:
    proxy = bench.start(file_server())
    environ = {"HTTP_PROXY": proxy.url.replace("//", "//user:p%40ss@"), "NO_PROXY": "inside.example"}
    transport = bench.connect(environ=environ, insecure_hosts=frozenset({"a.example"}))
    assert read(transport, "http://a.example/w", 0, 10) == DATA[:10]
    assert proxy.asked[0].headers["host"] == "a.example"
    assert proxy.asked[0].headers["proxy-authorization"] == "Basic dXNlcjpwQHNz"


def test_a_proxy_that_is_not_there_is_unavailable_and_not_shown(bench: Bench) -> None:
    with origin_http(file_server()) as gone:
        proxy = gone.url.replace("//", "//user:s3cret@")
    transport = bench.connect(environ={"https_proxy": proxy})
    with pytest.raises(SourceUnavailable, match="proxy") as caught:
        read(transport, "https://a.example/w", 0, 10)
    assert "s3cret" not in str(caught.value)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1, signed by itself, with its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl program")
    directory = tmp_path_factory.mktemp("tls")
    new = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=x"
    names = "subjectAltName=IP:127.0.0.1"
    files = ["-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(["openssl", *new.split(), "-addext", names, *files], cwd=directory, check=True, capture_output=True)
    return directory


def server_context(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    return context


def test_tls_is_checked_against_the_authorities_of_the_environment(bench: Bench, certificate: Path) -> None:
    origin = bench.start(file_server(), server_context(certificate))
    trusting = bench.connect(environ={"SSL_CERT_FILE": str(certificate / "cert.pem")})
    assert read(trusting, f"{origin.url}/w", 0, 10) == DATA[:10]
    with pytest.raises(SourceUnusable, match=r"certificate of 127\.0\.0\.1"):
        read(bench.connect(), f"{origin.url}/w", 0, 10)
    with pytest.raises(SourceUnusable, match="SSL_CERT_FILE"):
        read(bench.connect(environ={"SSL_CERT_FILE": str(certificate / "none.pem")}), f"{origin.url}/w", 0, 10)


def test_https_does_not_become_plain_http(bench: Bench, certificate: Path) -> None:
    plain = bench.start(file_server())
    origin = bench.start(redirect(f"{plain.url}/w"), server_context(certificate))
    with pytest.raises(SourceUnusable, match="from https to plain HTTP"):
        read(bench.connect(environ={"SSL_CERT_FILE": str(certificate / "cert.pem")}), f"{origin.url}/w", 0, 10)
    assert plain.asked == []


def test_a_server_without_tls_is_unavailable_over_https(bench: Bench) -> None:
    origin = bench.start(file_server())
    with pytest.raises(SourceUnavailable, match="TLS"):
        read(bench.connect(), f"{origin.url.replace('http:', 'https:')}/w", 0, 10)


# ------------------------------------------------------------------------------------------------------------- logs


def test_queries_and_tokens_are_neither_logged_nor_shown(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    content = bench.start(file_server())
    origin = bench.start(redirect(f"{content.url}/blob?{SECRET}"))
    transport = bench.connect(bearer(origin.url, "s3cret"))
    read(transport, f"{origin.url}/w", 0, 10)
    content.answer = lambda ask: Reply(500)
    with pytest.raises(SourceUnavailable) as caught:
        read(transport, f"{origin.url}/w", 0, 10)
    everything = caplog.text + str(caught.value)
    assert SECRET not in everything
    assert "s3cret" not in everything
