"""The rules of issuing, from outside: over-grants, lives of tokens, one mint, GitHub down, budgets."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from harness import Inside, World, bearer
from stage import HandClock, Shifted, Wrapped, events, pair, until, verdict, wrap_backend

from broker.access.limits import RateLimiter
from broker.errors import StoreUnavailableError
from broker.ports import ReadQuery
from broker.sandbox.faults import Fault
from broker.store.backend import CommitArgs
from broker.store.sqlite import SqliteBackend

OK = (200, "ok")
HOUR = 3600


def on_hand_clock(world: World) -> HandClock:
    """Give GitHub a clock that the test sets; pass it to the app as well."""
    clock = HandClock()
    world.github.clock = clock
    return clock


# -- rule 1: never anything but read ------------------------------------------------------------------


@pytest.mark.parametrize("over", ["write", "read", "repository", "raised"])
async def test_more_than_was_asked_for_is_revoked_and_refused(any_world: World, over: str) -> None:
    world = any_world
    if over == "repository":
        world.github.over_grant_repositories = ["acme/gadgets"]
    else:
        world.github.over_grant_permissions = {
            "write": {"issues": "write"}, "read": {"issues": "read"}, "raised": {"contents": "write"},
        }[over]  # fmt: skip
    async with world.inside() as app:
        key = await app.key("acme/*")
        refused = await app.token(key, "acme/widgets")
        assert verdict(refused) == (502, "github_unavailable")
        assert not any(token in refused.text for token in world.github.tokens)
        await until(lambda: not world.github.live_tokens())
        assert len(world.github.tokens) == 1

        async def revoked() -> bool:
            return bool(await events(app, "token.revoked"))

        await until(revoked)
        (event,) = await events(app, "token.revoked")
        assert event["token_sha256"]
        (denied,) = await events(app, "token.denied")
        assert (denied["code"], denied["key_id"]) == ("github_unavailable", key[5:17])
        assert await events(app, "token.issued") == []
        assert await events(app, "token.minted") == []


async def test_an_implicit_read_permission_is_taken_if_it_is_named(world: World) -> None:
    world.github.over_grant_permissions = {"issues": "read"}
    async with world.inside(accept_implicit_permissions=("issues",)) as app:
        answer = await app.token(await app.key("acme/*"), "acme/widgets")
        assert verdict(answer) == OK
        assert answer.json()["permissions"] == {"contents": "read", "issues": "read", "metadata": "read"}
        world.github.over_grant_permissions = {"issues": "write"}
        assert verdict(await app.token(await app.key("acme/*"), "acme/gadgets")) == (
            502,
            "github_unavailable",
        )


# -- rule 2: how long a token has to live --------------------------------------------------------------


async def test_a_cached_token_must_live_long_enough(any_world: World) -> None:
    """300 s unless the caller wants more; by GitHub's clock. (Refresh ahead is off here.)"""
    world = any_world
    world.github.clock_skew_s = 0
    async with world.inside(token_min_ttl=0, token_refresh_ahead=0) as app:
        key = await app.key("acme/*")
        first = (await app.token(key, "acme/widgets")).json()
        assert (await app.token(key, "acme/widgets", min_ttl=3300)).json()["token"] == first["token"]
        assert world.github.count("mint") == 1


async def test_min_ttl(world: World) -> None:
    clock = on_hand_clock(world)
    async with world.inside(clock=clock, token_min_ttl=300, token_refresh_ahead=300) as app:
        key = await app.key("acme/*")
        first = (await app.token(key, "acme/widgets")).json()["token"]
        clock.at += HOUR - 1000
        assert (await app.token(key, "acme/widgets")).json()["token"] == first
        assert (await app.token(key, "acme/widgets", min_ttl=990)).json()["token"] == first
        second = (await app.token(key, "acme/widgets", min_ttl=1010)).json()
        assert second["token"] != first
        assert second["cached"] is False
        clock.at += HOUR - 299
        third = (await app.token(key, "acme/widgets")).json()["token"]
        assert third not in {first, second["token"]}


async def test_one_just_minted_satisfies_any_min_ttl(world: World) -> None:
    """A token that lives shorter than was asked for when it arrives causes one mint, not one for ever."""
    clock = on_hand_clock(world)
    world.github.token_ttl_s = 3301
    async with world.inside(clock=clock) as app:

        async def slowly(args: CommitArgs) -> str:
            found: str = await wrapped._inner.commit(args)
            clock.at += 5
            return found

        wrapped = wrap_backend(app, commit=slowly)
        key = await app.key("acme/*")
        assert verdict(await app.token(key, "acme/widgets", min_ttl=3300)) == OK
        assert world.github.count("mint") == 1


@pytest.mark.parametrize("off_s", [-600, 600])
async def test_a_clock_that_is_off_does_no_harm(any_world: World, off_s: float) -> None:
    """The process is off by ten minutes: the JWT is repaired, tokens live as GitHub says."""
    world = any_world
    async with world.inside(clock=Shifted(off_s)) as app:
        key = await app.key("acme/*", expires_in_s=60)
        first = await app.token(key, "acme/widgets")
        assert verdict(first) == OK
        again = await app.token(key, "acme/widgets", min_ttl=3300)
        assert again.json()["token"] == first.json()["token"]
        assert world.github.count("mint") <= 3  # refused for its clock, then once


@pytest.mark.parametrize("skew_s", [-600.0, 600.0])
async def test_life_is_measured_by_githubs_clock(world: World, skew_s: float) -> None:
    clock = on_hand_clock(world)
    world.github.clock_skew_s = skew_s
    async with world.inside(clock=clock, token_refresh_ahead=300) as app:
        key = await app.key("acme/*")
        first = (await app.token(key, "acme/widgets")).json()["token"]
        clock.at += HOUR - 330
        assert (await app.token(key, "acme/widgets")).json()["token"] == first
        clock.at += 60
        assert (await app.token(key, "acme/widgets")).json()["token"] != first


async def test_a_slow_reply_makes_no_life_longer(world: World) -> None:
    """GitHub's ``Date`` is as old as the way back took: it is compared with the time of the question."""
    clock = on_hand_clock(world)
    async with world.inside(clock=clock, token_min_ttl=300, token_refresh_ahead=300) as app:
        minter = app.broker.minter
        inner = minter._github

        async def slow(*arguments: Any, **named: Any) -> Any:
            minted = await inner.mint(*arguments, **named)
            clock.at += 4  # less than a lease
            await app.broker.store.read(ReadQuery())
            return minted

        minter._github = Wrapped(inner, mint=slow)  # type: ignore[assignment]
        key = await app.key("acme/*")
        first = (await app.token(key, "acme/widgets")).json()["token"]
        clock.at += HOUR - 4 - 298
        minter._github = inner
        assert (await app.token(key, "acme/widgets")).json()["token"] != first


@pytest.mark.parametrize("skew_s", [-600.0, 600.0])
async def test_a_refresh_is_due_by_githubs_clock(world: World, skew_s: float) -> None:
    clock = on_hand_clock(world)
    world.github.clock_skew_s = skew_s
    async with world.inside(clock=clock, token_refresh_ahead=900) as app:
        key = await app.key("acme/*")
        first = (await app.token(key, "acme/widgets")).json()["token"]
        clock.at += HOUR - 1000
        assert (await app.token(key, "acme/widgets")).json()["token"] == first
        await asyncio.sleep(0.1)
        assert world.github.count("mint") == 1
        clock.at += 150
        assert (await app.token(key, "acme/widgets")).json()["token"] == first
        await until(lambda: world.github.count("mint") == 2)


# -- rules 3 and 5: one mint, one look-up ---------------------------------------------------------------


async def test_fifty_at_once_cost_one_look_up_and_one_mint(any_world: World) -> None:
    world = any_world
    world.github.latency_s = 0.05
    async with world.inside() as app:
        keys = [await app.key("acme/*") for _ in range(5)]
        world.github.clear_calls()
        answers = await asyncio.gather(*(app.token(keys[n % 5], "acme/widgets") for n in range(50)))
        assert {verdict(answer) for answer in answers} == {OK}
        assert len({answer.json()["token"] for answer in answers}) == 1
        assert (world.github.count("repo_installation"), world.github.count("mint")) == (1, 1)
        issued = await events(app, "token.issued")
        assert {event["key_id"] for event in issued} == {key[5:17] for key in keys}


async def test_fifty_at_once_on_two_replicas_cost_the_same(any_world: World) -> None:
    world = any_world
    world.github.latency_s = 0.1
    async with pair(world) as (one, two):
        key = await one.key("acme/*")
        world.github.clear_calls()
        answers = await asyncio.gather(
            *(app.token(key, "acme/widgets") for _ in range(25) for app in (one, two))
        )
        assert {verdict(answer) for answer in answers} == {OK}
        assert len({answer.json()["token"] for answer in answers}) == 1
        assert (world.github.count("repo_installation"), world.github.count("mint")) == (1, 1)


class Away:
    """A store that one replica does not reach while ``away``."""

    def __init__(self, app: Inside) -> None:
        self.away = False
        inner = app.broker.store._backend

        def unless_away(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
            async def called(*arguments: Any, **named: Any) -> Any:
                if self.away:
                    raise StoreUnavailableError("away")
                return await call(*arguments, **named)

            return called

        instead = {name: unless_away(getattr(inner, name)) for name in ("read", "acquire", "lease")}
        self.calls = wrap_backend(app, **instead).calls


@pytest.mark.parametrize("what", ["mint", "repo_installation"])
@pytest.mark.parametrize("back", [True, False])
async def test_who_follows_bears_a_store_that_is_away_for_a_moment(
    world: World, what: str, *, back: bool
) -> None:
    """What another replica does goes on meanwhile; a store that stays away is a 503 soon."""
    hold = threading.Event()
    world.github.faults.add(Fault(route=what, hold=hold, times=1))
    try:
        async with pair(world) as (one, two):
            key = await one.key("acme/*")
            leads = asyncio.create_task(one.token(key, "acme/widgets"))
            await until(lambda: world.github.count(what) == 1)
            store = Away(two)
            # Another scope of the same owner waits for the look-up only.
            wanted = "acme/widgets" if what == "mint" else "acme/gadgets"
            follows = asyncio.create_task(two.token(key, wanted))
            await until(lambda: store.calls.get("acquire" if what == "mint" else "lease", 0) > 2)
            store.away = True
            tried = sum(store.calls.values())
            await until(lambda: sum(store.calls.values()) > tried + 3)
            if not back:
                async with asyncio.timeout(10):
                    assert verdict(await follows) == (503, "store_unavailable")
            store.away = False
            hold.set()
            assert verdict(await leads) == OK
            if back:
                assert verdict(await follows) == OK
            assert world.github.count("repo_installation") == 1
            assert world.github.count("mint") == (2 if back and what != "mint" else 1)
    finally:
        hold.set()


async def test_many_cold_scopes_of_an_owner_cost_one_look_up(any_world: World) -> None:
    world = any_world
    for number in range(20):
        world.github.add_repository(f"acme/r{number}")
    world.github.latency_s = 0.05
    async with pair(world) as (one, two):
        key = await one.key("acme/*")
        world.github.clear_calls()
        answers = await asyncio.gather(
            *((one, two)[n % 2].token(key, f"acme/r{n}") for n in range(20)),
            one.token(key, owner="acme"),
        )
        assert {verdict(answer) for answer in answers} == {OK}
        looked_up = sum(world.github.count(name) for name in ("repo_installation", "org_installation"))
        assert (looked_up, world.github.count("mint")) == (1, 21)


async def test_a_known_owner_costs_one_call_and_a_warm_scope_none(any_world: World) -> None:
    world = any_world
    async with world.inside() as app:
        key = await app.key("acme/*")
        await app.token(key, "acme/widgets")
        await until(lambda: world.github.count("app") == 1)
        world.github.clear_calls()
        await app.token(key, "acme/gadgets")
        assert world.github.count() == world.github.count("mint") == 1
        world.github.clear_calls()
        answers = [
            answer
            for _ in range(10)
            for answer in await asyncio.gather(*(app.token(key, "acme/gadgets") for _ in range(100)))
        ]
        assert {answer.json()["cached"] for answer in answers} == {True}
        assert world.github.count() == 0


async def test_several_repositories_and_the_whole_owner(any_world: World) -> None:
    world = any_world
    async with world.inside() as app:
        key = await app.key("acme/*")
        answer = await app.token(key, "acme/gadgets", "ACME/Widgets", "acme/widgets")
        assert sorted(answer.json()["repositories"]) == ["acme/gadgets", "acme/widgets"]
        again = await app.token(key, "acme/widgets", "acme/gadgets")
        assert again.json()["token"] == answer.json()["token"]
        wide = await app.token(key, owner="Acme")
        assert wide.json()["repositories"] is None
        assert wide.json()["token"] != answer.json()["token"]
        assert world.github.tokens[wide.json()["token"]].repositories is None
        narrow = await app.key("acme/widgets", "acme/gadgets", "acme/g*")
        assert verdict(await app.token(narrow, owner="acme")) == (403, "forbidden")
        assert verdict(await app.token(narrow, "acme/widgets", "acme/gadgets")) == OK


async def test_permissions_are_part_of_the_scope(world: World) -> None:
    async with world.inside() as app:
        key = await app.key("acme/*", permissions={"contents": "read", "issues": "read"})
        one = (await app.token(key, "acme/widgets", permissions={"issues": "read"})).json()
        assert one["permissions"] == {"issues": "read", "metadata": "read"}
        two = (await app.token(key, "acme/widgets")).json()
        assert two["token"] != one["token"]
        refused = await app.token(
            await app.key("acme/*", permissions={"checks": "read"}),
            "acme/widgets",
            permissions={"checks": "read"},
        )
        assert verdict(refused) == (403, "permission_not_granted")


async def test_a_caller_who_hangs_up_does_not_fail_the_others(any_world: World) -> None:
    world = any_world
    hold = threading.Event()
    world.github.faults.add(Fault(route="mint", hold=hold, times=1))
    async with world.inside() as app:
        key = await app.key("acme/*")
        first = asyncio.create_task(app.token(key, "acme/widgets"))
        await until(lambda: world.github.count("mint") == 1)
        second = asyncio.create_task(app.token(key, "acme/widgets"))
        await asyncio.sleep(0.05)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        hold.set()
        assert verdict(await second) == OK
        assert world.github.count("mint") == 1


async def test_a_mint_goes_on_when_all_have_hung_up(world: World) -> None:
    hold = threading.Event()
    world.github.faults.add(Fault(route="mint", hold=hold, times=1))
    async with world.inside() as app:
        key = await app.key("acme/*")
        only = asyncio.create_task(app.token(key, "acme/widgets"))
        await until(lambda: world.github.count("mint") == 1)
        only.cancel()
        await asyncio.gather(only, return_exceptions=True)
        hold.set()

        async def minted() -> bool:
            return bool(await events(app, "token.minted"))

        await until(minted)
        assert (await app.token(key, "acme/widgets")).json()["cached"] is True
        assert world.github.count("mint") == 1


# -- rule 4: refresh ahead -----------------------------------------------------------------------------


async def test_nobody_waits_for_a_refresh(world: World) -> None:
    clock = on_hand_clock(world)
    async with world.inside(clock=clock) as app:
        key = await app.key("acme/*")
        first = (await app.token(key, "acme/widgets")).json()["token"]
        clock.at += HOUR - 890
        hold = threading.Event()
        world.github.faults.add(Fault(route="mint", hold=hold, times=1))
        world.github.clear_calls()
        async with asyncio.timeout(2):
            answers = [await app.token(key, "acme/widgets") for _ in range(20)]
        assert {answer.json()["token"] for answer in answers} == {first}
        hold.set()

        async def renewed() -> bool:
            return (await app.token(key, "acme/widgets")).json()["token"] != first

        await until(renewed)
        assert world.github.count("mint") == 1
        assert len(world.github.live_tokens()) == 2  # the one before lives on: someone may be using it


async def test_one_refresh_on_two_replicas(any_world: World) -> None:
    """A short ``refresh ahead`` window is opened wide instead of waiting an hour."""
    world = any_world
    world.github.latency_s = 0.05
    async with pair(world) as (one, two):
        key = await one.key("acme/*")
        first = (await one.token(key, "acme/widgets")).json()["token"]
        for app in (one, two):
            object.__setattr__(app.broker.issuer._settings, "refresh_ahead_s", 3601.0)
        world.github.clear_calls()
        answers = await asyncio.gather(
            *(app.token(key, "acme/widgets") for _ in range(10) for app in (one, two))
        )
        assert {verdict(answer) for answer in answers} == {OK}
        assert first in {answer.json()["token"] for answer in answers}
        for app in (one, two):
            object.__setattr__(app.broker.issuer._settings, "refresh_ahead_s", 900.0)

        async def same_and_new() -> bool:
            found = {(await app.token(key, "acme/widgets")).json()["token"] for app in (one, two)}
            return len(found) == 1 and first not in found

        await until(same_and_new)
        assert world.github.count("mint") <= 2


async def test_a_refresh_that_fails_keeps_serving(world: World) -> None:
    clock = on_hand_clock(world)
    async with world.inside(clock=clock, failure_cooldown=10) as app:
        key = await app.key("acme/*")
        first = (await app.token(key, "acme/widgets")).json()["token"]
        clock.at += HOUR - 890
        broken = world.github.faults.add(Fault(route="mint", status=422, body={"message": "no"}))
        world.github.clear_calls()
        for _ in range(30):
            assert (await app.token(key, "acme/widgets")).json()["token"] == first
            await asyncio.sleep(0.005)
        assert world.github.count("mint") == 1  # one try per cool-down
        clock.at += 11
        for _ in range(10):
            assert (await app.token(key, "acme/widgets")).json()["token"] == first
            await asyncio.sleep(0.005)
        assert world.github.count("mint") == 2
        world.github.faults.remove(broken)
        clock.at += 11

        async def renewed() -> bool:
            return (await app.token(key, "acme/widgets")).json()["token"] != first

        await until(renewed)


# -- refresh on request --------------------------------------------------------------------------------


async def test_refresh_mints_anew_once_in_30_s(world: World) -> None:
    clock = on_hand_clock(world)
    async with world.inside(clock=clock) as app:
        key, other = await app.key("acme/*"), await app.key("acme/*")
        first = (await app.token(key, "acme/widgets")).json()["token"]
        second = await app.token(key, "acme/widgets", refresh=True)
        assert second.json()["token"] != first
        assert second.json()["cached"] is False
        for caller in (key, other):
            third = await app.token(caller, "acme/widgets", refresh=True)
            assert (third.json()["token"], third.json()["cached"]) == (second.json()["token"], True)
        clock.at += 31
        assert (await app.token(key, "acme/widgets", refresh=True)).json()["token"] not in {
            first, second.json()["token"],
        }  # fmt: skip
        assert world.github.count("mint") == 3


async def test_refresh_on_two_replicas_is_one(any_world: World) -> None:
    async with pair(any_world) as (one, two):
        key = await one.key("acme/*")
        await one.token(key, "acme/widgets")
        any_world.github.clear_calls()
        await asyncio.gather(
            *(app.token(key, "acme/widgets", refresh=True) for _ in range(5) for app in (one, two))
        )
        assert any_world.github.count("mint") == 1


async def test_a_refresh_that_fails_answers_its_error(any_world: World) -> None:
    """The caller said that the cached token is bad; others go on getting it."""
    world = any_world
    async with world.inside() as app:
        key = await app.key("acme/*")
        first = (await app.token(key, "acme/widgets")).json()["token"]
        world.github.faults.add(Fault(route="mint", status=422, body={"message": "no"}))
        assert verdict(await app.token(key, "acme/widgets", refresh=True))[0] in {403, 404, 502}
        assert (await app.token(key, "acme/widgets")).json()["token"] == first


# -- rule 8: GitHub down -------------------------------------------------------------------------------


async def test_what_is_cached_is_served_while_github_is_down(any_world: World) -> None:
    world = any_world
    async with world.inside(installation_ttl=1) as app:
        key = await app.key("acme/*")
        first = (await app.token(key, "acme/widgets")).json()["token"]
        world.server.stop()
        await asyncio.sleep(1.1)  # the picture of the owner is old now
        async with asyncio.timeout(8):
            for _ in range(3):
                assert (await app.token(key, "acme/widgets")).json()["token"] == first
        world.server.start()


async def test_a_frozen_github_delays_one_warm_request_not_all(world: World) -> None:
    """Whoever comes after a look that failed is served the last picture without waiting for the next."""
    async with world.inside(installation_ttl=1, failure_cooldown=0.1) as app:
        key = await app.key("acme/*")
        await app.token(key, "acme/widgets")
        world.github.faults.add(Fault(route="installation", status=401, body={"message": "Bad credentials"}))
        await asyncio.sleep(1.1)
        assert verdict(await app.token(key, "acme/widgets")) == OK
        hold = threading.Event()
        world.github.faults.clear()
        world.github.faults.add(Fault(route="installation", hold=hold))
        await asyncio.sleep(0.15)
        try:
            async with asyncio.timeout(1):
                for _ in range(5):
                    assert verdict(await app.token(key, "acme/widgets")) == OK
        finally:
            hold.set()


async def test_a_failure_is_shared_for_its_cool_down(any_world: World) -> None:
    world = any_world
    async with pair(world, failure_cooldown=0.4) as (one, two):
        key = await one.key("acme/*")
        await one.token(key, "acme/widgets")
        world.github.faults.add(Fault(route="mint", status=422, body={"message": "no"}))
        world.github.clear_calls()
        answers = await asyncio.gather(
            *(app.token(key, "acme/gadgets") for _ in range(20) for app in (one, two))
        )
        assert len({verdict(answer) for answer in answers}) == 1
        assert answers[0].status_code >= 400
        await asyncio.gather(*(app.token(key, "acme/gadgets") for app in (one, two)))
        assert world.github.count("mint") == 1
        world.github.faults.clear()
        await asyncio.sleep(0.45)
        assert verdict(await two.token(key, "acme/gadgets")) == OK


async def test_a_reinstalled_app_is_found_in_the_same_call(any_world: World) -> None:
    world = any_world
    async with world.inside() as app:
        key = await app.key("acme/*")
        await app.token(key, "acme/widgets")
        world.github.uninstall(world.installation)
        again = world.github.install(world.app, "acme")
        world.github.clear_calls()
        answer = await app.token(key, "acme/gadgets")
        assert verdict(answer) == OK
        assert answer.json()["installation_id"] == again.id
        assert world.github.count("mint") == 2
        # what is cached of the old installation is dead and not served any more
        assert (await app.token(key, "acme/widgets")).json()["installation_id"] == again.id


async def test_an_app_that_was_removed_is_not_installed(any_world: World) -> None:
    world = any_world
    async with world.inside() as app:
        key = await app.key("acme/*")
        await app.token(key, "acme/widgets")
        world.github.uninstall(world.installation)
        refused = await app.token(key, "acme/gadgets")
        assert verdict(refused) == (404, "not_installed")
        assert "installations/new" in refused.json()["detail"]


async def test_a_suspended_installation(any_world: World) -> None:
    world = any_world
    async with world.inside(installation_ttl=1, failure_cooldown=0.1) as app:
        key = await app.key("acme/*")
        assert verdict(await app.token(key, "acme/widgets")) == OK
        world.github.suspend(world.installation)
        assert verdict(await app.token(key, "acme/gadgets")) == (403, "installation_suspended")
        await asyncio.sleep(1.1)
        assert verdict(await app.token(key, "acme/widgets")) == (403, "installation_suspended")
        world.github.unsuspend(world.installation)
        await asyncio.sleep(1.1)
        assert verdict(await app.token(key, "acme/widgets")) == OK


async def test_a_suspension_that_nobody_watched_ends_with_the_next_request(any_world: World) -> None:
    """An old picture is looked at again before it refuses, also if the background has lost interest."""
    world = any_world
    async with world.inside(installation_ttl=1, failure_cooldown=0.1) as app:
        key = await app.key("acme/*")
        assert verdict(await app.token(key, "acme/widgets")) == OK
        world.github.suspend(world.installation)
        await asyncio.sleep(1.1)
        assert verdict(await app.token(key, "acme/widgets")) == (403, "installation_suspended")
        watching = app.broker.installations._watching
        assert watching is not None
        watching.cancel()
        world.github.unsuspend(world.installation)
        await asyncio.sleep(1.1)
        assert verdict(await app.token(key, "acme/widgets")) == OK


async def test_a_picture_is_not_older_than_its_time(world: World) -> None:
    async with world.inside(installation_ttl=1) as app:
        key = await app.key("acme/*")
        await app.token(key, "acme/widgets")
        world.github.uninstall(world.installation)
        await asyncio.sleep(1.1)
        assert verdict(await app.token(key, "acme/widgets")) == (404, "not_installed")


# -- rule 12: names that change hands --------------------------------------------------------------------


async def test_a_freed_name_taken_by_a_stranger_gets_nothing(any_world: World) -> None:
    world = any_world
    async with world.inside(failure_cooldown=0.1) as app:
        key = await app.key("acme/*")
        await app.token(key, "acme/widgets")
        world.github.delete_account("acme")
        world.github.add_repository("acme/widgets")  # of the new account of that name
        world.github.add_repository("acme/gadgets")
        stranger = world.github.install(world.app, "acme")
        before = len(world.github.tokens)
        for name in ("acme/gadgets", "acme/widgets", "acme/gadgets"):
            assert verdict(await app.token(key, name)) == (403, "blocked")
            await asyncio.sleep(0.15)
        assert verdict(await app.token(key, owner="acme")) == (403, "blocked")
        assert len(world.github.tokens) == before
        changed = await events(app, "owner.changed")
        assert changed
        assert {event["installation_id"] for event in changed} == {stranger.id}
        assert {event["owner"] for event in changed} == {"acme"}


async def test_a_stranger_who_waits_gets_nothing_either(world: World) -> None:
    """The pin outlives the picture of the owner."""
    async with world.inside(installation_ttl=1) as app:
        key = await app.key("acme/*")
        await app.token(key, "acme/widgets")
        world.github.uninstall(world.installation)
        await asyncio.sleep(1.1)
        assert verdict(await app.token(key, "acme/widgets")) == (404, "not_installed")
        world.github.delete_account("acme")
        world.github.add_repository("acme/gadgets")
        world.github.install(world.app, "acme")
        assert verdict(await app.token(key, "acme/gadgets")) == (403, "blocked")


async def test_a_renamed_repository_says_so(world: World) -> None:
    async with world.inside(failure_cooldown=0.1) as app:
        key = await app.key("acme/*")
        world.github.rename_repository("acme/gadgets", "things")
        refused = await app.token(key, "acme/gadgets")
        assert verdict(refused) == (404, "not_installed")
        world.github.transfer_repository("acme/things", "stranger")
        assert verdict(await app.token(key, "acme/things")) == (404, "not_installed")


# -- rule 13: budgets and pauses ---------------------------------------------------------------------------


@pytest.mark.parametrize("retry_after_s", [7, None])
async def test_everyone_pauses_when_github_asks_for_it(any_world: World, retry_after_s: int | None) -> None:
    world = any_world
    async with pair(world) as (one, two):
        key = await one.key("acme/*")
        cached = (await one.token(key, "acme/widgets")).json()["token"]
        world.github.add_repository("acme/third")
        world.github.faults.add(Fault.secondary_limit(retry_after_s=retry_after_s, route="mint"))
        world.github.clear_calls()
        first = await one.token(key, "acme/gadgets")
        assert verdict(first) == (503, "github_rate_limited")
        assert 1 <= int(first.headers["retry-after"]) <= (retry_after_s or 60)
        for app in (one, two):
            for name in ("acme/third", "acme/gadgets"):
                paused = await app.token(key, name)
                assert verdict(paused) == (503, "github_rate_limited")
                assert 1 <= int(paused.headers["retry-after"]) <= (retry_after_s or 60)
        assert world.github.count("mint") == 1
        assert (await two.token(key, "acme/widgets")).json()["token"] == cached


async def test_lists_pause_as_well(any_world: World) -> None:
    world = any_world
    async with pair(world) as (one, two):
        key = await one.key("acme/*")
        assert (await one.http.get("/v1/github/repositories", headers=bearer(key))).status_code == 200
        one.broker.repositories._pages.clear()  # a page that was just read is served while GitHub pauses
        world.github.faults.add(Fault.secondary_limit(retry_after_s=20, route="installation_repositories"))
        world.github.clear_calls()
        for app in (one, two, one):
            answer = await app.http.get("/v1/github/repositories", headers=bearer(key))
            assert verdict(answer) == (503, "github_rate_limited")
            assert 1 <= int(answer.headers["retry-after"]) <= 20
        assert world.github.count("installation_repositories") == 1
        assert verdict(await two.token(key, "acme/gadgets")) == (503, "github_rate_limited")
        assert world.github.count("mint") == 0


async def test_a_budget_of_mints_is_the_asking_keys_own(any_world: World) -> None:
    world = any_world
    for number in range(8):
        world.github.add_repository(f"acme/r{number}")
    async with pair(world, mint_budget=3) as (one, two):
        greedy, modest = await one.key("acme/*"), await one.key("acme/*")
        answers = [await (one, two)[n % 2].token(greedy, f"acme/r{n}") for n in range(6)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429, 429]
        assert verdict(answers[-1]) == (429, "rate_limited")
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
        assert verdict(await two.token(greedy, "acme/r0")) == OK  # warm
        assert verdict(await two.token(modest, "acme/r6")) == OK
        # both at once for one cold scope: the one may not, the other may
        both = await asyncio.gather(one.token(greedy, "acme/r7"), one.token(modest, "acme/r7"))
        assert verdict(both[1]) == OK


async def test_names_nobody_has_cost_the_asking_key(any_world: World) -> None:
    world = any_world
    async with world.inside(mint_budget=4) as app:
        key, other = await app.key("acme/*"), await app.key("acme/*")
        assert verdict(await app.token(other, "acme/widgets")) == OK
        world.github.clear_calls()
        found = [verdict(await app.token(key, f"acme/no{number}")) for number in range(8)]
        assert found[:4] == [(404, "not_installed")] * 4
        assert found[4:] == [(429, "rate_limited")] * 4
        assert world.github.count("mint") == 4
        assert verdict(await app.token(other, "acme/gadgets")) == OK


# -- rate limit of a key -----------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [3, 45])
async def test_a_keys_limit_holds_across_replicas(any_world: World, limit: int) -> None:
    async with pair(any_world) as (one, two):
        key, free = await one.key("acme/*", limit=limit), await one.key("acme/*")
        await one.token(free, "acme/widgets")
        for app in (one, two):  # begin within one minute of the store's
            _, left_s = await app.broker.store.take("probe", chunk=1, limit=10)
        if left_s < 2:
            await asyncio.sleep(left_s)
        answers = await asyncio.gather(
            *(app.token(key, "acme/widgets") for _ in range(limit) for app in (one, two))
        )
        passed = sum(answer.status_code == 200 for answer in answers)
        assert passed <= limit
        assert passed >= limit - max(1, limit // 20)
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert verdict(refused) == (429, "rate_limited")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert verdict(await two.token(free, "acme/widgets")) == OK
        assert isinstance(one.broker.issuer._limits, RateLimiter)


async def test_a_mint_waits_for_the_disk_once(world: World) -> None:
    """What a loss of power must not undo is written in one turn; the lease before it does not wait."""
    async with world.inside() as app:
        key = await app.key("acme/*")
        await app.token(key, "acme/gadgets")
        backend: Any = app.broker.store._backend
        while not isinstance(backend, SqliteBackend):
            backend = backend._inner
        said: list[str] = []
        await backend._write(lambda db, _: db.set_trace_callback(said.append))
        leases, kept = [], []
        for number in range(5):
            world.github.add_repository(f"acme/cold-{number}")
            said.clear()
            assert verdict(await app.token(key, f"acme/cold-{number}")) == OK
            turns = " ".join(said).split("PRAGMA synchronous=")[1:]
            leases += [turn.split()[0] for turn in turns if "INTO leases" in turn]
            kept += [
                (turn.split()[0], "INTO live" in turn, "INTO handed" in turn)
                for turn in turns
                if "INTO live" in turn or "INTO handed" in turn
            ]
        await backend._write(lambda db, _: db.set_trace_callback(None))
    assert kept == [("FULL", True, True)] * 5
    assert "NORMAL" in leases  # one may share a turn with what the background writes
