"""Single rooms in virtual time: the real store adapter, and both far ends in a test's hand."""

import asyncio
import gc
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sim_github import GitHubLine, SimulatedGitHub
from sim_loop import Machine, VirtualLoop
from sim_replica import HOST, KEK, Parts, Rooms
from sim_store import Database, SimulatedSqlite, StoreClock, Wire
from sim_weather import CALM, Weather
from stage import Wrapped

from broker.access.keys import PresentedKey, parse
from broker.errors import BrokerError
from broker.issuing.ending import Actor
from broker.issuing.keys import KeyPolicy
from broker.issuing.tokens import Issued, Origin, TokenRequest
from broker.model import DEFAULT_PERMISSIONS, Grant, Installation, RepositoryName, Role, Scope
from broker.ports import AuditEvent, AuditFilter, Meter, ReadQuery
from broker.store.sealed import SealedStore

ADMIN = Actor("ops", "ops", "request-1", "192.0.2.1")
ORIGIN = Origin("request-1", "192.0.2.7")


@dataclass
class Counted(Meter):
    """What was metered, in order."""

    mints: list[tuple[bool, str, float]] = field(default_factory=list)
    fates: list[str] = field(default_factory=list)
    lines: list[AuditEvent] = field(default_factory=list)
    """What went to the audit's log."""

    again: int = 0

    def issued_again(self) -> None:
        self.again += 1

    def decided(self, event: AuditEvent) -> None:
        self.lines.append(event)

    def minted(self, *, ahead: bool, result: str, seconds: float) -> None:
        self.mints.append((ahead, result, seconds))

    def revoked(self, fate: str) -> None:
        self.fates.append(str(fate))


class Process:
    """One process of the broker on the bench: no background work unless a test starts it.

    Attributes:
        line: its way to GitHub; ``instead`` replaces calls, ``calls`` counts them.
        store: as ``line``, to the store.
    """

    def __init__(self, bench: "Bench") -> None:
        machine = Machine(bench.loop, "process")
        backend = SimulatedSqlite(
            lambda: Wire(bench.loop, machine, bench.database, bench.weather), StoreClock(bench.loop)
        )
        self.bench = bench
        self.sealed = SealedStore(backend, [KEK])
        self.store: Any = Wrapped(self.sealed)
        self.line: Any = Wrapped(GitHubLine(bench.github, machine))
        self.meter = Counted()
        self.rooms = Rooms.of(self.store, self.line, Parts(), self.meter)

    def github_does(self, **instead: Callable[..., Any]) -> None:
        self.line._instead.update(instead)

    def store_does(self, **instead: Callable[..., Any]) -> None:
        self.store._instead.update(instead)

    def asked(self, name: str) -> int:
        """Return how often this process called GitHub so."""
        found: int = self.line.calls.get(name, 0)
        return found

    async def key(self, *patterns: str, limit: int | None = None) -> PresentedKey:
        policy = KeyPolicy.parse(
            name="test",
            role=Role.CALLER,
            repositories=patterns,
            permissions=None,
            rate_limit_per_minute=limit,
        )
        key, _ = await self.rooms.keys.create(policy, by="test")
        return parse(key.reveal())

    async def issue(self, key: PresentedKey, *names: str, **wanted: Any) -> Issued:
        request = TokenRequest(scope(*names), **wanted)
        return await self.rooms.issuer.issue(key, request, ORIGIN)

    async def refused(self, key: PresentedKey, *names: str, **wanted: Any) -> BrokerError:
        """Return why there is no token."""
        try:
            await self.issue(key, *names, **wanted)
        except BrokerError as error:
            return error
        raise AssertionError("a token was given")

    async def mint(self, *names: str, key_id: str = "k" * 12) -> str:
        """Mint as an issue does that found nothing cached."""
        wanted = scope(*names)
        seen = await self.store.read(ReadQuery(scope=wanted))
        return await self.rooms.minter.mint(Grant(key_id, "test", wanted), seen)

    async def known(self, owner: str = "acme") -> Installation | None:
        found: Installation | None = await self.rooms.installations._known(owner)
        return found

    async def events(self, event: str) -> list[dict[str, Any]]:
        """Return stored audit events, oldest first."""
        page = await self.sealed.audit(AuditFilter(event=event, ascending=True), cursor=None, limit=200)
        return [dict(row.event) for row in page.items]


class Bench:
    """A store in memory and a GitHub with the app on ``acme``; nothing goes wrong by itself."""

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self.weather = Weather(random.Random(0), self.loop.time)
        self.weather.climate = CALM
        self.database = Database()
        self.github = SimulatedGitHub(self.loop, self.weather)
        self.github.install("acme", ["widgets", "gadgets", "gizmos"])

        self._processes: list[Process] = []
        self._unhandled: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self._unhandled.append(context))

    async def process(self) -> Process:
        one = Process(self)
        self._processes.append(one)
        await one.sealed.open()
        return one

    def play(self, story: Coroutine[Any, Any, None]) -> None:
        try:
            self.loop.run_until_complete(story)
        finally:
            self.loop.run_until_complete(self._end())
        gc.collect(1)  # a task whose error nobody has seen tells it when it is thrown away
        assert self._unhandled == []

    async def _end(self) -> None:
        for one in self._processes:
            await one.sealed.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def alive(self) -> list[str]:
        """Return the SHA-256 of every token that GitHub accepts."""
        return [one.sha for one in self.github.minted.values() if self.github.alive(one)]


@contextmanager
def new_bench() -> Iterator[Bench]:
    bench = Bench()
    try:
        yield bench
    finally:
        bench.loop.close()
        bench.database.close()


def scope(*names: str) -> Scope:
    """Return the scope of some of acme's repositories; of all of them where none is named."""
    if not names:
        return Scope.of_owner(HOST, "acme", DEFAULT_PERMISSIONS)
    return Scope.of_repositories(HOST, [RepositoryName("acme", name) for name in names], DEFAULT_PERMISSIONS)


def after(seconds: float, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Return ``call`` with seconds before it."""

    async def late(*arguments: Any, **named: Any) -> Any:
        await asyncio.sleep(seconds)
        return await call(*arguments, **named)

    return late


def failing(error: BrokerError, *, times: int = 1 << 30, then: Callable[..., Any] | None = None) -> Any:
    """Return a call that fails so many times, and is ``then`` afterwards."""
    left = times

    async def fails(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            assert then is not None
            return await then(*arguments, **named)
        raise error

    return fails
