"""TLS, keys, CORS and the metrics port, as a configured server serves them."""

import shutil
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.fakes.process import running_server

KEY = "a-key-that-is-long-enough"


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed, so no certificate can be made")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    subprocess.run([*command, "-keyout", key, "-out", cert, *subject], check=True, capture_output=True)
    return cert, key


def test_the_server_speaks_tls_with_the_configured_certificate(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    path = tmp_path / "headrace.yaml"
    path.write_text(f"server: {{tls: {{cert_file: {cert}, key_file: {key}}}}}\nmodels: [{{id: m, engine: synthetic}}]")
    trusting = ssl.create_default_context(cafile=str(cert))
    with running_server(path, tmp_path / "log") as server:
        assert server.base_url.startswith("https://")
        assert httpx.get(f"{server.base_url}/livez", verify=trusting, trust_env=False).status_code == 200
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.base_url}/livez", trust_env=False)  # nobody vouches for it


def test_a_certificate_that_cannot_be_used_is_one_line_and_exit_2(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("not a certificate")
    path = tmp_path / "headrace.yaml"
    tls = f"{{cert_file: {tmp_path / 'cert.pem'}, key_file: {tmp_path / 'absent.pem'}}}"
    path.write_text(f"server: {{tls: {tls}}}\nmodels: [{{id: m, engine: synthetic}}]")
    command = [sys.executable, "-m", "headrace_server", "serve", "--config", str(path), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 2
    assert "server.tls" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_keys_guard_everything_but_the_probes(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"# mine\n{KEY}\n")
    path = tmp_path / "headrace.yaml"
    path.write_text(f"auth: {{keys_file: {tmp_path / 'keys'}}}\nmodels: [{{id: m, engine: synthetic}}]")
    with (
        running_server(path, tmp_path / "log") as server,
        httpx.Client(base_url=server.base_url, trust_env=False) as client,
    ):
        assert client.get("/v1/models").status_code == 401
        assert client.get("/v1/models", headers={"authorization": f"Bearer {KEY}x"}).status_code == 401
        assert client.get("/v1/models", headers={"authorization": f"Bearer {KEY}"}).status_code == 200
        assert client.get("/v1/models", headers={"x-api-key": KEY}).status_code == 200
        assert {client.get(f"/{probe}").status_code for probe in ("livez", "readyz", "startupz", "version")} == {200}


def test_metrics_are_served_on_their_own_port(tmp_path: Path) -> None:
    port_file = tmp_path / "headrace.yaml"
    port = free_port()
    port_file.write_text(f"server: {{metrics_port: {port}}}\nmodels: [{{id: m, engine: synthetic}}]")
    with running_server(port_file, tmp_path / "log"):
        page = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False)
        other = httpx.get(f"http://127.0.0.1:{port}/v1/models", trust_env=False)

    assert "vllm:num_requests_running 0.0" in page.text
    assert other.status_code == 404


def free_port() -> int:
    """A port that was free just now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
