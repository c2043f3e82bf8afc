"""What the benchmarks share: sizes, worlds on both stores, pinning, the load generator as a process."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from harness import Service, World, clean_environment, world_in
from servers import RedisServer, running

HERE = Path(__file__).parent
STORES = ("redis", "sqlite")


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    rounds: int = 9
    round_s: float = 0.7
    connections: tuple[int, ...] = (1, 8, 32, 128, 256)
    cold_scopes: int = 30
    github_s: float = 0.2
    client_runs: int = 21
    scopes: int = 10_000
    stampedes: tuple[int, ...] = (10, 50, 200)
    scales: tuple[int, ...] = (1, 1000, 10_000, 100_000)
    soak_s: float = 600.0

    @classmethod
    def tiny(cls) -> "Size":
        return cls(
            rounds=1,
            round_s=0.1,
            connections=(1,),
            cold_scopes=1,
            github_s=0.05,
            client_runs=1,
            scopes=5,
            stampedes=(5,),
            scales=(1, 20),
            soak_s=1.0,
        )


@contextlib.contextmanager
def world_on(store: str, folder: Path) -> Iterator[World]:
    """Yield a world whose services use a fresh store."""
    with contextlib.ExitStack() as stack:
        where = folder / f"world-{store}"
        where.mkdir()
        world = stack.enter_context(world_in(where))
        if store == "redis":
            server = stack.enter_context(running(RedisServer(folder / "redis-server", persistent=False)))
            world.store_url = server.url
            pin(server._running().pid, 1)
        yield world


def service_on(world: World, **more: str) -> Service:
    """Start a service as in production: audit on, nothing below info; pinned to the first core."""
    service = world.service(BROKER_LOG_LEVEL="info", BROKER_MINT_BUDGET="100000", **more)
    assert service.process is not None
    pin(service.process.pid, 0)
    return service


def cpu_s(pids: Iterable[int]) -> float:
    """Return the CPU seconds that processes have used, to 10 ms each."""
    used = 0.0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        used += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return used


def with_children(pid: int) -> list[int]:
    """Return a process and those that it started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def pin(pid: int, core: int) -> None:
    """Keep a process, with its threads, on one of the first two cores, where there are two."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), {cores[core]})


def script(name: str, *arguments: object) -> list[str]:
    return [sys.executable, str(HERE / name), *map(str, arguments)]


def measure(name: str, *arguments: object, core: int | None, **environment: str) -> dict[str, Any]:
    """Run a measuring script, on a core of its own if one is named, and return what it prints, JSON."""
    process = subprocess.Popen(
        script(name, *arguments),
        env=clean_environment(**environment),
        stdout=subprocess.PIPE,
        cwd=HERE.parent,
    )
    if core is not None:
        pin(process.pid, core)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, name
    found: dict[str, Any] = json.loads(out)
    return found


def middle(values: list[float]) -> float:
    return float(median(values))
