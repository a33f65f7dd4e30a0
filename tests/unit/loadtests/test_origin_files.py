"""The origin over plain HTTP: ranges, validators, what faults do to a client, and what is counted."""

import http.client
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from loadtests.origin.access import Access
from loadtests.origin.faults import (
    Change,
    Fault,
    Faults,
    Flip,
    IgnoreRange,
    Redirect,
    Reset,
    Stall,
    Status,
    Truncate,
    When,
    WrongRange,
)
from loadtests.origin.link import Link
from loadtests.origin.server import Origin, running_origin
from loadtests.origin.tiny_model import write_tiny_model

WEIGHTS = "/files/acme/tiny/model.safetensors"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model")


@pytest.fixture
def weights(model: Path) -> bytes:
    return (model / "model.safetensors").read_bytes()


@pytest.fixture
def origin(model: Path) -> Iterator[Origin]:
    with running_origin({"acme/tiny": model}) as origin:
        yield origin


@pytest.fixture
def pool() -> Iterator[urllib3.PoolManager]:
    with urllib3.PoolManager(retries=False, timeout=5) as pool:
        yield pool


def get(
    pool: urllib3.PoolManager, origin: Origin, path: str = WEIGHTS, **headers: str
) -> urllib3.response.BaseHTTPResponse:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return pool.request("GET", origin.url + path, headers=named, redirect=False)


def connected_to(address: str) -> socket.socket:
    host, _, port = address.partition(":")
    return socket.create_connection((host, int(port)))


def spoil(origin: Origin, *faults: Fault) -> None:
    origin.set_faults(Faults(faults))


def test_a_file_comes_whole_with_a_strong_etag(pool: urllib3.PoolManager, origin: Origin, weights: bytes) -> None:
    response = get(pool, origin)
    assert (response.status, response.data) == (200, weights)
    assert response.headers["Content-Length"] == str(len(weights))
    assert response.headers["ETag"].startswith('"')


@pytest.mark.parametrize(
    ("asked", "begin", "end"),
    [("bytes=0-0", 0, 1), ("bytes=100-299", 100, 300), ("bytes=500-", 500, None), ("bytes=-7", -7, None)],
)
def test_a_range_comes_as_it_was_asked_for(
    pool: urllib3.PoolManager, origin: Origin, weights: bytes, asked: str, begin: int, end: int | None
) -> None:
    response = get(pool, origin, Range=asked)
    assert (response.status, response.data) == (206, weights[begin:end])
    first = begin % len(weights)
    assert response.headers["Content-Range"] == f"bytes {first}-{first + len(response.data) - 1}/{len(weights)}"


def test_a_range_that_ends_behind_the_file_is_cut_and_one_that_begins_there_refused(
    pool: urllib3.PoolManager, origin: Origin, weights: bytes
) -> None:
    assert get(pool, origin, Range=f"bytes=10-{len(weights) + 5}").data == weights[10:]
    refused = get(pool, origin, Range=f"bytes={len(weights)}-")
    assert (refused.status, refused.headers["Content-Range"]) == (416, f"bytes */{len(weights)}")


@pytest.mark.parametrize("asked", ["bytes=5-2", "bytes=0-1,4-5", "lines=0-1", "bytes=-", "nonsense"])
def test_a_range_that_is_not_understood_is_none(
    pool: urllib3.PoolManager, origin: Origin, weights: bytes, asked: str
) -> None:
    assert get(pool, origin, Range=asked).data == weights


def test_validators_decide_whether_a_part_is_sent(pool: urllib3.PoolManager, origin: Origin, weights: bytes) -> None:
    etag = get(pool, origin).headers["ETag"]
    assert get(pool, origin, Range="bytes=0-1", If_Range=etag).status == 206
    assert get(pool, origin, Range="bytes=0-1", If_Range='"other"').data == weights
    assert get(pool, origin, If_Match=etag).status == 200
    assert get(pool, origin, If_Match='"other"').status == 412


def test_head_tells_what_get_would_send(pool: urllib3.PoolManager, origin: Origin, weights: bytes) -> None:
    response = pool.request("HEAD", origin.url + WEIGHTS)
    assert (response.status, response.data) == (200, b"")
    assert response.headers["Content-Length"] == str(len(weights))
    assert origin.stats().body_bytes() == 0


def test_a_request_may_name_the_whole_address(origin: Origin, weights: bytes) -> None:
    connection = http.client.HTTPConnection(origin.address)
    connection.request("GET", f"http://{origin.address}{WEIGHTS}")
    assert connection.getresponse().read() == weights
    connection.close()
    assert set(origin.stats().paths) == {WEIGHTS}


@pytest.mark.parametrize("path", ["/files/acme/tiny/absent", "/files/other/config.json", "/files/acme/tiny", "/x", "/"])
def test_what_is_not_there_is_404(pool: urllib3.PoolManager, origin: Origin, path: str) -> None:
    assert get(pool, origin, path).status == 404


def test_what_was_asked_and_sent_is_counted_by_path(pool: urllib3.PoolManager, origin: Origin, weights: bytes) -> None:
    get(pool, origin)
    get(pool, origin, Range="bytes=0-99")
    get(pool, origin, "/files/acme/tiny/config.json")
    stats = origin.stats()
    assert stats.paths[WEIGHTS].num_requests == 2
    assert stats.paths[WEIGHTS].body_bytes == len(weights) + 100
    assert stats.paths[WEIGHTS].ranges == ("bytes=0-99",)
    assert stats.paths[WEIGHTS].statuses == {200: 1, 206: 1}
    assert stats.num_requests() == 3
    assert stats.body_bytes("*.json") > 0
    origin.reset()
    assert origin.stats().paths == {}


def test_connections_are_kept_and_those_open_at_once_are_counted(pool: urllib3.PoolManager, origin: Origin) -> None:
    for _ in range(5):
        get(pool, origin)
    assert origin.stats().num_connections == 1
    with connected_to(origin.address) as other:
        other.sendall(b"GET /files/acme/tiny/config.json HTTP/1.1\r\nHost: x\r\n\r\n")
        other.recv(1)
        assert origin.stats().peak_connections == 2


def test_an_error_takes_the_answer_s_place(pool: urllib3.PoolManager, origin: Origin) -> None:
    spoil(origin, Status(when=When(most=1), status=429, retry_after_seconds=7))
    refused = get(pool, origin)
    assert (refused.status, refused.headers["Retry-After"]) == (429, "7")
    assert get(pool, origin).status == 200


def test_a_reset_comes_in_the_middle(origin: Origin, weights: bytes) -> None:
    spoil(origin, Reset(when=When(most=1), after_bytes=1000))
    connection = http.client.HTTPConnection(origin.address)
    connection.request("GET", WEIGHTS)
    response = connection.getresponse()
    assert response.read(1000) == weights[:1000]
    with pytest.raises(ConnectionResetError):
        response.read()
    connection.close()
    assert origin.stats().body_bytes() == 1000


def test_a_truncated_body_ends_in_order_but_early(origin: Origin, weights: bytes) -> None:
    spoil(origin, Truncate())
    connection = http.client.HTTPConnection(origin.address)
    connection.request("GET", WEIGHTS)
    with pytest.raises(http.client.IncompleteRead) as early:
        connection.getresponse().read()
    connection.close()
    assert early.value.partial == weights[: len(weights) // 2]


def test_a_stall_holds_the_rest_back_until_its_time_is_over(
    pool: urllib3.PoolManager, origin: Origin, weights: bytes
) -> None:
    spoil(origin, Stall(seconds=0.02, when=When(most=1)))
    assert get(pool, origin).data == weights
    spoil(origin, Stall(seconds=3600, after_bytes=100))
    with (
        urllib3.PoolManager(retries=False, timeout=0.05) as impatient,
        pytest.raises(urllib3.exceptions.ReadTimeoutError),
    ):
        get(impatient, origin)
    assert origin.stats().body_bytes() == len(weights) + 100


def test_a_flipped_byte_is_right_the_second_time(pool: urllib3.PoolManager, origin: Origin, weights: bytes) -> None:
    spoil(origin, Flip(when=When(path="*.safetensors")))
    spoilt = get(pool, origin, Range="bytes=100-199").data
    wrong = [at for at, byte in enumerate(spoilt) if byte != weights[100 + at]]
    assert wrong == [50]
    assert get(pool, origin, Range="bytes=100-199").data == weights[100:200]


def test_flips_at_intervals_are_in_every_stretch(pool: urllib3.PoolManager, origin: Origin, weights: bytes) -> None:
    spoil(origin, Flip(every_bytes=4096, always=True))
    spoilt = get(pool, origin).data
    assert [at for at, byte in enumerate(spoilt) if byte != weights[at]] == list(range(2048, len(weights), 4096))


def test_ranges_may_be_ignored_or_answered_wrongly(pool: urllib3.PoolManager, origin: Origin, weights: bytes) -> None:
    spoil(origin, IgnoreRange())
    whole = get(pool, origin, Range="bytes=5-9")
    assert (whole.status, whole.data) == (200, weights)
    spoil(origin, WrongRange())
    wrong = get(pool, origin, Range="bytes=5-9")
    assert (wrong.status, wrong.headers["Content-Range"]) == (206, f"bytes 6-10/{len(weights)}")


def test_a_file_may_change_under_way(pool: urllib3.PoolManager, origin: Origin, weights: bytes, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other", seed=1)
    spoil(origin, Change(when=When(path="*.safetensors", first=3, most=1), model="acme/tiny", directory=other))
    answers = [get(pool, origin) for _ in range(4)]
    assert [answer.data == weights for answer in answers] == [True, True, False, False]
    assert answers[3].data == (other / "model.safetensors").read_bytes()
    assert len({answer.headers["ETag"] for answer in answers}) == 2


def test_a_redirect_leads_to_a_signed_address_on_another_host(
    pool: urllib3.PoolManager, origin: Origin, weights: bytes
) -> None:
    spoil(origin, Redirect())
    redirect = get(pool, origin, Range="bytes=0-9")
    location = redirect.headers["Location"]
    assert (redirect.status, redirect.data) == (307, b"")
    assert location.startswith(f"http://localhost:{origin.address.partition(':')[2]}/cdn{WEIGHTS}?")
    assert pool.request("GET", location, headers={"Range": "bytes=0-9"}).data == weights[:10]
    assert pool.request("GET", location.replace("signature=", "signature=0")).status == 403
    assert origin.stats().authorization_leaks == 0


def test_authorization_at_the_target_of_a_redirect_is_told(pool: urllib3.PoolManager, origin: Origin) -> None:
    spoil(origin, Redirect())
    location = get(pool, origin).headers["Location"]
    pool.request("GET", location, headers={"Authorization": "Bearer secret"})
    assert origin.stats().authorization_leaks == 1


def test_signed_addresses_expire(pool: urllib3.PoolManager, model: Path) -> None:
    now = [0.0]
    faults = Faults((Redirect(valid_seconds=60),))
    with running_origin({"acme/tiny": model}, faults=faults, clock=lambda: now[0]) as origin:
        location = get(pool, origin).headers["Location"]
        now[0] = 59
        assert pool.request("GET", location).status == 200
        now[0] = 60
        assert pool.request("GET", location).status == 403


def test_a_bearer_may_be_wanted(pool: urllib3.PoolManager, model: Path) -> None:
    with running_origin({"acme/tiny": model}, access=Access(bearer="secret")) as origin:
        assert get(pool, origin).status == 401
        assert get(pool, origin, Authorization="Bearer other").status == 401
        assert get(pool, origin, Authorization="Bearer secret").status == 200


def test_closing_ends_answers_that_wait_for_the_link_or_in_a_stall(model: Path) -> None:
    reading = threading.Barrier(3)

    def read(address: str, path: str) -> None:
        with connected_to(address) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            connection.recv(1)
            reading.wait()
            while connection.recv(1 << 16):
                pass

    faults = Faults((Stall(when=When(path="*.json"), seconds=3600),))
    with running_origin({"m": model}, link=Link(bytes_per_second=1), faults=faults) as origin:
        paths = ("/files/m/model.safetensors", "/files/m/config.json")
        readers = [threading.Thread(target=read, args=(origin.address, path)) for path in paths]
        for reader in readers:
            reader.start()
        reading.wait()
    for reader in readers:
        reader.join(5)
        assert not reader.is_alive()


def test_what_a_thread_of_the_origin_meets_is_raised_at_its_end(model: Path) -> None:
    with pytest.RaisesGroup(FileNotFoundError), running_origin({"m": model}) as origin:
        (model / "config.json").unlink()
        with urllib3.PoolManager(retries=False) as pool, pytest.raises(urllib3.exceptions.ProtocolError):
            pool.request("GET", f"{origin.url}/files/m/config.json")
