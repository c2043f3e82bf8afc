"""Memory of a worker: idle, and after so many scopes were touched."""

import asyncio
import sys
import time
from pathlib import Path

import httpx
from bench_report import Table
from bench_stage import STORES, Size, world_on
from harness import Service, World, bearer


def memory(folder: Path, size: Size) -> Table:
    table = Table("Memory of a worker", ("what", "RSS MiB", "touching took s"), "RSS MiB")
    for store in STORES:
        with world_on(store, folder) as world:
            as_installed_on(world).stop()  # compiles what is not compiled: that takes 15 MiB
            service = as_installed_on(world)
            key = asyncio.run(world.quick_key("acme/*"))
            table.add(f"{store}: idle", rss_mib(service), None)
            asyncio.run(touch(service, key, ["acme/widgets"]))
            table.add(f"{store}: one scope", rss_mib(service), None)
            for number in range(size.scopes):
                world.github.add_repository(f"acme/repository-{number}")
            names = [f"acme/repository-{number}" for number in range(size.scopes)]
            begin = time.monotonic()
            asyncio.run(touch(service, key, names))
            took_s = time.monotonic() - begin
            table.add(f"{store}: {size.scopes} scopes", rss_mib(service), took_s)
            asyncio.run(touch(service, key, names))
            table.add(f"{store}: {size.scopes} scopes, again", rss_mib(service), None)
    return table


class _AsInstalled(Service):
    # httpx imports rich and pygments where they are there, as for the developers' tools: 6 MiB.
    command = (
        sys.executable,
        "-c",
        (
            "import sys; sys.modules['rich'] = sys.modules['pygments'] = None; sys.argv[1:] = ['serve']; "
            "from broker.__main__ import main; main()"
        ),
    )


def as_installed_on(world: World) -> Service:
    """Start a service that has the modules of an installation without developers' tools."""
    plain = world.service(start=False, BROKER_LOG_LEVEL="info", BROKER_MINT_BUDGET="100000")
    service = _AsInstalled(plain.environment, plain.folder, plain.port, plain.name)
    world.services[world.services.index(plain)] = service
    return service.start()


async def touch(service: Service, key: str, names: list[str]) -> None:
    """Ask for each of some scopes, 16 at a time."""
    left = list(names)
    async with httpx.AsyncClient(timeout=30) as http:

        async def work() -> None:
            while left:
                answer = await http.post(
                    f"{service.url}/v1/github/token",
                    json={"repositories": [left.pop()]},
                    headers=bearer(key),
                )
                assert answer.status_code == 200, answer.text

        await asyncio.gather(*(work() for _ in range(16)))


def rss_mib(service: Service) -> float:
    assert service.process is not None
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024
