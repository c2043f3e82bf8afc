"""A store that fails under a real service: 503 in time, nobody let in, nothing lost (rule 7)."""

import asyncio
import contextlib
import ctypes
import os
import resource
import shutil
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from e2e_callers import Told, ask, callers
from e2e_relay import Relay
from harness import Service, World, bearer
from servers import RedisServer, certificate, free_port, running
from servers import until as until_now

from broker.access.keys import generate

OK, AWAY, ENDED = (200, "ok"), (503, "store_unavailable"), (401, "invalid_api_key")
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
NOTICED_S = 12.0
"""Generous for a busy machine: the product needs 3 s at most, where a Redis takes reads but no writes."""
RECOVERED_S = 15.0


@dataclass
class Outage:
    """A service, its callers, and what was acknowledged to them."""

    world: World
    service: Service
    http: httpx.AsyncClient
    admin: str
    key: str
    made: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    @classmethod
    @asynccontextmanager
    async def of(cls, world: World, service: Service, admin: str) -> AsyncIterator["Outage"]:
        async with callers() as http:
            one = cls(world, service, http, admin, "")
            one.key = (await one.make()) or ""
            assert one.key
            assert verdict(await one.ask(one.key)) == OK
            yield one

    async def ask(self, key: str, *repositories: str) -> Told:
        return await ask(self.http, self.service, key, *repositories)

    async def make(self) -> str | None:
        """Make a key; None if that was not acknowledged."""
        body = {"name": "made", "repositories": ["acme/*"]}
        url = f"{self.service.url}/v1/admin/keys"
        answer = await self.http.post(url, json=body, headers=bearer(self.admin))
        if answer.status_code != 201:
            assert answer.status_code == 503, answer.text
            return None
        key = str(answer.json()["key"])
        self.made.append(key)
        return key

    async def end(self, key: str) -> None:
        url = f"{self.service.url}/v1/admin/keys/{key.split('_')[1]}"
        answer = await self.http.delete(url, headers=bearer(self.admin))
        assert answer.status_code == 200, answer.text
        self.made.remove(key)
        self.ended.append(key)

    async def store(self) -> str:
        """Return what ``/readyz`` says of the store; it stays 200."""
        ready = await self.http.get(f"{self.service.url}/readyz")
        assert ready.status_code == 200
        return str(ready.json()["checks"]["store"])

    async def check(self, told: Told, allowed: set[tuple[int, str]]) -> None:
        assert verdict(told) in allowed, told.body
        assert told.took_s < 6, told.took_s
        if told.status == 503:
            assert int(told.headers["retry-after"]) >= 1

    async def goes_away(self, *, told: str) -> None:
        """Everybody gets 503 before long, and goes on getting it."""
        end = time.monotonic() + NOTICED_S
        while True:
            answer = await self.ask(self.key)
            await self.check(answer, {OK, AWAY})
            if answer.status == 503:
                break
            assert time.monotonic() < end, "still served"
            await asyncio.sleep(0.1)
        strangers = generate()[0].reveal()
        for key in (self.key, self.admin, strangers, *self.ended[-1:]):
            await self.check(await self.ask(key), {AWAY})
        assert await self.make() is None
        await self.says(told)

    async def is_read_only(self) -> None:
        """What is warm is served; what has to be written is 503; what was revoked stays so."""
        for _ in range(5):
            await self.check(await self.ask(self.key), {OK})
            await asyncio.sleep(0.3)
        await self.check(await self.ask(self.key, "acme/gadgets"), {AWAY})
        assert await self.make() is None
        assert verdict(await self.ask(self.ended[-1])) == ENDED
        await self.says("read only")

    async def says(self, told: str) -> None:
        end = time.monotonic() + NOTICED_S
        while await self.store() != told:
            assert time.monotonic() < end, await self.store()
            await asyncio.sleep(0.1)

    async def comes_back(self) -> float:
        """Serve again by itself, with all that was acknowledged; return the seconds that it took."""
        begin = time.monotonic()
        while True:
            answer = await self.ask(self.key)
            await self.check(answer, {OK, AWAY})
            if answer.status == 200 and await self.store() == "ok":
                break
            assert time.monotonic() - begin < RECOVERED_S, "it did not recover"
            await asyncio.sleep(0.1)
        took_s = time.monotonic() - begin
        for key in self.made:
            assert verdict(await self.ask(key)) == OK
        for key in self.ended:
            assert verdict(await self.ask(key)) == ENDED
        assert verdict(await self.ask(self.admin)) != ENDED
        return took_s


def verdict(told: Told) -> tuple[int, str]:
    return told.status, str(told.body.get("code", "ok"))


def prepared(world: World) -> tuple[str, dict[str, str]]:
    admin = generate()[0].reveal()
    world.github.rate_limit = None
    return admin, {"BROKER_ADMIN_KEY": admin, "BROKER_MINT_BUDGET": "10000"}


# -- Redis ---------------------------------------------------------------------------------------


@dataclass
class Bench:
    """A Redis behind a relay with TLS."""

    server: RedisServer
    relay: Relay
    good: tuple[Path, Path]
    other: tuple[Path, Path]
    expired: tuple[Path, Path]

    def config(self, **values: str) -> None:
        for name, value in values.items():
            self.server.ask("CONFIG", "SET", name.replace("_", "-"), value)

    @asynccontextmanager
    async def killed(self) -> AsyncIterator[None]:
        self.server.kill()
        yield
        await asyncio.to_thread(self.server.start)

    @asynccontextmanager
    async def frozen(self) -> AsyncIterator[None]:
        self.server.pause()
        yield
        self.server.resume()

    @asynccontextmanager
    async def slow(self) -> AsyncIterator[None]:
        self.relay.delay_s = 3.0
        yield
        self.relay.delay_s = 0.0

    @asynccontextmanager
    async def demoted(self) -> AsyncIterator[None]:
        self.server.ask("REPLICAOF", "127.0.0.1", str(free_port()))
        yield
        self.server.ask("REPLICAOF", "NO", "ONE")

    @asynccontextmanager
    async def cut_off(self) -> AsyncIterator[None]:
        self.config(min_replicas_to_write="1")
        yield
        self.config(min_replicas_to_write="0")

    @asynccontextmanager
    async def full(self) -> AsyncIterator[None]:
        self.config(maxmemory="1")
        yield
        self.config(maxmemory="0")

    @asynccontextmanager
    async def other_password(self) -> AsyncIterator[None]:
        self.config(requirepass="changed")
        self.server.password = "changed"
        self.server.ask("CLIENT", "KILL", "TYPE", "normal")
        yield
        self.config(requirepass="first")
        self.server.password = "first"

    @asynccontextmanager
    async def other_certificate(self) -> AsyncIterator[None]:
        self.relay.show(self.other)
        self.relay.cut()
        yield
        self.relay.show(self.good)

    @asynccontextmanager
    async def expired_certificate(self) -> AsyncIterator[None]:
        self.relay.show(self.expired)
        self.relay.cut()
        yield
        self.relay.show(self.good)


AWAY_IN: dict[str, Callable[[Bench], AbstractAsyncContextManager[None]]] = {
    "killed, restarted with its data": Bench.killed,
    "frozen": Bench.frozen,
    "slow": Bench.slow,
    "demoted to a replica": Bench.demoted,
    "cut off from its replicas": Bench.cut_off,
    "its password changed": Bench.other_password,
    "another certificate": Bench.other_certificate,
    "its certificate expired": Bench.expired_certificate,
}


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_redis_in_every_kind_of_trouble(world: World, tmp_path: Path) -> None:
    """One service lives through all of it; it is never restarted."""
    good, other = [certificate(made_in(tmp_path / name)) for name in ("good", "other")]
    expired = certificate(made_in(tmp_path / "expired"), expired=good)
    admin, environment = prepared(world)
    server = RedisServer(tmp_path / "redis", persistent=True, password="first")
    with running(server):
        async with Relay(server.port, certificate=good).running() as relay:
            world.store_url = f"rediss://:first@127.0.0.1:{relay.port}?ssl_ca_certs={good[0]}"
            service = await asyncio.to_thread(lambda: world.service(**environment))
            bench = Bench(server, relay, good, other, expired)
            async with Outage.of(world, service, admin) as outage:
                for name, fault in AWAY_IN.items():
                    outage.ended.clear()
                    await outage.end((await outage.make()) or "")
                    async with fault(bench):
                        await outage.goes_away(told="down")
                    print(f"{name}: back after {await outage.comes_back():.1f} s")
                await outage.end((await outage.make()) or "")
                async with bench.full():
                    await outage.is_read_only()
                print(f"full: back after {await outage.comes_back():.1f} s")
        assert "Traceback" not in service.log()
        assert "first@" not in service.log()
        assert "certificate has expired" in service.log()


def made_in(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.slow
async def test_a_redis_that_comes_back_empty_serves_nobody_until_it_is_adopted(
    world: World, tmp_path: Path
) -> None:
    admin, environment = prepared(world)
    with running(RedisServer(tmp_path / "redis")) as server:  # keeps nothing
        world.store_url = server.url
        service = await asyncio.to_thread(lambda: world.service(**environment))
        async with Outage.of(world, service, admin) as outage:
            server.kill()
            await asyncio.to_thread(server.start)
            await outage.goes_away(told="lost")
            await asyncio.sleep(2)
            await outage.goes_away(told="lost")
            done = await asyncio.to_thread(world.command, "store", "adopt", "--begin-anew", "--yes")
            assert done.returncode == 0, done.stderr
            end = time.monotonic() + RECOVERED_S
            while verdict(await outage.ask(outage.key)) != ENDED:
                assert time.monotonic() < end
                await asyncio.sleep(0.1)
            key = await outage.make()
            assert key
            assert verdict(await outage.ask(key)) == OK


@pytest.mark.slow
async def test_wrong_password_at_the_start(world: World, tmp_path: Path) -> None:
    admin, environment = prepared(world)
    with running(RedisServer(tmp_path / "redis", password="right")) as server:
        world.store_url = f"redis://:wrong@127.0.0.1:{server.port}"
        service = world.service(start=False, **environment).start(wait=False)
        await asyncio.to_thread(service.wait_ready, path="/livez")
        async with callers() as http:
            for key in (admin, generate()[0].reveal()):
                assert verdict(await ask(http, service, key)) == AWAY
            ready = await http.get(f"{service.url}/readyz")
            assert (ready.status_code, ready.json()["checks"]["store"]) == (503, "down")
            server.ask("CONFIG", "SET", "requirepass", "wrong")
            await asyncio.to_thread(service.wait_ready, seconds=RECOVERED_S)
        assert "right" not in service.log()


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_failover_that_loses_a_revocation_is_mended(world: World, tmp_path: Path) -> None:
    """Sentinel promotes a replica that never heard of it: nobody is let in, and it is written again."""
    admin, environment = prepared(world)
    one = RedisServer(tmp_path / "one")
    with running(one):
        async with Relay(one.port).running() as relay:
            two = RedisServer(tmp_path / "two", replica_of=relay.port)
            sentinel = RedisServer(tmp_path / "sentinel", sentinel_of=("main", relay.port))
            with running(two):
                await asyncio.to_thread(
                    until_now, lambda: b"master_link_status:up" in two.ask("INFO", "replication"), seconds=30
                )
                with contextlib.ExitStack() as stack:
                    await asyncio.to_thread(stack.enter_context, running(sentinel))
                    world.store_url = f"redis+sentinel://127.0.0.1:{sentinel.port}/main?wait=0"
                    service = await asyncio.to_thread(lambda: world.service(**environment))
                    async with Outage.of(world, service, admin) as outage:
                        victim = await outage.make() or ""
                        assert verdict(await outage.ask(victim)) == OK
                        await asyncio.to_thread(until_now, lambda: in_step(one, two), seconds=30)
                        await asyncio.to_thread(until_now, lambda: knows_replica(sentinel), seconds=30)
                        relay.deaf = True
                        await outage.end(victim)
                        made = await outage.make() or ""
                        one.kill()
                        relay.cut()
                        end = time.monotonic() + 60
                        while True:
                            found = verdict(await outage.ask(victim)), verdict(await outage.ask(made))
                            assert found[0] in {ENDED, AWAY}
                            assert found[1] in {OK, AWAY}
                            if found == (ENDED, OK):
                                break
                            assert time.monotonic() < end, "no failover"
                            await asyncio.sleep(0.1)
                        await outage.comes_back()
                        assert b"role:master" in two.ask("INFO", "replication")
                    assert "written again" in service.log()


def in_step(one: RedisServer, two: RedisServer) -> bool:
    """Whether the replica has all that the primary has."""
    offsets = []
    for server, name in ((one, "master_repl_offset"), (two, "slave_repl_offset")):
        info = server.ask("INFO", "replication").decode()
        offsets.append(info.partition(f"\r\n{name}:")[2].partition("\r\n")[0])
    return offsets[0] == offsets[1]


def knows_replica(sentinel: RedisServer) -> bool:
    found = sentinel.ask("SENTINEL", "REPLICAS", "main")
    return b"flags" in found and b"s_down" not in found and b"disconnected" not in found


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_slot_that_moves_under_load(world: World, tmp_path: Path) -> None:
    """MOVED, ASK and TRYAGAIN: answers are right or 503, and it goes on at the other node."""
    admin, environment = prepared(world)
    with running(RedisServer(tmp_path / "one", cluster=True)) as one:
        two = RedisServer(tmp_path / "two", cluster=True)
        slot = one.ask("CLUSTER", "KEYSLOT", "{ghtb:0}").strip()[1:].decode()
        with running(two, form_cluster=False):
            two.ask("CLUSTER", "MEET", "127.0.0.1", str(one.port), str(one.bus_port))
            world.store_url = f"{one.url}?wait=0"
            service = await asyncio.to_thread(lambda: world.service(**environment))
            async with Outage.of(world, service, admin) as outage:
                await outage.end((await outage.make()) or "")
                await asyncio.to_thread(until_now, lambda: b"cluster_state:ok" in two.ask("CLUSTER", "INFO"))
                ids = {server: server.ask("CLUSTER", "MYID").split(b"\r\n")[1] for server in (one, two)}
                stopping, seen = asyncio.Event(), []

                async def load() -> None:
                    while not stopping.is_set():
                        told = await outage.ask(outage.key)
                        await outage.check(told, {OK, AWAY})
                        seen.append(told.status)
                        assert verdict(await outage.ask(outage.ended[-1])) in {ENDED, AWAY}
                        await outage.make()

                loading = asyncio.create_task(load())
                await asyncio.sleep(0.5)
                two.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[one])
                one.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[two])
                while names := [
                    name
                    for name in one.ask("CLUSTER", "GETKEYSINSLOT", slot, "5").split(b"\r\n")[2::2]
                    if name
                ]:
                    await asyncio.to_thread(
                        one.ask, "MIGRATE", "127.0.0.1", str(two.port), "", "0", "5000", "KEYS", *names
                    )
                    await asyncio.sleep(0.2)
                for server in (two, one):
                    server.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[two])
                await asyncio.sleep(0.5)
                stopping.set()
                await loading
                await outage.comes_back()
                assert 200 in seen
                assert b"0" in one.ask("CLUSTER", "COUNTKEYSINSLOT", slot)
                assert len(outage.made) > 2


def in_slot(server: RedisServer, slot: str) -> list[bytes]:
    found = server.ask("CLUSTER", "GETKEYSINSLOT", slot, "5").split(b"\r\n")[2::2]
    return [name for name in found if name]


# -- SQLite --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_sqlite_in_every_kind_of_trouble(world: World) -> None:
    """Disk full, locked by another process, taken away and put back, replaced by another file."""
    admin, environment = prepared(world)
    service = await asyncio.to_thread(lambda: world.service(**environment))
    path = world.folder / "broker.db"
    async with Outage.of(world, service, admin) as outage:
        await outage.end((await outage.make()) or "")
        async with disk_full(service):
            await outage.is_read_only()
        await outage.comes_back()

        await outage.end((await outage.make()) or "")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        await outage.is_read_only()
        other.execute("ROLLBACK")
        other.close()
        await outage.comes_back()

        await outage.end((await outage.make()) or "")
        aside = made_in(world.folder / "aside")
        names = [f"broker.db{end}" for end in ("", "-wal", "-shm")]
        for name in names:
            shutil.move(path.with_name(name), aside / name)
        await outage.goes_away(told="down")
        path.write_bytes(b"no database at all" * 1000)
        await outage.goes_away(told="down")
        path.unlink()
        path.touch()
        await outage.goes_away(told="lost")
        for name in names:
            path.with_name(name).unlink(missing_ok=True)
        for name in names:
            shutil.move(aside / name, path.with_name(name))
        await outage.comes_back()
    assert "Traceback" not in service.log()


@asynccontextmanager
async def disk_full(service: Service) -> AsyncIterator[None]:
    """Let the process write no page of any file, nor a line of its log."""
    assert service.process is not None
    soft, hard = resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (soft, hard))


def start_bound_by_permissions(service: Service) -> None:
    """Start a service that may not override permissions, though it may run as root."""

    def start() -> None:
        if os.geteuid() == 0:  # the bounding set is the thread's own, and its child's
            for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
                assert ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0
        service.start(wait=False)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()


async def test_sqlite_in_a_folder_that_cannot_be_written(world: World) -> None:
    """The service starts, answers 503, and serves when the folder has been mended."""
    folder = made_in(world.folder / "data")
    world.store_url = f"sqlite:///{folder / 'broker.db'}"
    admin, environment = prepared(world)
    folder.chmod(0o500)
    service = world.service(start=False, **environment)
    start_bound_by_permissions(service)
    try:
        await asyncio.to_thread(service.wait_ready, path="/livez")
        async with callers() as http:
            for key in (admin, generate()[0].reveal()):
                told = await ask(http, service, key)
                assert verdict(told) == AWAY
                assert int(told.headers["retry-after"]) >= 1
            folder.chmod(0o700)
            await asyncio.to_thread(service.wait_ready, seconds=RECOVERED_S)
            assert verdict(await ask(http, service, generate()[0].reveal())) == ENDED
    finally:
        folder.chmod(0o700)
