"""``broker serve`` told to end: SIGTERM and its exit status, with stores and GitHub hanging, and workers."""

import asyncio
import contextlib
import fcntl
import os
import signal
import sqlite3
import subprocess
import threading
import time
from pathlib import Path

import httpx
import pytest
from e2e_callers import ask, callers, settled, until
from harness import SCRIPTS, Service, World, bearer
from servers import RedisServer

from broker.build import build_backend, build_keks
from broker.ports import AuditFilter, Event
from broker.sandbox.github import Fault
from broker.store.sealed import SealedStore


async def _ended(service: Service, *, seconds: float = 30) -> int:
    process = service.process
    assert process is not None
    await until(lambda: process.poll() is not None, seconds=seconds, what="the end of the process")
    assert process.returncode is not None
    return int(process.returncode)


def _term(service: Service, number: int = signal.SIGTERM) -> None:
    assert service.process is not None
    service.process.send_signal(number)


async def _left(world: World, key: str) -> tuple[int | None, int]:
    """Return what the store holds: when a key was last used, and how many hand-outs of it are on record."""
    settings = world.settings()
    store = SealedStore(build_backend(settings), build_keks(settings))
    await store.open()
    try:
        entry = await store.find_key(key[5:17])
        page = await store.audit(AuditFilter(event=Event.TOKEN_ISSUED), cursor=None, limit=100)
    finally:
        await store.close()
    assert entry is not None
    return entry.last_used_at, sum(int(str(row.event.get("count") or 1)) for row in page.items)


@pytest.mark.parametrize(
    ("store", "workers"),
    [
        ("sqlite", "1"),
        pytest.param("redis", "2", marks=pytest.mark.slow),
    ],
)
async def test_counts_and_last_uses_are_written_and_the_status_is_0(
    world: World, request: pytest.FixtureRequest, store: str, workers: str
) -> None:
    """What a process only counts in memory for up to a minute is in the store when it has ended."""
    if store == "redis":
        world = request.getfixturevalue("redis_world")
    service = world.service(BROKER_WORKERS=workers)
    key = await world.quick_key("acme/*")
    async with callers() as http:
        for _ in range(6):
            assert (await ask(http, service, key)).token
    _term(service)
    assert await _ended(service) == 0
    last_used_at, handed_out = await _left(world, key)
    assert last_used_at is not None
    assert handed_out == 6
    assert "Traceback" not in service.log()


async def test_a_kept_connection_is_told_before_it_is_closed(world: World) -> None:
    """A request on an idle connection just after SIGTERM is answered, with ``Connection: close``."""
    service = world.service()
    key = await world.quick_key("acme/*")
    async with callers() as one, callers() as another:
        for http in (one, another):
            assert (await ask(http, service, key)).headers.get("connection") is None
        _term(service)
        await until(lambda: _draining(service), what="the drain")
        last = await ask(one, service, key)
        assert last.token
        assert last.headers["connection"] == "close"
        ready = await another.get(f"{service.url}/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "draining")
        assert ready.headers["connection"] == "close"
        assert await _ended(service) == 0


def _draining(service: Service) -> bool:
    """Return whether a new connection is told to go away already."""
    with httpx.Client() as http:
        return http.get(f"{service.url}/livez").headers.get("connection") == "close"


async def test_a_second_signal_ends_it_sooner(world: World) -> None:
    """The request that runs is answered that it was cut short; counts are written all the same."""
    service = world.service()
    key = await world.quick_key("acme/*")
    await settled(world)
    held = threading.Event()
    async with callers() as http:
        assert (await ask(http, service, key, "acme/gadgets")).token
        world.github.faults.add(Fault(route="mint", times=1, hold=held))
        asked = asyncio.create_task(ask(http, service, key))
        await until(lambda: world.github.count("mint") == 2, what="the mint")
        _term(service)
        await asyncio.sleep(0.5)
        assert service.process is not None
        assert service.process.poll() is None
        begin = time.monotonic()
        _term(service)
        told = await asked
        assert (told.status, told.body["code"]) == (504, "github_unavailable")
        assert told.headers["connection"] == "close"
        assert await _ended(service) == 128 + signal.SIGTERM
        assert time.monotonic() - begin < 10
    held.set()
    assert (await _left(world, key))[0] is not None
    assert "Traceback" not in service.log()


@pytest.mark.slow
async def test_a_hanging_github_does_not_hold_it_up_for_longer_than_30_s(world: World) -> None:
    """The caller is told before the connection closes, and what can be written is written."""
    service = world.service(BROKER_WORKERS="2", BROKER_REQUEST_TIMEOUT="60")
    key = await world.quick_key("acme/*")
    await settled(world, 2)
    held = threading.Event()
    world.github.faults.add(Fault(route="mint", hold=held))
    async with callers(timeout_s=60) as http:
        asked = asyncio.create_task(ask(http, service, key))
        await until(lambda: world.github.count("mint") >= 1, what="the mint")
        begin = time.monotonic()
        _term(service)
        told = await asked
        assert (told.status, told.body["code"]) == (504, "github_unavailable")
        await _ended(service)
        assert time.monotonic() - begin < 30
    held.set()
    assert (await _left(world, key))[0] is not None


@pytest.mark.parametrize("kind", ["redis", pytest.param("sqlite", marks=pytest.mark.slow)])
async def test_a_hanging_store_does_not_hold_it_up(world: World, tmp_path: Path, kind: str) -> None:
    """Counts are lost then, which the log tells, and the status is no success's."""
    server = RedisServer(tmp_path / "redis")
    if kind == "redis":
        server.start()
        world.store_url = server.url
    try:
        service = world.service()
        key = await world.quick_key("acme/*")
        async with callers() as http:
            for _ in range(2):
                assert (await ask(http, service, key)).token
        locked = sqlite3.connect(tmp_path / "broker.db", isolation_level=None)
        if kind == "redis":
            server.pause()
        else:
            locked.execute("BEGIN IMMEDIATE")
        begin = time.monotonic()
        _term(service)
        status = await _ended(service)
        assert time.monotonic() - begin < 30
        locked.close()
        assert status == 1
        assert "writing counts did not end in time" in service.log() or "are lost" in service.log()
    finally:
        server.stop()


@pytest.mark.slow
def test_a_process_that_hangs_altogether_ends_itself(world: World) -> None:
    """Its log is a pipe that nobody reads: the event loop hangs in a write, and drains nothing."""
    service = world.service(start=False)
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    service.process = subprocess.Popen(
        [str(SCRIPTS / "broker"), "serve"],
        env={**service.environment, "BROKER_PORT": str(service.port)},
        cwd=service.folder,
        stdout=subprocess.DEVNULL,
        stderr=writing,
        start_new_session=True,
    )
    os.close(writing)
    service.wait_ready()
    with contextlib.suppress(httpx.TransportError), httpx.Client(timeout=1) as http:
        for _ in range(1000):  # each is a line on the log, until the pipe is full
            http.get(f"{service.url}/v1/whoami", headers=bearer("x" * 100))
        pytest.fail("the log did not get stuck")
    begin = time.monotonic()
    _term(service)
    assert service.process.wait(40) == 1
    assert time.monotonic() - begin < 35
    os.close(reading)


@pytest.mark.slow
async def test_workers_that_die_are_replaced_and_end_with_their_parent(world: World) -> None:
    service = world.service(BROKER_WORKERS="2")
    assert service.process is not None

    def workers() -> set[int]:
        listed = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text()  # type: ignore[union-attr]
        pids = set(map(int, listed.split()))
        return {pid for pid in pids if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()}

    first = workers()
    assert len(first) == 2
    os.kill(first.pop(), signal.SIGKILL)
    await until(lambda: len(workers() - first) == 1, what="another worker")
    service.wait_ready()
    left = workers()
    os.kill(service.process.pid, signal.SIGKILL)
    service.process.wait(10)
    await until(
        lambda: not any(Path(f"/proc/{pid}").exists() and _alive(pid) for pid in left),
        seconds=30,
        what="the end of orphaned workers",
    )


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
async def test_a_second_signal_reaches_the_workers(world: World) -> None:
    service = world.service(BROKER_WORKERS="2")
    key = await world.quick_key("acme/*")
    await settled(world, 2)
    held = threading.Event()
    world.github.faults.add(Fault(route="mint", times=1, hold=held))
    async with callers() as http:
        asked = asyncio.create_task(ask(http, service, key))
        await until(lambda: world.github.count("mint") == 1, what="the mint")
        service.signal(signal.SIGTERM)  # to the whole group, as systemd does
        await asyncio.sleep(1.5)
        assert service.process is not None
        assert service.process.poll() is None
        _term(service)
        told = await asked
        assert (told.status, told.body["code"]) == (504, "github_unavailable")
        assert await _ended(service, seconds=10) == 128 + signal.SIGTERM
    held.set()
    assert "Traceback" not in service.log()
