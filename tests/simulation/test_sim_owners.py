"""Owners as admins see them, call by call: what a sync asks, changes and says, what accepting means."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from sim_bench import ADMIN, Bench, Process, after, failing

from broker.errors import (
    ConflictError,
    GitHubTimeoutError,
    GitHubUnavailableError,
    NotFoundError,
    StoreUnavailableError,
)
from broker.issuing import owners as syncing
from broker.issuing.owners import Owners, Synced
from broker.model import Installation
from broker.ports import AuditEvent, OwnerEntry, Page

WHO = {"request_id": "request-1", "client_ip": "192.0.2.1", "key_id": "ops", "key_name": "ops"}


def owners_of(process: Process, *, timeout_s: float = 20.0) -> tuple[Owners, list[AuditEvent]]:
    """Return the use case, and the list that its lines of the log go to."""
    rooms = process.rooms
    owners = Owners(process.store, process.line, rooms.installations, rooms.auditor, timeout_s=timeout_s)
    return owners, process.meter.lines


async def pages(owners: Owners, limit: int) -> list[str]:
    found: list[str] = []
    cursor = None
    while True:
        page: Page[OwnerEntry] = await owners.page(cursor=cursor, limit=limit)
        assert len(page.items) <= limit
        found += [entry.installation.login.lower() for entry in page.items]
        cursor = page.next_cursor
        if cursor is None:
            return found


def test_a_sync_counts_what_it_finds(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syncing, "_PAGE", 2)  # what is known fills several pages

    async def story() -> None:
        one = await bench.process()
        owners, lines = owners_of(one)
        for name in ("b", "c", "d", "e"):
            bench.github.install(name, ["x"])
        assert await owners.sync(ADMIN) == Synced(added=5)
        assert await owners.sync(ADMIN) == Synced(unchanged=5)
        assert lines == []
        for name in ("b", "c"):
            bench.github.installed[name] = replace(bench.github.installed[name], suspended=True)
        for name in ("d", "e"):
            del bench.github.installed[name]
        bench.github.install("f", ["x"])
        bench.github.install("g", ["x"])
        assert await owners.sync(ADMIN) == Synced(unchanged=1, added=2, changed=2, removed=2)
        assert len(lines) == 4
        assert await owners.sync(ADMIN) == Synced(unchanged=5)
        assert await pages(owners, 2) == ["acme", "b", "c", "f", "g"]
        assert await one.sealed.lease("o:d") is not None  # given back
        assert one.asked("installations") == 4

    bench.play(story())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"suspended": True}, "suspended False is now True"),
        ({"selection": "selected"}, "selection all is now selected"),
        ({"id": 77}, "installation 1001 is now 77"),
        ({"account_id": 4711}, "account 4 is now 4711"),
        ({"permissions": {"metadata": "read"}}, "other permissions"),
        (
            {"id": 77, "account_id": 4711, "permissions": {}},
            "installation 1001 is now 77, account 4 is now 4711, other permissions",
        ),
    ],
)
def test_a_sync_says_what_changed(bench: Bench, changed: dict[str, Any], said: str) -> None:
    async def story() -> None:
        one = await bench.process()
        owners, lines = owners_of(one)
        await owners.sync(ADMIN)
        bench.github.installed["acme"] = replace(bench.github.installed["acme"], **changed)
        assert await owners.sync(ADMIN) == Synced(changed=1)
        expected = {
            "event": "owner.changed",
            **WHO,
            "owner": "acme",
            "installation_id": changed.get("id", 1001),
            "reason": f"sync: {said}",
        }
        assert expected in await one.events("owner.changed")
        assert [each.reason for each in lines] == [f"sync: {said}"]

    bench.play(story())


def test_a_sync_drops_what_was_cached_for_who_is_gone(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        owners, lines = owners_of(one)
        key = await one.key("acme/*")
        first = (await one.issue(key, "widgets")).token
        gone = bench.github.installed.pop("acme")
        one.store_does(release=failing(StoreUnavailableError("away"), times=1, then=one.sealed.release))
        lines.clear()
        assert await owners.sync(ADMIN) == Synced(removed=1)
        assert await one.known() is None
        (line,) = lines
        assert (line.owner, line.installation_id) == ("acme", gone.id)
        assert line.reason == "sync: the app is not installed there any more"
        await asyncio.sleep(6)  # that lease was not given back
        bench.github.installed["acme"] = gone
        again = (await one.issue(key, "widgets")).token
        assert again != first

    bench.play(story())


def test_who_is_looked_up_this_moment_is_left_to_that_one(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        owners, _ = owners_of(one)
        known = await one.rooms.installations.find("acme", None)
        held = await one.sealed.lease("o:acme")
        assert held is not None
        del bench.github.installed["acme"]
        assert await owners.sync(ADMIN) == Synced(removed=1)
        assert one.store.calls.get("drop_owner", 0) == 0
        assert known.id == 1001

    bench.play(story())


def test_what_others_put_there_while_github_answers_is_not_taken_for_gone(bench: Bench) -> None:
    async def story() -> None:
        one, two = await bench.process(), await bench.process()
        owners, _ = owners_of(one)

        async def installations() -> list[Installation]:
            found = list(bench.github.installed.values())
            bench.github.install("globex", ["x"])
            await two.rooms.installations.find("globex", None)
            return found

        one.github_does(installations=installations)
        assert await owners.sync(ADMIN) == Synced(added=1)
        assert await one.known("globex") is not None

    bench.play(story())


def test_a_sync_that_github_holds_up_is_a_timeout(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        owners, _ = owners_of(one, timeout_s=3.0)
        one.github_does(installations=after(9, one.line._inner.installations))
        with pytest.raises(GitHubTimeoutError, match="too long"):
            await owners.sync(ADMIN)
        assert 2.9 < bench.loop.time() < 3.2
        one.github_does(installations=failing(GitHubUnavailableError("500")))
        with pytest.raises(GitHubUnavailableError):
            await owners.sync(ADMIN)

    bench.play(story())


def test_accepting_is_for_an_account_that_changed(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        owners, lines = owners_of(one)
        with pytest.raises(NotFoundError):
            await owners.accept("acme", ADMIN)
        await owners.sync(ADMIN)
        with pytest.raises(ConflictError):
            await owners.accept("acme", ADMIN)
        bench.github.installed["acme"] = replace(bench.github.installed["acme"], id=77, account_id=4711)
        await owners.sync(ADMIN)
        lines.clear()
        accepted = await owners.accept("acme", ADMIN)
        assert (accepted.account_id, accepted.foreign, accepted.id) == (4711, False, 77)
        (line,) = lines
        assert (line.owner, line.installation_id, line.reason) == ("acme", 77, "account 4711 accepted by ops")
        issued = await one.issue(await one.key("acme/*"), "widgets")
        assert issued.token.installation_id == 77

    bench.play(story())


def test_an_installation_is_found_by_its_number(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        owners, _ = owners_of(one)
        await owners.sync(ADMIN)
        assert await owners.of_installation(1001) == "acme"
        with pytest.raises(NotFoundError):
            await owners.of_installation(4711)

    bench.play(story())
