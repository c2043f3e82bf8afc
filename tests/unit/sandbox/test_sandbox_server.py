from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
import threading
import time
from typing import TYPE_CHECKING

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID
from sandbox_world import rsa_key

from broker.sandbox.github import EmulatedGitHub, Fault
from broker.sandbox.server import ThreadedServer

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.types import Receive, Scope, Send


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def test_any_app_is_served_and_the_port_survives_an_outage() -> None:
    server = ThreadedServer(hello)
    with server:
        first = server.url
        assert httpx.get(first, trust_env=False).text == "hello"
        with pytest.raises(RuntimeError, match="already"):
            server.start()
    with pytest.raises(httpx.ConnectError):
        httpx.get(first, trust_env=False)
    server.stop()
    with server:
        assert server.url == first
        assert httpx.get(first, trust_env=False).headers["date"]


def test_the_lifespan_runs() -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "lifespan"
        for _ in range(2):
            message = await receive()
            seen.append(message["type"])
            await send({"type": f"{message['type']}.complete"})

    with ThreadedServer(app):
        assert seen == ["lifespan.startup"]
    assert seen == ["lifespan.startup", "lifespan.shutdown"]


def test_an_app_that_fails_to_start() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no"})

    with pytest.raises(RuntimeError, match="did not start"):
        ThreadedServer(app).start()


def test_a_taken_port() -> None:
    with ThreadedServer(hello) as server, pytest.raises(OSError, match="in use"):
        ThreadedServer(hello, port=server.port).start()


def test_stopping_cuts_what_hangs() -> None:
    with EmulatedGitHub() as github:
        github.faults.add(Fault(hold=threading.Event()))
        failures = []

        def ask(url: str) -> None:
            try:
                httpx.get(url, timeout=30, trust_env=False)
            except httpx.TransportError as error:
                failures.append(error)

        with github.serve() as server:
            thread = threading.Thread(target=ask, args=(f"{server.url}/meta",))
            thread.start()
            while not github.count():
                time.sleep(0.005)
            begun = time.monotonic()
        assert time.monotonic() - begun < 5
        thread.join(5)
        assert not thread.is_alive()


def test_idle_connections_do_not_hold_the_stop() -> None:
    with EmulatedGitHub() as github, httpx.Client(trust_env=False) as client:
        with github.serve() as server:
            assert client.get(f"{server.url}/meta").status_code == 200
            begun = time.monotonic()
        assert time.monotonic() - begun < 1


def test_tls(tmp_path: Path) -> None:
    key = rsa_key(0)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "emulated")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certfile, keyfile = tmp_path / "cert.pem", tmp_path / "key.pem"
    certfile.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    keyfile.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    trust = ssl.create_default_context(cafile=certfile)
    with EmulatedGitHub() as github, github.serve(certfile=certfile, keyfile=keyfile) as server:
        assert server.url.startswith("https://127.0.0.1:")
        with httpx.Client(verify=trust, trust_env=False) as client:
            assert client.get(f"{server.api_url}/meta").status_code == 200


def test_many_threads_at_once() -> None:
    with EmulatedGitHub() as github, github.serve() as server:
        limits = httpx.Limits(max_connections=20)

        def ask() -> None:
            with httpx.Client(trust_env=False, limits=limits) as client:
                for _ in range(20):
                    assert client.get(f"{server.url}/meta").status_code == 200

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for number, thread in enumerate(threads):
            thread.start()
            github.add_repository(f"acme/r{number}")
        for thread in threads:
            thread.join()
        assert github.count("meta") == 160
