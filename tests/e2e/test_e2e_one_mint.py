"""Rule 3 with real processes: one mint, whoever asks, whoever dies, whoever freezes."""

import asyncio
import signal
import threading
import time

import httpx
import pytest
from e2e_callers import ask, ask_all, callers, settled, start_together, until
from harness import World

from broker.sandbox.github import Fault

LEASE_S = 5.0


async def test_fifty_callers_and_three_services_cause_one_mint(redis_world: World) -> None:
    """50 callers at once and 3 service processes on one Redis, cold scope: one look-up, one mint."""
    world = redis_world
    services = start_together(world, 3)
    key = await world.quick_key("acme/*")
    await settled(world, 3)
    world.github.latency_s = 0.3
    async with callers() as http:
        told = await ask_all(http, services, key, 50)
        assert {one.status for one in told} == {200}, [one.body for one in told if one.status != 200]
        assert len({one.token for one in told}) == 1
        assert world.github.count("repo_installation") == 1
        assert world.github.count("mint") == 1
        assert world.github.count() == 2
        assert max(one.took_s for one in told) < 5

        # Another scope of the same owner costs one call: the installation is known by now.
        world.github.clear_calls()
        told = await ask_all(http, services, key, 50, "acme/gadgets")
        assert len({one.token for one in told}) == 1
        assert [call.route for call in world.github.calls] == ["mint"]


async def test_kill_the_process_that_mints(redis_world: World) -> None:
    """Kill -9 the process that mints: the others get a token within 10 s, and one result is kept."""
    world = redis_world
    leader, *others = start_together(world, 3)
    key = await world.quick_key("acme/*")
    await settled(world, 3)
    held = threading.Event()
    world.github.faults.add(Fault(route="mint", times=1, hold=held))
    async with callers() as http:
        first = asyncio.create_task(ask(http, leader, key))
        await until(lambda: world.github.count("mint") == 1, what="the leader's mint")
        rest = [asyncio.create_task(ask(http, others[n % 2], key)) for n in range(48)]
        await asyncio.sleep(0.3)
        assert world.github.count("mint") == 1
        leader.kill()
        killed_at = time.monotonic()
        with pytest.raises(httpx.TransportError):
            await first
        told = await asyncio.gather(*rest)
        took_s = time.monotonic() - killed_at
        held.set()
        assert took_s < 10
        assert {one.status for one in told} == {200}, [one.body for one in told if one.status != 200]
        kept = {one.token for one in told}
        assert len(kept) == 1
        assert world.github.count("mint") == 2
        assert world.github.count("repo_installation") == 1

        # Only one result is kept: everyone later gets it too, a service that comes back included.
        leader.start()
        later = await ask_all(http, [leader, *others], key, 12)
        assert {one.token for one in later} == kept
        assert world.github.count("mint") == 2


async def test_a_leader_that_was_frozen_is_too_late(redis_world: World) -> None:
    """A paused leader can't overwrite: its late result is not stored, not served, and is revoked."""
    world = redis_world
    frozen, other = start_together(world, 2)
    key = await world.quick_key("acme/*")
    await settled(world, 2)
    held = threading.Event()
    world.github.faults.add(Fault(route="mint", times=1, hold=held, after_effect=True))
    async with callers() as http:
        slow = asyncio.create_task(ask(http, frozen, key))
        await until(lambda: world.github.count("mint") == 1, what="the mint of the first")
        frozen.signal(signal.SIGSTOP)
        try:
            taken_over = await ask(http, other, key)
            assert taken_over.token
            assert 1 < taken_over.took_s < LEASE_S + 5
            assert world.github.count("mint") == 2
            held.set()  # GitHub answers the frozen one, whose lease is long gone
            await until(lambda: len(world.github.tokens) == 2, what="both tokens")
            await asyncio.sleep(0.2)
        finally:
            frozen.signal(signal.SIGCONT)
        late = [text for text in world.github.tokens if text != taken_over.token]
        assert len(late) == 1
        told = await slow
        assert told.status != 200 or told.token == taken_over.token
        await until(lambda: world.github.tokens[late[0]].revoked, what="revoking the late token")
        assert not world.github.tokens[taken_over.token].revoked
        for service in (frozen, other):
            assert (await ask(http, service, key)).token == taken_over.token
        assert world.github.count("mint") == 2
        assert late[0] not in frozen.log()


async def test_sqlite_with_two_workers_mints_once(world: World) -> None:
    service = world.service(BROKER_WORKERS="2")
    key = await world.quick_key("acme/*")
    await settled(world, 2)
    world.github.latency_s = 0.3
    async with callers() as http:
        told = await ask_all(http, [service], key, 30)
        assert {one.status for one in told} == {200}, [one.body for one in told if one.status != 200]
        assert len({one.token for one in told}) == 1
        assert [call.route for call in world.github.calls] == ["repo_installation", "mint"]


async def test_a_caller_who_hangs_up_does_not_fail_the_others(world: World) -> None:
    service = world.service()
    key = await world.quick_key("acme/*")
    await settled(world)
    held = threading.Event()
    world.github.faults.add(Fault(route="mint", times=1, hold=held))
    async with callers() as http:
        async with callers() as leaving:
            first = asyncio.create_task(ask(leaving, service, key))
            await until(lambda: world.github.count("mint") == 1, what="the mint")
            waiting = asyncio.create_task(ask(http, service, key))
            await asyncio.sleep(0.1)
            first.cancel()
        held.set()
        told = await waiting
        assert told.token
        assert (await ask(http, service, key)).token == told.token
        assert world.github.count("mint") == 1
