"""Fixtures of the end-to-end tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import World, world_in
from servers import RedisServer


@pytest.fixture
def redis_world(world: World, shared_redis: RedisServer, tmp_path: Path) -> World:
    """An emulated GitHub, and services on Redis under a prefix of the test's own."""
    world.store_url = f"{shared_redis.url}?prefix={tmp_path.name[-40:].replace('_', '-')}"
    return world


@pytest.fixture
def ghes_world(tmp_path: Path) -> Iterator[World]:
    """As ``world``, with the API where GitHub Enterprise Server has it."""
    with world_in(tmp_path, api_prefix="/api/v3") as found:
        yield found
