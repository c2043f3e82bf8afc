"""SQLite's threads and files: slow reads, group commit, two processes, schemas."""

import asyncio
import contextlib
import gc
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import pytest

from broker.errors import StoreLostError, StoreUnavailableError
from broker.store.backend import CommitArgs, EndArgs, KeyWriteArgs, Row, Want
from broker.store.sqlite import MIGRATIONS, SqliteBackend

STATE = {"id": b"one", "schema": b"1", "epoch": b"1", "gh_offset": b"0", "dk:1:ff": b"w"}


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[SqliteBackend]:
    made = SqliteBackend(tmp_path / "s.db", deadline_s=0.5)
    await made.connect()
    await made.initialise(STATE)
    yield made
    await made.close()


def write(key_id: str, *, expected: bytes | None = None, store_id: bytes = b"one") -> KeyWriteArgs:
    return KeyWriteArgs(
        store_id=store_id, key_id=key_id, expected=expected, blob=b"blob " + key_id.encode(), purge_at=None,
        audit=Row("key.created", "{}", key_id=key_id),
    )  # fmt: skip


def make_slow(path: Path) -> None:
    """Turn the failures into a view that never ends."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("DROP TABLE failures")
    db.execute(
        "CREATE VIEW failures AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) "
        "SELECT x AS name, x AS value, 1e18 AS until FROM n"
    )
    db.close()


async def test_a_read_without_end_is_interrupted_and_poisons_nothing(
    backend: SqliteBackend, tmp_path: Path
) -> None:
    make_slow(tmp_path / "s.db")
    begun = time.monotonic()
    with pytest.raises(StoreUnavailableError):
        await backend.read(Want(strings=("F:x",)))
    assert time.monotonic() - begun < 2
    for _ in range(3):
        view = await backend.read(Want(fields=("epoch",)))
        assert (view.store_id, view.epoch) == (b"one", 1)
    assert time.monotonic() - begun < 2.5


async def test_a_query_without_end_hurts_only_itself(backend: SqliteBackend, tmp_path: Path) -> None:
    make_slow(tmp_path / "s.db")

    def forever(db: sqlite3.Connection, now: float) -> Any:
        return db.execute("SELECT count(*) FROM failures").fetchone()

    with pytest.raises(StoreUnavailableError):
        await backend._query(forever)
    assert (await backend.read(Want())).epoch == 1
    assert (await backend.write_key(write("A"))).verdict == "ok"


async def test_a_caller_who_hangs_up_leaves_no_read_running(backend: SqliteBackend, tmp_path: Path) -> None:
    make_slow(tmp_path / "s.db")

    def forever(db: sqlite3.Connection, now: float) -> Any:
        return db.execute("SELECT count(*) FROM failures").fetchone()

    task = asyncio.create_task(backend._query(forever))
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (await backend.read(Want())).epoch == 1


async def test_an_interrupt_hits_only_who_is_late(backend: SqliteBackend) -> None:
    """A read that came late because another blocked the thread does not end the one that runs now."""
    block = threading.Event()
    thread = backend._reader
    assert thread is not None
    running = thread.submit(lambda db: block.wait(5) and db.execute("SELECT 7").fetchone()[0])
    with pytest.raises(StoreUnavailableError):
        await backend.read(Want())
    block.set()
    assert await running == 7


async def test_what_is_written_in_one_turn_of_the_loop_is_one_transaction(backend: SqliteBackend) -> None:
    said: list[str] = []
    await backend._write(lambda db, _: db.set_trace_callback(said.append))

    async def transactions(count: int) -> list[int]:
        said.clear()
        rows = [Row("token.minted", f'{{"number": {number}}}') for number in range(count)]
        await asyncio.gather(*(backend.append(b"one", [row]) for row in rows))
        turns = " ".join(said).split("BEGIN IMMEDIATE")[1:]
        assert all(turn.count("COMMIT") == 1 for turn in turns)
        return [turn.count("INTO audit") for turn in turns]

    for count in (1, 2, 100):
        assert await transactions(count) == [count]
    many = await transactions(1000)  # no other process waits for all of these
    assert sum(many) == 1000
    assert max(many) <= 256

    writer = backend._writer
    assert writer is not None
    said.clear()
    first = writer.submit(lambda db: db.execute("SELECT 'first'"))
    time.sleep(0.05)  # noqa: ASYNC251 - the thread could begin now, if it were told already
    await asyncio.gather(first, writer.submit(lambda db: db.execute("SELECT 'second'")))
    assert " ".join(said).count("BEGIN IMMEDIATE") == 1


async def test_what_was_asked_before_the_end_is_written(backend: SqliteBackend) -> None:
    writer = backend._writer
    assert writer is not None
    asyncio.get_running_loop().call_soon(time.sleep, 0.1)  # the thread could end before the next turn
    asked = [writer.submit(lambda db: db.execute("SELECT 7").fetchone()) for _ in range(300)]
    await writer.stop()
    assert await asyncio.wait_for(asyncio.gather(*asked), 5) == [(7,)] * 300


async def test_one_verb_that_fails_undoes_no_other(backend: SqliteBackend) -> None:
    """They share a transaction, each in a savepoint of its own."""

    def broken(db: sqlite3.Connection, now: float) -> None:
        db.execute("INSERT INTO keys VALUES ('half', 'x', NULL, 999)")
        db.execute("INSERT INTO nowhere VALUES (1)")

    def wrong(db: sqlite3.Connection, now: float) -> None:
        db.execute("DELETE FROM keys")
        raise ValueError("a bug")

    gate = threading.Event()
    writer = backend._writer
    assert writer is not None
    waiting = writer.submit(lambda _: gate.wait(5))
    tasks = [
        asyncio.create_task(one)
        for one in (
            backend.write_key(write("A")),
            backend._write(broken),
            backend.write_key(write("B")),
            backend.write_key(write("A")),
            backend._write(wrong),
            backend.write_key(write("C", store_id=b"two")),
            backend.write_key(write("D")),
        )
    ]
    await asyncio.sleep(0.05)
    gate.set()
    await waiting
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert found[0].verdict == "ok"
    assert isinstance(found[1], StoreUnavailableError)
    assert [found[index].verdict for index in (2, 3, 5, 6)] == ["ok", "changed", "lost", "ok"]
    assert isinstance(found[4], ValueError)
    page = await backend.list_keys(cursor=None, limit=10)
    assert [row[0] for row in page.rows] == ["A", "B", "D"]


async def test_only_leases_and_counters_do_not_wait_for_the_disk(backend: SqliteBackend) -> None:
    said: list[str] = []
    await backend._write(lambda db, _: db.set_trace_callback(said.append))

    async def level(verb: Awaitable[object]) -> str:
        said.clear()
        await verb
        (told,) = [one for one in said if "synchronous" in one]
        return told.partition("=")[2]

    for quick in (
        backend.lease(b"one", "job:sweep", "n"),
        backend.renew("job:sweep", "n"),
        backend.release("job:sweep", "n"),
        backend.take("A:rate", chunk=1, limit=10),
    ):
        assert await level(quick) == "NORMAL"
    lasting = Row("token.minted", "{}")
    for slow in (
        backend.commit(
            CommitArgs(
                store_id=b"one",
                scope="s",
                owner="acme",
                nonce="n",
                epoch=1,
                marks=(),
                blocks=(),
                blob=b"b",
                sha="sha",
                expires_at=time.time() + 3600,
                gh_offset=None,
                audit=lasting,
            )
        ),
        backend.hand(store_id=b"one", epoch=1, sha="sha", key_id="A", audit=lasting),
        backend.write_key(write("A")),
        backend.end(EndArgs(store_id=b"one", marks=("m:all",), audit=lasting)),
        backend.append(b"one", [lasting]),
        backend.pause("app", 5.0),
        backend.fail(scope="s", nonce="n", failure="F:s", value=b"1:{}", cooldown_s=5.0),
    ):
        assert await level(slow) == "FULL"
    assert await level(backend.release("job:sweep", "n")) == "NORMAL"

    for durable in (True, False, True):  # what is said is so, also where SQLite has prepared it before
        (in_force,) = await backend._write(
            lambda db, _: db.execute("PRAGMA synchronous").fetchone(), durable=durable
        )
        assert in_force == (2 if durable else 1)

    gate = threading.Event()
    writer = backend._writer
    assert writer is not None
    waiting = writer.submit(lambda _: gate.wait(5))
    await asyncio.sleep(0.05)
    both = asyncio.gather(backend.release("x", "n"), backend.write_key(write("B")))
    await asyncio.sleep(0.05)
    gate.set()
    assert await level(both) == "FULL"  # what shares a turn with a key waits with it
    await waiting


async def test_two_backends_on_one_file(backend: SqliteBackend, tmp_path: Path) -> None:
    other = SqliteBackend(tmp_path / "s.db")
    await other.connect()
    verdicts = await asyncio.gather(
        *(one.write_key(write(f"K{number}")) for number in range(20) for one in (backend, other))
    )
    assert sorted(one.verdict for one in verdicts) == ["changed"] * 20 + ["ok"] * 20
    assert len((await other.list_keys(cursor=None, limit=100)).rows) == 20
    await other.close()
    assert (await backend.read(Want(keys=("K3",)))).keys


async def test_another_process_that_holds_the_lock_is_503_in_time(
    backend: SqliteBackend, tmp_path: Path
) -> None:
    db = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    begun = time.monotonic()
    with pytest.raises(StoreUnavailableError):
        await backend.write_key(write("A"))
    assert time.monotonic() - begun < 3
    assert (await backend.read(Want())).epoch == 1  # readers do not mind
    db.execute("ROLLBACK")
    db.close()
    assert (await backend.write_key(write("A"))).verdict in {"ok", "changed"}


async def test_a_write_that_nobody_waits_for_any_more_fails_quietly(
    backend: SqliteBackend, tmp_path: Path
) -> None:
    """Who hung up is not told how it went, and neither is the log, in asyncio's words of an error."""
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    with contextlib.closing(sqlite3.connect(tmp_path / "s.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        waits = asyncio.create_task(backend.write_key(write("a" * 12)))
        await asyncio.sleep(0.05)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        with pytest.raises(StoreUnavailableError):  # comes after it, so that one has failed as well
            await backend.write_key(write("b" * 12))
    gc.collect()
    await asyncio.sleep(0)
    assert told == []


async def test_a_newer_schema_is_lost_not_touched(tmp_path: Path) -> None:
    made = SqliteBackend(tmp_path / "s.db")
    await made.connect()
    await made.close()
    db = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
    db.execute(f"PRAGMA user_version={len(MIGRATIONS) + 1}")
    later = SqliteBackend(tmp_path / "s.db")
    with pytest.raises(StoreLostError, match="newer"):
        await later.connect()
    await later.close()
    assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS) + 1,)
    db.execute(f"PRAGMA user_version={len(MIGRATIONS)}")
    db.close()
    await later.connect()
    await later.close()


def test_four_processes_open_a_new_file_at_once(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys, time\n"
        "from pathlib import Path\n"
        "from broker.store.sqlite import SqliteBackend\n"
        "async def main():\n"
        "    made = SqliteBackend(Path(sys.argv[1]))\n"
        "    await asyncio.sleep(max(0, float(sys.argv[2]) - time.time()))\n"
        "    await made.connect()\n"
        "    print(await made.initialise({'id': b'x', 'epoch': b'1'}), (await made.load()).fields['id'])\n"
        "    await made.close()\n"
        "asyncio.run(main())\n"
    )
    for attempt in range(2):
        path, start = tmp_path / f"{attempt}" / "s.db", str(time.time() + 1.2)
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", script, str(path), start],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(4)
        ]
        said = [process.communicate(timeout=30) for process in processes]
        assert [error for _, error in said] == [""] * 4
        assert sorted(out.split()[0] for out, _ in said) == ["False", "False", "False", "True"]
        assert oct(path.stat().st_mode)[-3:] == "600"
        assert oct(path.parent.stat().st_mode)[-3:] == "700"


async def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "s.db").symlink_to(tmp_path / "elsewhere")
    made = SqliteBackend(tmp_path / "s.db")
    with pytest.raises(StoreUnavailableError):
        await made.connect()
    await made.close()
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("turns", range(6))
async def test_a_cancellation_that_comes_with_the_answer_is_not_swallowed(
    backend: SqliteBackend, turns: int
) -> None:
    """Whoever asks in a loop ends when told to, whichever turn of the event loop that is in."""
    reader = backend._reader
    assert reader is not None
    submit = reader.submit

    async def asks_for_ever() -> None:
        while True:
            await backend.counts()

    def later(left: int) -> None:
        if left:
            asyncio.get_running_loop().call_soon(later, left - 1)
        else:
            asking.cancel()

    def watched(job: Any, **named: Any) -> Any:
        reader.submit = submit  # type: ignore[method-assign]
        future = submit(job, **named)
        future.add_done_callback(lambda _: later(turns))
        return future

    reader.submit = watched  # type: ignore[method-assign,assignment]
    asking = asyncio.create_task(asks_for_ever())
    await asyncio.wait([asking], timeout=2)
    assert asking.cancelled()
