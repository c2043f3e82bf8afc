"""Two worker processes beside one: whether a request costs more when there are several."""

import asyncio
from pathlib import Path

from bench_report import Table
from bench_stage import Size, cpu_s, measure, middle, with_children, world_on
from bench_warm import warm_up


def workers(folder: Path, size: Size) -> Table:
    """Measure what a request costs; where load and Redis share the cores with it, the rate tells little.

    ``would scale``: how many times as many requests two workers answer on two cores that nothing else uses.
    """
    table = Table(
        "One worker and two, Redis, 32 connections",
        ("what", "requests/s", "CPU us a request", "load's own CPU us", "would scale x"),
        "CPU us a request",
    )
    found: dict[int, list[tuple[float, float, float]]] = {1: [], 2: []}
    with world_on("redis", folder) as world:
        key = asyncio.run(world.quick_key("acme/*"))
        services = {}
        for number in found:
            services[number] = world.service(
                BROKER_LOG_LEVEL="info", BROKER_MINT_BUDGET="100000", BROKER_WORKERS=str(number)
            )
            for _ in range(4):  # each worker has to hand the token out once
                warm_up(services[number], key)
        for _ in range(size.rounds):
            for number, rounds in found.items():
                process = services[number].process
                assert process is not None
                pids = with_children(process.pid)
                before = cpu_s(pids)
                told = measure(
                    "bench_load.py", services[number].port, 32, size.round_s, key, "acme/widgets", core=None
                )
                own_us = (cpu_s(pids) - before) / told["requests"] * 1e6
                rounds.append((told["rate"], own_us, told["cpu"] / told["rate"] * 1e6))
    scales = [2 * one[1] / max(two[1], 1e-9) for one, two in zip(found[1], found[2], strict=True)]
    for number, rounds in found.items():
        rate, own_us, load_us = (middle(list(column)) for column in zip(*rounds, strict=True))
        table.add(f"{number} worker(s)", rate, own_us, load_us, middle(scales) if number > 1 else None)
    table.notes.append("nothing is pinned: workers, Redis and the load generator share two cores")
    return table
