"""Names that do not resolve, the store's and GitHub's: it is the machine's resolver that fails."""

import asyncio
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from harness import Inside, World, unknown_key
from servers import RedisServer
from stage import until, verdict

OK = (200, "ok")
AWAY = (503, "store_unavailable")
BOUND_S = 5.0
"""A store that gives no answer is given up after 1 s; machines are slow."""


class Resolver:
    """The machine's resolver, which for one name fails, or is silent, or tells a loopback address.

    Attributes:
        fails: the name does not resolve.
        speaks: not set: there is no answer at all until it is.
        asked: how often it was asked for that name.
    """

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fails = True
        self.speaks = threading.Event()
        self.speaks.set()
        self.asked = 0
        self._names = {name, name.encode()}
        self._resolve = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._getaddrinfo)

    def _getaddrinfo(self, host: Any, *arguments: Any, **named: Any) -> Any:
        if host not in self._names:
            return self._resolve(host, *arguments, **named)
        self.asked += 1
        self.speaks.wait(60)
        if self.fails:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return self._resolve("127.0.0.1", *arguments, **named)


async def away(app: Inside, key: str) -> None:
    """Everybody gets 503, soon, with a time to come again."""
    for presented in (key, unknown_key()):
        begun = time.monotonic()
        told = await app.token(presented, "acme/widgets")
        assert (verdict(told), time.monotonic() - begun < BOUND_S) == (AWAY, True)
        assert int(told.headers["retry-after"]) >= 1


async def back(app: Inside, key: str) -> None:
    async def served() -> bool:
        return verdict(await app.token(key, "acme/widgets")) == OK

    await until(served, seconds=20)


async def attached(app: Inside) -> None:
    await until(lambda: app.broker.store.health == "ok", seconds=20)


async def test_the_stores_name_that_does_not_resolve(
    world: World, shared_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the start and later; the broker is not started again in between."""
    resolver = Resolver("redis.test", monkeypatch)
    world.store_url = f"redis://redis.test:{shared_redis.port}?prefix=names"
    async with world.inside() as app:
        await away(app, unknown_key())
        ready = await app.http.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["store"]) == (503, "down")
        resolver.fails = False
        await attached(app)
        key = await app.key("acme/*")
        assert verdict(await app.token(key, "acme/widgets")) == OK
        resolver.fails = True
        assert verdict(await app.token(key, "acme/widgets")) == OK  # connected, and it stays so
        shared_redis.ask("CLIENT", "KILL", "TYPE", "normal")
        await away(app, key)
        ready = await app.http.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["store"]) == (200, "down")
        resolver.fails = False
        await back(app, key)


async def test_a_resolver_that_is_silent_holds_up_nothing_else(
    world: World, shared_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps the loop's threads, one with each attempt to connect; the broker has threads of its own."""
    resolver = Resolver("redis.test", monkeypatch)
    resolver.fails = False
    world.store_url = f"redis://redis.test:{shared_redis.port}?prefix=silent"
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    async with world.inside() as app:
        await attached(app)
        key = await app.key("acme/*")
        await back(app, key)
        resolver.speaks.clear()
        try:
            shared_redis.ask("CLIENT", "KILL", "TYPE", "normal")
            await away(app, key)
            assert resolver.asked > 1
            async with asyncio.timeout(BOUND_S):
                metrics = await app.http.get("/metrics")
            assert metrics.status_code == 200
        finally:
            resolver.speaks.set()
        await back(app, key)


async def test_githubs_name_that_does_not_resolve(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is cached is served; a cold scope is 502, and 200 once the name resolves."""
    resolver = Resolver("localhost", monkeypatch)
    named = {
        "github_api_url": world.server.api_url.replace("127.0.0.1", "localhost"),
        "github_url": world.server.url.replace("127.0.0.1", "localhost"),
    }
    resolver.fails = False
    async with world.inside(**named, failure_cooldown=0.1) as app:
        key = await app.key("acme/*")
        assert verdict(await app.token(key, "acme/widgets")) == OK
        resolver.fails = True
        world.server.stop()  # no connection is left
        world.server.start()
        refused = await app.token(key, "acme/gadgets")
        assert verdict(refused) == (502, "github_unavailable")
        assert (await app.token(key, "acme/widgets")).json()["cached"] is True
        ready = await app.http.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["github"]) == (200, "github_unavailable")
        resolver.fails = False
        await asyncio.sleep(0.2)
        assert verdict(await app.token(key, "acme/gadgets")) == OK
