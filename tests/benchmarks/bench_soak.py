"""Minutes of load without a pause: memory and latency must stay flat."""

import asyncio
import time
from pathlib import Path

from bench_memory import rss_mib
from bench_report import Table
from bench_stage import STORES, Size, measure, service_on, world_on
from bench_stampede import warm_up

SLICES = 10


def soak(folder: Path, size: Size) -> Table:
    table = Table(
        "Soak, 32 connections, 200 scopes, one worker",
        ("what", "minute", "requests", "RSS MiB", "p50 ms", "p99 ms", "RSS x first"),
        "RSS x first",
    )
    for store in STORES:
        with world_on(store, folder) as world:
            service = service_on(world)
            key = asyncio.run(world.quick_key("acme/*"))
            for number in range(200):
                world.github.add_repository(f"acme/soak-{number}")
            warm_up(service.url, key)
            begin = time.monotonic()
            first = 0.0
            for _ in range(SLICES):
                slice_s = size.soak_s / SLICES
                told = measure("bench_load.py", service.port, 32, slice_s, key, "acme/soak-{}", 200, core=1)
                memory = rss_mib(service)
                first = first or memory
                table.add(
                    f"{store} at {(time.monotonic() - begin) / 60:.1f} min",
                    (time.monotonic() - begin) / 60,
                    int(told["rate"] * slice_s),
                    memory,
                    told["p50_ms"],
                    told["p99_ms"],
                    memory / first,
                )
    return table
