"""The real SQLite adapter on one database in memory, with the weather between it and its transactions.

``SqliteBackend`` runs its SQL on threads. Here a ``Wire`` stands in each thread's place: what is submitted
travels, happens in one step (one transaction), and travels back. Everything above the threads is the
product's: batching, deadlines, giving up.
"""

import asyncio  # noqa: TC003 - as in every other module
import sqlite3
from collections.abc import Callable
from contextvars import Context
from pathlib import Path
from typing import Any

from sim_loop import Machine, State, VirtualLoop
from sim_weather import NEVER, Weather

from broker.store.sqlite import MIGRATIONS, SqliteBackend

Job = Callable[[sqlite3.Connection], Any]
EPOCH = 1_800_000_000.0
"""Store time at the begin of a story, Unix seconds."""


class StoreClock:
    """The store's time: the loop's, which every replica's processes share with it."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def now(self) -> float:
        return EPOCH + self._loop.time()


class Database:
    """The one database of a story.

    Args:
        image: what it begins with, as ``image`` returned it; None for empty tables.
    """

    def __init__(self, image: bytes | None = None) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None, cached_statements=256)
        self.down_until = 0.0
        if image is None:
            for script in MIGRATIONS:
                self.connection.executescript(script)
        else:
            self.connection.deserialize(image)
        self.connection.execute("PRAGMA foreign_keys=ON")

    def image(self) -> bytes:
        return self.connection.serialize()

    def run(self, job: Job) -> tuple[Any, Exception | None]:
        """Run one transaction."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            result = job(self.connection)
        except Exception as error:  # noqa: BLE001 - the caller's to have
            self.connection.execute("ROLLBACK")
            return None, error
        self.connection.execute("COMMIT")
        return result, None

    def close(self) -> None:
        self.connection.close()


class Wire:
    """One connection of one replica to the database, in the place of ``_Thread``.

    Requests arrive in the order in which they were sent, late ones apart.
    """

    def __init__(self, loop: VirtualLoop, machine: Machine, database: Database, weather: Weather) -> None:
        self._loop = loop
        self._machine = machine
        self._database = database
        self._weather = weather
        self._outside = Context()
        self._last = 0.0

    def submit(self, job: Job, *, durable: bool = True) -> "asyncio.Future[Any]":
        del durable  # no machine loses power here
        future: asyncio.Future[Any] = self._loop.create_future()
        if not self._machine.talks:
            future.set_exception(sqlite3.OperationalError("this process is dead"))
            return future
        now = self._loop.time()
        if now < self._database.down_until:
            self._loop.call_at(now + 0.001, self._deliver, future, None, _down(), context=self._outside)
            return future
        fate = self._weather.store()
        if fate.there_s != NEVER:
            at = now + fate.there_s
            if not fate.late:
                at = self._last = max(self._last, at)
            self._loop.call_at(at, self._arrive, future, job, fate.back_s, context=self._outside)
        return future

    def _arrive(self, future: "asyncio.Future[Any]", job: Job, back_s: float) -> None:
        if self._loop.time() < self._database.down_until:
            return
        result, error = self._database.run(job)
        if back_s != NEVER:
            at = self._loop.time() + back_s
            self._loop.call_at(at, self._deliver, future, result, error, context=self._outside)

    def _deliver(self, future: "asyncio.Future[Any]", result: Any, error: Exception | None) -> None:
        if future.done() or self._machine.state is State.DEAD:
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def give_up(self, future: "asyncio.Future[Any]") -> None:
        """Forget who waits; what is under way stays so."""
        future.cancel()

    async def stop(self) -> None:
        """Nothing to stop."""


def _down() -> sqlite3.OperationalError:
    return sqlite3.OperationalError("unable to open database file")


class SimulatedSqlite(SqliteBackend):
    """``SqliteBackend`` whose threads are wires."""

    def __init__(self, wires: Callable[[], Wire], clock: StoreClock) -> None:
        super().__init__(Path("/nonexistent/simulated.db"), clock=clock)
        self._wires = wires

    async def connect(self) -> None:
        if self._reader is None:
            self._reader = self._wires()  # type: ignore[assignment]
            self._writer = self._wires()  # type: ignore[assignment]

    async def warnings(self) -> list[str]:
        return []

    def _same_file(self) -> bool:
        return True
