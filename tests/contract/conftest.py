"""One suite over both stores: SQLite, Redis, and Redis Cluster with one node."""

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import RedisServer, running

from broker.model import Secret
from broker.store.backend import Backend

Build = Callable[..., Backend]
OpenBackend = Callable[..., Awaitable[Backend]]


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running(RedisServer(tmp_path_factory.mktemp("redis"))) as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running(RedisServer(tmp_path_factory.mktemp("cluster"), cluster=True)) as server:
        yield server


@pytest.fixture(params=["sqlite", "redis", "redis-cluster"])
def build(request: pytest.FixtureRequest, tmp_path: Path) -> Build:
    """Return what makes a backend on this test's own data; each call is another process's view."""
    if request.param == "sqlite":
        from broker.store.sqlite import SqliteBackend  # noqa: PLC0415

        return lambda **options: SqliteBackend(tmp_path / "store.db", **options)
    from broker.store.redis import RedisBackend  # noqa: PLC0415

    name = "redis_cluster" if request.param == "redis-cluster" else "redis_server"
    server: RedisServer = request.getfixturevalue(name)
    # A cluster of one node has no replica that could confirm a write.
    url = Secret(f"{server.url}?prefix={uuid.uuid4().hex}&wait=0")
    return lambda **options: RedisBackend(url, **options)


@pytest.fixture
async def open_backend(build: Build) -> AsyncIterator[OpenBackend]:
    opened: list[Backend] = []

    async def open_one(**options: Any) -> Backend:
        backend = build(**options)
        opened.append(backend)
        await backend.connect()
        return backend

    yield open_one
    for backend in opened:
        await backend.close()


@pytest.fixture
async def backend(open_backend: OpenBackend) -> Backend:
    return await open_backend()


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> float:
    """Leases end after 0.5 s; returns how long to sleep until one has."""
    monkeypatch.setattr("broker.store.redis.LEASE_MS", 500)
    monkeypatch.setattr("broker.store.sqlite.LEASE_MS", 500)
    return 0.6
