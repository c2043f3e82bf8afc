"""A random sequence of faults against three replicas, a real Valkey and the emulator, under load.

``CHAOS_SEED`` replays the faults of a run (not the moments at which processes meet), ``CHAOS_SECONDS`` says
how long they last, ``CHAOS_PATIENCE`` multiplies the 10 s of recovery for a machine that is busy:
``CHAOS_SECONDS=150 uv run pytest -n 0 -s -m slow tests/e2e/test_e2e_chaos.py``.
"""

import asyncio
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from e2e_callers import callers
from e2e_chaos_ledger import (
    COOLDOWN_S,
    INSTALLATION_TTL_S,
    REFRESH_AHEAD_S,
    TOKEN_TTL_S,
    History,
    Ledger,
)
from e2e_chaos_people import BUSY, STEADY, People
from e2e_chaos_weather import ASKED, TRACKS, Weather, blow, plan
from e2e_relay import Relay
from harness import World
from mount import Mount
from servers import RedisServer, running

from broker.access.keys import generate

SECONDS = float(os.environ.get("CHAOS_SECONDS", "20"))
PATIENCE = float(os.environ.get("CHAOS_PATIENCE", "3"))
REPLICAS = 3
CALLERS = 6
ADMINS = 2
RECOVERED_S = 10.0
WEBHOOK_SECRET = "Kq8-webhook-secret-of-a-chaos-run"


def prepared(world: World) -> None:
    """Two owners, tokens that grow old in seconds, no limit on calls."""
    github = world.github
    for name in (*STEADY, *BUSY):
        github.add_repository(name)
    github.install(world.app, "beta", permissions=ASKED)
    github.set_permissions(world.installation, ASKED)
    github.rate_limit = None
    github.route_latency_s["mint"] = 0.15  # so that mints which must not run at once would
    github.token_ttl_s = TOKEN_TTL_S


async def lived_through(weather: Weather, people: People, seed: int) -> float:
    """Let faults, callers and admins loose; return the seconds of recovery from the last fault."""
    ledger = weather.ledger
    async with callers(timeout_s=90) as http:
        steady = await people.create(http, random.Random(), ("acme/*", "beta/*"), ("contents", "issues"))
    steps = plan(seed, SECONDS)
    crowd = [people.call(random.Random(f"{seed} caller {number}")) for number in range(CALLERS)]
    admins = [people.administer(number, random.Random(f"{seed} admin {number}")) for number in range(ADMINS)]
    until = time.monotonic() + SECONDS
    everyone = [asyncio.create_task(one) for one in (*crowd, *admins)]
    winds = [asyncio.create_task(blow(weather, steps[track], until)) for track in TRACKS]
    try:
        while not all(one.done() for one in winds):
            await asyncio.wait([*everyone, *winds], timeout=0.2, return_when=asyncio.FIRST_EXCEPTION)
            for one in (*everyone, *winds):
                if one.done():
                    one.result()
            if ledger.violations:
                return 0.0
        took_s = await people.recovered(steady, within_s=RECOVERED_S * weather.patience)
        people.stopping = True
        await asyncio.gather(*everyone)
        return took_s
    finally:
        people.stopping = True
        for one in (*winds, *everyone):
            one.cancel()
        await asyncio.gather(*winds, *everyone, return_exceptions=True)


async def judged(people: People, ledger: Ledger, logs: Sequence[Path]) -> str:
    """Compare what was acknowledged, handed out and minted with what is there; return a summary."""
    end = time.monotonic() + 20 * PATIENCE
    while living := ledger.alive_in_spite():
        if time.monotonic() > end:
            ledger.violated(f"{len(living)} tokens live that had to die")
            break
        await asyncio.sleep(0.5)
    await people.check_records()
    audit = await people.everything("audit")
    ledger.check_audit(audit)
    summary = ledger.check_mints(audit)
    await asyncio.to_thread(ledger.check_logs, logs)
    return summary


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 300)
async def test_chaos(world: World, tmp_path: Path) -> None:
    """Whatever breaks: nobody gets what is forbidden, nothing acknowledged is lost, and it serves again."""
    seed = int(os.environ.get("CHAOS_SEED", random.SystemRandom().getrandbits(32)))
    print(f"CHAOS_SEED={seed} CHAOS_SECONDS={SECONDS:g}")
    prepared(world)
    ledger = Ledger(world)
    mount = Mount(tmp_path / "secrets")
    mount.put(pem=world.pem)
    admin = generate()[0].reveal()
    ledger.secrets |= {world.pem, admin, WEBHOOK_SECRET}
    ledger.blocks |= {name: History(value=False) for name in BUSY}
    settings = {
        "BROKER_GITHUB_PRIVATE_KEY": "",
        "BROKER_GITHUB_PRIVATE_KEY_FILE": str(mount.folder / "pem"),
        "BROKER_GITHUB_WEBHOOK_SECRET": WEBHOOK_SECRET,
        "BROKER_ADMIN_KEY": admin,
        "BROKER_MINT_BUDGET": "100000",
        "BROKER_TOKEN_REFRESH_AHEAD": str(REFRESH_AHEAD_S),
        "BROKER_INSTALLATION_TTL": str(INSTALLATION_TTL_S),
        "BROKER_FAILURE_COOLDOWN": str(COOLDOWN_S),
    }
    with running(RedisServer(tmp_path / "valkey", persistent=True)) as server:
        async with Relay(server.port).running() as relay:
            world.store_url = f"redis://127.0.0.1:{relay.port}"
            services = [world.service(start=False, **settings) for _ in range(REPLICAS)]
            for service in services:
                service.start(wait=False)
            for service in services:
                await asyncio.to_thread(service.wait_ready, seconds=60)
            weather = Weather(
                world,
                server,
                relay,
                services,
                mount,
                world.github.add_hook(world.app, f"{services[0].url}/webhooks/github", WEBHOOK_SECRET),
                {one.account.login: one for one in world.github.installations.values()},
                ledger,
                PATIENCE,
            )
            people = People(services, ledger, admin)
            summary, took_s = "nothing was judged", 0.0
            try:
                took_s = await lived_through(weather, people, seed)
                if not ledger.violations:
                    summary = await judged(
                        people,
                        ledger,
                        [*(one.log_path for one in services), tmp_path / "valkey" / "server.log"],
                    )
            except Exception as error:  # noqa: BLE001 - told with the faults below
                ledger.violated(f"{type(error).__name__}: {error}")
    told = "\n".join(
        (
            f"CHAOS_SEED={seed} CHAOS_SECONDS={SECONDS:g}",
            *weather.log,
            f"answers: {dict(ledger.answers)}",
            f"{len(ledger.handed)} tokens handed out, {len(ledger.doomed())} of them ended; {summary}",
            f"recovered {took_s:.1f} s after the last fault",
            *ledger.violations[:10],
        )
    )
    print(told)
    if ledger.violations:
        pytest.fail(told, pytrace=False)
    assert ledger.answers["ok"] > SECONDS
    assert ledger.doomed()
