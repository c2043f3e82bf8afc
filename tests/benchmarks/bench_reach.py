"""How far one replica and one Redis go: measured costs, and what follows from the default settings."""

import asyncio
import math
from pathlib import Path

import redis
from bench_memory import rss_mib, touch
from bench_report import Table
from bench_scale import fill
from bench_stage import Size, cpu_s, measure, middle, service_on, world_on
from bench_warm import warm_up

from broker.issuing.installations import SWEEP_FROM
from broker.settings import Settings

TOKEN_LIFE_S = 3600
GITHUB_PAGE = 100
REPOSITORIES = (100, 1_000, 10_000)
OWNERS = (1, 100, 1_000, 10_000)


def reach(folder: Path, size: Size) -> Table:
    table = Table("How far it goes", ("what", "figure", "unit"), "figure")
    _measured(folder, size, table)
    _computed(table)
    return table


def _measured(folder: Path, size: Size, table: Table) -> None:
    with world_on("redis", folder) as world:
        service = service_on(world)
        assert service.process is not None
        key = asyncio.run(world.quick_key("acme/*"))
        warm_up(service, key)
        store = redis.Redis.from_url(world.store_url)
        pid = int(store.info("server")["process_id"])  # type: ignore[index]
        empty = int(store.info("memory")["used_memory"])  # type: ignore[index]
        idle_mib = rss_mib(service)
        asyncio.run(fill(world, 0, size.scopes))
        # The first hand-out of a token is written down, so it costs more than those that follow.
        asyncio.run(touch(service, key, [f"acme/scale-{number}" for number in range(size.scopes)]))
        held = int(store.info("memory")["used_memory"])  # type: ignore[index]
        own_us, redis_us = [], []
        for _ in range(size.rounds):
            before = cpu_s([service.process.pid]), cpu_s([pid])
            told = measure(
                "bench_load.py", service.port, 32, size.round_s, key, "acme/scale-{}", size.scopes, core=1
            )
            own_us.append((cpu_s([service.process.pid]) - before[0]) / told["requests"] * 1e6)
            redis_us.append((cpu_s([pid]) - before[1]) / told["requests"] * 1e6)
        table.add("a replica's core: warm requests", 1e6 / max(middle(own_us), 1), "a second")
        table.add("a Redis: warm requests, of all replicas", 1e6 / max(middle(redis_us), 1), "a second")
        table.add(f"a worker, {size.scopes} scopes and keys in use", rss_mib(service) - idle_mib, "MiB more")
        table.add("Redis, a live scope and a key", (held - empty) / size.scopes / 1024, "KiB")


def _computed(table: Table) -> None:
    ahead_s = Settings.model_fields["token_refresh_ahead"].default
    ttl_s = Settings.model_fields["installation_ttl"].default
    for count in REPOSITORIES:
        mints = count * 3600 / (TOKEN_LIFE_S - ahead_s)
        table.add(f"GitHub: mints for {count} repositories in use all the time", mints, "an hour")
    for count in OWNERS:
        single = count <= SWEEP_FROM  # each owner is asked for, else one list of all installations
        calls = count if single else math.ceil(count / GITHUB_PAGE)
        how = "one by one" if single else f"as a list of {calls} pages"
        table.add(f"GitHub: looking at {count} owner(s) in use, {how}", calls * 3600 / (ttl_s / 2), "an hour")
