"""Lists of repositories and the gate before admin calls, call by call: what is asked, kept and refused."""

import asyncio
import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from sim_bench import ADMIN, ORIGIN, Bench, Process, after, failing
from sim_replica import HOST

from broker.access.keys import PresentedKey, generate
from broker.access.limits import RateLimiter
from broker.audit import Auditor
from broker.errors import (
    ForbiddenError,
    GitHubRateLimitedError,
    GitHubTimeoutError,
    GitHubUnavailableError,
    InvalidApiKeyError,
    InvalidRequestError,
    RateLimitedError,
    StoreUnavailableError,
)
from broker.issuing import repositories as listing
from broker.issuing.admins import AdminGate, AuditTrail
from broker.issuing.ending import Actor
from broker.issuing.repositories import RepositoryList
from broker.issuing.turns import Turns
from broker.model import ApiKeyRecord, Repository, RepositoryPage, Role, Target, TargetKind
from broker.ports import AuditEvent, AuditFilter, EndKind, Event

PER_PAGE = 3


def list_of(
    process: Process, *, allowed: frozenset[str] | None = None, timeout_s: float = 20.0
) -> RepositoryList:
    """Return the use case over a GitHub that tells three repositories a page."""
    bench = process.bench
    owner_of = {one.id: one.login.lower() for one in bench.github.installed.values()}

    async def page(token: Any, *, page: int) -> RepositoryPage:
        (minted,) = [one for one in bench.github.minted.values() if one.text == token.reveal()]
        assert bench.github.alive(minted)
        assert minted.asked_permissions == ("metadata",)
        assert minted.repositories is None
        names = bench.github.repositories[owner_of[minted.installation_id]]
        part = names[(page - 1) * PER_PAGE : page * PER_PAGE]
        # Spelled as its people do.
        told = tuple(
            Repository(name.title(), private=True, default_branch="main", archived=False) for name in part
        )
        return RepositoryPage(told, page + 1 if page * PER_PAGE < len(names) else None)

    process.github_does(installation_repositories=page)
    return RepositoryList(
        process.store,
        process.line,
        process.rooms.minter,
        process.rooms.installations,
        Turns(total=48, per_owner=16),
        host=HOST,
        allowed_owners=allowed,
        timeout_s=timeout_s,
    )


def caller(*patterns: str, key_id: str = "0aB3dE6gH9jK") -> ApiKeyRecord:
    return ApiKeyRecord(
        key_id,
        "0" * 64,
        "test",
        Role.CALLER,
        patterns,
        ("contents", "metadata"),
        created_at=0,
        created_by="test",
    )


async def walked(lists: RepositoryList, who: ApiKeyRecord, limit: int) -> list[list[str]]:
    """Return all pages, by names."""
    pages: list[list[str]] = []
    cursor = None
    while True:
        page = await lists.page(who, cursor=cursor, limit=limit)
        pages.append([each.repository.full_name.lower() for each in page.items])
        cursor = page.next_cursor
        if cursor is None:
            return pages
        assert len(pages) < 40


@pytest.mark.parametrize("limit", range(1, 12))
def test_each_repository_is_listed_once_whatever_the_page(bench: Bench, limit: int) -> None:
    async def story() -> None:
        bench.github.install("acme", [f"r{number}" for number in range(7)])
        bench.github.install("globex", ["a", "b", "c"])
        bench.github.install("zor", ["z"])
        one = await bench.process()
        lists = list_of(one)
        who = caller("acme/*", "globex/b", "globex/c", "zor/*", "nobody/x")
        pages = await walked(lists, who, limit)
        assert [name for page in pages for name in page] == [
            *(f"acme/r{number}" for number in range(7)), "globex/b", "globex/c", "zor/z",
        ]  # fmt: skip
        assert all(len(page) == limit for page in pages[:-1])
        assert {each.installation_id for each in (await lists.page(who, cursor=None, limit=3)).items} == {
            bench.github.installed["acme"].id
        }
        assert {"acme", "globex", "zor"} <= set(one.rooms.installations._in_use)

    bench.play(story())


def test_a_request_causes_ten_calls_at_most(bench: Bench) -> None:
    async def story() -> None:
        bench.github.install("acme", [f"r{number:02}" for number in range(12 * PER_PAGE)])
        one = await bench.process()
        lists = list_of(one)
        page = await lists.page(caller("acme/r35"), cursor=None, limit=50)
        assert (page.items, one.asked("installation_repositories")) == ((), 10)
        page = await lists.page(caller("acme/r35"), cursor=page.next_cursor, limit=50)
        assert [each.repository.full_name for each in page.items] == ["Acme/R35"]
        assert page.next_cursor is None
        assert one.asked("installation_repositories") == 12

    bench.play(story())


@pytest.mark.parametrize(
    "position",
    [
        ["acme", 0, 0], ["acme", -1, 0], ["acme", 1, -1], ["acme", True, 0], ["acme", 1, True], ["acme", 1],
        [1, 1, 1], {"owner": "acme"}, "acme", ["acme", 1.5, 0], ["acme", 1, 0, 0], None,
    ],
)  # fmt: skip
def test_a_cursor_that_this_list_did_not_give_is_refused(bench: Bench, position: object) -> None:
    async def story() -> None:
        one = await bench.process()
        cursor = base64.urlsafe_b64encode(json.dumps(position).encode()).decode()
        with pytest.raises(InvalidRequestError, match="cursor"):
            await list_of(one).page(caller("acme/*"), cursor=cursor, limit=3)
        for text in ("", "x", "!!!", "W10", "[" * 5000, cursor[:-3]):
            with pytest.raises(InvalidRequestError):
                await list_of(one).page(caller("acme/*"), cursor=text, limit=3)
        assert one.asked("mint") == 0

    bench.play(story())


def test_a_page_is_asked_for_once_in_half_a_minute(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_PAGES_KEPT", 2)

    async def story() -> None:
        bench.github.install("acme", [f"r{number}" for number in range(2 * PER_PAGE)])
        bench.github.install("globex", ["x"])
        one = await bench.process()
        lists = list_of(one)

        async def asked(*patterns: str) -> int:
            before = one.asked("installation_repositories")
            await walked(lists, caller(*patterns), 50)
            return one.asked("installation_repositories") - before

        assert await asked("acme/*") == 2
        await asyncio.sleep(29)
        assert await asked("acme/*") == 0
        await asyncio.sleep(2)
        assert await asked("acme/*") == 2
        assert await asked("globex/*") == 1
        assert len(lists._pages) == 2  # the one that was put there first is gone
        assert await asked("globex/*") == 0
        assert await asked("acme/*") == 2

    bench.play(story())


def test_the_page_that_was_asked_for_last_is_kept_longest(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_PAGES_KEPT", 2)

    async def story() -> None:
        for name in ("a", "b", "c"):
            bench.github.install(name, ["x"])
        one = await bench.process()
        lists = list_of(one)
        for name in ("a", "b"):
            await walked(lists, caller(f"{name}/*"), 50)
        await asyncio.sleep(31)
        for name in ("a", "c", "a"):
            await walked(lists, caller(f"{name}/*"), 50)
        assert one.asked("installation_repositories") == 4

    bench.play(story())


def test_a_key_may_cause_so_many_calls_a_minute(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "CALLS_PER_MINUTE", 3)
    monkeypatch.setattr(listing, "_PAGES_TTL_S", 0.0)

    async def story() -> None:
        one = await bench.process()
        lists = list_of(one)
        for _ in range(3):
            await lists.page(caller("acme/*"), cursor=None, limit=3)
        with pytest.raises(RateLimitedError) as refused:
            await lists.page(caller("acme/*"), cursor=None, limit=3)
        assert 0 < (refused.value.retry_after_s or 0) <= 60
        assert refused.value.public == "This key has listed too much this minute."
        await lists.page(caller("acme/*", key_id="1" * 12), cursor=None, limit=3)
        await asyncio.sleep(61)
        await lists.page(caller("acme/*"), cursor=None, limit=3)

    bench.play(story())


def test_all_owners_are_read_once_a_minute(bench: Bench) -> None:
    async def story() -> None:
        bench.github.install("globex", ["x"])
        bench.github.install("zor", ["z"])
        bench.github.installed["zor"] = replace(bench.github.installed["zor"], suspended=True)
        one = await bench.process()
        lists = list_of(one)
        everything = [["acme/widgets", "acme/gadgets", "acme/gizmos", "globex/x"]]
        assert await walked(lists, caller("*/*"), 50) == everything
        await asyncio.sleep(58)
        assert await walked(lists, caller("*/*"), 50) == everything
        assert one.asked("installations") == 1
        await asyncio.sleep(4)
        assert await walked(lists, caller("*/*"), 50) == everything
        assert one.asked("installations") == 2
        some = list_of(one, allowed=frozenset({"globex"}))
        assert await walked(some, caller("*/*"), 50) == [["globex/x"]]
        asked = one.asked("installation_repositories")
        await asyncio.sleep(31)
        assert await walked(some, caller("acme/*"), 50) == [[]]
        assert one.asked("installation_repositories") == asked  # not those of others either

    bench.play(story())


@pytest.mark.parametrize("route", ["installation_repositories", "installations"])
def test_when_github_says_wait_lists_wait(bench: Bench, route: str) -> None:
    async def story() -> None:
        one = await bench.process()
        lists = list_of(one)
        owner = None if route == "installations" else "acme"
        who = caller("*/*" if owner is None else "acme/*")
        limit = GitHubRateLimitedError("429", retry_after_s=30.0, whole_app=owner is None)
        one.github_does(**{route: failing(limit)})
        one.store_does(pause=failing(StoreUnavailableError("away"), times=1, then=one.sealed.pause))
        for _ in range(3):  # the first time the store does not take it
            with pytest.raises(GitHubRateLimitedError) as refused:
                await lists.page(who, cursor=None, limit=3)
        assert 29 < (refused.value.retry_after_s or 0) <= 30
        assert one.asked(route) == 2
        assert 29 < await one.sealed.paused(owner) <= 30

    bench.play(story())


def test_who_serves_nobody_is_left_out_of_the_list(bench: Bench) -> None:
    async def story() -> None:
        for name in ("b", "c", "d"):
            bench.github.install(name, ["x"])
        one = await bench.process()
        lists = list_of(one)
        who = caller("b/*", "c/*", "d/*", "nobody/*")
        for name, changed in (("b", {"suspended": True}), ("c", {"account_id": 4711})):
            known = await one.rooms.installations.find(name, None)
            await one.rooms.installations.learn(name, known, replace(known, **changed))
        assert await walked(lists, who, 50) == [["d/x"]]
        assert sum(each.owner in {"b", "c"} for each in bench.github.minted.values()) == 0
        await one.rooms.ender.block(Target(TargetKind.OWNER, "d"), ADMIN, reason="incident")
        assert await walked(lists, who, 50) == [[]]

    bench.play(story())


@pytest.mark.parametrize("off_s", [0.0, -600.0, 600.0])
def test_the_brokers_own_token_is_kept_and_replaced_in_time_by_githubs_clock(
    bench: Bench, off_s: float
) -> None:
    async def story() -> None:
        bench.github.clock_off_s = off_s
        one = await bench.process()
        lists = list_of(one)
        who = caller("acme/*")
        await lists.page(who, cursor=None, limit=3)
        (token,) = bench.github.minted.values()
        await asyncio.sleep(token.expires_at - bench.github.now() - 61)
        await lists.page(who, cursor=None, limit=3)
        assert one.asked("mint") == 1
        await asyncio.sleep(31)
        await lists.page(who, cursor=None, limit=3)
        assert one.asked("mint") == 2
        assert await one.events("token.issued") == []

    bench.play(story())


def test_the_brokers_own_token_is_that_of_the_installation(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        await list_of(one).page(caller("acme/*"), cursor=None, limit=3)
        lead = await one.sealed.lease("o:acme")
        assert lead is not None
        bench.github.install("acme", ["widgets"])
        found = replace(bench.github.installed["acme"], checked_at=one.sealed.now())
        await one.sealed.put_owner(lead, "acme", found, event=AuditEvent(Event.OWNER_CHANGED))
        await one.sealed.release(lead)
        page = await list_of(one).page(caller("acme/*"), cursor=None, limit=3)
        assert {each.installation_id for each in page.items} == {found.id}

    bench.play(story())


def test_a_token_that_is_overtaken_is_minted_anew_some_times(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        lists = list_of(one)
        mint = one.line._inner.mint
        ends = 99

        async def overtaken(*arguments: Any, **named: Any) -> Any:
            nonlocal ends
            minted = await mint(*arguments, **named)
            ends -= 1
            if ends >= 0:
                await one.sealed.end(EndKind.REVOKE, Target(TargetKind.ALL), None, by="ops", reason="leaked")
            return minted

        one.github_does(mint=overtaken)
        with pytest.raises(StoreUnavailableError) as refused:
            await lists.page(caller("acme/*"), cursor=None, limit=3)
        assert refused.value.retry_after_s == 1.0
        assert one.asked("mint") == 4
        ends = 3
        with pytest.raises(StoreUnavailableError):
            await lists.page(caller("acme/*"), cursor=None, limit=3)
        assert len((await lists.page(caller("acme/*"), cursor=None, limit=3)).items) == 3

    bench.play(story())


def test_a_list_has_its_time(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        lists = list_of(one, timeout_s=3.0)
        one.github_does(installation_repositories=after(9, failing(GitHubUnavailableError("500"))))
        began = bench.loop.time()
        with pytest.raises(GitHubTimeoutError, match="time is up"):
            await lists.page(caller("acme/*"), cursor=None, limit=3)
        assert 2.9 < bench.loop.time() - began < 3.1

    bench.play(story())


# -- the gate before admin calls, and the trail ----------------------------------------------------


async def admin_key(process: Process) -> PresentedKey:
    key = await process.key("acme/*")
    entry = await process.sealed.find_key(key.id)
    assert entry is not None
    admin = replace(entry.record, role=Role.ADMIN, rate_limit_per_minute=2)
    await process.sealed.write_key(entry, admin, AuditEvent(Event.KEY_CHANGED, key_id=key.id))
    return key


def test_who_is_no_admin_is_audited_and_counted(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        gate = AdminGate(one.rooms.issuer, RateLimiter(one.store), Auditor(one.store))
        admin, key = await admin_key(one), await one.key("acme/*")
        assert await gate.admit(admin, ORIGIN, call="GET /x") == Actor(
            admin.id, "test", "request-1", "192.0.2.7"
        )
        with pytest.raises(ForbiddenError):
            await gate.admit(key, ORIGIN, call="GET /x")
        await gate.admit(admin, ORIGIN, call="GET /x")
        with pytest.raises(RateLimitedError):
            await gate.admit(admin, ORIGIN, call="GET /" + "x" * 300)
        with pytest.raises(InvalidApiKeyError):
            await gate.admit(generate()[1], ORIGIN, call="GET /x")
        forbidden, limited = await one.events("token.denied")
        who = {
            "event": "token.denied",
            "request_id": "request-1",
            "client_ip": "192.0.2.7",
            "key_name": "test",
        }
        assert forbidden == {
            **who, "key_id": key.id, "code": "forbidden", "count": 1,
            "reason": "admin API (GET /x): not an admin key",
        }  # fmt: skip
        assert (limited["key_id"], limited["code"]) == (admin.id, "rate_limited")
        assert limited["reason"].startswith("admin API (GET /xxx")
        assert len(limited["reason"]) == 200

    bench.play(story())


def test_the_trail_upwards_always_has_a_cursor_to_go_on_from(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        trail = AuditTrail(one.store)
        up, down = AuditFilter(ascending=True), AuditFilter()
        nothing = await trail.page(up, cursor=None, limit=2)
        assert (nothing.items, nothing.next_cursor) == ((), None)
        for number in range(5):
            await one.sealed.record([AuditEvent(Event.KEY_CHANGED, key_id=f"k{number}")])
        seen: list[Any] = []
        cursor = None
        for size in (2, 2, 1):
            page = await trail.page(up, cursor=cursor, limit=2)
            assert len(page.items) == size
            assert page.next_cursor == page.items[-1].id
            seen += [row.event["key_id"] for row in page.items]
            cursor = page.next_cursor
        assert seen == [f"k{number}" for number in range(5)]
        again = await trail.page(up, cursor=cursor, limit=2)
        assert (again.items, again.next_cursor) == ((), cursor)
        last = await trail.page(down, cursor=None, limit=5)
        assert (len(last.items), last.next_cursor) == (5, None)
        first = await trail.page(down, cursor=None, limit=2)
        rest = await trail.page(down, cursor=first.next_cursor, limit=9)
        assert [row.event["key_id"] for row in (*first.items, *rest.items)] == seen[::-1]

    bench.play(story())
