"""The raw store on embedded SQLite: one file, several processes of one host; does file I/O.

Two connections a process, each on its own thread. The reader answers all that a loop turn asked for
in one transaction; the writer drains its queue into one ``BEGIN IMMEDIATE`` transaction (group
commit, ``synchronous=FULL``), each verb in a savepoint of its own. Only leases and the counters of
a minute do not wait for the disk: who held a lease ends with the machine, and after a loss of power
a minute's limits may begin anew. A reader that begins after a commit sees it, in every process of
the host. Time is the host's and is passed into every statement.
"""

import asyncio
import contextlib
import json
import logging
import os
import queue
import re
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from broker.clock import SystemClock
from broker.errors import InvalidRequestError, StoreLostError, StoreUnavailableError
from broker.ports import Clock, Counts
from broker.store.backend import (
    END_SLACK_S,
    HOOK_LIFE_S,
    LEASE_MS,
    MARK_LIFE_S,
    STATE_FIELDS,
    AcquireArgs,
    AcquireReply,
    AuditPage,
    AuditWant,
    CommitArgs,
    EndArgs,
    EndReply,
    Entry,
    Identities,
    KeysPage,
    KeyWriteArgs,
    OutboxEntry,
    OwnerArgs,
    OwnerRow,
    Place,
    Row,
    State,
    StoredRow,
    View,
    Want,
    epoch_of,
)
from broker.store.batch import Batcher
from broker.threads import in_thread

R = TypeVar("R")
Job = Callable[[sqlite3.Connection], Any]
_Asked = tuple[asyncio.Future[Any], Job, bool]
_log = logging.getLogger(__name__)

WINDOW_S: Final = 60
MAX_PAUSE_S: Final = 3600.0
LIVE_GRACE_S: Final = 600.0
OWNER_LIFE_S: Final = 30 * 86400.0
_WRITES_PER_TURN: Final = 128
"""With so many a transaction is closed to further ones; it has at most twice as many, less one."""

_CACHE_KIB: Final = 512
"""Of each connection; the system holds the file's pages as well, and each write of another empties it."""
_SWEEP_ROWS: Final = 500
_WAL_ATTEMPTS: Final = 100
_WAL_PAUSE_S: Final = 0.05
_CURSOR: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
_OWNER: Final = re.compile(r"[a-z0-9_-]{1,100}")
_MARK: Final = re.compile(rb"[0-9]+:([0-9]+)")
_NETWORK_FILE_SYSTEMS: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "fuse.sshfs", "fuse.glusterfs", "lustre", "afs"}
)

# Position + 1 is the schema version (PRAGMA user_version). Only ever append.
MIGRATIONS: Final = (
    """
    CREATE TABLE state (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE key_state (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE keys (id TEXT PRIMARY KEY, blob BLOB NOT NULL, purge_at REAL, seq INTEGER NOT NULL UNIQUE)
        WITHOUT ROWID;
    CREATE TABLE key_use (id TEXT PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE owners (owner TEXT PRIMARY KEY, blob BLOB NOT NULL, installation_id INTEGER NOT NULL,
        until REAL NOT NULL) WITHOUT ROWID;
    CREATE INDEX owners_installation ON owners (installation_id);
    CREATE TABLE names (owner TEXT PRIMARY KEY, blob BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE tokens (scope TEXT PRIMARY KEY, blob BLOB NOT NULL, expires_at REAL NOT NULL) WITHOUT ROWID;
    CREATE INDEX tokens_expiry ON tokens (expires_at);
    CREATE TABLE live (sha TEXT PRIMARY KEY, scope TEXT NOT NULL, owner TEXT NOT NULL, blob BLOB NOT NULL,
        expires_at REAL NOT NULL, state TEXT) WITHOUT ROWID;
    CREATE INDEX live_expiry ON live (expires_at);
    CREATE INDEX live_owner ON live (owner);
    CREATE TABLE handed (sha TEXT NOT NULL REFERENCES live (sha) ON DELETE CASCADE, key_id TEXT NOT NULL,
        first_at REAL NOT NULL, PRIMARY KEY (sha, key_id)) WITHOUT ROWID;
    CREATE INDEX handed_key ON handed (key_id);
    CREATE TABLE leases (name TEXT PRIMARY KEY, holder TEXT NOT NULL, until REAL NOT NULL) WITHOUT ROWID;
    CREATE TABLE failures (name TEXT PRIMARY KEY, value BLOB NOT NULL, until REAL NOT NULL) WITHOUT ROWID;
    CREATE TABLE pauses (name TEXT PRIMARY KEY, until REAL NOT NULL) WITHOUT ROWID;
    CREATE TABLE gates (name TEXT PRIMARY KEY, until REAL NOT NULL) WITHOUT ROWID;
    CREATE TABLE budget (name TEXT PRIMARY KEY, window INTEGER NOT NULL, used INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE audit (seq INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, event TEXT NOT NULL,
        key_id TEXT NOT NULL, owner TEXT NOT NULL, repositories TEXT NOT NULL, request_id TEXT NOT NULL,
        body TEXT NOT NULL);
    CREATE INDEX audit_key ON audit (key_id, seq);
    CREATE INDEX audit_time ON audit (time);
    """,
    """
    CREATE TABLE outbox (sha TEXT NOT NULL, only_ TEXT NOT NULL, note BLOB NOT NULL, expires_at REAL NOT NULL,
        PRIMARY KEY (sha, only_)) WITHOUT ROWID;
    CREATE INDEX outbox_expiry ON outbox (expires_at, sha, only_);
    CREATE TABLE hook_seen (name TEXT PRIMARY KEY, until REAL NOT NULL) WITHOUT ROWID;
    CREATE INDEX hook_seen_until ON hook_seen (until);
    CREATE TABLE hook_queue (seq INTEGER PRIMARY KEY AUTOINCREMENT, blob BLOB NOT NULL, at REAL NOT NULL);
    """,
)

# Whose tokens an end enumerates, by the kind of its reach; each takes the name that goes with it.
_REACH: Final = {
    "": "? IS NULL",
    "all": "? IS NOT NULL",
    "o": "owner = ?",
    "t": "sha = ?",
    "key": "sha IN (SELECT sha FROM handed WHERE key_id = ?)",
}

# Where sealed entries lie: (table, column of the name, column of the scope or nothing).
_SEALED: Final = {
    Place.KEYS: ("keys", "id", "''"),
    Place.NAMES: ("names", "owner", "''"),
    Place.OWNERS: ("owners", "owner", "''"),
    Place.TOKENS: ("live", "sha", "scope"),
    Place.BLOCKS: ("state", "name", "''"),
    Place.HOOKS: ("hook_queue", "seq", "''"),
}
_ONLY_BLOCKS: Final = "AND (name GLOB 'b:o:*' OR name GLOB 'b:r:*')"

# The string names of the port, by prefix: (table, column of the name, expiry column or None).
_STRINGS: Final = {
    "T": ("tokens", "scope", "blob", "expires_at"),
    "F": ("failures", "name", "value", "until"),
    "O": ("owners", "owner", "blob", "until"),
}

# READ, whole: one statement, so that the thread takes Python's lock seldom. CROSS JOIN keeps the order.
_READ: Final = " UNION ALL ".join(
    (
        "SELECT 'state', s.name, s.value FROM json_each(:fields) j CROSS JOIN state s WHERE s.name = j.value",
        "SELECT 'marker', name, value FROM key_state WHERE name = '!'",
        "SELECT 'keys', k.id, k.blob FROM json_each(:keys) j CROSS JOIN keys k WHERE k.id = j.value",
        *(
            f"SELECT 'strings', '{prefix}:' || t.{name}, t.{value} FROM json_each(:{prefix}) j "  # noqa: S608
            f"CROSS JOIN {table} t WHERE t.{name} = j.value AND t.{until} > :now"
            for prefix, (table, name, value, until) in _STRINGS.items()
        ),
    )
)


class _Thread:
    """One SQLite connection on one thread; jobs are functions of the connection.

    Args:
        path: the database file.
        read_only: a reader (``query_only``) or the writer.
        busy_s: how long SQLite waits for another process's lock.
    """

    def __init__(self, path: Path, *, read_only: bool, busy_s: float) -> None:
        self._path = path
        self._read_only = read_only
        self._busy_s = busy_s
        self._asked: list[_Asked] = []
        self._jobs: queue.SimpleQueue[list[_Asked]] = queue.SimpleQueue()
        self._stopping = False
        self._loop = asyncio.get_running_loop()
        self._connection: sqlite3.Connection | None = None
        self._running: tuple[asyncio.Future[Any], ...] = ()
        name = "sqlite-reader" if read_only else "sqlite-writer"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[sqlite3.Connection], R], *, durable: bool = True) -> asyncio.Future[R]:
        """Queue a job; if it, or another of its turn, is ``durable``, it survives a loss of power.

        What is written in one turn of the loop is written in one transaction, up to ``_WRITES_PER_TURN``: a
        COMMIT and its HAND wait for the disk once.
        """
        future: asyncio.Future[R] = self._loop.create_future()
        self._asked.append((future, job, durable))
        if self._read_only:
            self._hand_over()
        elif len(self._asked) == 1:
            self._loop.call_soon(self._hand_over)
        return future

    def _hand_over(self) -> None:
        asked, self._asked = self._asked, []
        for start in range(0, len(asked), _WRITES_PER_TURN):
            self._jobs.put(asked[start : start + _WRITES_PER_TURN])

    def give_up(self, future: asyncio.Future[Any]) -> None:
        """Interrupt the job of ``future`` if it runs; a read that has not begun is not begun."""
        future.add_done_callback(_retrieve)
        if future in self._running:
            connection = self._connection
            if connection is not None:
                with contextlib.suppress(sqlite3.ProgrammingError):
                    connection.interrupt()
        elif self._read_only:
            future.cancel()

    async def stop(self) -> None:
        self._hand_over()
        self._stopping = True
        self._jobs.put([])
        await in_thread(self._thread.join)

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode=rw",
            uri=True,
            isolation_level=None,
            check_same_thread=False,  # only interrupt() is called from another thread
            timeout=self._busy_s,
            cached_statements=256,
        )
        try:
            connection.execute("PRAGMA foreign_keys=ON")
            connection.execute("PRAGMA trusted_schema=OFF")
            connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
            if self._read_only:
                connection.execute("PRAGMA query_only=ON")
        except BaseException:
            connection.close()
            raise
        return connection

    def _run(self) -> None:
        while not self._stopping or not self._jobs.empty():
            work = self._jobs.get()
            with contextlib.suppress(queue.Empty):
                while len(work) < _WRITES_PER_TURN:
                    work += self._jobs.get_nowait()
            if work:
                self._tell(self._turn(work))
        if self._connection is not None:
            self._connection.close()

    def _turn(self, work: list[_Asked]) -> list[tuple[asyncio.Future[Any], Any, BaseException | None]]:
        """Run jobs in one transaction; each answer holds only if the transaction committed."""
        done: list[tuple[asyncio.Future[Any], Any, BaseException | None]] = []
        self._running = tuple(future for future, _, _ in work)
        try:
            if self._connection is None:
                self._connection = self._open()
            connection = self._connection
            self._begin(connection, durable=any(durable for _, _, durable in work))
            for future, job, _ in work:
                if self._read_only:
                    if future.cancelled():
                        continue  # nobody waits for it any more
                    self._running = (future,)
                else:
                    connection.execute("SAVEPOINT verb")
                try:
                    done.append((future, job(connection), None))
                except Exception as error:  # noqa: BLE001 - handed to the caller
                    if not self._read_only:
                        connection.execute("ROLLBACK TO verb")
                    done.append((future, None, error))
                if not self._read_only:
                    connection.execute("RELEASE verb")
            connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - handed to every caller of the turn
            if self._connection is not None:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.rollback()
                with contextlib.suppress(sqlite3.Error):
                    self._connection.close()
                self._connection = None
            return [(future, None, error) for future, _, _ in work]
        finally:
            self._running = ()
        return done

    def _begin(self, connection: sqlite3.Connection, *, durable: bool) -> None:
        if self._read_only:
            connection.execute("BEGIN")
        else:
            connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            connection.execute("BEGIN IMMEDIATE")

    def _tell(self, answers: list[tuple[asyncio.Future[Any], Any, BaseException | None]]) -> None:
        def deliver() -> None:
            for future, result, error in answers:
                if future.done():
                    continue
                if error is None:
                    future.set_result(result)
                else:
                    future.set_exception(error)

        with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits
            self._loop.call_soon_threadsafe(deliver)


class SqliteBackend:
    """``Backend`` on one SQLite file.

    Args:
        path: the database file; made with mode 0600 (its folder, if missing, with 0700).
        audit_retention_s: audit events older than this are swept.
        audit_max_events: at most so many audit events are kept.
        deadline_s: how long a caller waits for a read; writes, which wait for the disk, get three times
            that.
        clock: the store's time.
    """

    def __init__(
        self,
        path: Path,
        *,
        audit_retention_s: float = 90 * 86400.0,
        audit_max_events: int = 1_000_000,
        deadline_s: float = 1.0,
        clock: Clock | None = None,
    ) -> None:
        self._path = path
        self._retention_s = audit_retention_s
        self._max_events = audit_max_events
        self._deadline_s = deadline_s
        self._clock = clock or SystemClock()
        self._reader: _Thread | None = None
        self._writer: _Thread | None = None
        self._inode: tuple[int, int] | None = None
        self._refused = False
        self._connecting = asyncio.Lock()
        self.reads: Batcher[Want, View] = Batcher(self._read_batch, deadline_s=deadline_s)

    # -- connecting ------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Open (the first time: make) the file, migrate it, start the two threads."""
        async with self._connecting:
            if self._reader is not None and self._same_file():
                return
            await self._stop_threads()
            first = self._inode is None
            try:
                await in_thread(self._prepare, create=first)
                self._inode = self._identity()
            except (OSError, sqlite3.Error) as error:
                raise StoreUnavailableError(f"SQLite file {self._path}: {error}") from error
            self._reader = _Thread(self._path, read_only=True, busy_s=self._deadline_s)
            self._writer = _Thread(self._path, read_only=False, busy_s=self._deadline_s)

    def _identity(self) -> tuple[int, int]:
        status = self._path.stat()
        return status.st_dev, status.st_ino

    def _same_file(self) -> bool:
        try:
            return self._identity() == self._inode
        except OSError:
            return False

    def _prepare(self, *, create: bool) -> None:
        if create:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        self._path.chmod(0o600)
        uri = f"{self._path.absolute().as_uri()}?mode=rw"
        with contextlib.closing(
            sqlite3.connect(uri, uri=True, isolation_level=None, timeout=5.0)
        ) as connection:
            _switch_to_wal(connection)
            connection.execute("BEGIN IMMEDIATE")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > len(MIGRATIONS):
                connection.execute("ROLLBACK")
                raise StoreLostError(
                    f"SQLite file {self._path} has schema {version}; this broker knows {len(MIGRATIONS)}"
                )
            for script in MIGRATIONS[version:]:
                for statement in script.split(";"):
                    if statement.strip():
                        connection.execute(statement)
            connection.execute(f"PRAGMA user_version={len(MIGRATIONS)}")
            connection.execute("COMMIT")

    async def close(self) -> None:
        """Finish what is queued, close both connections."""
        await self.reads.close()
        await self._stop_threads()

    async def _stop_threads(self) -> None:
        threads = [thread for thread in (self._reader, self._writer) if thread is not None]
        self._reader = self._writer = None
        for thread in threads:
            await thread.stop()

    async def _thread(self, *, writes: bool) -> _Thread:
        if self._reader is None or not self._same_file():
            await self.connect()
        thread = self._writer if writes else self._reader
        if thread is None:
            raise StoreUnavailableError("the SQLite store is closed")
        return thread

    async def _run(
        self,
        job: Callable[[sqlite3.Connection, float], R],
        *,
        writes: bool,
        deadline_s: float,
        durable: bool = True,
    ) -> R:
        thread = await self._thread(writes=writes)
        future = thread.submit(lambda connection: job(connection, self._clock.now()), durable=durable)
        try:
            # Not wait_for(): until Python 3.12 it swallows a cancellation that comes with the answer.
            async with asyncio.timeout(deadline_s):
                return await asyncio.shield(future)
        except asyncio.CancelledError:
            if writes:  # what was asked to be written is written; nobody hears whether it was
                future.add_done_callback(_retrieve)
            else:
                thread.give_up(future)
            raise
        except TimeoutError as error:
            thread.give_up(future)
            raise StoreUnavailableError("the SQLite store did not answer in time") from error
        except sqlite3.Error as error:
            raise StoreUnavailableError(f"SQLite: {error}") from error

    async def _write(self, job: Callable[[sqlite3.Connection, float], R], *, durable: bool = True) -> R:
        try:
            return await self._run(job, writes=True, deadline_s=3 * self._deadline_s, durable=durable)
        except StoreUnavailableError:
            self._refused = True
            raise

    async def _query(self, job: Callable[[sqlite3.Connection, float], R]) -> R:
        return await self._run(job, writes=False, deadline_s=self._deadline_s)

    # -- state -----------------------------------------------------------------------------------

    async def load(self) -> State:
        """Return the state, whole."""

        def job(db: sqlite3.Connection, now: float) -> State:
            del now
            fields = dict(db.execute("SELECT name, value FROM state"))
            wraps = dict(db.execute("SELECT name, value FROM key_state"))
            keys_id = wraps.pop("!", None)
            holds = db.execute("SELECT 1 FROM keys LIMIT 1").fetchone() is not None
            return State(fields, keys_id, wraps, holds)

        return await self._query(job)

    async def initialise(self, fields: Mapping[str, bytes]) -> bool:
        """Create the state where there is neither a state nor a key."""

        def job(db: sqlite3.Connection, now: float) -> bool:
            del now
            for table in ("state", "key_state", "keys"):
                if db.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone():  # noqa: S608 - constants
                    return False
            db.executemany("INSERT INTO state VALUES (?, ?)", fields.items())
            wraps = [(name, value) for name, value in fields.items() if name.startswith("dk:")]
            db.executemany("INSERT INTO key_state VALUES (?, ?)", [("!", fields["id"]), *wraps])
            return True

        return await self._write(job)

    async def mend(self, found: Identities, store_id: bytes, fields: Mapping[str, bytes]) -> bool:
        """Write identities and fields of the state, if the identities are those found."""

        def job(db: sqlite3.Connection, now: float) -> bool:
            del now
            marker = db.execute("SELECT value FROM key_state WHERE name = '!'").fetchone()
            state = _fields(db, ("id", "epoch"))
            if (state.get("id"), marker[0] if marker else None) != found:
                return False
            least = int(fields.get("epoch", b"0"))
            written = {**fields, "id": store_id, "epoch": b"%d" % max(least, int(state.get("epoch", b"0")))}
            for name, value in written.items():
                if name.startswith("dk:"):
                    for table in ("state", "key_state"):
                        db.execute(f"INSERT OR IGNORE INTO {table} VALUES (?, ?)", (name, value))  # noqa: S608
                else:
                    db.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (name, value))
            db.execute("INSERT OR REPLACE INTO key_state VALUES ('!', ?)", (store_id,))
            (last,) = db.execute("SELECT max(seq) FROM keys").fetchone()
            if last is not None:
                db.execute("INSERT OR IGNORE INTO state VALUES ('seq', ?)", (b"%d" % last,))
            return True

        return await self._write(job)

    async def probe(self) -> None:
        """Try a write, but only after one has failed: each costs a turn of the disk."""
        if not self._refused:
            return

        def job(db: sqlite3.Connection, now: float) -> None:
            # What changes nothing is not written, and so proves nothing.
            db.execute("INSERT OR REPLACE INTO state VALUES ('probed', ?)", (b"%f" % now,))

        await self._write(job)
        self._refused = False

    async def sealed(self, place: Place) -> AsyncIterator[Sequence[Entry]]:
        """Yield all sealed entries of a place, some at a time."""
        table, name, scope = _SEALED[place]
        blob = "value" if table == "state" else "blob"
        after: object = ""

        def job(db: sqlite3.Connection, now: float) -> list[tuple[Any, bytes, str]]:
            del now
            return db.execute(
                f"SELECT {name}, {blob}, {scope} FROM {table} WHERE {name} > ? "  # noqa: S608 - constants
                f"{_ONLY_BLOCKS if place is Place.BLOCKS else ''} ORDER BY {name} LIMIT {_SWEEP_ROWS}",
                (after,),
            ).fetchall()

        if place is Place.HOOKS:
            after = 0
        while rows := await self._query(job):
            yield [Entry(place, str(row[0]), row[1], row[2]) for row in rows]
            after = rows[-1][0]

    async def reseal(self, store_id: bytes, entry: Entry, blob: bytes) -> bool:
        """Replace a sealed entry if it is still what it was."""
        table, name, _ = _SEALED[entry.place]
        column = "value" if table == "state" else "blob"
        key: object = int(entry.name) if entry.place is Place.HOOKS else entry.name

        def job(db: sqlite3.Connection, now: float) -> bool:
            del now
            if _lost(db, store_id):
                return False
            done = db.execute(
                f"UPDATE {table} SET {column} = ? WHERE {name} = ? AND {column} = ?",  # noqa: S608 - constants
                (blob, key, entry.blob),
            )
            if done.rowcount and entry.place is Place.TOKENS:
                db.execute(
                    "UPDATE tokens SET blob = ? WHERE scope = ? AND blob = ?", (blob, entry.scope, entry.blob)
                )
            return bool(done.rowcount)

        return await self._write(job)

    async def add_wraps(self, store_id: bytes, wraps: Mapping[str, bytes]) -> bool:
        """Write ``dk:`` fields to both places if the store is still this one."""

        def job(db: sqlite3.Connection, now: float) -> bool:
            del now
            if _lost(db, store_id):
                return False
            for table in ("state", "key_state"):
                db.executemany(f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", wraps.items())  # noqa: S608
            return True

        return await self._write(job)

    async def drop_wraps(self, store_id: bytes, names: Sequence[str]) -> bool:
        """Delete ``dk:`` fields from both places if the store is still this one."""

        def job(db: sqlite3.Connection, now: float) -> bool:
            del now
            if _lost(db, store_id):
                return False
            for table in ("state", "key_state"):
                db.executemany(f"DELETE FROM {table} WHERE name = ?", [(name,) for name in names])  # noqa: S608
            return True

        return await self._write(job)

    # -- reading ---------------------------------------------------------------------------------

    def read(self, want: Want) -> Awaitable[View]:
        """READ: everything that this loop turn wants, in one transaction."""
        return self.reads.submit(want)

    async def _read_batch(self, wants: Sequence[Want], until: float) -> Sequence[View]:
        del until  # the batch is cancelled then
        sent_at = asyncio.get_running_loop().time()
        fields = set(STATE_FIELDS).union(*[want.fields for want in wants])
        keys = set[str]().union(*[want.keys for want in wants])
        strings: dict[str, list[str]] = {prefix: [] for prefix in _STRINGS}
        for name in set[str]().union(*[want.strings for want in wants]):
            prefix, _, rest = name.partition(":")
            strings[prefix].append(rest)
        wanted = {"fields": [*fields], "keys": [*keys], **strings}
        names = {name: json.dumps(each) for name, each in wanted.items()}

        def job(db: sqlite3.Connection, now: float) -> View:
            found: dict[str, dict[str, bytes]] = {"state": {}, "marker": {}, "keys": {}, "strings": {}}
            for kind, name, value in db.execute(_READ, {"now": now, **names}):
                found[kind][name] = value
            state = found["state"]
            return View(
                sent_at=sent_at,
                now=now,
                store_id=state.get("id"),
                keys_id=found["marker"].get("!"),
                epoch=int(state.get("epoch", b"0")),
                gh_offset=float(state.get("gh_offset", b"0")),
                fields=state,
                keys=found["keys"],
                strings=found["strings"],
            )

        thread = await self._thread(writes=False)
        future = thread.submit(lambda connection: job(connection, self._clock.now()))
        try:
            view = await future
        except asyncio.CancelledError:
            thread.give_up(future)
            raise
        except sqlite3.Error as error:
            raise StoreUnavailableError(f"SQLite: {error}") from error
        return [view] * len(wants)

    # -- issuing ---------------------------------------------------------------------------------

    async def hand(self, *, store_id: bytes, epoch: int, sha: str, key_id: str, audit: Row) -> str:
        """HAND."""

        def job(db: sqlite3.Connection, now: float) -> str:
            if _lost(db, store_id):
                return "lost"
            if _epoch(db) != epoch:
                return "stale"
            row = db.execute("SELECT state FROM live WHERE sha = ?", (sha,)).fetchone()
            if row is None or row[0] is not None:
                return "gone"
            done = db.execute("INSERT OR IGNORE INTO handed VALUES (?, ?, ?)", (sha, key_id, now))
            if not done.rowcount:
                return "again"
            _append(db, now, audit)
            return "first"

        return await self._write(job)

    async def acquire(self, args: AcquireArgs) -> AcquireReply:
        """ACQUIRE."""

        def job(db: sqlite3.Connection, now: float) -> AcquireReply:  # noqa: PLR0911 - one return a verdict
            if _lost(db, args.store_id):
                return AcquireReply("lost")
            token = db.execute(
                "SELECT blob FROM tokens WHERE scope = ? AND expires_at > ?", (args.scope, now)
            ).fetchone()
            if (token[0] if token else None) != args.expected_token:
                return AcquireReply("changed")
            paused = _paused(db, now, ("app", f"o:{args.owner}"))
            if paused:
                return AcquireReply("paused", wait_s=paused)
            failed = db.execute(
                "SELECT value FROM failures WHERE name = ? AND until > ?",
                (args.failure.removeprefix("F:"), now),
            ).fetchone()
            if failed and epoch_of(failed[0]) >= _highest(db, args.floor):
                return AcquireReply("failed", failure=failed[0])
            if not _lease_free(db, args.scope, now):
                return AcquireReply("wait")
            if args.budget is not None:
                granted, left_s = _take(db, now, args.budget, 1, args.budget_limit)
                if not granted:
                    return AcquireReply("budget", wait_s=left_s)
            _grant_lease(db, args.scope, args.nonce, now)
            return AcquireReply("lead", epoch=_epoch(db))

        return await self._write(job, durable=False)

    async def lease(self, store_id: bytes, name: str, nonce: str) -> tuple[bool, int]:
        """Take a lease if it is free."""

        def job(db: sqlite3.Connection, now: float) -> tuple[bool, int]:
            if _lost(db, store_id) or not _lease_free(db, name, now):
                return False, _epoch(db)
            _grant_lease(db, name, nonce, now)
            return True, _epoch(db)

        return await self._write(job, durable=False)

    async def renew(self, name: str, nonce: str) -> bool:
        """Keep a lease that is still ours."""

        def job(db: sqlite3.Connection, now: float) -> bool:
            if not _lease_held(db, name, nonce, now):
                return False
            _grant_lease(db, name, nonce, now)
            return True

        return await self._write(job, durable=False)

    async def release(self, name: str, nonce: str) -> None:
        """Give a lease back if it is ours."""

        def job(db: sqlite3.Connection, now: float) -> None:
            del now
            db.execute("DELETE FROM leases WHERE name = ? AND holder = ?", (name, nonce))

        await self._write(job, durable=False)

    async def commit(self, args: CommitArgs) -> str:
        """COMMIT."""

        def job(db: sqlite3.Connection, now: float) -> str:
            if _lost(db, args.store_id):
                return "lost"
            kept = db.execute("SELECT blob FROM tokens WHERE scope = ?", (args.scope,)).fetchone()
            if kept and kept[0] == args.blob:
                return "ok"
            if not _lease_held(db, args.scope, args.nonce, now):
                return "fenced"
            if _highest(db, args.marks) > args.epoch:
                return "revoked"
            if any(value != b"0" for value in _fields(db, args.blocks).values()):
                return "blocked"
            db.execute(
                "INSERT OR REPLACE INTO tokens VALUES (?, ?, ?)", (args.scope, args.blob, args.expires_at)
            )
            db.execute(
                "INSERT OR REPLACE INTO live VALUES (?, ?, ?, ?, ?, NULL)",
                (args.sha, args.scope, args.owner, args.blob, args.expires_at),
            )
            _append(db, now, args.audit)
            if args.gh_offset is not None:
                db.execute("INSERT OR REPLACE INTO state VALUES ('gh_offset', ?)", (b"%f" % args.gh_offset,))
            db.execute("DELETE FROM leases WHERE name = ?", (args.scope,))
            db.execute("DELETE FROM failures WHERE name IN (?, ?)", (args.scope, f"refresh:{args.scope}"))
            return "ok"

        return await self._write(job)

    async def drop_token(self, scope: str, blob: bytes) -> None:
        """Forget the cached token of a scope if it is this one."""

        def job(db: sqlite3.Connection, now: float) -> None:
            del now
            db.execute("DELETE FROM tokens WHERE scope = ? AND blob = ?", (scope, blob))

        await self._write(job)

    async def fail(self, *, scope: str, nonce: str, failure: str, value: bytes, cooldown_s: float) -> bool:
        """FAIL."""

        def job(db: sqlite3.Connection, now: float) -> bool:
            if not _lease_held(db, scope, nonce, now):
                return False
            db.execute(
                "INSERT OR REPLACE INTO failures VALUES (?, ?, ?)",
                (failure.removeprefix("F:"), value, now + cooldown_s),
            )
            db.execute("DELETE FROM leases WHERE name = ?", (scope,))
            return True

        return await self._write(job)

    async def pause(self, name: str, seconds: float) -> None:
        """PAUSE: only ever longer."""

        def job(db: sqlite3.Connection, now: float) -> None:
            db.execute(
                "INSERT INTO pauses VALUES (?, ?) "
                "ON CONFLICT (name) DO UPDATE SET until = max(until, excluded.until)",
                (name, now + min(seconds, MAX_PAUSE_S)),
            )

        await self._write(job)

    async def paused(self, names: Sequence[str]) -> float:
        """Return the seconds that the longest of some pauses still lasts, 0 for none."""
        return await self._query(lambda db, now: _paused(db, now, names))

    async def gate(self, name: str, seconds: float) -> bool:
        """Take a gate if it is free."""

        def job(db: sqlite3.Connection, now: float) -> bool:
            done = db.execute(
                "INSERT INTO gates VALUES (?, ?) "
                "ON CONFLICT (name) DO UPDATE SET until = excluded.until WHERE until <= ?",
                (name, now + seconds, now),
            )
            return done.rowcount == 1

        return await self._write(job)

    async def take(self, name: str, *, chunk: int, limit: int) -> tuple[int, float]:
        """RATE: take up to ``chunk`` of this minute's ``limit``."""
        return await self._write(lambda db, now: _take(db, now, name, chunk, limit), durable=False)

    # -- audit -----------------------------------------------------------------------------------

    async def append(self, store_id: bytes, rows: Sequence[Row]) -> bool:
        """Append audit events if the store is still this one."""

        def job(db: sqlite3.Connection, now: float) -> bool:
            if _lost(db, store_id):
                return False
            for row in rows:
                _append(db, now, row)
            return True

        return await self._write(job)

    async def audit(self, want: AuditWant) -> AuditPage:
        """Return a page of audit events."""
        after = _cursor(want.cursor)

        def job(db: sqlite3.Connection, now: float) -> AuditPage:
            clauses = ["time > ?"]
            values: list[object] = [now - self._retention_s]
            for column, value in (
                ("key_id = ?", want.key_id),
                ("event = ?", want.event),
                ("request_id = ?", want.request_id),
                ("time >= ?", want.since),
                ("time < ?", want.until),
                ("instr(repositories, ?) > 0", want.repository and f"|{want.repository}|"),
                (f"seq {'>' if want.ascending else '<'} ?", after),
            ):
                if value is not None:
                    clauses.append(column)
                    values.append(value)
            order = "ASC" if want.ascending else "DESC"
            rows = db.execute(
                f"SELECT seq, time, body FROM audit WHERE {' AND '.join(clauses)} "  # noqa: S608 - constants
                f"ORDER BY seq {order} LIMIT ?",
                (*values, want.limit + 1),
            ).fetchall()
            page = tuple(StoredRow(str(seq), time, body) for seq, time, body in rows[: want.limit])
            return AuditPage(page, page[-1].id if len(rows) > want.limit else None)

        return await self._query(job)

    # -- keys ------------------------------------------------------------------------------------

    async def touch(self, used: Mapping[str, int]) -> None:
        """Write last-use seconds; older values never replace newer ones."""

        def job(db: sqlite3.Connection, now: float) -> None:
            del now
            db.executemany(
                "INSERT INTO key_use VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET at = max(at, excluded.at)",
                used.items(),
            )

        await self._write(job)

    async def write_key(self, args: KeyWriteArgs) -> EndReply:
        """KEY WRITE; with ``kill`` also the end of what was handed to the key."""

        def job(db: sqlite3.Connection, now: float) -> EndReply:
            if _lost(db, args.store_id):
                return EndReply("lost")
            row = db.execute("SELECT blob FROM keys WHERE id = ?", (args.key_id,)).fetchone()
            if (row[0] if row else None) != args.expected:
                return EndReply("changed")
            if row is None:
                db.execute(
                    "INSERT INTO keys VALUES (?, ?, ?, ?)",
                    (args.key_id, args.blob, args.purge_at, _next_sequence(db)),
                )
            else:
                db.execute(
                    "UPDATE keys SET blob = ?, purge_at = ? WHERE id = ?",
                    (args.blob, args.purge_at, args.key_id),
                )
            # A hand-out that is on its way must not miss the list: it has to get ``stale``.
            epoch = _raise_epoch(db)
            _mark(db, now, args.marks, epoch)
            shas: tuple[str, ...] = ()
            if args.kill is not None:
                shas = _enqueue(db, now, "key", args.key_id, only="", note=args.kill)
                _stop(db, shas)
            _append(db, now, args.audit)
            return EndReply("ok", epoch, shas)

        return await self._write(job)

    async def list_keys(self, *, cursor: str | None, limit: int) -> KeysPage:
        """Return a page of keys in order of creation."""
        after = _cursor(cursor) or 0

        def job(db: sqlite3.Connection, now: float) -> KeysPage:
            del now
            rows = db.execute(
                "SELECT keys.seq, keys.id, keys.blob, key_use.at FROM keys LEFT JOIN key_use USING (id) "
                "WHERE seq > ? ORDER BY seq LIMIT ?",
                (after, limit + 1),
            ).fetchall()
            page = rows[:limit]
            more = str(page[-1][0]) if len(rows) > limit else None
            return KeysPage(tuple((key_id, blob, at) for _, key_id, blob, at in page), more)

        return await self._query(job)

    async def last_used(self, key_id: str) -> int | None:
        """Return the last-use second of a key."""

        def job(db: sqlite3.Connection, now: float) -> int | None:
            del now
            row = db.execute("SELECT at FROM key_use WHERE id = ?", (key_id,)).fetchone()
            return row[0] if row else None

        return await self._query(job)

    # -- owners ----------------------------------------------------------------------------------

    async def pin(self, owner: str) -> bytes | None:
        """Return the pinned account of an owner, sealed."""

        def job(db: sqlite3.Connection, now: float) -> bytes | None:
            del now
            row = db.execute("SELECT blob FROM names WHERE owner = ?", (owner,)).fetchone()
            return row[0] if row else None

        return await self._query(job)

    async def put_owner(self, args: OwnerArgs) -> str:
        """OWNER."""

        def job(db: sqlite3.Connection, now: float) -> str:
            if _lost(db, args.store_id):
                return "lost"
            if not _lease_held(db, args.lease, args.nonce, now):
                return "fenced"
            if _highest(db, args.marks) > args.epoch:
                return "stale"
            row = db.execute("SELECT blob FROM names WHERE owner = ?", (args.owner,)).fetchone()
            if (row[0] if row else None) != args.expected_pin:
                return "changed"
            if args.pin is not None:
                db.execute("INSERT OR REPLACE INTO names VALUES (?, ?)", (args.owner, args.pin))
            if args.blob is None:
                db.execute("DELETE FROM owners WHERE owner = ?", (args.owner,))
            else:
                # A name that was freed does not stand for the installation any more.
                db.execute(
                    "UPDATE owners SET installation_id = 0 WHERE installation_id = ? AND owner <> ?",
                    (args.installation_id, args.owner),
                )
                db.execute(
                    "INSERT OR REPLACE INTO owners VALUES (?, ?, ?, ?)",
                    (args.owner, args.blob, args.installation_id, now + OWNER_LIFE_S),
                )
            return "ok"

        return await self._write(job)

    async def accept(
        self,
        *,
        store_id: bytes,
        owner: str,
        expected_pin: bytes,
        pin: bytes,
        audit: Row,
        marks: tuple[str, ...] = (),
    ) -> EndReply:
        """Replace an owner's pin, forget its record, end what was issued under the old one."""

        def job(db: sqlite3.Connection, now: float) -> EndReply:
            if _lost(db, store_id):
                return EndReply("lost")
            row = db.execute("SELECT blob FROM names WHERE owner = ?", (owner,)).fetchone()
            if (row[0] if row else None) != expected_pin:
                return EndReply("changed")
            epoch = _raise_epoch(db)
            _mark(db, now, (f"m:o:{owner}", *marks), epoch)
            db.execute("UPDATE names SET blob = ? WHERE owner = ?", (pin, owner))
            db.execute("DELETE FROM owners WHERE owner = ?", (owner,))
            _append(db, now, audit)
            return EndReply("ok", epoch)

        return await self._write(job)

    async def owner_of(self, installation_id: int) -> str | None:
        """Return the owner whose record has that installation id."""

        def job(db: sqlite3.Connection, now: float) -> str | None:
            row = db.execute(
                "SELECT owner FROM owners WHERE installation_id = ? AND until > ? "
                "ORDER BY until DESC LIMIT 1",
                (installation_id, now),
            ).fetchone()
            return row[0] if row else None

        return await self._query(job)

    async def owners(self, *, cursor: str | None, limit: int) -> tuple[tuple[OwnerRow, ...], str | None]:
        """Return owners in alphabetical order, and the cursor to go on from.

        Raises:
            InvalidRequestError: the cursor is not one that this list gave.
        """
        if cursor is not None and not _OWNER.fullmatch(cursor):
            raise InvalidRequestError(public="cursor: not one that this list gave.")

        def job(db: sqlite3.Connection, now: float) -> tuple[tuple[OwnerRow, ...], str | None]:
            rows = db.execute(
                "SELECT owner, blob, (SELECT count(*) FROM live WHERE live.owner = owners.owner "
                "AND expires_at > ? AND state IS NOT 'revoked') "
                "FROM owners WHERE owner > ? AND until > ? ORDER BY owner LIMIT ?",
                (now, cursor or "", now, limit + 1),
            ).fetchall()
            page = tuple(OwnerRow(*row) for row in rows[:limit])
            return page, page[-1].owner if len(rows) > limit else None

        return await self._query(job)

    # -- ending ----------------------------------------------------------------------------------

    async def end(self, args: EndArgs) -> EndReply:
        """END."""
        kind, _, name = args.reach.partition(":")

        def job(db: sqlite3.Connection, now: float) -> EndReply:
            if _lost(db, args.store_id):
                return EndReply("lost")
            if args.must_exist and not _fields(db, (args.must_exist,)):
                return EndReply("absent")
            epoch = _raise_epoch(db)
            _mark(db, now, args.marks, epoch)
            _block(db, args.blocks, args.wide)
            shas = _enqueue(db, now, kind, name, only=args.only, note=args.note)
            if kind == "t":
                _stop(db, shas)
            if args.audit is not None:
                _append(db, now, args.audit)
            return EndReply("ok", epoch, shas)

        return await self._write(job)

    async def outbox(self, shas: Sequence[str] | None, *, limit: int) -> tuple[OutboxEntry, ...]:
        """Return entries of the outbox, oldest expiry first."""

        def job(db: sqlite3.Connection, now: float) -> tuple[OutboxEntry, ...]:
            del now
            if shas is None:
                names = db.execute(
                    "SELECT expires_at, sha, only_, note FROM outbox ORDER BY expires_at, sha, only_ LIMIT ?",
                    (limit,),
                ).fetchall()
            else:
                names = sorted(
                    row
                    for sha in dict.fromkeys(shas)
                    for row in db.execute(
                        "SELECT expires_at, sha, only_, note FROM outbox WHERE sha = ?", (sha,)
                    )
                )[:limit]
            found: list[OutboxEntry] = []
            for expires_at, sha, only, note in names:
                row = db.execute("SELECT owner, scope, blob FROM live WHERE sha = ?", (sha,)).fetchone()
                owner, scope, blob = row or ("", "", None)
                found.append(OutboxEntry(sha, only, note, owner, scope, blob, expires_at))
            return tuple(found)

        return await self._query(job)

    async def settle(self, store_id: bytes, done: Sequence[tuple[str, str, Row | None]]) -> int:
        """Take entries out of the outbox, each once, with its audit event if it was revoked."""

        def job(db: sqlite3.Connection, now: float) -> int:
            if _lost(db, store_id):
                return 0
            count = 0
            for sha, only, row in done:
                gone = db.execute("DELETE FROM outbox WHERE sha = ? AND only_ = ?", (sha, only))
                if not gone.rowcount:
                    continue
                count += 1
                if row is not None:
                    _append(db, now, row)
                    db.execute("UPDATE live SET state = 'revoked' WHERE sha = ?", (sha,))
            return count

        return await self._write(job)

    # -- webhooks --------------------------------------------------------------------------------

    async def hook(self, store_id: bytes, *, body_sha: str, guid: str, blob: bytes) -> str:
        """HOOK: dedupe and queue in one step."""
        names = (f"W:{body_sha}", f"WD:{guid}")

        def job(db: sqlite3.Connection, now: float) -> str:
            if _lost(db, store_id):
                return "lost"
            if db.execute(
                "SELECT 1 FROM hook_seen WHERE name IN (?, ?) AND until > ?", (*names, now)
            ).fetchone():
                return "seen"
            db.executemany(
                "INSERT OR REPLACE INTO hook_seen VALUES (?, ?)",
                [(name, now + HOOK_LIFE_S) for name in names],
            )
            db.execute("INSERT INTO hook_queue (blob, at) VALUES (?, ?)", (blob, now))
            return "ok"

        return await self._write(job)

    async def hooks(self, *, limit: int) -> tuple[tuple[str, bytes], ...]:
        """Return queued deliveries, oldest first."""

        def job(db: sqlite3.Connection, now: float) -> tuple[tuple[str, bytes], ...]:
            del now
            rows = db.execute("SELECT seq, blob FROM hook_queue ORDER BY seq LIMIT ?", (limit,))
            return tuple((str(seq), blob) for seq, blob in rows)

        return await self._query(job)

    async def hooks_done(self, places: Sequence[str]) -> None:
        """Take deliveries out of the queue."""

        def job(db: sqlite3.Connection, now: float) -> None:
            del now
            db.executemany("DELETE FROM hook_queue WHERE seq = ?", [(int(place),) for place in places])

        if places:
            await self._write(job)

    # -- keeping house ---------------------------------------------------------------------------

    async def counts(self) -> Counts:
        """Return how much there is."""

        def job(db: sqlite3.Connection, now: float) -> Counts:
            asked = (
                "SELECT (SELECT count(*) FROM live WHERE expires_at > ? AND state IS NOT 'revoked'), "
                "(SELECT count(*) FROM outbox), (SELECT count(*) FROM hook_queue)"
            )
            return Counts(*db.execute(asked, (now,)).fetchone())

        return await self._query(job)

    async def sweep(self) -> None:
        """Delete what has expired, a bounded number of rows at a time."""

        def job(db: sqlite3.Connection, now: float) -> bool:
            full = False
            for table, key, condition, at in (
                ("tokens", "scope", "expires_at <= ?", now),
                ("live", "sha", "expires_at <= ?", now - LIVE_GRACE_S),
                ("owners", "owner", "until <= ?", now),
                ("leases", "name", "until <= ?", now),
                ("failures", "name", "until <= ?", now),
                ("pauses", "name", "until <= ?", now),
                ("gates", "name", "until <= ?", now),
                ("budget", "name", "window < ?", int(now) // WINDOW_S - 1),
                ("hook_seen", "name", "until <= ?", now),
                ("keys", "id", "purge_at <= ?", now),
                ("audit", "seq", "time <= ?", now - self._retention_s),
            ):
                done = db.execute(
                    f"DELETE FROM {table} WHERE {key} IN "  # noqa: S608 - constants
                    f"(SELECT {key} FROM {table} WHERE {condition} LIMIT {_SWEEP_ROWS})",
                    (at,),
                )
                full = full or done.rowcount == _SWEEP_ROWS
            done = db.execute(
                "DELETE FROM audit WHERE seq IN (SELECT seq FROM audit "  # noqa: S608 - constants
                f"WHERE seq <= (SELECT max(seq) FROM audit) - ? LIMIT {_SWEEP_ROWS})",
                (self._max_events,),
            )
            db.execute("DELETE FROM key_use WHERE id NOT IN (SELECT id FROM keys)")
            db.execute("DELETE FROM outbox WHERE sha NOT IN (SELECT sha FROM live)")
            _unmark(db, now - MARK_LIFE_S)
            return full or done.rowcount == _SWEEP_ROWS

        more = True
        while more:
            more = await self._write(job)
            await asyncio.sleep(0)

    async def warnings(self) -> list[str]:
        """Return what an operator should know: SQLite's locks do not hold on network file systems."""
        kind = await in_thread(_file_system, self._path.absolute())
        if kind in _NETWORK_FILE_SYSTEMS:
            return [f"{self._path} lies on {kind}, a network file system: use a local disk, or Redis"]
        return []


def _file_system(path: Path) -> str:
    """Return the type of the file system that holds ``path``, empty if this host does not tell."""
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return ""
    mounts = [line.split()[1:3] for line in lines]
    holding = [(point, kind) for point, kind in mounts if path.is_relative_to(point)]
    return max(holding, key=lambda found: len(found[0]), default=("", ""))[1]


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """Switch the file to WAL; SQLite does not wait by itself when several processes do that at once."""
    for left in reversed(range(_WAL_ATTEMPTS)):
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if not left:
                raise
            time.sleep(_WAL_PAUSE_S)
        else:
            return


def _retrieve(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


def _lost(db: sqlite3.Connection, store_id: bytes) -> bool:
    rows = db.execute(
        "SELECT value FROM state WHERE name = 'id' UNION ALL SELECT value FROM key_state WHERE name = '!'"
    ).fetchall()
    return rows != [(store_id,), (store_id,)]


def _fields(db: sqlite3.Connection, names: Sequence[str]) -> dict[str, bytes]:
    return _select(db, "SELECT name, value FROM state WHERE name IN ", names)


def _select(
    db: sqlite3.Connection, statement: str, names: Sequence[str], *before: object
) -> dict[str, bytes]:
    """Run ``statement`` with an IN list, padded to few lengths so that prepared statements are reused."""
    found: dict[str, bytes] = {}
    for start in range(0, len(names), 512):
        part = names[start : start + 512]
        size = 1 << (len(part) - 1).bit_length()
        padded = (*part, *[part[-1]] * (size - len(part)))
        found.update(db.execute(f"{statement} ({','.join('?' * size)})", (*before, *padded)))
    return found


def _epoch(db: sqlite3.Connection) -> int:
    row = db.execute("SELECT value FROM state WHERE name = 'epoch'").fetchone()
    return int(row[0]) if row else 0


def _raise_epoch(db: sqlite3.Connection) -> int:
    epoch = _epoch(db) + 1
    db.execute("INSERT OR REPLACE INTO state VALUES ('epoch', ?)", (b"%d" % epoch,))
    return epoch


def _mark(db: sqlite3.Connection, now: float, names: Iterable[str], epoch: int) -> None:
    mark = b"%d:%d" % (epoch, now)
    db.executemany("INSERT OR REPLACE INTO state VALUES (?, ?)", [(name, mark) for name in names])


def _unmark(db: sqlite3.Connection, oldest: float) -> None:
    """Delete marks set before ``oldest``; one that cannot be read stays."""
    rows = db.execute(
        "SELECT name, value FROM state WHERE name GLOB 'm:*' OR name GLOB 'f:o:*' OR name GLOB 'w:*'"
    ).fetchall()
    for name, value in rows:
        found = _MARK.fullmatch(value)
        if found and int(found[1]) < oldest:
            db.execute("DELETE FROM state WHERE name = ?", (name,))


def _block(db: sqlite3.Connection, blocks: Mapping[str, bytes | None], wide: str) -> None:
    """Set and delete blocks; ``wide`` counts those of its owner's repositories.

    Raises:
        StoreUnavailableError: the count is not a number.
    """
    counted = f"b:r:{wide.removeprefix('b:w:')}/"
    change = 0
    for name, value in blocks.items():
        there = bool(_fields(db, (name,)))
        if value is None:
            db.execute("DELETE FROM state WHERE name = ?", (name,))
        else:
            db.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (name, value))
        if name.startswith(counted):
            change += int(value is not None) - int(there)
    if not wide:
        return
    try:
        count = int(_fields(db, (wide,)).get(wide, b"0")) + change
    except ValueError:
        raise StoreUnavailableError("SQLite: the number of blocks is not a number") from None
    if count > 0:
        db.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (wide, b"%d" % count))
    else:
        db.execute("DELETE FROM state WHERE name = ?", (wide,))


def _enqueue(
    db: sqlite3.Connection, now: float, kind: str, name: str, *, only: str, note: bytes
) -> tuple[str, ...]:
    """Put the live tokens of a reach into the outbox; return their hashes."""
    condition = f"{_REACH[kind]} AND expires_at >= ? AND state IS NOT 'revoked'"
    values = (name, now - END_SLACK_S)
    rows = db.execute(
        f"SELECT sha, expires_at FROM live WHERE {condition} ORDER BY expires_at",  # noqa: S608 - constants
        values,
    ).fetchall()
    db.executemany(
        "INSERT OR REPLACE INTO outbox VALUES (?, ?, ?, ?)",
        [(sha, only, note, expires_at) for sha, expires_at in rows],
    )
    return tuple(sha for sha, _ in rows)


def _stop(db: sqlite3.Connection, shas: Sequence[str]) -> None:
    """HAND calls the tokens gone, and they leave the cache (newer ones of the same scope stay)."""
    names = [(sha,) for sha in shas]
    db.executemany("UPDATE live SET state = 'ended' WHERE sha = ?", names)
    db.executemany(
        "DELETE FROM tokens WHERE scope = (SELECT scope FROM live WHERE sha = ?1) "
        "AND blob = (SELECT blob FROM live WHERE sha = ?1)",
        names,
    )


def _highest(db: sqlite3.Connection, names: Sequence[str]) -> int:
    return max((epoch_of(value) for value in _fields(db, names).values()), default=0)


def _paused(db: sqlite3.Connection, now: float, names: Iterable[str]) -> float:
    rows = _select(db, "SELECT name, until FROM pauses WHERE name IN ", tuple(names))
    return max((float(until) - now for until in rows.values() if float(until) > now), default=0.0)


def _lease_free(db: sqlite3.Connection, name: str, now: float) -> bool:
    return not db.execute("SELECT 1 FROM leases WHERE name = ? AND until > ?", (name, now)).fetchone()


def _lease_held(db: sqlite3.Connection, name: str, nonce: str, now: float) -> bool:
    return bool(
        db.execute(
            "SELECT 1 FROM leases WHERE name = ? AND holder = ? AND until > ?", (name, nonce, now)
        ).fetchone()
    )


def _grant_lease(db: sqlite3.Connection, name: str, nonce: str, now: float) -> None:
    db.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", (name, nonce, now + LEASE_MS / 1000))


def _take(db: sqlite3.Connection, now: float, name: str, chunk: int, limit: int) -> tuple[int, float]:
    window = int(now) // WINDOW_S
    row = db.execute("SELECT used FROM budget WHERE name = ? AND window = ?", (name, window)).fetchone()
    used = row[0] if row else 0
    granted = max(0, min(chunk, limit - used))
    if granted:
        db.execute("INSERT OR REPLACE INTO budget VALUES (?, ?, ?)", (name, window, used + granted))
    return granted, (window + 1) * WINDOW_S - now


def _append(db: sqlite3.Connection, now: float, row: Row) -> None:
    repositories = "|" + "|".join(row.repositories) + "|" if row.repositories else ""
    db.execute(
        "INSERT INTO audit (time, event, key_id, owner, repositories, request_id, body) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (now, row.event, row.key_id, row.owner, repositories, row.request_id, row.body),
    )


def _next_sequence(db: sqlite3.Connection) -> int:
    """Return a number that no key ever had, so that a page's cursor never skips a key."""
    row = db.execute("SELECT value FROM state WHERE name = 'seq'").fetchone()
    number = (int(row[0]) if row else 0) + 1
    db.execute("INSERT OR REPLACE INTO state VALUES ('seq', ?)", (b"%d" % number,))
    return number


def _cursor(cursor: str | None) -> int | None:
    """Return where a page goes on.

    Raises:
        InvalidRequestError: the cursor is not one that this list gave.
    """
    if cursor is None:
        return None
    if not _CURSOR.fullmatch(cursor):
        raise InvalidRequestError(public="cursor: not one that this list gave.")
    return int(cursor)
