"""What a warm request costs with 1 to 100,000 live scopes and as many keys: it must stay flat."""

import asyncio
import time
from pathlib import Path

from bench_memory import rss_mib, touch
from bench_report import Table
from bench_stage import STORES, Size, measure, middle, service_on, world_on
from bench_stampede import warm_up
from harness import World

from broker.build import build_backend, build_keks
from broker.issuing.keys import KeyPolicy, KeyRegister
from broker.model import DEFAULT_PERMISSIONS, LiveToken, RepositoryName, Role, Scope, Secret, token_sha256
from broker.ports import AuditEvent, CommitResult, Event, Lead, ReadQuery
from broker.store.sealed import SealedStore

AT_ONCE = 64
HOT = 100
MANY = 10_000


def scale(folder: Path, size: Size) -> Table:
    table = Table(
        "Cost of a warm request by what the store holds",
        ("what", "scopes and keys", "requests/s", "x with 1", "p99 ms", "RSS MiB"),
        "x with 1",
    )
    for store in STORES:
        with world_on(store, folder) as world:
            service = service_on(world)
            key = asyncio.run(world.quick_key("acme/*"))
            warm_up(service.url, key)
            base = 0.0
            have = 0
            for wanted in size.scales:
                asyncio.run(fill(world, have, wanted))
                used = min(wanted, MANY)
                # The first hand-out of a token is written down: not a warm request yet.
                asyncio.run(touch(service, key, [f"acme/scale-{n}" for n in range(min(have, MANY), used)]))
                have = wanted
                for spread, names in (("hot", min(HOT, wanted)), ("many", used)):
                    found = [
                        measure(
                            "bench_load.py",
                            service.port,
                            32,
                            size.round_s,
                            key,
                            "acme/scale-{}",
                            names,
                            core=1,
                        )
                        for _ in range(size.rounds)
                    ]
                    rate = middle([one["rate"] for one in found])
                    base = base or rate
                    table.add(
                        f"{store}: {wanted}, {spread} asked for",
                        wanted,
                        rate,
                        rate / base,
                        middle([one["p99_ms"] for one in found]),
                        rss_mib(service),
                    )
    table.notes.append(
        f"hot: the same {HOT} scopes; many: up to {MANY} at random; 32 connections, one worker"
    )
    return table


async def fill(world: World, have: int, wanted: int) -> None:
    """Put scopes and keys into the store through its own verbs, as mints would."""
    settings = world.settings()
    store = SealedStore(build_backend(settings), build_keks(settings))
    await store.open()
    register = KeyRegister(store)
    policy = KeyPolicy.parse(
        name="scale", role=Role.CALLER, repositories=("acme/*",), permissions=None, rate_limit_per_minute=None
    )
    numbers = iter(range(have, wanted))

    async def work() -> None:
        for number in numbers:
            await register.create(policy, by="bench", expires_in_s=None)
            await keep_token(store, world, settings.github_host, number)

    try:
        await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    finally:
        await store.close()


async def keep_token(store: SealedStore, world: World, host: str, number: int) -> None:
    scope = Scope.of_repositories(host, [RepositoryName.parse(f"acme/scale-{number}")], DEFAULT_PERMISSIONS)
    lead = await store.acquire(scope, seen=await store.read(ReadQuery(scope=scope)), budget=None)
    assert isinstance(lead, Lead)
    text = Secret(f"ghs_1234501_{'x' * 480}.{number:06d}.scale")
    token = LiveToken(
        token=text,
        sha256=token_sha256(text),
        scope_id=scope.id,
        epoch=lead.epoch,
        installation_id=world.installation.id,
        expires_at=time.time() + 3600,
        repositories=scope.repositories,
        permissions=DEFAULT_PERMISSIONS,
    )
    event = AuditEvent(Event.TOKEN_MINTED, owner=scope.owner, token_sha256=token.sha256)
    kept = await store.commit(lead, scope, token, gh_offset=0.0, moved=False, event=event)
    assert kept is CommitResult.OK
