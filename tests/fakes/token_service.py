"""The token service of a registry: gives who knows the password a token for what is asked, signed as docker-registry
wants it (https://distribution.github.io/distribution/spec/auth/jwt/)."""

import base64
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from tests.fakes.real_registry import PASSWORD, USER

SERVICE, ISSUER = "tests registry", "tests issuer"


@dataclass(eq=False)
class TokenService:
    """`auth` is for `running_real_registry`; `scopes` are those of each request. `allows_push`: else tokens are for
    pulling, whatever is asked."""

    auth: Mapping[str, object]
    key: rsa.RSAPrivateKey
    certificate: x509.Certificate
    scopes: list[list[str]] = field(default_factory=list)
    allows_push: bool = True

    def token(self, scopes: list[str]) -> str:
        """A token for `scopes`."""
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            allowed = [action for action in actions.split(",") if action == "pull" or self.allows_push]
            access.append({"type": kind, "name": name, "actions": allowed})
        now = int(time.time())
        claims = {"iss": ISSUER, "aud": SERVICE, "sub": USER, "nbf": now - 10, "exp": now + 300, "access": access}
        chain = [base64.b64encode(self.certificate.public_bytes(Encoding.DER)).decode()]
        return jwt.encode(claims, self.key, algorithm="RS256", headers={"x5c": chain})


@contextmanager
def running_token_service(directory: Path) -> Iterator[TokenService]:
    """Run it on a free port of 127.0.0.1; its certificate is written below `directory`."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    certificate = _certificate(key)
    bundle = directory / "tokens.pem"
    bundle.write_bytes(certificate.public_bytes(Encoding.PEM))
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    realm = f"http://127.0.0.1:{server.server_address[1]}/token"
    auth = {"token": {"realm": realm, "service": SERVICE, "issuer": ISSUER, "rootcertbundle": str(bundle)}}
    server.tokens = TokenService(auth, key, certificate)  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.tokens  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _certificate(key: rsa.RSAPrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ISSUER)])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        tokens: TokenService = self.server.tokens  # type: ignore[attr-defined]
        scopes = parse_qs(urlsplit(self.path).query).get("scope", [])
        tokens.scopes.append(scopes)
        known = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if self.headers.get("Authorization") == f"Basic {known}":
            self._send(200, {"token": tokens.token(scopes), "expires_in": 300})
        else:
            self._send(401, {"details": "wrong password"})

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing on standard error."""

    def _send(self, status: int, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
