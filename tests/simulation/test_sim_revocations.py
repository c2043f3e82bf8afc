"""More tokens to end than GitHub lets anyone end in a minute: the real store and use case, virtual time."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from sim_loop import Machine, VirtualLoop
from sim_replica import KEK
from sim_store import EPOCH, Database, SimulatedSqlite, StoreClock, Wire
from sim_weather import CALM, Weather

from broker.audit import Auditor
from broker.errors import GitHubRateLimitedError
from broker.issuing.ending import Actor, Ender
from broker.model import LiveToken, Scope, Secret, Target, TargetKind, token_sha256
from broker.ports import AuditEvent, AuditFilter, Event, Lead, ReadQuery
from broker.store.sealed import SealedStore

TOKENS = 900
A_MINUTE = 180
AT_ONCE = 8
"""Calls that may be under way for one owner when GitHub says wait."""


@dataclass
class StrictGitHub:
    """Lets ``limit`` calls through in each minute of the clock, and tells all others when the next begins."""

    loop: VirtualLoop
    limit: int
    life: dict[str, float] = field(default_factory=dict)
    ended: list[tuple[float, str]] = field(default_factory=list)
    early: int = 0
    """Calls begun after an answer that said wait, before the wait was over."""
    waits: int = 0
    _wait_until: float = 0.0
    _minute: tuple[int, int] = (0, 0)

    async def revoke(self, token: Secret) -> None:
        now = self.loop.time()
        self.early += now < self._wait_until
        await _passes(self.loop, 0.2)
        minute = int(self.loop.time() // 60)
        used = self._minute[1] if self._minute[0] == minute else 0
        if used >= self.limit:
            self.waits += 1
            left_s = (minute + 1) * 60 - self.loop.time()
            self._wait_until = self.loop.time() + left_s
            raise GitHubRateLimitedError("a secondary limit", retry_after_s=left_s)
        self._minute = (minute, used + 1)
        self.ended.append((self.loop.time(), token.reveal()))


async def _passes(loop: VirtualLoop, seconds: float) -> None:
    done = loop.create_future()
    loop.call_later(seconds, done.set_result, None)
    await done


@dataclass
class Stage:
    loop: VirtualLoop
    store: SealedStore
    github: StrictGitHub
    ender: Ender


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    loop = VirtualLoop()
    yield loop
    loop.close()


async def _staged(loop: VirtualLoop, database: Database) -> Stage:
    weather = Weather(random.Random(0), loop.time)
    weather.climate = CALM
    machine = Machine(loop, "one")
    backend = SimulatedSqlite(lambda: Wire(loop, machine, database, weather), StoreClock(loop))
    store = SealedStore(backend, [KEK])
    await store.open()
    github = StrictGitHub(loop, A_MINUTE)
    return Stage(loop, store, github, Ender(store, github, Auditor(store)))  # type: ignore[arg-type]


async def _minted(stage: Stage, number: int, expires_at: float) -> None:
    """Put a live token into the store as a mint does."""
    name = f"acme/r{number}"
    scope = Scope("github.com", "acme", (name,), ("contents", "metadata"))
    lead = await stage.store.acquire(scope, seen=await stage.store.read(ReadQuery(scope=scope)), budget=None)
    assert isinstance(lead, Lead)
    text = Secret(f"ghs_{number:036}")
    token = LiveToken(
        text, token_sha256(text), scope.id, lead.epoch, 1, expires_at, (name,), scope.permissions
    )
    event = AuditEvent(Event.TOKEN_MINTED, owner="acme", repositories=(name,))
    assert await stage.store.commit(lead, scope, token, gh_offset=0.0, moved=False, event=event) == "ok"
    stage.github.life[text.reveal()] = expires_at


def test_hundreds_of_tokens_at_a_limit_of_180_a_minute(loop: VirtualLoop) -> None:
    """The answer comes in time and counts what is so; the rest dies in the background as GitHub lets it."""
    database = Database()

    async def play() -> None:
        stage = await _staged(loop, database)
        github, store, ender = stage.github, stage.store, stage.ender
        order = list(range(TOKENS))
        random.Random(1).shuffle(order)
        for number in order:
            await _minted(stage, number, EPOCH + 2000 + 2 * number)
        ender.start()
        while loop.time() % 60 > 1:  # at the begin of a minute of GitHub's
            await _passes(loop, 60 - loop.time() % 60)
        begin = loop.time()
        told = await ender.revoke(Target(TargetKind.ALL), Actor("ops", "ops"), reason="leaked")
        assert loop.time() - begin < 10
        assert (told.revoked, told.failed) == (len(github.ended), 0)
        assert told.revoked + told.pending == TOKENS
        assert told.revoked == A_MINUTE
        assert github.waits
        assert len(told.remaining) == 100
        dead = {token_sha256(Secret(text)) for _, text in github.ended}
        assert not dead & {sha for sha, _ in told.remaining}

        answered = len(github.ended)
        while await store.doomed(None, limit=1):
            assert loop.time() - begin < 60 * TOKENS / A_MINUTE + 30
            await _passes(loop, 1)
        assert github.early == 0
        assert github.waits <= AT_ONCE * TOKENS / A_MINUTE
        assert sorted(text for _, text in github.ended) == sorted(github.life)  # each once
        late = github.ended[answered:]
        for minute in range(int(begin // 60) + 1, int(loop.time() // 60)):
            now = [github.life[text] for at, text in late if at // 60 == minute]
            after = [github.life[text] for at, text in late if at // 60 > minute]
            assert len(now) == A_MINUTE
            assert max(now) <= min(after) + 2 * AT_ONCE  # soonest expiry first, but for those under way
        page = await store.audit(
            AuditFilter(event="token.revoked", ascending=True), cursor=None, limit=2 * TOKENS
        )
        assert len([row for row in page.items if "expires_at" in row.event]) == TOKENS
        await ender.stop()
        await store.close()

    try:
        loop.run_until_complete(play())
    finally:
        database.close()
