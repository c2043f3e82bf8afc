"""What the end-to-end stories share: many callers at once, and waiting for the emulator to see something."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from harness import Service, World, bearer


@dataclass(frozen=True)
class Told:
    """One caller's answer, and how long it took."""

    status: int
    body: dict[str, Any]
    headers: httpx.Headers
    took_s: float

    @property
    def token(self) -> str:
        assert self.status == 200, self.body
        return str(self.body["token"])


@asynccontextmanager
async def callers(*, timeout_s: float = 30) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client without a bound on connections."""
    async with httpx.AsyncClient(
        timeout=timeout_s, limits=httpx.Limits(max_connections=None, max_keepalive_connections=100)
    ) as http:
        yield http


async def ask(http: httpx.AsyncClient, service: Service, key: str, *repositories: str, **more: Any) -> Told:
    """``POST /v1/github/token`` on one service."""
    begin = time.monotonic()
    answer = await http.post(
        f"{service.url}/v1/github/token",
        json={"repositories": list(repositories or ("acme/widgets",)), **more},
        headers=bearer(key),
    )
    return Told(answer.status_code, answer.json(), answer.headers, time.monotonic() - begin)


async def ask_all(
    http: httpx.AsyncClient, services: Sequence[Service], key: str, count: int, *repositories: str
) -> list[Told]:
    """Ask ``count`` times at once, services in turn."""
    return await asyncio.gather(
        *(ask(http, services[n % len(services)], key, *repositories) for n in range(count))
    )


async def until(true: Callable[[], bool], *, seconds: float = 10, what: str = "it") -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{what} did not happen within {seconds:g} s"
        await asyncio.sleep(0.01)


async def settled(world: World, services: int = 1) -> None:
    """Wait for the one call each process makes at its start (who is the app), then forget the journal."""
    await until(lambda: world.github.count("app") >= services, what="the call of each start")
    await asyncio.sleep(0.05)
    world.github.clear_calls()


def start_together(world: World, count: int, **more: str) -> list[Service]:
    """Start several services, and return when all are ready."""
    found = [world.service(start=False, **more) for _ in range(count)]
    for one in found:
        one.start(wait=False)
    for one in found:
        one.wait_ready()
    return found
