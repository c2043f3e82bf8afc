"""What tests of the app inside the loop share: a clock set by hand, wrappers that fail or delay, calls."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
from harness import Inside, World

from broker.ports import AuditFilter


class HandClock:
    """Time that moves when a test says so; GitHub and the store may share one."""

    def __init__(self, at: float = 1_800_000_000.0) -> None:
        self.at = at

    def now(self) -> float:
        return self.at

    def __call__(self) -> float:
        return self.at


class Shifted:
    """A real clock that is off."""

    def __init__(self, by_s: float) -> None:
        self.by_s = by_s

    def now(self) -> float:
        import time  # noqa: PLC0415

        return time.time() + self.by_s


class Wrapped:
    """Any object, with some of its methods replaced, and a count of the calls of each."""

    def __init__(self, inner: Any, **instead: Callable[..., Any]) -> None:
        self._inner = inner
        self._instead = instead
        self.calls: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        found = self._instead.get(name) or getattr(self._inner, name)
        if not callable(found):
            return found

        def counted(*arguments: Any, **named: Any) -> Any:
            self.calls[name] = self.calls.get(name, 0) + 1
            return found(*arguments, **named)

        return counted


def wrap_backend(app: Inside, **instead: Callable[..., Any]) -> Wrapped:
    """Put a wrapper between the sealed store and its backend; returns it."""
    wrapped = Wrapped(app.broker.store._backend, **instead)
    app.broker.store._backend = wrapped  # type: ignore[assignment]
    return wrapped


@asynccontextmanager
async def pair(world: World, **settings: Any) -> AsyncIterator[tuple[Inside, Inside]]:
    """Run two apps on one store, as two replicas."""
    async with world.inside(**settings) as one, world.inside(**settings) as two:
        yield one, two


async def until(true: Callable[[], bool] | Callable[[], Awaitable[bool]], *, seconds: float = 5.0) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(seconds):
        while True:
            found = true()
            if await found if not isinstance(found, bool) else found:
                return
            await asyncio.sleep(0.01)


async def events(app: Inside, event: str | None = None, **wanted: Any) -> list[dict[str, Any]]:
    """Return stored audit events, oldest first."""
    page = await app.broker.store.audit(
        AuditFilter(event=event, ascending=True, **wanted), cursor=None, limit=200
    )
    return [dict(row.event) for row in page.items]


def verdict(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json().get("code", "ok")


def database(world: World) -> sqlite3.Connection:
    """Open the world's SQLite file, as somebody who can write to it."""
    connection = sqlite3.connect(world.folder / "broker.db", isolation_level=None)
    connection.execute("PRAGMA busy_timeout=5000")
    return connection
