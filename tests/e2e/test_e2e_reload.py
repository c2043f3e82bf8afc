"""Rotations without a restart and without a refused request: private key, webhook secret, certificate."""

import asyncio
import base64
import ssl
import time
from pathlib import Path

import httpx
import pytest
from e2e_callers import ask, callers, settled, until
from harness import Service, World, bearer
from mount import Mount
from servers import certificate

from broker.access.keys import generate
from broker.sandbox.github import Fault

REPOSITORIES = 400


async def _told(services: list[Service], word: str, times: int) -> None:
    """Wait until every process has said that it took something over so often."""
    await until(
        lambda: all(one.log().count(word) >= times for one in services), seconds=30, what=f"{word} x{times}"
    )


@pytest.mark.parametrize("store", ["sqlite", pytest.param("redis", marks=pytest.mark.slow)])
async def test_a_private_key_rotates_under_load(
    world: World, request: pytest.FixtureRequest, tmp_path: Path, store: str
) -> None:
    """New key at GitHub, ``new,old`` in the file, old key deleted at GitHub, ``new`` in the file.

    Every request is for another scope, so each needs GitHub. Without BROKER_ENCRYPTION_KEYS the store hangs
    on the private key as well: it must open with the new one alone afterwards.
    """
    if store == "redis":
        world = request.getfixturevalue("redis_world")
    for number in range(REPOSITORIES):
        world.github.add_repository(f"acme/r{number}", create_git=False)
    mount = Mount(tmp_path / "secrets")
    mount.put(pem=world.pem)
    told = {
        "BROKER_GITHUB_PRIVATE_KEY": "",
        "BROKER_GITHUB_PRIVATE_KEY_FILE": str(mount.folder / "pem"),
        "BROKER_MINT_BUDGET": "100000",
    }
    services = [world.service(**told) for _ in range(2 if store == "redis" else 1)]
    key = await world.quick_key("acme/*")
    await settled(world, len(services))
    numbers = iter(range(REPOSITORIES))
    wrong: list[object] = []
    ending = False

    async def load(http: httpx.AsyncClient) -> None:
        while not ending:
            number = next(numbers)
            answer = await ask(http, services[number % len(services)], key, f"acme/r{number}")
            if answer.status != 200:
                wrong.append(answer.body)
            await asyncio.sleep(0.1)

    async with callers() as http:
        tasks = [asyncio.create_task(load(http)) for _ in range(2)]
        try:
            new = world.app.new_private_key()
            mount.put(pem=f"{new}\n{world.pem}")
            await _told(services, "private keys taken over", 1)
            await _told(services, "keys that wrap the store's data key taken over", 1)
            world.app.remove_key(world.pem)
            await asyncio.sleep(0.5)
            mount.put(pem=new)
            await _told(services, "private keys taken over", 2)
            await _told(services, "keys that wrap the store's data key taken over", 2)
            await asyncio.sleep(0.5)
        finally:
            ending = True
            await asyncio.gather(*tasks)
        causes = [line for one in services for line in one.log().splitlines() if '"cause"' in line]
        assert wrong == [], causes
        assert world.github.count("mint") > 10
        for service in services:
            assert new.splitlines()[3] not in service.log()
            service.stop()
        fresh = world.service(**told)
        known = await ask(http, fresh, key, "acme/r0")
        assert (known.status, known.body["cached"]) == (200, True)


@pytest.mark.slow
async def test_the_webhook_secret_rotates_under_load(world: World, tmp_path: Path) -> None:
    """``new,old`` in the file, the new one at GitHub, ``new`` in the file: every delivery is taken."""
    mount = Mount(tmp_path / "secrets")
    mount.put(hook="Kq8old")
    service = world.service(
        BROKER_GITHUB_WEBHOOK_SECRET_FILE=str(mount.folder / "hook"), BROKER_LOG_LEVEL="info"
    )
    hook = world.github.add_hook(world.app, f"{service.url}/webhooks/github", "Kq8old")
    ending = False

    async def load() -> None:
        while not ending:
            world.github.suspend(world.installation)
            world.github.unsuspend(world.installation)
            await asyncio.sleep(0.3)

    task = asyncio.create_task(load())
    try:
        mount.put(hook="Kq8new,Kq8old")
        await _told([service], "webhook secrets taken over", 1)
        hook.secret = "Kq8new"
        before = list(hook.deliveries)
        await until(lambda: all(one.status is not None for one in before), what="what the old one signed")
        mount.put(hook="Kq8new")
        await _told([service], "webhook secrets taken over", 2)
        await asyncio.sleep(0.5)
    finally:
        ending = True
        await task
    await until(lambda: all(one.status is not None for one in hook.deliveries), what="the last delivery")
    assert len(hook.deliveries) > 5
    assert {one.status for one in hook.deliveries} <= {202, 200}  # 200: the same body in the same second
    hook.secret = "Kq8old"
    world.github.suspend(world.installation)
    await until(lambda: hook.deliveries[-1].status == 401, what="a refusal")
    assert "Kq8" not in service.log()


@pytest.mark.slow
async def test_a_certificate_is_replaced_while_it_listens(world: World, tmp_path: Path) -> None:
    """New handshakes get the new one; half of it changes nothing; open connections live on."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    cert, key = certificate(old)
    service = world.service(start=False, BROKER_TLS_CERT_FILE=str(cert), BROKER_TLS_KEY_FILE=str(key))
    service.start(wait=False)
    url = f"https://127.0.0.1:{service.port}/livez"

    async def trusted_by(path: Path) -> bool:
        context = ssl.create_default_context(cafile=str(path))
        try:
            async with httpx.AsyncClient(verify=context) as http:
                return (await http.get(url)).status_code == 200
        except httpx.TransportError:
            return False

    first = tmp_path / "first.pem"
    first.write_bytes(cert.read_bytes())
    end = time.monotonic() + 20
    while not await trusted_by(first):
        assert time.monotonic() < end
        await asyncio.sleep(0.1)
    async with httpx.AsyncClient(verify=ssl.create_default_context(cafile=str(first))) as kept:
        assert (await kept.get(url)).status_code == 200
        new_cert, new_key = certificate(new)
        cert.write_bytes(new_cert.read_bytes())
        await until(lambda: "no PEM certificate and the key that belongs" in service.log(), seconds=30)
        assert await trusted_by(first)
        key.write_bytes(new_key.read_bytes())
        await _told([service], "TLS certificate and key taken over", 1)
        assert await trusted_by(new_cert)
        assert not await trusted_by(first)
        assert (await kept.get(url)).status_code == 200
    assert "Traceback" not in service.log()


async def test_a_deleted_key_that_stays_configured_costs_one_more_try(world: World) -> None:
    """While keys are replaced a call that is under way keeps the key it began with."""
    new = world.app.new_private_key()
    async with world.inside(github_private_key=f"{new}\n{world.pem}") as app:
        caller = await app.key("acme/*")
        assert (await app.token(caller, "acme/widgets")).status_code == 200
        fault = Fault(route="mint", delay_s=0.5)
        world.github.faults.add(fault)
        under_way = asyncio.create_task(app.token(caller, "acme/gadgets"))
        await until(lambda: world.github.count("mint") == 2, what="the second mint")
        await app.broker.use(world.settings(github_private_key=world.pem))
        assert (await under_way).status_code == 200
        assert app.broker.signer.fingerprint(app.broker.signer.active).startswith("SHA256:")
        await app.broker.use(world.settings(github_private_key=new))
        assert (await app.token(caller, "acme/widgets", "acme/gadgets")).status_code == 200


async def test_encryption_keys_are_swapped_at_once_in_a_running_process(any_world: World) -> None:
    """The process has the data key, so even without an overlap the store opens with the new one."""
    world = any_world
    one, two = (base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2))
    async with world.inside(encryption_keys=one) as app:
        caller = await app.key("acme/*")
        token = (await app.token(caller, "acme/widgets")).json()["token"]
        await app.broker.use(world.settings(encryption_keys=two))
        assert (await app.token(caller, "acme/widgets")).json()["token"] == token
    async with world.inside(encryption_keys=two) as app:
        assert (await app.token(caller, "acme/widgets")).json()["token"] == token
        held = {origin for _, origin in await app.broker.store.wrapping_keys()}
        assert held == {"BROKER_ENCRYPTION_KEYS", None}


async def test_a_key_that_opens_the_store_may_come_later(any_world: World) -> None:
    """Wrong keys at the start are 503; the right ones in the file mend it without a restart."""
    world = any_world
    right, wrong = (base64.b64encode(bytes([number]) * 32).decode() for number in (3, 4))
    async with world.inside(encryption_keys=right) as app:
        caller = await app.key("acme/*")
    async with world.inside(encryption_keys=wrong) as app:
        assert (await app.token(caller, "acme/widgets")).status_code == 503
        await app.broker.use(world.settings(encryption_keys=right))
        assert (await app.token(caller, "acme/widgets")).status_code == 200


async def test_another_bootstrap_admin_key(world: World) -> None:
    first, second = (generate()[0].reveal() for _ in range(2))
    async with world.inside(admin_key=first) as app:
        assert (await app.http.get("/v1/whoami", headers=bearer(first))).status_code == 200
        await app.broker.use(world.settings(admin_key=second))
        assert (await app.http.get("/v1/whoami", headers=bearer(first))).status_code == 401
        assert (await app.http.get("/v1/whoami", headers=bearer(second))).status_code == 200
