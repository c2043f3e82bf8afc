"""Fixtures of the end-to-end tests."""

import fcntl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import World, clean_environment, world_in
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


@pytest.fixture(scope="session")
def installed(pytestconfig: pytest.Config) -> Callable[[str], Path]:
    """Return a function: the commands of a requirement in an environment of its own, kept between runs.

    Programs next door are tested as their users have them, with their own dependencies beside ours.
    """
    assert pytestconfig.cache is not None
    cache = pytestconfig.cache

    def made(requirement: str) -> Path:
        name = "".join(char if char.isalnum() else "-" for char in requirement)
        home = cache.mkdir(f"environment-{name}")
        folder = home / f"python{sys.version_info.major}.{sys.version_info.minor}"
        whole = folder / "whole"
        with (home / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another of pytest's processes may be making it
            if whole.exists():
                return folder / "bin"
            for command in (
                ("uv", "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)),
                ("uv", "pip", "install", "--quiet", "--python", str(folder), requirement),
            ):
                done = subprocess.run(
                    command, env=clean_environment(), capture_output=True, text=True, timeout=280, check=False
                )
                assert done.returncode == 0, done.stderr
            whole.touch()
        return folder / "bin"

    return made
