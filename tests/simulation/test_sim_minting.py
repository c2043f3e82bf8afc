"""Minting, call by call: who leads, what the others are told, what becomes of a token that nobody gets."""

import asyncio
import datetime as dt
import itertools
import logging
from dataclasses import replace
from typing import Any

import pytest
from sim_bench import Bench, Process, after, failing, scope
from sim_replica import COOLDOWN_S
from stage import Wrapped

from broker.errors import (
    BlockedError,
    BrokerError,
    GitHubRateLimitedError,
    GitHubRejectedAppError,
    GitHubTimeoutError,
    GitHubUnavailableError,
    InstallationSuspendedError,
    NotInstalledError,
    OvertakenError,
    PermissionNotGrantedError,
    RateLimitedError,
    StoreLostError,
    StoreUnavailableError,
    UntrustedReplyError,
)
from broker.issuing.minting import error_of, gh_offset
from broker.model import Failure, Grant, MintedToken, Secret, Target, TargetKind
from broker.ports import EndKind, ReadQuery

ONE, TWO = "1" * 12, "2" * 12


def with_settings(process: Process, **settings: Any) -> None:
    minter = process.rooms.minter
    minter._settings = replace(minter._settings, **settings)


async def refusal(minting: Any) -> BrokerError:
    with pytest.raises(BrokerError) as caught:
        await minting
    return caught.value


# -- who waits for whom ----------------------------------------------------------------------------


def test_a_failure_is_told_to_all_who_wait_each_in_its_own_instance(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        one.github_does(mint=after(0.5, failing(GitHubUnavailableError("500"))))
        told = await asyncio.gather(
            one.mint("widgets", key_id=ONE), one.mint("widgets", key_id=TWO), return_exceptions=True
        )
        assert [type(each) for each in told] == [GitHubUnavailableError] * 2
        assert told[0] is not told[1]
        assert (one.asked("mint"), one.store.calls["acquire"]) == (1, 1)

    bench.play(story())


def test_one_keys_budget_is_no_answer_for_another(bench: Bench) -> None:
    """Two keys wait for one flight; the key that began it may mint no more, the other one may."""

    async def story() -> None:
        one = await bench.process()
        with_settings(one, budget_per_minute=1)
        await one.mint("gadgets", key_id=ONE)
        first, second = await asyncio.gather(
            one.mint("widgets", key_id=ONE), one.mint("widgets", key_id=TWO), return_exceptions=True
        )
        assert isinstance(first, RateLimitedError)
        assert 0 < (first.retry_after_s or 0) <= 60
        assert isinstance(second, str)
        error = await refusal(one.mint("gizmos", key_id=TWO))  # that was its one mint
        assert isinstance(error, RateLimitedError)
        assert one.asked("mint") == 2

    bench.play(story())


def test_a_refresh_that_nobody_waited_for_says_nothing_about_a_call(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        wanted = scope("widgets")
        mint = one.line._inner.mint
        one.github_does(mint=after(0.5, failing(GitHubUnavailableError("500"), times=1, then=mint)))
        seen = await one.store.read(ReadQuery(scope=wanted))
        grant = Grant(ONE, "test", wanted)
        one.rooms.minter.mint_ahead(grant, seen)
        one.rooms.minter.mint_ahead(grant, seen)  # one at a time
        assert isinstance(await one.rooms.minter.mint(grant, seen), str)
        assert one.asked("mint") == 2
        assert [(ahead, result) for ahead, result, _ in one.meter.mints] == [
            (True, "github_unavailable"),
            (False, "ok"),
        ]
        assert all(0.5 < seconds < 1 for _, _, seconds in one.meter.mints)

    bench.play(story())


def test_a_refresh_that_another_replica_failed_with_is_not_tried_again(bench: Bench) -> None:
    """Also by who has looked before it failed."""

    async def story() -> None:
        one, two = await bench.process(), await bench.process()
        await one.mint("widgets")
        wanted = scope("widgets")
        seen = await two.store.read(ReadQuery(scope=wanted))
        one.github_does(mint=failing(GitHubUnavailableError("500")))
        grant = Grant(ONE, "test", wanted)
        one.rooms.minter.mint_ahead(grant, await one.store.read(ReadQuery(scope=wanted)))
        await asyncio.sleep(0.5)
        assert one.asked("mint") == 2
        two.rooms.minter.mint_ahead(grant, seen)
        await asyncio.sleep(0.5)
        assert two.asked("mint") == 0

    bench.play(story())


def test_who_waits_is_counted(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        one.github_does(mint=after(1, one.line._inner.mint))
        assert one.rooms.minter.waiting == 0
        first = asyncio.create_task(one.mint("widgets"))
        second = asyncio.create_task(one.mint("widgets"))
        await asyncio.sleep(0.5)
        assert one.rooms.minter.waiting == 2
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert one.rooms.minter.waiting == 1
        assert isinstance(await first, str)
        assert one.rooms.minter.waiting == 0

    bench.play(story())


def test_who_follows_another_replica_asks_the_store_now_and_then(bench: Bench) -> None:
    async def story() -> None:
        one, two = await bench.process(), await bench.process()
        await one.rooms.installations.find("acme", None)
        one.github_does(mint=after(4, one.line._inner.mint))
        leads = asyncio.create_task(one.mint("widgets"))
        await asyncio.sleep(0.1)
        assert await two.mint("widgets") == await leads
        assert two.asked("mint") == 0
        assert 10 < two.store.calls["acquire"] < 40

    bench.play(story())


def test_who_follows_bears_trouble_of_the_store_again_and_again(bench: Bench) -> None:
    """Each time for two seconds, as long as it is well in between."""

    async def story() -> None:
        one, two = await bench.process(), await bench.process()
        await one.rooms.installations.find("acme", None)
        one.github_does(mint=after(6, one.line._inner.mint))
        leads = asyncio.create_task(one.mint("widgets"))
        await asyncio.sleep(0.1)
        follows = asyncio.create_task(two.mint("widgets"))
        for _ in range(2):
            await asyncio.sleep(0.5)
            two.store_does(acquire=failing(StoreUnavailableError("away")))
            await asyncio.sleep(1.5)
            two.store._instead.clear()
        assert await follows == await leads

    bench.play(story())


def test_who_follows_a_refresh_gets_the_new_token(bench: Bench) -> None:
    async def story() -> None:
        one, two = await bench.process(), await bench.process()
        first = await one.mint("widgets")
        one.github_does(mint=after(1, one.line._inner.mint))
        leads = asyncio.create_task(one.mint("widgets"))
        await asyncio.sleep(0.1)
        assert await two.mint("widgets") == await leads != first
        assert two.asked("mint") == 0

    bench.play(story())


def test_a_follower_takes_over_when_the_leader_fails_to_renew(bench: Bench) -> None:
    """A leader that is cut off from the store loses its lease; what it gets from GitHub then dies."""

    async def story() -> None:
        one, two = await bench.process(), await bench.process()
        await one.rooms.installations.find("acme", None)
        one.github_does(mint=after(9, one.line._inner.mint))
        one.store_does(renew=failing(StoreUnavailableError("away")))
        leads = asyncio.create_task(one.mint("widgets"))
        await asyncio.sleep(0.1)
        taken = await two.mint("widgets")
        assert 4.5 < bench.loop.time() < 6.5
        late = await refusal(leads)
        assert (type(late), late.retry_after_s) == (OvertakenError, 1.0)
        await asyncio.sleep(1)
        assert bench.alive() == [taken]
        (event,) = await one.events("token.revoked")
        assert event["reason"] == "it came too late: fenced"
        assert one.meter.mints[0][1] == "store_unavailable"

    bench.play(story())


def test_a_lease_that_was_lost_before_github_is_asked_costs_no_call(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        await one.rooms.installations.find("acme", None)

        async def lost(_: object) -> bool:
            return False

        one.store_does(renew=lost)
        turns = one.rooms.minter._turns
        async with asyncio.TaskGroup() as group:
            holding = [group.create_task(hold(turns, 3.0)) for _ in range(16)]
            await asyncio.sleep(0.1)
            error = await refusal(one.mint("widgets"))
            assert len(holding) == 16
        assert isinstance(error, OvertakenError)
        assert error.retry_after_s == 1.0
        assert one.asked("mint") == 0

    bench.play(story())


async def hold(turns: Any, seconds: float) -> None:
    async with turns.turn("acme"):
        await asyncio.sleep(seconds)


def test_a_mint_that_takes_too_long_is_given_up(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        one.github_does(mint=after(100, one.line._inner.mint))
        error = await refusal(one.mint("widgets"))
        assert isinstance(error, GitHubTimeoutError)
        assert "acme" in str(error)
        assert 59 < bench.loop.time() < 62
        assert [(ahead, result) for ahead, result, _ in one.meter.mints] == [(False, "unexpected")]
        assert one.rooms.minter._flights == {}

    bench.play(story())


def test_what_nobody_expected_is_logged_and_told_without_detail(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        one = await bench.process()

        async def broken(*_: object, **__: object) -> None:
            raise ValueError("ghs_secret")

        one.store_does(acquire=broken)
        error = await refusal(one.mint("widgets"))
        assert type(error) is BrokerError
        assert "ghs_secret" not in str(error)

    bench.play(story())
    assert "a mint failed unexpectedly" in caplog.text


# -- failures --------------------------------------------------------------------------------------


def test_a_failure_of_github_cools_down(bench: Bench) -> None:
    async def story() -> None:
        one, two = await bench.process(), await bench.process()
        mint = one.line._inner.mint
        one.github_does(mint=failing(GitHubUnavailableError("500", retry_after_s=7.0), times=1, then=mint))
        assert isinstance(await refusal(one.mint("widgets")), GitHubUnavailableError)
        for process in (one, two):
            error = await refusal(process.mint("widgets"))
            assert type(error) is GitHubUnavailableError
            assert error.retry_after_s == 7.0
        assert (one.asked("mint"), two.asked("mint")) == (1, 0)
        await asyncio.sleep(COOLDOWN_S + 0.1)
        assert isinstance(await two.mint("widgets"), str)

    bench.play(story())


def test_trouble_of_the_store_is_no_failure_of_the_scope(bench: Bench) -> None:
    """The lease is given back, and the next one may try at once."""

    async def story() -> None:
        one = await bench.process()
        await one.rooms.installations.find("acme", None)
        one.store_does(commit=failing(StoreUnavailableError("away"), times=1, then=one.sealed.commit))
        assert isinstance(await refusal(one.mint("widgets")), StoreUnavailableError)
        began = bench.loop.time()
        assert isinstance(await one.mint("widgets"), str)
        assert bench.loop.time() - began < 1

    bench.play(story())


@pytest.mark.parametrize("whole_app", [True, False])
def test_a_limit_pauses_everybody_it_concerns(bench: Bench, *, whole_app: bool) -> None:
    async def story() -> None:
        one, two = await bench.process(), await bench.process()
        limit = GitHubRateLimitedError("429", retry_after_s=30.0, whole_app=whole_app)
        one.github_does(mint=failing(limit))
        assert isinstance(await refusal(one.mint("widgets")), GitHubRateLimitedError)
        paused = await refusal(two.mint("gadgets"))
        assert isinstance(paused, GitHubRateLimitedError)
        assert 28 < (paused.retry_after_s or 0) <= 30
        assert (await two.sealed.paused(None) > 0) is whole_app
        assert two.asked("mint") == 0

    bench.play(story())


def test_failures_that_the_store_does_not_take_are_told_all_the_same(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        one.github_does(mint=failing(GitHubRateLimitedError("429", retry_after_s=30.0)))
        away = failing(StoreUnavailableError("away"))
        one.store_does(pause=away, fail=away, release=away)
        assert isinstance(await refusal(one.mint("widgets")), GitHubRateLimitedError)

    bench.play(story())


def test_how_to_install_is_told_once_it_is_known(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        one.github_does(repository_installation=failing(NotInstalledError("404")))
        plain = await refusal(one.mint("widgets"))
        assert plain.public == NotInstalledError.public
        one.rooms.minter._grant_hint = lambda: "Install it here."
        hinted = await refusal(one.mint("gadgets"))
        assert type(hinted) is NotInstalledError
        assert hinted.public == f"{NotInstalledError.public} Install it here."
        assert (await refusal(one.mint("gadgets"))).public == hinted.public  # while it cools down

    bench.play(story())


@pytest.mark.parametrize(
    ("what", "kind"), [("account_id", BlockedError), ("suspended", InstallationSuspendedError)]
)
def test_an_installation_that_serves_nobody_costs_no_mint(
    bench: Bench, what: str, kind: type[BrokerError]
) -> None:
    async def story() -> None:
        one = await bench.process()
        known = await one.rooms.installations.find("acme", None)
        await one.rooms.installations.learn("acme", known, replace(known, **{what: 4711}))
        seen: Any = Wrapped(
            await one.store.read(ReadQuery(scope=scope("widgets"))), installation=lambda: None
        )
        error = await refusal(one.rooms.minter.mint(Grant(ONE, "test", scope("widgets")), seen))
        assert type(error) is kind
        assert one.asked("mint") == 0

    bench.play(story())


# -- what is kept ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("off_s", "kept"), [(1.0, False), (-1.0, False), (5.0, True), (-5.0, True)])
def test_githubs_clock_is_written_where_it_moved(bench: Bench, off_s: float, *, kept: bool) -> None:
    async def story() -> None:
        bench.github.clock_off_s = off_s
        one = await bench.process()
        await one.mint("widgets")
        offset = (await one.store.read(ReadQuery())).gh_offset
        assert (abs(offset - off_s) < 1.1) if kept else offset == 0
        bench.github.clock_off_s = -off_s  # somebody sets it right
        await one.mint("gadgets")
        offset = (await one.store.read(ReadQuery())).gh_offset
        assert (abs(offset + off_s) < 1.1) if kept else offset == 0

    bench.play(story())


@pytest.mark.parametrize(
    ("kind", "reason", "error"),
    [
        (EndKind.BLOCK, "it came too late: blocked", BlockedError),
        (EndKind.REVOKE, "it came too late: revoked", OvertakenError),
    ],
)
def test_what_was_ended_meanwhile_dies(
    bench: Bench, kind: EndKind, reason: str, error: type[BrokerError]
) -> None:
    async def story() -> None:
        one = await bench.process()
        mint = one.line._inner.mint
        target = Target(TargetKind.REPOSITORY, "acme/widgets")

        async def overtaken(*arguments: Any, **named: Any) -> MintedToken:
            minted: MintedToken = await mint(*arguments, **named)
            if kind is not EndKind.BLOCK:
                await one.sealed.end(kind, target, None, by="ops", reason="leaked")
            return minted

        if kind is EndKind.BLOCK:  # who comes here has looked before it was set
            await one.sealed.end(kind, target, None, by="ops", reason="leaked")
        one.github_does(mint=overtaken)
        assert type(await refusal(one.mint("widgets"))) is error
        await asyncio.sleep(0.5)
        assert bench.alive() == []
        (event,) = await one.events("token.revoked")
        (token,) = bench.github.minted.values()
        assert event == {
            "event": "token.revoked",
            "owner": "acme",
            "repositories": ["acme/widgets"],
            "permissions": {"contents": "read", "metadata": "read"},
            "token_sha256": token.sha,
            "reason": reason,
        }

    bench.play(story())


def test_a_token_that_the_store_did_not_keep_dies_and_the_audit_says_why(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        one.store_does(commit=failing(StoreUnavailableError("away")))
        assert isinstance(await refusal(one.mint("widgets")), StoreUnavailableError)
        await asyncio.sleep(1)
        assert bench.alive() == []
        (event,) = await one.events("token.revoked")
        assert event["reason"] == "the store did not keep it"

    bench.play(story())


def test_a_token_that_was_not_kept_dies_though_another_one_was(bench: Bench) -> None:
    async def story() -> None:
        one, two = await bench.process(), await bench.process()
        one.store_does(commit=failing(StoreUnavailableError("away")))
        away = failing(StoreUnavailableError("away"), times=20, then=one.sealed.release)
        one.store_does(release=away)
        assert isinstance(await refusal(one.mint("widgets")), StoreUnavailableError)
        kept = await two.mint("widgets")  # when the lease has run out
        assert len(bench.alive()) == 2
        await asyncio.sleep(10)
        assert bench.alive() == [kept]
        assert len(bench.github.minted) == 2

    bench.play(story())


def test_what_a_mint_says(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        await one.mint("widgets", key_id=ONE)
        (event,) = await one.events("token.minted")
        (token,) = bench.github.minted.values()
        assert event == {
            "event": "token.minted",
            "key_id": ONE,
            "key_name": "test",
            "owner": "acme",
            "repositories": ["acme/widgets"],
            "permissions": {"contents": "read", "metadata": "read"},
            "installation_id": token.installation_id,
            "token_sha256": token.sha,
            "expires_at": event["expires_at"],
        }
        assert dt.datetime.fromisoformat(event["expires_at"]).timestamp() == token.expires_at
        assert one.asked("probe_git") == 0  # unless the settings want it

    bench.play(story())


@pytest.mark.parametrize("spelled", [True, False])
def test_names_are_sent_as_they_were_spelled(bench: Bench, *, spelled: bool) -> None:
    async def story() -> None:
        one = await bench.process()
        sent: list[list[str]] = []

        async def mint(_: int, *, repositories: list[str], permissions: object) -> None:
            sent.append(repositories)
            raise GitHubUnavailableError("500")

        one.github_does(mint=mint)
        wanted = (
            scope("Widgets", "gadgets") if spelled else replace(scope("widgets", "gadgets"), spelled=None)
        )
        seen = await one.store.read(ReadQuery(scope=wanted))
        await refusal(one.rooms.minter.mint(Grant(ONE, "test", wanted), seen))
        assert sent == [["gadgets", "Widgets" if spelled else "widgets"]]

    bench.play(story())


def test_a_token_that_another_store_would_have_kept_dies(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        one.store_does(commit=failing(StoreLostError("emptied")))
        assert isinstance(await refusal(one.mint("widgets")), StoreLostError)
        await asyncio.sleep(1)
        assert bench.alive() == []
        (event,) = await one.events("token.revoked")
        assert event["reason"] == "it is not the store that was there before"

    bench.play(story())


def test_a_token_that_was_kept_though_the_answer_was_lost_lives(bench: Bench) -> None:
    """The store is asked each half second until it answers."""

    async def story() -> None:
        one = await bench.process()
        await one.rooms.installations.find("acme", None)

        async def commit(*arguments: Any, **named: Any) -> Any:
            await one.sealed.commit(*arguments, **named)
            raise StoreUnavailableError("the answer is lost")

        one.store_does(commit=commit)
        assert isinstance(await refusal(one.mint("widgets")), StoreUnavailableError)
        one.store_does(read=failing(StoreUnavailableError("away"), times=4, then=one.sealed.read))
        reads = one.store.calls["read"]
        await asyncio.sleep(1.9)
        assert 2 < one.store.calls["read"] - reads <= 4
        await asyncio.sleep(5)
        assert len(bench.alive()) == 1
        assert one.asked("revoke") == 0

    bench.play(story())


def test_more_than_was_asked_for_dies(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        one = await bench.process()
        mint = one.line._inner.mint

        async def more(*arguments: Any, **named: Any) -> MintedToken:
            return replace(await mint(*arguments, **named), permissions={"contents": "write"})

        one.github_does(mint=more)
        assert isinstance(await refusal(one.mint("widgets")), UntrustedReplyError)
        await asyncio.sleep(0.5)
        assert bench.alive() == []
        (event,) = await one.events("token.revoked")
        assert "contents" in event["reason"]
        assert [result for _, result, _ in one.meter.mints] == ["untrusted_reply"]

    bench.play(story())
    assert [each.levelname for each in caplog.records if "not what was asked for" in each.getMessage()] == [
        "CRITICAL"
    ]


# -- dying -----------------------------------------------------------------------------------------


async def doomed(process: Process) -> None:
    """Have a mint end in a token that nobody gets."""
    process.store_does(commit=failing(StoreLostError("emptied")))
    await refusal(process.mint("widgets"))


def test_a_late_revocation_is_tried_for_a_minute_ever_less_often(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        one = await bench.process()
        one.github_does(revoke=failing(GitHubUnavailableError("500")))
        await doomed(one)
        await asyncio.sleep(16)
        assert one.asked("revoke") == 6  # at 0, 0.5, 1.5, 3.5, 7.5 and 15.5 s
        await asyncio.sleep(120)
        assert one.asked("revoke") == 10  # then each 10 s
        assert await one.events("token.revoked") == []
        assert one.rooms.minter._dying == set()

    bench.play(story())
    (told,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    (token,) = bench.github.minted.values()
    assert told.__dict__["token_sha256"] == token.sha


def test_a_late_revocation_is_tried_three_times_though_its_time_is_over(bench: Bench) -> None:
    """A machine that was suspended wakes up with all of its time gone."""

    async def story() -> None:
        one = await bench.process()

        async def suspended(_: Secret) -> None:
            bench.loop.leap(120)
            raise GitHubUnavailableError("500")

        one.github_does(revoke=suspended)
        await doomed(one)
        await asyncio.sleep(1000)
        assert one.asked("revoke") == 3

    bench.play(story())


def test_a_late_revocation_that_the_audit_does_not_take_is_done_all_the_same(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        one.store_does(record=failing(StoreUnavailableError("away")))
        await doomed(one)
        await asyncio.sleep(1)
        assert bench.alive() == []
        assert one.asked("revoke") == 1
        assert one.rooms.minter._dying == set()

    bench.play(story())


def test_the_end_waits_for_mints_and_late_revocations(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        await one.rooms.minter.stop()  # nothing to wait for
        one.github_does(revoke=after(1, one.line._inner.revoke), mint=after(1, one.line._inner.mint))
        one.store_does(commit=failing(StoreLostError("emptied")))
        minting = asyncio.create_task(refusal(one.mint("widgets")))
        await asyncio.sleep(0.1)
        await one.rooms.minter.stop(within_s=5)
        assert bench.alive() == []
        assert 2 < bench.loop.time() < 3
        assert isinstance(await minting, StoreLostError)

    bench.play(story())


def test_the_end_does_not_wait_for_ever(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        one = await bench.process()
        one.github_does(revoke=after(60, one.line._inner.revoke))
        await doomed(one)
        await asyncio.sleep(0.1)
        began = bench.loop.time()
        await one.rooms.minter.stop(within_s=2)
        assert 1.9 < bench.loop.time() - began < 2.1
        assert one.rooms.minter._dying == set()

    bench.play(story())
    assert "a late token could not be revoked" in caplog.text


def test_the_end_has_one_time_for_both(bench: Bench) -> None:
    """Mints that hang use it up; revocations get no time of their own then."""

    async def story() -> None:
        one = await bench.process()
        one.github_does(revoke=after(60, one.line._inner.revoke))
        await doomed(one)
        one.github_does(mint=after(50, one.line._inner.mint))
        minting = asyncio.create_task(refusal(one.mint("gadgets")))
        await asyncio.sleep(0.1)
        began = bench.loop.time()
        await one.rooms.minter.stop(within_s=2)
        assert 1.9 < bench.loop.time() - began < 2.1
        await asyncio.gather(minting, return_exceptions=True)

    bench.play(story())


# -- trying a new token out ------------------------------------------------------------------------


def test_a_new_token_is_tried_ever_less_often_until_git_takes_it(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        one = await bench.process()
        with_settings(one, probe_git=True)
        tries: list[float] = []

        async def probe(_: Secret, repository: str) -> bool:
            assert repository == "acme/gadgets"  # the first one
            tries.append(bench.loop.time())
            return len(tries) == 6

        one.github_does(probe_git=probe)
        await one.mint("widgets", "gadgets")
        gaps = [round(b - a, 3) for a, b in itertools.pairwise(tries)]
        assert gaps == [0.1, 0.2, 0.4, 0.8, 1.0]
        await one.mint()  # of the whole owner: there is no repository to try it on
        assert len(tries) == 6

    bench.play(story())
    assert "has not accepted" not in caplog.text


@pytest.mark.parametrize("why", ["refused", "silent", "away"])
def test_a_new_token_that_git_does_not_take_is_kept_all_the_same(
    bench: Bench, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    async def story() -> None:
        one = await bench.process()
        with_settings(one, probe_git=True)

        async def never(*_: object) -> bool:
            return False

        answers = {
            "refused": never, "silent": after(60, never), "away": failing(GitHubTimeoutError("out of reach")),
        }  # fmt: skip
        one.github_does(probe_git=answers[why])
        assert [await one.mint("widgets")] == bench.alive()
        assert (bench.loop.time() < 1) if why == "away" else (5 < bench.loop.time() < 5.5)
        assert one.asked("probe_git") == {"refused": 8, "silent": 1, "away": 1}[why]

    bench.play(story())
    (told,) = [each for each in caplog.records if "has not accepted" in each.getMessage()]
    assert told.__dict__["cause"] == ("out of reach" if why == "away" else "refused for 5 s")


def test_a_token_that_reads_no_contents_is_not_tried_on_git(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        with_settings(one, probe_git=True)
        wanted = replace(scope("widgets"), permissions=("metadata",))
        seen = await one.store.read(ReadQuery(scope=wanted))
        await one.rooms.minter.mint(Grant(ONE, "test", wanted), seen)
        assert one.asked("probe_git") == 0

    bench.play(story())


# -- by itself -------------------------------------------------------------------------------------


def minted(*, expires_at: float, github_now: float | None) -> MintedToken:
    return MintedToken(Secret("ghs_x"), expires_at, {}, None, None, github_now)


@pytest.mark.parametrize(
    ("github_now", "expires_at", "expected"),
    [
        (1000.0, 4600.0, 900.0),
        (1000.0, 4601.0, 900.0),  # Date is believed
        (1000.0, 4900.0, 900.0),  # still: they agree to 300 s
        (1000.0, 4901.0, 1201.0),  # not any more: the later of both
        (1000.0, 4299.0, 900.0),
        (None, 4600.0, 900.0),
    ],
)
def test_githubs_clock_as_a_mint_shows_it(
    github_now: float | None, expires_at: float, expected: float
) -> None:
    assert gh_offset(minted(expires_at=expires_at, github_now=github_now), store_now=100.0) == expected


@pytest.mark.parametrize(
    "kind",
    [
        NotInstalledError,
        InstallationSuspendedError,
        PermissionNotGrantedError,
        GitHubRateLimitedError,
        GitHubRejectedAppError,
        GitHubUnavailableError,
        GitHubTimeoutError,
    ],
)
def test_a_kept_failure_is_the_error_that_it_was(kind: type[BrokerError]) -> None:
    error = error_of(Failure(kind.code, kind.public, 7.0))
    assert (type(error), error.public, error.retry_after_s) == (kind, kind.public, 7.0)
    assert str(error) == "failed a moment ago"
    assert type(error_of(Failure("of_a_later_version", "Something."))) is GitHubUnavailableError
