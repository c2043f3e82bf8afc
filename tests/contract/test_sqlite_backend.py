"""What only SQLite has: a schema that grows, and a clock that is passed in."""

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from test_backend import ID, SHA, STATE, mint, row, started
from test_ending import ending, hand

from broker.clock import SystemClock
from broker.errors import StoreLostError, StoreUnavailableError
from broker.store.backend import AuditWant, Want
from broker.store.sqlite import MIGRATIONS, SqliteBackend

Open = Callable[..., Awaitable[SqliteBackend]]


class Shifted:
    """The host's clock, and so many seconds."""

    def __init__(self) -> None:
        self.by_s = 0.0

    def now(self) -> float:
        return SystemClock().now() + self.by_s


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def clock() -> Shifted:
    return Shifted()


@pytest.fixture
async def store(path: Path, clock: Shifted) -> AsyncIterator[SqliteBackend]:
    backend = SqliteBackend(path, clock=clock)
    await backend.connect()
    yield backend
    await backend.close()


def at_version(path: Path, version: int) -> None:
    """Make a file as an older broker left it: a token handed to a key, an owner."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        for script in MIGRATIONS[:version]:
            db.executescript(script)
        db.executemany("INSERT INTO state VALUES (?, ?)", STATE.items())
        db.execute("INSERT INTO key_state VALUES ('!', ?)", (ID,))
        expires_at = SystemClock().now() + 1000
        db.execute("INSERT INTO tokens VALUES ('scope-one', x'01', ?)", (expires_at,))
        db.execute("INSERT INTO live VALUES (?, 'scope-one', 'acme', x'01', ?, NULL)", (SHA, expires_at))
        db.execute("INSERT INTO handed VALUES (?, 'key-1', 0)", (SHA,))
        db.execute("INSERT INTO owners VALUES ('acme', x'02', 42, ?)", (expires_at,))
        db.execute(f"PRAGMA user_version={version}")


def rows(path: Path, table: str) -> int:
    with contextlib.closing(sqlite3.connect(path)) as db:
        (count,) = db.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608 - constants
        return int(count)


async def test_a_file_of_the_first_version_is_brought_up_to_date(path: Path) -> None:
    at_version(path, 1)
    old = SqliteBackend(path)
    await old.connect()
    try:
        assert (await old.load()).keys_id == ID
        assert await hand(old) == "again"
        assert (await old.end(ending(reach="t:" + SHA))).shas == (SHA,)
        assert await hand(old) == "gone"
        (entry,) = await old.outbox(None, limit=9)
        assert (entry.blob, entry.owner, entry.scope) == (b"\x01", "acme", "scope-one")
        assert await old.owner_of(42) == "acme"
        assert (await old.owners(cursor=None, limit=9))[0][0].live == 1
        assert await old.hook(ID, body_sha="b", guid="g", blob=b"x") == "ok"
    finally:
        await old.close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        grown = db.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()
    # The same as one that was made today.
    fresh = path.with_name("fresh.db")
    backend = SqliteBackend(fresh)
    await backend.connect()
    await backend.close()
    with contextlib.closing(sqlite3.connect(fresh)) as db:
        assert db.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall() == grown


async def test_a_file_of_a_later_version_is_refused(path: Path) -> None:
    at_version(path, len(MIGRATIONS))
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version={len(MIGRATIONS) + 1}")
    with pytest.raises(StoreLostError):
        await SqliteBackend(path).connect()


async def test_sweep_removes_what_nobody_can_use(path: Path, store: SqliteBackend, clock: Shifted) -> None:
    await started(store)
    await mint(store)
    await store.end(ending(reach="all"))
    await store.hook(ID, body_sha="b", guid="g", blob=b"x")
    clock.by_s = 3600 + 599
    await store.sweep()
    assert [rows(path, table) for table in ("outbox", "live", "hook_seen")] == [1, 1, 2]
    assert (await store.outbox(None, limit=9))[0].blob is not None
    clock.by_s = 3600 + 601
    await store.sweep()
    assert [rows(path, table) for table in ("outbox", "live", "hook_seen")] == [0, 0, 2]
    assert "m:all" in (await store.load()).fields
    clock.by_s = 7202
    await store.sweep()
    assert "m:all" not in (await store.load()).fields
    clock.by_s = 8 * 86400 + 1
    await store.sweep()
    assert rows(path, "hook_seen") == 0
    # What is still to be worked off stays, however old.
    assert len(await store.hooks(limit=9)) == 1


async def test_an_entry_whose_token_is_forgotten_says_so(path: Path, store: SqliteBackend) -> None:
    await started(store)
    await mint(store)
    await store.end(ending(reach="all"))
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM live")
    (entry,) = await store.outbox(None, limit=9)
    assert (entry.blob, entry.owner, entry.scope) == (None, "", "")
    assert await store.settle(ID, [(SHA, "", row("token.revoked"))]) == 1


async def test_an_end_that_cannot_count_does_nothing(store: SqliteBackend) -> None:
    await started(store, **{"b:w:acme": b"many"})
    await mint(store, blocks=())
    before = await store.load()
    args = ending(blocks={"b:r:acme/app": b"sealed"}, wide="b:w:acme", reach="all")
    with pytest.raises(StoreUnavailableError):
        await store.end(args)
    assert await store.load() == before
    assert await store.outbox(None, limit=9) == ()
    assert len((await store.audit(AuditWant())).rows) == 1
    assert (await store.read(Want())).epoch == 7
