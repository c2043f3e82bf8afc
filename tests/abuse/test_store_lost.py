"""The store is gone, emptied or another one: 503 for everyone, never 401; it recovers by itself (rule 7)."""

import asyncio
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Inside, World, bearer, unknown_key
from stage import database, until, verdict

from broker.access.keys import generate

OK, AWAY = (200, "ok"), (503, "store_unavailable")


def files(world: World) -> list[Path]:
    return [world.folder / f"broker.db{end}" for end in ("", "-wal", "-shm")]


def empty(*tables: str) -> Callable[[World], None]:
    def do(world: World) -> None:
        db = database(world)
        db.execute("PRAGMA foreign_keys=OFF")
        for table in tables or (
            "state",
            "key_state",
            "keys",
            "tokens",
            "live",
            "handed",
            "owners",
            "names",
            "leases",
        ):
            db.execute(f"DELETE FROM {table}")  # noqa: S608 - constants
        db.close()

    return do


def delete(world: World) -> None:
    for path in files(world):
        path.unlink(missing_ok=True)


def replace_by_fresh(world: World) -> None:
    delete(world)
    world.folder.joinpath("broker.db").touch()


def replace_by_nonsense(world: World) -> None:
    delete(world)
    world.folder.joinpath("broker.db").write_bytes(b"this is no database" * 1000)


def replace_by_folder(world: World) -> None:
    delete(world)
    world.folder.joinpath("broker.db").mkdir()


WAYS: dict[str, Callable[[World], None]] = {
    "all tables": empty(),
    "state": empty("state"),
    "key_state": empty("key_state"),
    "state and keys": empty("state", "key_state", "keys"),
    "deleted": delete,
    "fresh file": replace_by_fresh,
    "no database": replace_by_nonsense,
    "a folder": replace_by_folder,
}


async def answers(app: Inside, key: str, admin: str) -> list[tuple[int, str]]:
    found = [
        await app.token(key, "acme/widgets"),
        await app.token(unknown_key(), "acme/widgets"),
        await app.http.get("/v1/whoami", headers=bearer(key)),
        await app.http.get("/v1/whoami", headers=bearer(admin)),
        await app.http.get("/v1/github/repositories", headers=bearer(key)),
    ]
    for answer in found:
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) >= 1
    return [verdict(answer) for answer in found]


@pytest.mark.parametrize("way", WAYS)
async def test_503_and_never_401(world: World, way: str) -> None:
    admin = generate()[0].reveal()
    async with world.inside(admin_key=admin) as app:
        key = await app.key("acme/*")
        assert verdict(await app.token(key, "acme/widgets")) == OK
        WAYS[way](world)
        world.github.clear_calls()
        for _ in range(3):
            assert set(await answers(app, key, admin)) == {AWAY}
            await asyncio.sleep(0.4)  # the healer has its turn meanwhile: it must not make a new store
        assert world.github.count("mint") == 0
        ready = await app.http.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
        assert (await app.http.get("/livez")).status_code == 200
        if way in {"all tables", "fresh file"}:  # what is empty stays empty: nobody begins anew in it
            db = database(world)
            assert db.execute("SELECT count(*) FROM state").fetchone() == (0,)
            db.close()


@pytest.mark.parametrize("way", ["all tables", "deleted", "fresh file"])
async def test_it_recovers_when_the_store_comes_back(world: World, way: str) -> None:
    admin = generate()[0].reveal()
    async with world.inside(admin_key=admin) as app:
        key = await app.key("acme/*")
        first = (await app.token(key, "acme/widgets")).json()["token"]
        db = database(world)
        copy = sqlite3.connect(world.folder / "copy.db")
        db.backup(copy)
        copy.close()
        db.close()
        WAYS[way](world)
        assert set(await answers(app, key, admin)) == {AWAY}
        delete(world)
        shutil.copy(world.folder / "copy.db", world.folder / "broker.db")

        async def back() -> bool:
            return verdict(await app.token(key, "acme/widgets")) == OK

        await until(back)
        assert (await app.token(key, "acme/widgets")).json()["token"] == first
        assert (await app.http.get("/readyz")).json()["checks"]["store"] == "ok"


async def test_another_brokers_store_is_not_taken_for_ours(world: World) -> None:
    async with world.inside() as app:
        key = await app.key("acme/*")
        ours = world.store_url
        world.store_url = f"sqlite:///{world.folder / 'other.db'}"
        async with world.inside() as second:
            await second.key("acme/*")
        world.store_url = ours
        delete(world)
        shutil.move(world.folder / "other.db", world.folder / "broker.db")
        for _ in range(3):
            assert verdict(await app.token(key, "acme/widgets")) == AWAY
            await asyncio.sleep(0.4)


async def test_an_older_copy_is_noticed(world: World) -> None:
    """An old backup has a smaller epoch: what was revoked since would live again."""
    from broker.issuing.keys import KeyRegister  # noqa: PLC0415

    async with world.inside() as app:
        key, other = await app.key("acme/*"), await app.key("acme/*")
        db = database(world)
        copy = sqlite3.connect(world.folder / "copy.db")
        db.backup(copy)
        copy.close()
        db.close()
        await KeyRegister(app.broker.store).revoke(key[5:17], by="test")
        assert verdict(await app.token(other, "acme/widgets")) == OK
        delete(world)
        shutil.copy(world.folder / "copy.db", world.folder / "broker.db")
        for _ in range(2):
            assert verdict(await app.token(key, "acme/widgets")) == AWAY
            assert verdict(await app.token(other, "acme/widgets")) == AWAY
            await asyncio.sleep(0.4)


async def test_a_store_that_is_away_at_the_start(world: World) -> None:
    """The service starts, says 503, and serves as soon as the store is there."""
    async with world.inside() as app:
        key = await app.key("acme/*")
    aside = world.folder / "aside"
    aside.mkdir()
    for path in files(world):
        if path.exists():
            shutil.move(path, aside / path.name)
    (world.folder / "broker.db").mkdir()
    async with world.inside() as app:
        assert verdict(await app.token(key, "acme/widgets")) == AWAY
        assert (await app.http.get("/readyz")).status_code == 503
        assert (await app.http.get("/livez")).status_code == 200
        (world.folder / "broker.db").rmdir()
        for path in aside.iterdir():
            shutil.move(path, world.folder / path.name)

        async def back() -> bool:
            return verdict(await app.token(key, "acme/widgets")) == OK

        await until(back)
        assert (await app.http.get("/readyz")).status_code == 200
