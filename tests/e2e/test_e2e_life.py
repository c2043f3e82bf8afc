"""The life of ``broker serve``: stores that come and go, SIGTERM in the middle of work, TLS."""

import asyncio
import json
import signal
import ssl
import threading
import time
from pathlib import Path

import httpx
import pytest
from e2e_callers import ask, callers, settled, until
from harness import World, bearer
from servers import RedisServer, certificate, free_port

from broker.sandbox.github import Fault


async def test_the_store_is_down_at_start_comes_freezes_and_dies(world: World, tmp_path: Path) -> None:
    """Rule 7: 503 and never 401 while the store is away; recovery without a restart."""
    server = RedisServer(tmp_path / "redis", persistent=True)
    world.store_url = server.url
    admin = world.command("keys", "generate").stdout.strip()
    service = world.service(start=False, BROKER_ADMIN_KEY=admin).start(wait=False)
    try:
        service.wait_ready(path="/livez")
        async with callers() as http:
            ready = await http.get(f"{service.url}/readyz")
            assert ready.status_code == 503
            assert ready.json()["checks"]["store"] != "ok"
            for key in (admin, world.command("keys", "generate").stdout.strip()):
                refused = await ask(http, service, key)
                assert (refused.status, refused.body["code"]) == (503, "store_unavailable")
                assert int(refused.headers["retry-after"]) >= 1

            server.start()
            service.wait_ready(seconds=10)
            key = await world.quick_key("acme/*")
            first = await ask(http, service, key)
            assert first.token

            server.pause()  # the kernel still accepts connections, nobody answers
            frozen = [await ask(http, service, key) for _ in range(2)]
            for one in frozen:
                assert (one.status, one.body["code"]) == (503, "store_unavailable")
                assert int(one.headers["retry-after"]) >= 1
                assert one.took_s < 2.5
            assert (await http.get(f"{service.url}/livez")).status_code == 200
            degraded = await http.get(f"{service.url}/readyz")
            assert (degraded.status_code, degraded.json()["status"]) == (200, "degraded")
            server.resume()
            await _recovers(http, service.url, key, first.token)

            server.kill()
            gone = await ask(http, service, key)
            assert (gone.status, gone.body["code"]) == (503, "store_unavailable")
            assert gone.took_s < 2.5
            server.start()
            await _recovers(http, service.url, key, first.token)
        assert "Traceback" not in service.log()
        service.stop()
    finally:
        server.stop()


async def _recovers(http: httpx.AsyncClient, url: str, key: str, token: str) -> None:
    end = time.monotonic() + 6
    while True:
        answer = await http.post(
            f"{url}/v1/github/token", json={"repositories": ["acme/widgets"]}, headers=bearer(key)
        )
        if answer.status_code == 200:
            assert answer.json()["token"] == token
            return
        assert answer.status_code == 503, answer.text
        assert time.monotonic() < end, "it did not recover"
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
async def test_sigterm_lets_a_mint_finish(world: World, workers: str) -> None:
    """SIGTERM: stop accepting, finish what runs, write what is pending, within 30 s."""
    service = world.service(BROKER_WORKERS=workers)
    key = await world.quick_key("acme/*")
    await settled(world, int(workers))
    held = threading.Event()
    world.github.faults.add(Fault(route="mint", times=1, hold=held))
    assert service.process is not None
    async with callers() as http:
        asked = asyncio.create_task(ask(http, service, key))
        await until(lambda: world.github.count("mint") == 1, what="the mint")
        begin = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(1)
        assert service.process.poll() is None
        with pytest.raises(httpx.TransportError):  # a new connection is not accepted any more
            async with callers(timeout_s=2) as late:
                await late.get(f"{service.url}/livez")
        held.set()
        told = await asked
        assert told.token in world.github.tokens
    await until(lambda: service.process is not None and service.process.poll() is not None, seconds=30)
    assert time.monotonic() - begin < 30
    assert "Traceback" not in service.log()
    # The token was kept, and so was what the process had only counted in memory.
    shown = json.loads(world.command("keys", "list", "--json").stdout)
    assert shown["last_used_at"] is not None


async def test_own_tls(world: World, tmp_path: Path) -> None:
    cert, private = certificate(tmp_path)
    service = world.service(
        start=False, BROKER_TLS_CERT_FILE=str(cert), BROKER_TLS_KEY_FILE=str(private)
    ).start(wait=False)
    trusted = ssl.create_default_context(cafile=str(cert))
    url = f"https://127.0.0.1:{service.port}"
    async with httpx.AsyncClient(verify=trusted) as http:
        for _ in range(200):
            try:
                if (await http.get(f"{url}/readyz")).status_code == 200:
                    break
            except httpx.TransportError:
                await asyncio.sleep(0.05)
        key = await world.quick_key("acme/*")
        answer = await http.post(
            f"{url}/v1/github/token", json={"repositories": ["acme/widgets"]}, headers=bearer(key)
        )
        assert answer.json()["token"] in world.github.tokens
    done = world.client(service, key, "github", "token", "acme/widgets", "--timeout", "3")
    assert done.returncode != 0  # plain http at a TLS port
    done = world.client_of(url, key, "github", "token", "acme/widgets", BROKER_CA_FILE=str(cert))
    assert (done.returncode, done.stdout) == (0, answer.json()["token"] + "\n"), done.stderr
    done = world.client_of(url, key, "github", "token", "acme/widgets", "--timeout", "3")
    assert done.returncode == 4  # an authority that nobody told it to trust
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken(world: World) -> None:
    service = world.service()
    again = world.command("serve", BROKER_PORT=str(service.port))
    assert again.returncode not in {0, 2}
    assert "Traceback" not in again.stderr
    assert str(service.port) in again.stderr


def test_settings_that_are_wrong_stop_the_start(world: World) -> None:
    done = world.command(
        "serve",
        BROKER_STORE_URL="mysql://x",
        BROKER_GITHUB_PRIVATE_KEY="nonsense",
        BROKER_PORT=str(free_port()),
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "BROKER_GITHUB_PRIVATE_KEY" in done.stderr
    assert "nonsense" not in done.stderr
