"""The end of a process: what runs in the background is finished, or told, before the store is closed."""

import asyncio
import logging
import threading
import time

import pytest
from harness import Inside, World, bearer
from stage import until

from broker.issuing import minting
from broker.ports import AuditFilter, Event
from broker.sandbox.github import Fault


async def _overtaken_mint(world: World, app: Inside) -> str:
    """Have a mint overtaken by a block; return the token that nobody gets."""
    key, admin = await app.key("acme/*"), await app.key(admin=True)
    held = threading.Event()
    world.github.faults.add(Fault(route="mint", times=1, hold=held))
    asked = asyncio.create_task(app.token(key, "acme/widgets"))
    while world.github.count("mint") == 0:  # noqa: ASYNC110 - the emulator lives in another thread
        await asyncio.sleep(0.01)
    blocked = await app.http.put(
        "/v1/admin/blocks/acme/widgets", json={"reason": "test"}, headers=bearer(admin)
    )
    assert blocked.status_code == 200
    held.set()
    assert (await asked).status_code == 403
    (token,) = world.github.tokens
    return token


async def test_a_late_revocation_is_done_and_written(any_world: World) -> None:
    """GitHub is slow to revoke a token that came too late; the process waits for that and records it."""
    world = any_world
    world.github.faults.add(Fault(route="revoke", delay_s=0.7))
    async with world.inside() as app:
        token = await _overtaken_mint(world, app)
    assert world.github.tokens[token].revoked
    async with world.inside() as app:
        page = await app.broker.store.audit(AuditFilter(event=Event.TOKEN_REVOKED), cursor=None, limit=10)
    assert [row.event["repositories"] for row in page.items] == [["acme/widgets"]]


async def test_a_late_revocation_is_tried_again_though_its_time_is_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine that was suspended between two tries: found by the simulation (seed 11271)."""
    monkeypatch.setattr(minting, "_REVOKE_FOR_S", 0.0)
    world.github.faults.add(Fault(route="revoke", status=500, times=1))
    async with world.inside() as app:
        token = await _overtaken_mint(world, app)
        await until(lambda: world.github.tokens[token].revoked)


async def test_a_late_revocation_that_hangs_is_told_by_its_hash(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """It holds the end of the process up for some seconds only."""
    held = threading.Event()
    world.github.faults.add(Fault(route="revoke", hold=held))
    async with world.inside() as app:
        token = await _overtaken_mint(world, app)
        begin = time.monotonic()
    assert time.monotonic() - begin < 15
    held.set()
    (told,) = [one for one in caplog.records if "late token could not be revoked" in one.getMessage()]
    assert told.levelno == logging.ERROR
    assert isinstance(told.__dict__["token_sha256"], str)
    assert token not in caplog.text


async def test_the_outbox_is_left_to_the_next_process(world: World) -> None:
    """Calls that run are ended, no other is begun; what is still to die dies by the next process."""
    async with world.inside() as app:
        key, admin = await app.key("acme/*"), await app.key(admin=True)
        for repository in ("acme/widgets", "acme/gadgets"):
            assert (await app.token(key, repository)).status_code == 200
        world.github.faults.add(Fault(route="revoke", status=403))
        done = asyncio.create_task(
            app.http.post("/v1/admin/revocations", json={"all": True, "reason": "x"}, headers=bearer(admin))
        )
        answer = (await done).json()
        assert answer["revoked"] == 0
        assert answer["failed"] + answer["pending"] == 2
        begin = time.monotonic()
    assert time.monotonic() - begin < 15
    assert not any(one.revoked for one in world.github.tokens.values())
    world.github.faults.clear()
    async with world.inside():
        end = time.monotonic() + 20
        while not all(one.revoked for one in world.github.tokens.values()):
            assert time.monotonic() < end
            await asyncio.sleep(0.05)


async def test_the_end_does_not_wait_for_what_github_refuses(world: World) -> None:
    """A process that stops leaves the outbox at once, though it could go on trying for a minute."""
    async with world.inside() as app:
        key, admin = await app.key("acme/*"), await app.key(admin=True)
        assert (await app.token(key, "acme/widgets")).status_code == 200
        world.github.faults.add(Fault(route="revoke", status=403))
        body = {"all": True, "reason": "x"}
        await app.http.post("/v1/admin/revocations", json=body, headers=bearer(admin))
        await until(lambda: world.github.count("revoke") > 1, seconds=20)  # in the background, again
        async with asyncio.timeout(20):
            await app.broker.ender.stop(within_s=60)


async def test_a_late_revocation_is_tried_again(world: World) -> None:
    world.github.faults.add(Fault(route="revoke", times=1, status=403))
    async with world.inside() as app:
        token = await _overtaken_mint(world, app)
        await until(lambda: world.github.tokens[token].revoked, seconds=20)
