"""How queued webhooks are worked off: each target once, by one process at a time, again after a failure."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.audit import Auditor
from broker.errors import StoreUnavailableError
from broker.issuing import hooks
from broker.issuing.hooks import HookReactor, forgettings
from broker.model import Target, TargetKind
from broker.ports import AuditEvent, Ended, EndKind, Event, HookWork, Lead


def owner(name: str) -> Target:
    return Target(TargetKind.OWNER, name)


def repository(name: str) -> Target:
    return Target(TargetKind.REPOSITORY, name)


def work(*drops: Target, voids: tuple[str, ...] = (), guid: str = "g1", number: int | None = 50) -> HookWork:
    return HookWork("some.event", guid, drops, voids, number)


def steps(*works: HookWork, owners: dict[int, str] | None = None) -> set[tuple[EndKind, str]]:
    found = forgettings(works, owners or {})
    names = [(step.kind, step.target.name) for step in found]
    assert len(names) == len(set(names)), "a target twice"
    return set(names)


# -- what a batch asks for -------------------------------------------------------------------------


def test_each_target_once() -> None:
    many = [work(owner("acme"), voids=("acme",), guid=f"g{n}") for n in range(30)]
    (step,) = forgettings(many, {})
    assert (step.kind, step.target) == (EndKind.DROP, owner("acme"))
    assert step.event.event is Event.WEBHOOK_RECEIVED
    assert step.event.count == 30
    assert (step.event.owner, step.event.installation_id) == ("acme", 50)
    assert (step.event.reason or "").startswith("some.event g0, some.event g1, ")
    assert len(step.event.reason or "") <= 200


def test_repositories_of_a_dropped_owner_are_dropped_with_it() -> None:
    (step,) = forgettings([work(repository("acme/b")), work(repository("acme/a")), work(owner("acme"))], {})
    assert (step.kind, step.target) == (EndKind.DROP, owner("acme"))
    assert step.event.repositories == ("acme/a", "acme/b")
    assert steps(work(repository("acme/a")), work(owner("stranger"))) == {
        (EndKind.DROP, "acme/a"),
        (EndKind.DROP, "stranger"),
    }


@pytest.mark.parametrize(("deliveries", "count"), [(1, None), (2, 2), (3, 3)])
def test_more_than_one_delivery_is_counted(deliveries: int, count: int | None) -> None:
    (step,) = forgettings([work(owner("acme"), guid=f"g{n}") for n in range(deliveries)], {})
    assert step.event.count == count


def test_one_repository() -> None:
    (step,) = forgettings([work(repository("acme/a"))], {50: "acme"})
    assert (step.kind, step.target) == (EndKind.DROP, repository("acme/a"))
    assert (step.event.owner, step.event.repositories, step.event.count) == ("acme", ("acme/a",), None)
    assert step.event.reason == "some.event g1"


def test_many_repositories_of_an_owner() -> None:
    few = [work(repository(f"acme/r{n}")) for n in range(hooks.MOST_REPOSITORIES)]
    assert len(steps(*few)) == hooks.MOST_REPOSITORIES
    assert steps(*few, work(repository("acme/more"))) == {(EndKind.DROP, "acme")}


def test_failures_are_forgotten_alone_or_with_their_owner() -> None:
    assert steps(work(voids=("acme",))) == {(EndKind.VOID, "acme")}
    assert steps(work(voids=("acme",)), work(owner("acme"))) == {(EndKind.DROP, "acme")}
    assert steps(work(repository("acme/a"), voids=("acme",))) == {
        (EndKind.DROP, "acme/a"),
        (EndKind.VOID, "acme"),
    }


def test_an_installation_stands_for_the_owner_it_is_known_by() -> None:
    known = {50: "old-name"}
    assert steps(work(), owners=known) == {(EndKind.DROP, "old-name")}
    assert steps(work(number=51), owners=known) == set()
    assert steps(work(number=None), owners={**known, 1: "other"}) == set()
    assert steps(work(owner("new-name")), owners=known) == {
        (EndKind.DROP, "old-name"),
        (EndKind.DROP, "new-name"),
    }
    assert steps(work(voids=("new-name",)), owners=known) == {(EndKind.VOID, "new-name")}


NAMES = st.sampled_from(["a", "b", "c"])
TARGETS = st.builds(owner, NAMES) | st.builds(lambda o, r: repository(f"{o}/{r}"), NAMES, NAMES)
WORKS = st.lists(
    st.builds(
        lambda drops, voids, number: HookWork("e", "g", tuple(drops), tuple(voids), number),
        st.lists(TARGETS, max_size=4),
        st.lists(NAMES, max_size=2),
        st.sampled_from([None, 1, 2]),
    ),
    max_size=8,
)


@given(WORKS)
def test_nothing_that_was_asked_for_is_left_out(works: list[HookWork]) -> None:
    known = {1: "a"}
    done = steps(*works, owners=known)
    for one in works:
        for target in one.drops:
            assert {(EndKind.DROP, target.name), (EndKind.DROP, target.owner)} & done
        for name in one.voids:
            assert {(EndKind.VOID, name), (EndKind.DROP, name)} & done
        if one.installation_id == 1 and not (one.drops or one.voids):
            assert (EndKind.DROP, "a") in done


# -- the worker ------------------------------------------------------------------------------------


class FakeStore:
    """A queue, a lease, and a list of what was ended; ``fails`` names verbs that raise once each."""

    def __init__(self) -> None:
        self.queue: dict[str, HookWork | None] = {}
        self.ended: list[tuple[EndKind, str]] = []
        self.events: list[AuditEvent] = []
        self.fails: list[str] = []
        self.down = False
        self.held = False
        self.leases = 0
        self.owners = {50: "acme"}

    def _may_fail(self, verb: str) -> None:
        if verb in self.fails:
            self.fails.remove(verb)
            raise StoreUnavailableError(verb)
        if self.down:
            raise StoreUnavailableError("down")

    def put(self, place: str, one: HookWork | None) -> None:
        self.queue[place] = one

    async def hooks(self, *, limit: int) -> Sequence[tuple[str, HookWork | None]]:
        self._may_fail("hooks")
        return list(self.queue.items())[:limit]

    async def hooks_done(self, places: Sequence[str]) -> None:
        self._may_fail("hooks_done")
        for place in places:
            del self.queue[place]

    async def owner_of(self, installation_id: int) -> str | None:
        self._may_fail("owner_of")
        return self.owners.get(installation_id)

    async def end(self, kind: EndKind, target: Target, event: AuditEvent, *, by: str, reason: str) -> Ended:
        assert by == "webhook"
        assert reason == event.reason
        self._may_fail(f"end {target.name}")
        self.ended.append((kind, target.name))
        self.events.append(event)
        return Ended(True)

    async def lease(self, what: str) -> Lead | None:
        assert what == "job:hooks"
        self._may_fail("lease")
        if self.held:
            return None
        self.held = True
        self.leases += 1
        return Lead(what, "nonce", 1)

    async def renew(self, lead: Lead) -> bool:
        return True

    async def release(self, lead: Lead) -> None:
        self.held = False


@asynccontextmanager
async def reacting(store: Any) -> AsyncIterator[HookReactor]:
    reactor = HookReactor(store, Auditor(store))
    reactor.start()
    try:
        yield reactor
    finally:
        await reactor.stop()


async def until(true: Callable[[], bool], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_it_works_at_once_when_woken(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "_POLL_S", 600.0)
    caplog.set_level(logging.INFO)
    store = FakeStore()
    async with reacting(store) as reactor:
        store.put("1", work(owner("acme")))
        store.put("2", None)  # written by somebody else: it does not open
        reactor.wake()
        await until(lambda: not store.queue and not store.held)
        assert store.ended == [(EndKind.DROP, "acme")]
        assert store.leases == 1
    (told,) = [record for record in caplog.records if hasattr(record, "audit")]
    assert told.audit["event"] == "webhook.received"


async def test_it_finds_what_others_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "_POLL_S", 0.02)
    store = FakeStore()
    async with reacting(store):
        store.put("1", work())
        await until(lambda: not store.queue)
    assert store.ended == [(EndKind.DROP, "acme")]


async def test_it_works_off_more_than_a_batch() -> None:
    store = FakeStore()
    for n in range(2 * hooks.BATCH + 5):
        store.put(str(n), work(owner(f"o{n}"), number=None))
    async with reacting(store) as reactor:
        reactor.wake()
        await until(lambda: not store.queue)
    assert len(store.ended) == 2 * hooks.BATCH + 5
    assert store.leases == 1


@pytest.mark.parametrize("verb", ["hooks", "lease", "owner_of", "end acme", "end stranger", "hooks_done"])
async def test_a_failing_store_keeps_the_queue(monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    """A batch that is cut short is done again, as a whole."""
    monkeypatch.setattr(hooks, "_POLL_S", 0.02)
    store = FakeStore()
    store.fails.append(verb)
    store.put("1", work(owner("acme")))
    store.put("2", work(owner("stranger"), number=None))
    async with reacting(store) as reactor:
        reactor.wake()
        await until(lambda: not store.queue)
    assert not store.fails
    assert set(store.ended) == {(EndKind.DROP, "acme"), (EndKind.DROP, "stranger")}
    assert not store.held


async def test_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "_POLL_S", 0.02)
    store = FakeStore()
    store.put("1", work())
    store.down = True
    async with reacting(store) as reactor:
        reactor.wake()
        await asyncio.sleep(0.1)
        assert (store.ended, list(store.queue)) == ([], ["1"])
        store.down = False
        await until(lambda: not store.queue)


async def test_it_waits_for_whoever_works_and_then_looks_again() -> None:
    """The one who holds the lease may have looked before the last delivery came."""
    store = FakeStore()
    store.held = True
    store.put("1", work())
    async with reacting(store) as reactor:
        reactor.wake()
        await asyncio.sleep(0.1)
        assert not store.ended
        store.held = False
        await until(lambda: not store.queue, 1)


async def test_it_stops_in_the_middle_and_leaves_the_rest() -> None:
    store = FakeStore()
    entered = asyncio.Event()

    async def hang(installation_id: int) -> None:
        entered.set()
        await asyncio.sleep(60)

    store.owner_of = hang  # type: ignore[assignment]
    store.put("1", work())
    async with reacting(store) as reactor:
        reactor.wake()
        await entered.wait()
    assert list(store.queue) == ["1"]
    assert not store.held


@pytest.mark.parametrize("turns", range(12))
async def test_it_stops_whenever_it_is_asked_to(turns: int) -> None:
    """At each turn of the loop around the end of a batch, where leases are given back."""
    store = FakeStore()
    store.put("1", work())
    async with asyncio.timeout(2):
        async with reacting(store) as reactor:
            reactor.wake()
            for _ in range(turns):
                await asyncio.sleep(0)
    assert not store.held
