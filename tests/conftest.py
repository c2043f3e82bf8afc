"""Fixtures that several groups of tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import World, world_in
from servers import RedisServer, running


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """An emulated GitHub; services on SQLite unless ``store_url`` is set."""
    with world_in(tmp_path) as found:
        yield found


@pytest.fixture
def git_world(tmp_path: Path) -> Iterator[World]:
    """As ``world``, and the repositories can be cloned."""
    with world_in(tmp_path, git=True) as found:
        yield found


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A real Valkey or Redis process; tests use a prefix of their own."""
    with running(RedisServer(tmp_path_factory.mktemp("shared-redis"))) as server:
        yield server


@pytest.fixture(params=["sqlite", "redis"])
def any_world(request: pytest.FixtureRequest, world: World, tmp_path: Path) -> World:
    """As ``world``, once on each store."""
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("shared_redis")
        world.store_url = f"{server.url}?prefix={tmp_path.name[-40:].replace('_', '-')}"
    return world
