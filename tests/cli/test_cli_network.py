"""TLS with a private CA, proxies, name look-up: the way to the broker, for real."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import ipaddress
import select
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING

import pytest
from cli_stage import KEY, TOKEN, FakeBroker, Run
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from broker_cli.endpoint import parse_endpoint
from broker_cli.errors import UsageError
from broker_cli.proxy import choose_proxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ARGUMENTS = ("github", "token", "a/b")
HOST = "broker.test.invalid"
PEM = serialization.Encoding.PEM


class Authority:
    """A private CA, and a server's certificate of it."""

    def __init__(self, folder: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "private CA")])
        self.ca_file = folder / "ca.pem"
        ca = (
            self._builder(name, name, key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=True,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    key_cert_sign=True,
                    crl_sign=True,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
            .sign(key, hashes.SHA256())
        )
        self.ca_file.write_bytes(ca.public_bytes(PEM))
        own = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
        names = [x509.DNSName(HOST), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        leaf = (
            self._builder(subject, name, own)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
            )
            .sign(key, hashes.SHA256())
        )
        chain = folder / "server.pem"
        chain.write_bytes(
            own.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
            + leaf.public_bytes(PEM)
        )
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(chain)

    @staticmethod
    def _builder(
        subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
    ) -> x509.CertificateBuilder:
        today = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(today)
            .not_valid_after(today + dt.timedelta(days=36500))
        )


class ConnectProxy:
    """A proxy that tunnels every CONNECT to one port, or refuses; keeps the requests' heads."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.refusal: bytes | None = None
        self.heads: list[bytes] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(client,), daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.settimeout(5)
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(65536)
            self.heads.append(head)
            if self.refusal is not None:
                client.sendall(self.refusal)
                return
            with socket.create_connection(("127.0.0.1", self.target), 5) as far:
                if head.startswith(b"CONNECT "):
                    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                else:  # an absolute URL: the fake broker takes the path after the host
                    far.sendall(head)
                while True:
                    for ready in select.select([client, far], [], [], 5)[0]:
                        data = ready.recv(65536)
                        if not data:
                            return
                        (far if ready is client else client).sendall(data)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def tls_broker(authority: Authority) -> Iterator[FakeBroker]:
    fake = FakeBroker(authority.context)
    yield fake
    fake.close()


@pytest.fixture
def proxy(tls_broker: FakeBroker) -> Iterator[ConnectProxy]:
    fake = ConnectProxy(tls_broker.port)
    yield fake
    fake.close()


def test_a_private_ca_by_environment_and_by_flag(
    run: Run, tls_broker: FakeBroker, authority: Authority
) -> None:
    ca = str(authority.ca_file)
    assert run(*ARGUMENTS, BROKER_API_URL=tls_broker.url, BROKER_CA_FILE=ca).out == f"{TOKEN}\n"
    assert run(*ARGUMENTS, "--ca-file", ca, BROKER_API_URL=tls_broker.url).out == f"{TOKEN}\n"
    assert (
        run("github", "ls", "--ca-file", ca, BROKER_API_URL=tls_broker.url).code == 4
    )  # not a list, but TLS


def test_an_unknown_ca_is_4_at_once_with_a_hint(run: Run, tls_broker: FakeBroker) -> None:
    started = time.monotonic()
    ran = run(*ARGUMENTS, BROKER_API_URL=tls_broker.url)
    assert time.monotonic() - started < 3
    assert (ran.code, len(ran.lines), tls_broker.seen) == (4, 1, [])
    assert "BROKER_CA_FILE" in ran.err


def test_a_certificate_for_another_name_is_4(run: Run, tls_broker: FakeBroker, authority: Authority) -> None:
    url = f"https://localhost:{tls_broker.port}"
    ran = run(*ARGUMENTS, BROKER_API_URL=url, BROKER_CA_FILE=str(authority.ca_file))
    assert (ran.code, tls_broker.seen) == (4, [])


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_ca_file_that_is_none_is_2(
    run: Run, tls_broker: FakeBroker, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "bad.pem"
    if content is not None:
        file.write_bytes(content)
    ran = run(*ARGUMENTS, BROKER_API_URL=tls_broker.url, BROKER_CA_FILE=str(file))
    assert (ran.code, len(ran.lines), tls_broker.seen) == (2, 1, [])
    assert "CA file" in ran.err


def test_https_to_a_port_that_speaks_http_is_4(run: Run, broker: FakeBroker) -> None:
    ran = run(*ARGUMENTS, BROKER_API_URL=broker.url.replace("http:", "https:"), BROKER_CA_FILE=None)
    assert (ran.code, len(ran.lines), broker.seen) == (4, 1, [])


def test_a_handshake_that_hangs_ends_in_time(run: Run, authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        started = time.monotonic()
        ran = run(*ARGUMENTS, "--timeout", "1", BROKER_API_URL=url, BROKER_CA_FILE=str(authority.ca_file))
        assert (ran.code, time.monotonic() - started < 3) == (4, True)


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy"])
@pytest.mark.parametrize("form", ["http://127.0.0.1:{}", "127.0.0.1:{}", "http://user:p%40ss@127.0.0.1:{}/"])
def test_https_goes_through_a_tunnel(  # noqa: PLR0917 - fixtures
    run: Run, tls_broker: FakeBroker, authority: Authority, proxy: ConnectProxy, name: str, form: str
) -> None:
    environment = {name: form.format(proxy.port), "BROKER_CA_FILE": str(authority.ca_file)}
    ran = run(*ARGUMENTS, "-v", BROKER_API_URL=f"https://{HOST}", **environment)
    assert (ran.code, ran.out) == (0, f"{TOKEN}\n")
    (head,) = proxy.heads
    assert head.startswith(f"CONNECT {HOST}:443 ".encode())
    assert KEY.encode() not in head
    credentials = base64.b64encode(b"user:p@ss")
    assert (b"Proxy-Authorization: Basic " + credentials in head) is ("user" in form)
    assert "Proxy-Authorization" not in tls_broker.seen[0].headers
    assert "p@ss" not in ran.err
    assert "p%40ss" not in ran.err
    assert f"127.0.0.1:{proxy.port}" in ran.err


def test_no_proxy_for_this_machine_ever(run: Run, broker: FakeBroker, proxy: ConnectProxy) -> None:
    address = f"http://127.0.0.1:{proxy.port}"
    environment = dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"), address)
    assert run(*ARGUMENTS, **environment).code == 0
    assert proxy.heads == []


@pytest.mark.parametrize(
    ("refusal", "code", "said"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", 2, "407"),
        (b"HTTP/1.1 403 Forbidden \x1b[31m\r\n\r\n", 4, "403"),
        (b"HTTP/1.1 503 Busy\r\n\r\n", 4, "gave up after"),
        (b"garbage\r\n\r\n", 4, "not HTTP"),
        (b"", 4, "gave up after"),
    ],
)
def test_a_proxy_that_refuses(  # noqa: PLR0917 - fixtures
    run: Run, authority: Authority, proxy: ConnectProxy, refusal: bytes, code: int, said: str
) -> None:
    proxy.refusal = refusal
    environment = {"HTTPS_PROXY": f"http://127.0.0.1:{proxy.port}", "BROKER_CA_FILE": str(authority.ca_file)}
    ran = run(*ARGUMENTS, "--timeout", "1", BROKER_API_URL=f"https://{HOST}", **environment)
    assert (ran.code, len(ran.lines)) == (code, 1)
    assert said in ran.err


def test_insecure_http_goes_to_a_proxy_as_an_absolute_url(run: Run, broker: FakeBroker) -> None:
    proxy = ConnectProxy(broker.port)
    environment = {"http_proxy": f"http://u:p@127.0.0.1:{proxy.port}", "BROKER_ALLOW_INSECURE": "1"}
    ran = run(*ARGUMENTS, BROKER_API_URL=f"http://{HOST}:8080/x", **environment)
    proxy.close()
    assert ran.code == 0
    assert broker.seen[0].path == f"http://{HOST}:8080/x/v1/github/token"
    assert broker.seen[0].headers["Host"] == f"{HOST}:8080"
    assert broker.seen[0].headers["Proxy-Authorization"] == "Basic " + base64.b64encode(b"u:p").decode()


@pytest.mark.parametrize(
    "value", ["https://p.example:3128", "socks5://p.example", "http://", "http://p:x", "http://[::1"]
)
def test_a_proxy_that_is_none_is_2(run: Run, value: str) -> None:
    ran = run(*ARGUMENTS, BROKER_API_URL=f"https://{HOST}", HTTPS_PROXY=value)
    assert (ran.code, len(ran.lines)) == (2, 1)
    assert "HTTPS_PROXY" in ran.err


def test_a_host_that_has_no_address_is_tried_again(run: Run) -> None:
    ran = run(*ARGUMENTS, "--timeout", "1", "-v", BROKER_API_URL=f"https://{HOST}")
    assert ran.code == 4
    assert HOST in ran.lines[-1]
    assert "--timeout 1 s" in ran.lines[-1]


@pytest.mark.parametrize(
    ("url", "no_proxy", "exempt"),
    [
        ("https://broker.example.com", "", False),
        ("https://broker.example.com", "*", True),
        ("https://broker.example.com", "example.com", True),
        ("https://broker.example.com", ".example.com", True),
        ("https://broker.example.com", "*.example.com", True),
        ("https://broker.example.com", "a.test, BROKER.example.com", True),
        ("https://broker.example.com", "ample.com", False),
        ("https://broker.example.com", "example.com:443", True),
        ("https://broker.example.com", "example.com:8443", False),
        ("https://10.1.2.3", "10.0.0.0/8", True),
        ("https://10.1.2.3", "10.1.2.3", True),
        ("https://10.1.2.3", "192.168.0.0/16,10.1.2.4", False),
        ("https://[fd00::1]", "fd00::/8", True),
        ("https://[fd00::1]", "[fd00::1]", True),
        ("https://[fd00::1]", "[fd00::1]:8443", False),
    ],
)
def test_no_proxy(url: str, no_proxy: str, exempt: bool) -> None:
    endpoint = parse_endpoint(url, source="x", allow_insecure=False)
    for name in ("no_proxy", "NO_PROXY"):
        chosen = choose_proxy(endpoint, {"HTTPS_PROXY": "http://u:p@proxy.test:3128", name: no_proxy})
        assert (chosen is None) is exempt
        assert "Basic" not in repr(chosen)


def test_lower_case_wins_and_cgi_cannot_set_a_proxy() -> None:
    endpoint = parse_endpoint("http://b.example", source="x", allow_insecure=True)
    both = {"http_proxy": "lower.test", "HTTP_PROXY": "upper.test:1"}
    assert str(choose_proxy(endpoint, both)) == "Proxy(lower.test:80)"
    assert choose_proxy(endpoint, {"HTTP_PROXY": "upper.test", "REQUEST_METHOD": "GET"}) is None
    with pytest.raises(UsageError):
        choose_proxy(endpoint, {"http_proxy": "http://a b"})
