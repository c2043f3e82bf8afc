"""Many callers at once ask several services for one cold scope: calls to GitHub, and who waits how long."""

import asyncio
import contextlib
from pathlib import Path

import httpx
from bench_report import Table
from bench_stage import Size, middle, world_on
from e2e_callers import ask_all, callers, settled, start_together


def stampede(folder: Path, size: Size) -> Table:
    table = Table(
        "Stampede on a cold scope, three services on one Redis",
        (
            "callers",
            "callers at once",
            "mints",
            "other calls",
            "first ms",
            "median ms",
            "last ms",
            "last x GitHub",
        ),
        "last x GitHub",
    )
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(world_on("redis", folder))
        services = start_together(world, 3, BROKER_LOG_LEVEL="info", BROKER_MINT_BUDGET="100000")
        key = asyncio.run(world.quick_key("acme/*"))
        asyncio.run(settled(world, 3))
        warm_up(services[0].url, key)

        async def run(count: int, name: str) -> list[float]:
            world.github.clear_calls()
            async with callers(timeout_s=60) as http:
                told = await ask_all(http, services, key, count, name)
            assert {one.status for one in told} == {200}
            assert len({one.token for one in told}) == 1
            return sorted(one.took_s * 1000 for one in told)

        world.github.route_latency_s["mint"] = size.github_s
        for count in size.stampedes:
            rounds = []
            for number in range(3):
                name = f"acme/stampede-{count}-{number}"
                world.github.add_repository(name)
                took = asyncio.run(run(count, name))
                rounds.append((took, world.github.count("mint"), world.github.count()))
            last = middle([took[-1] for took, _, _ in rounds])
            table.add(
                f"{count} callers",
                count,
                max(mints for _, mints, _ in rounds),
                max(calls - mints for _, mints, calls in rounds),
                middle([took[0] for took, _, _ in rounds]),
                middle([took[len(took) // 2] for took, _, _ in rounds]),
                last,
                last / (size.github_s * 1000),
            )
    table.notes.append(
        f"GitHub's latency {size.github_s * 1000:g} ms; the callers are one process on the same cores: "
        "much of the time of the last is theirs"
    )
    return table


def warm_up(url: str, key: str) -> None:
    """Have the owner's installation looked up: what is measured is a cold scope, not a new owner."""
    answer = httpx.post(
        f"{url}/v1/github/token",
        json={"repositories": ["acme/widgets"]},
        headers={"Authorization": f"Bearer {key}"},
    )
    assert answer.status_code == 200, answer.text
