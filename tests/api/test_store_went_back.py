"""An older copy, another store or half of one under running brokers: mended from memory, or adopted."""

import asyncio
import contextlib
import logging
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import redis
from admin_stage import AdminStage, key_id
from harness import Inside, World
from servers import RedisServer
from stage import database, events, pair, until, verdict, wrap_backend

from broker.build import build_backend, build_keks
from broker.errors import StoreLostError, StoreUnavailableError
from broker.store.adopting import Survey, adopt, survey

OK, AWAY, UNKNOWN = (200, "ok"), (503, "store_unavailable"), (401, "invalid_api_key")
FORBIDDEN, BLOCKED = (403, "forbidden"), (403, "blocked")


class Raw:
    """The store as somebody has it who can copy, restore and change it, without any key."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._copies: dict[str, Any] = {}
        self._redis: Any = None
        if world.store_url.startswith("redis"):
            address, _, prefix = world.store_url.partition("?prefix=")
            self._redis = redis.Redis.from_url(address)
            self._tag = f"{{ghtb:{prefix}}}:"

    def close(self) -> None:
        if self._redis is not None:
            self._redis.close()

    def _names(self) -> list[bytes]:
        return list(self._redis.scan_iter(f"{self._tag}*", count=1000))

    def copy(self, name: str) -> None:
        if self._redis is not None:
            self._copies[name] = {one: self._redis.dump(one) for one in self._names()}
            return
        source, target = database(self._world), sqlite3.connect(self._file(name))
        source.backup(target)
        source.close()
        target.close()

    def _file(self, name: str) -> Path:
        return self._world.folder / f"{name}.copy"

    def restore(self, name: str | None) -> None:
        """Put a copy back; None: nothing at all."""
        if self._redis is not None:
            with self._redis.pipeline(transaction=True) as step:
                for one in self._names():
                    step.delete(one)
                for one, dump in (self._copies[name] if name else {}).items():
                    if dump is not None:
                        step.restore(one, 0, dump)
                step.execute()
            return
        for end in ("", "-wal", "-shm"):
            (self._world.folder / f"broker.db{end}").unlink(missing_ok=True)
        if name:
            shutil.copy(self._file(name), self._world.folder / "broker.db")

    def state(self, field: str) -> bytes | None:
        if self._redis is not None:
            found: bytes | None = self._redis.hget(f"{self._tag}S", field)
            return found
        db = database(self._world)
        row = db.execute("SELECT value FROM state WHERE name = ?", (field,)).fetchone()
        db.close()
        return row[0] if row else None

    def put(self, field: str, value: bytes) -> None:
        if self._redis is not None:
            self._redis.hset(f"{self._tag}S", field, value)
            return
        db = database(self._world)
        db.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (field, value))
        db.close()

    def lose(self, *parts: str) -> None:
        """Lose ``S``, its ``id``, ``K`` or its ``!``."""
        if self._redis is not None:
            for part in parts:
                name, _, field = part.partition(".")
                if field:
                    self._redis.hdel(self._tag + name, field)
                else:
                    self._redis.delete(self._tag + name)
            return
        db = database(self._world)
        for part in parts:
            for statement in {
                "S": ("DELETE FROM state",),
                "K": ("DELETE FROM key_state", "DELETE FROM keys"),
                "S.id": ("DELETE FROM state WHERE name = 'id'",),
                "K.!": ("DELETE FROM key_state WHERE name = '!'",),
            }[part]:
                db.execute(statement)
        db.close()


@pytest.fixture
def raw(any_world: World) -> Any:
    found = Raw(any_world)
    yield found
    found.close()


async def adopted(world: World, **options: Any) -> Survey:
    """Do what ``broker store adopt`` does."""
    settings = world.settings()
    backend, keks = build_backend(settings), build_keks(settings)
    try:
        await backend.connect()
        seen = await survey(backend, keks, **options)
        await adopt(backend, keks, seen)
        return seen
    finally:
        await backend.close()


async def answers(app: Inside, key: str, *repositories: str) -> tuple[int, str]:
    return verdict(await app.token(key, *(repositories or ("acme/widgets",))))


async def stays_away(app: Inside, key: str) -> None:
    """Whoever asks gets 503, however often the process looks again."""
    for _ in range(4):
        assert await answers(app, key) == AWAY
        await asyncio.sleep(0.4)


async def serves(app: Inside, key: str, wanted: tuple[int, str] = OK) -> None:
    async def so() -> bool:
        return await answers(app, key) == wanted

    await until(so, seconds=10)


async def test_what_was_acknowledged_is_written_again(
    any_world: World, raw: Raw, caplog: pytest.LogCaptureFixture
) -> None:
    """A failover, or a copy of some minutes ago: what two replicas acknowledged since is there again."""
    async with pair(any_world) as (one, two):
        first, second = await AdminStage.of(any_world, one), await AdminStage.of(any_world, two)
        ended, narrowed, bystander = [await one.key("acme/*") for _ in range(3)]
        for key in (ended, narrowed, bystander):
            assert await answers(one, key) == OK
        await second.call("PUT", "/blocks/acme/old", json={"reason": "before"})
        raw.copy("older")

        assert (await first.call("DELETE", f"/keys/{key_id(ended)}?tokens=revoke")).status_code == 200
        assert (await first.call("PUT", "/blocks/acme/gadgets", json={"reason": "drill"})).status_code == 200
        made = await second.made("acme/*")
        change = {"repositories": ["acme/gadgets"]}
        assert (await second.call("PATCH", f"/keys/{key_id(narrowed)}", json=change)).status_code == 200
        assert (await second.call("DELETE", "/blocks/acme/old")).status_code == 204
        assert await answers(two, made["key"]) == OK

        raw.restore("older")

        async def one_look(app: Inside) -> list[tuple[int, str]]:
            found = [
                await answers(app, ended),
                await answers(app, bystander, "acme/gadgets"),
                await answers(app, narrowed),
                await answers(app, made["key"]),
            ]
            # Never the older truth: what was forbidden stays forbidden, and what was made is not denied.
            assert found[0] in {UNKNOWN, AWAY}
            assert found[1] in {BLOCKED, AWAY}
            assert found[2] in {FORBIDDEN, AWAY}
            assert found[3] in {OK, AWAY}
            return found

        mended = [UNKNOWN, BLOCKED, FORBIDDEN, OK]

        async def both() -> bool:
            return [await one_look(one), await one_look(two)] == [mended, mended]

        await until(both, seconds=15)
        blocks = (await first.call("GET", "/blocks")).json()["blocks"]
        assert [block["repository"] for block in blocks] == ["acme/gadgets"]
        told = [event for event in await events(one, "key.revoked") if event["key_id"] == key_id(ended)]
        assert "written again" in str(told[-1]["reason"])

        async def listed_again() -> bool:
            return bool(await events(one, "token.revoked"))

        await until(listed_again, seconds=15)
    alarms = [one for one in caplog.records if one.levelno >= logging.CRITICAL]
    assert any("written again" in alarm.message for alarm in alarms)


@pytest.mark.parametrize("narrows", ["revoke", "change"])
async def test_a_repeat_of_what_was_not_confirmed_is_a_decision_of_its_own(
    any_world: World, raw: Raw, narrows: str
) -> None:
    """503 (no replica has it), repeated, 2xx, and then a failover to a replica that never had it."""
    async with pair(any_world) as (one, two):
        stage = await AdminStage.of(any_world, one)
        key = await one.key("acme/*")
        for app in (one, two):
            assert await answers(app, key) == OK
        raw.copy("older")
        written = 0
        inner = one.broker.store._backend

        async def unconfirmed(args: Any) -> Any:
            nonlocal written
            reply = await inner.write_key(args)
            written += 1
            if written == 1:
                raise StoreUnavailableError("1 replicas must confirm a decision; WAIT said 0")
            return reply

        wrap_backend(one, write_key=unconfirmed)
        path = f"/keys/{key_id(key)}"

        async def decide() -> int:
            if narrows == "revoke":
                return (await stage.call("DELETE", path)).status_code
            return (await stage.call("PATCH", path, json={"repositories": ["acme/other"]})).status_code

        assert [await decide(), await decide()] == [503, 200]
        one.broker.store._backend = inner
        raw.restore("older")
        for app in (one, two):
            await serves(app, key, UNKNOWN if narrows == "revoke" else FORBIDDEN)


@pytest.mark.slow
async def test_who_mends_waits_for_what_others_acknowledged(
    any_world: World, raw: Raw, caplog: pytest.LogCaptureFixture
) -> None:
    async with pair(any_world) as (one, two):
        first, second = await AdminStage.of(any_world, one), await AdminStage.of(any_world, two)
        key = await one.key("acme/*")
        assert await answers(one, key) == OK
        raw.copy("older")
        assert (await first.call("PUT", "/blocks/acme/gadgets", json={"reason": "drill"})).status_code == 200
        assert (await second.call("DELETE", f"/keys/{key_id(key)}")).status_code == 200
        heal = two.broker.store._heal
        assert heal is not None
        heal.cancel()  # this one is late
        raw.restore("older")

        async def mended() -> bool:
            assert await answers(one, key) == AWAY
            return "written again" in caplog.text

        await until(mended, seconds=10)
        for _ in range(10):
            assert await answers(one, key) == AWAY
            await asyncio.sleep(0.1)

        async def two_looked() -> bool:
            with contextlib.suppress(StoreLostError):
                await two.broker.store.find_key(key_id(key))
                return True
            return False

        await until(two_looked, seconds=10)
        await serves(one, key, UNKNOWN)


async def test_an_old_backup_serves_nobody_until_it_is_adopted(
    any_world: World, raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More is gone than any process remembers: what was revoked since would live again."""
    monkeypatch.setattr("broker.store.memory.REMEMBERED_S", 0.5)
    monkeypatch.setattr("broker.store.sealed._OTHERS_MEND_S", 0.0)  # else that alone would keep it away
    async with any_world.inside() as app:
        stage = await AdminStage.of(any_world, app)
        ended, kept = await app.key("acme/*"), await app.key("acme/*")
        raw.copy("old")
        await stage.call("DELETE", f"/keys/{key_id(ended)}")
        await asyncio.sleep(0.8)
        await app.key("acme/*")
        raw.restore("old")
        await stays_away(app, kept)
        await adopted(any_world)
        await serves(app, kept)
        assert await answers(app, ended) == OK  # the operator was told, and said yes
        raw.copy("with adoption")
        await asyncio.sleep(0.8)
        await stage.call("DELETE", f"/keys/{key_id(ended)}")
        await asyncio.sleep(0.8)
        await app.key("acme/*")
        # The word of an operator counts once: an old copy that holds it is an old copy.
        raw.restore("with adoption")
        await stays_away(app, ended)


@pytest.mark.slow
async def test_another_store_is_taken_when_it_is_adopted(any_world: World, raw: Raw) -> None:
    async with any_world.inside() as app:
        key = await app.key("acme/*")
        raw.copy("ours")
        adoption = {}
        await adopted(any_world)
        for kek in build_keks(any_world.settings()):
            adoption[kek.adoption] = raw.state(kek.adoption)
        raw.restore(None)
        async with any_world.inside() as other:
            theirs = await other.key("acme/*")
        await stays_away(app, key)
        for field, value in adoption.items():  # somebody who can write, but has no key, tries ours in it
            assert value is not None
            raw.put(field, value)
        await stays_away(app, key)
        await adopted(any_world)
        await serves(app, theirs)
        assert await answers(app, key) == UNKNOWN


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost", "named"),
    [(("K.!",), False), (("S.id",), False), (("S",), False), (("S.id", "K.!"), True)],
    ids=["mark of the keys", "id", "state", "both identities"],
)
async def test_what_is_left_of_a_store_is_mended(
    any_world: World, raw: Raw, lost: tuple[str, ...], named: bool
) -> None:
    async with any_world.inside() as app:
        stage = await AdminStage.of(any_world, app)
        key = await app.key("acme/*")
        token = (await app.token(key, "acme/widgets")).json()["token"]
        await stage.call("PUT", "/blocks/acme/gadgets", json={"reason": "drill"})
        store_id = raw.state("id")
        raw.lose(*lost)
        await stays_away(app, key)
        if named:
            with pytest.raises(StoreLostError, match="--store-id"):
                await adopted(any_world)
            with pytest.raises(StoreLostError, match="no configured key opens"):
                await adopted(any_world, store_id=b"0" * 32)
        seen = await adopted(any_world, store_id=store_id if named else None)
        assert (seen.keys, seen.state_lost) == (2, lost == ("S",))
        await serves(app, key)
        # A block is in the state only; this process remembers it, as it set it a moment ago.
        assert await answers(app, key, "acme/gadgets") == BLOCKED
        if lost == ("S",):
            await until(lambda: any_world.github.tokens[token].revoked, seconds=15)
        made = await stage.made("acme/*")
        assert await answers(app, made["key"]) == OK


@pytest.mark.slow
async def test_keys_that_are_gone_are_gone_when_an_operator_says_so(any_world: World, raw: Raw) -> None:
    async with any_world.inside() as app:
        key = await app.key("acme/*")
        raw.lose("K")
        await stays_away(app, key)
        seen = await adopted(any_world)
        assert seen.keys == 0
        assert any("401" in line for line in seen.tell())
        await serves(app, key, UNKNOWN)
        assert await answers(app, await app.key("acme/*")) == OK


@pytest.mark.slow
async def test_parts_of_two_stores_are_not_mended(any_world: World, raw: Raw) -> None:
    async with any_world.inside() as app:
        await app.key("acme/*")
        raw.put("id", b"f" * 32)
        with pytest.raises(StoreLostError, match="different stores"):
            await adopted(any_world)


def test_the_command(world: World) -> None:
    """What the operator sees; an empty store is begun anew only if that is asked for."""
    refused = world.command("store", "adopt", "--yes")
    assert refused.returncode == 1
    assert "--begin-anew" in refused.stderr
    done = world.command("store", "adopt", "--yes", "--begin-anew")
    assert done.returncode == 0, done.stderr
    assert "is adopted" in done.stderr
    assert done.stdout == ""


async def test_a_store_that_may_forget_is_told_at_the_start(
    world: World, shared_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    world.store_url = f"{shared_redis.url}?prefix=told-at-the-start"  # a server that keeps nothing
    async with world.inside():
        await until(lambda: "Redis keeps nothing over a restart" in caplog.text, seconds=10)


async def test_a_store_of_a_later_broker_is_left_alone(any_world: World, raw: Raw) -> None:
    async with any_world.inside() as app:
        key = await app.key("acme/*")
    raw.put("schema", b"2")
    raw.copy("later")
    before = raw.state("epoch"), raw.state("data_keys")
    async with any_world.inside() as app:
        assert await answers(app, key) == AWAY
        assert (await app.http.get("/readyz")).status_code == 503
        with pytest.raises(StoreLostError, match="schema 2"):
            await adopted(any_world)
        assert (raw.state("epoch"), raw.state("data_keys")) == before
        raw.put("schema", b"1")
        await serves(app, key)


@pytest.mark.slow
async def test_who_alone_begins_anew(any_world: World, raw: Raw) -> None:
    async with any_world.inside() as app:
        key = await app.key("acme/*")
        raw.restore(None)
        await stays_away(app, key)
        assert (await adopted(any_world)).empty
        await serves(app, key, UNKNOWN)


@pytest.mark.parametrize("noticed", ["epoch", "outage", "adopted"])
async def test_what_a_lost_hand_out_gave_dies_with_its_key(any_world: World, raw: Raw, noticed: str) -> None:
    """A token went to a key a moment before a failover: the register has to learn of it again."""
    async with any_world.inside() as app:
        stage = await AdminStage.of(any_world, app)
        first, key = await app.key("acme/*"), await app.key("acme/*")
        token = await stage.issued(first, "acme/widgets")
        raw.copy("older")
        assert await stage.issued(key, "acme/widgets") == token
        store = app.broker.store
        if noticed == "epoch":  # something else was lost with it
            await stage.call("PUT", "/blocks/acme/gadgets", json={"reason": "drill"})
        raw.restore("older")
        if noticed == "outage":
            store._detach(StoreUnavailableError("the primary is gone"))
        elif noticed == "adopted":
            await adopted(any_world)
            before = store._generation
            await until(lambda: store._generation > before)

        async def served() -> bool:
            return await answers(app, key) == OK

        await until(served, seconds=30)
        if noticed == "epoch":
            await answers(app, key)  # sees it, at the latest now
            await until(served, seconds=30)
        assert await stage.issued(key, "acme/widgets") == token
        answer = await stage.call("DELETE", f"/keys/{key_id(key)}?tokens=revoke")
        assert (answer.status_code, answer.json()["revoked"]) == (200, 1)
        assert not stage.alive(token)
