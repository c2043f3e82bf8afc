"""Issuing, step by step: what a request costs, which token it gets, what is said of a refusal."""

import asyncio
import datetime as dt
from dataclasses import replace
from typing import Any

import pytest
from sim_bench import ADMIN, ORIGIN, Bench, Process, after, failing, scope
from sim_replica import TTL_S
from stage import Wrapped

from broker.access import limits
from broker.access.keys import PresentedKey, generate
from broker.errors import (
    BlockedError,
    BrokerError,
    ForbiddenError,
    GitHubTimeoutError,
    GitHubUnavailableError,
    InstallationSuspendedError,
    InvalidApiKeyError,
    InvalidRequestError,
    OvertakenError,
    RateLimitedError,
    StoreUnavailableError,
)
from broker.issuing import tokens as issuing
from broker.issuing.keys import KeyChange, KeyPolicy
from broker.issuing.tokens import Issued, Origin, TokenRequest
from broker.model import ApiKeyRecord, Grant, Role, Target, TargetKind
from broker.ports import AuditEvent, CommitResult, EndKind, HandResult, Lead, ReadQuery

WIDGETS = Target(TargetKind.REPOSITORY, "acme/widgets")


def calls(process: Process, name: str) -> int:
    found: int = process.store.calls.get(name, 0)
    return found


def asked(process: Process) -> dict[str, int]:
    """Return how often the store was asked what; its clock is in this process."""
    return {name: number for name, number in process.store.calls.items() if name != "now"}


def logged(process: Process) -> list[AuditEvent]:
    """Return the list that lines of the log go to, empty now."""
    process.meter.lines.clear()
    return process.meter.lines


async def denials(process: Process) -> list[dict[str, Any]]:
    return await process.events("token.denied")


def with_settings(process: Process, **settings: Any) -> None:
    issuer = process.rooms.issuer
    issuer._settings = replace(issuer._settings, **settings)


def second_read_waits(process: Process) -> asyncio.Event:
    """Hold back the second READ with a key, until the event comes that is returned."""
    go_on, reads = asyncio.Event(), 0

    async def late(query: ReadQuery) -> Any:
        nonlocal reads
        if query.key_id is not None and (reads := reads + 1) == 2:
            await go_on.wait()
        return await process.sealed.read(query)

    process.store_does(read=late)
    return go_on


# -- what a request costs --------------------------------------------------------------------------


def test_a_warm_request_is_one_read_and_the_first_one_of_a_key_one_step_more(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        key, other = await one.key("acme/*"), await one.key("acme/*")
        first = await one.issue(key, "widgets")
        assert first.cached is False
        one.store.calls.clear()
        for _ in range(5):
            again = await one.issue(key, "widgets")
            assert (again.token, again.cached) == (first.token, True)
        assert asked(one) == {"read": 5}
        assert (await one.issue(other, "widgets")).token == first.token
        assert asked(one) == {"read": 6, "hand": 1}
        assert one.asked("mint") == 1

    bench.play(story())


def test_a_cold_request_reads_again_after_the_mint(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        key = await one.key("acme/*")
        await one.rooms.installations.find("acme", None)
        one.store.calls.clear()
        await one.issue(key, "widgets")
        assert asked(one) == {"read": 2, "acquire": 1, "commit": 1, "hand": 1}
        (issued,) = await one.events("token.issued")
        (token,) = bench.github.minted.values()
        assert issued == {
            "event": "token.issued",
            "request_id": "request-1",
            "client_ip": "192.0.2.7",
            "key_id": key.id,
            "key_name": "test",
            "owner": "acme",
            "repositories": ["acme/widgets"],
            "permissions": {"contents": "read", "metadata": "read"},
            "installation_id": token.installation_id,
            "token_sha256": token.sha,
            "expires_at": issued["expires_at"],
            "cached": False,
            "count": 1,
        }
        assert dt.datetime.fromisoformat(issued["expires_at"]).timestamp() == token.expires_at

    bench.play(story())


# -- requests that one snapshot answers ------------------------------------------------------------


def test_who_asks_the_same_of_the_same_snapshot_is_decided_on_once(bench: Bench) -> None:
    """All are counted, and told of on the log; the next snapshot is decided on anew."""

    async def story() -> None:
        one = await bench.process()
        key = await one.key("acme/*")
        for _ in range(3):  # until their line on the log is at hand
            await one.issue(key, "widgets")
        request, decided = TokenRequest(scope("widgets")), 0
        granted = one.rooms.issuer._granted

        def counted(*arguments: Any) -> Grant:
            nonlocal decided
            decided += 1
            return granted(*arguments)

        one.rooms.issuer._granted = counted  # type: ignore[method-assign]
        for turn in range(1, 4):
            ids = [f"request-{turn}-{number}" for number in range(5)]
            given = await asyncio.gather(
                *(one.rooms.issuer.issue(key, request, Origin(each, None)) for each in ids)
            )
            assert len(set(given)) == 1
            assert (decided, given[0].cached) == (turn, True)
        await one.rooms.auditor.flush(everything=True)
        assert sum(event["count"] for event in await one.events("token.issued")) == 3 + 15

    bench.play(story())


def test_a_snapshot_that_answers_many_tells_keys_and_questions_apart(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        key = await one.key("acme/*")
        for _ in range(3):
            first = (await one.issue(key, "widgets")).token
        wrong = PresentedKey(key.id, "0" * 64)
        plain, anew = TokenRequest(scope("widgets")), TokenRequest(scope("widgets"), refresh=True)
        longer = TokenRequest(scope("widgets"), min_ttl_s=3300)
        await asyncio.sleep(600)
        for _ in range(3):
            await one.issue(key, "widgets")
        answers = await asyncio.gather(
            *(
                one.rooms.issuer.issue(who, what, ORIGIN)
                for who, what in [
                    (key, plain), (wrong, plain), (key, plain), (key, anew), (key, longer)
                ]
            ),
            return_exceptions=True,
        )  # fmt: skip
        assert [getattr(one, "token", type(one)) for one in answers[:3]] == [first, InvalidApiKeyError, first]
        refreshed, long_lived = answers[3:5]
        assert isinstance(refreshed, Issued)
        assert isinstance(long_lived, Issued)
        assert refreshed.token == long_lived.token != first

    bench.play(story())


def test_what_a_refresh_was_given_in_the_end_says_nothing_to_one_that_begins(bench: Bench) -> None:
    """The first waited, and takes what was minted meanwhile; the second says that this one is bad."""

    async def story() -> None:
        one, two = await bench.process(), await bench.process()
        key = await one.key("acme/*")
        await one.issue(key, "widgets")
        await asyncio.sleep(TTL_S + 3600)
        anew, plain = TokenRequest(scope("widgets"), refresh=True), TokenRequest(scope("widgets"))
        go_on = second_read_waits(one)
        first = asyncio.create_task(one.rooms.issuer.issue(key, anew, ORIGIN))
        await asyncio.sleep(2)
        meanwhile = (await two.issue(key, "widgets")).token
        for _ in range(3):
            assert (await one.rooms.issuer.issue(key, plain, ORIGIN)).token == meanwhile
        go_on.set()
        await asyncio.sleep(0)
        second = asyncio.create_task(one.rooms.issuer.issue(key, anew, ORIGIN))
        assert (await first).token == meanwhile
        assert (await second).token != meanwhile

    bench.play(story())


def test_a_limit_counts_each_of_those_who_ask_the_same_of_one_snapshot(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        key = await one.key("acme/*", limit=40)
        request = TokenRequest(scope("widgets"))
        given = 3
        for _ in range(3):
            await one.rooms.issuer.issue(key, request, ORIGIN)
        for _ in range(12):
            answers = await asyncio.gather(
                *(one.rooms.issuer.issue(key, request, ORIGIN) for _ in range(5)), return_exceptions=True
            )
            given += sum(isinstance(each, Issued) for each in answers)
        assert given == 40

    bench.play(story())


def test_who_waited_for_a_mint_is_told_so_whoever_read_beside_it(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        key = await one.key("acme/*")
        request, go_on = TokenRequest(scope("widgets")), second_read_waits(one)
        waited = asyncio.create_task(one.rooms.issuer.issue(key, request, ORIGIN))
        await asyncio.sleep(2)
        assert one.asked("mint") == 1
        for _ in range(3):
            assert (await one.rooms.issuer.issue(key, request, ORIGIN)).cached is True
        beside = asyncio.create_task(one.rooms.issuer.issue(key, request, ORIGIN))
        go_on.set()
        assert ((await beside).cached, (await waited).cached) == (True, False)
        assert (await beside).token == (await waited).token

    bench.play(story())


# -- the hand-out that is stored together with the token -------------------------------------------


def test_hand_outs_are_counted_once_each_also_those_that_wait_for_one_mint(bench: Bench) -> None:
    """The first of the key whose request minted is stored with the token, for that request."""

    async def story() -> None:
        one = await bench.process()
        keys = [await one.key("acme/*") for _ in range(2)]
        lines = logged(one)
        await asyncio.gather(*(one.issue(key, "widgets") for key in keys for _ in range(3)))
        assert (calls(one, "commit"), one.asked("mint")) == (1, 1)
        assert calls(one, "hand") == 1 + 3  # none of the other key's three knows yet of the others
        assert [line.event for line in lines] == ["token.issued"] * 6
        await one.rooms.auditor.flush(everything=True)
        counts = {key.id: [0, 0] for key in keys}
        for event in await one.events("token.issued"):
            counts[event["key_id"]][0] += 1
            counts[event["key_id"]][1] += event["count"]
        assert counts == {key.id: [2, 3] for key in keys}  # the first, and all that followed

    bench.play(story())


@pytest.mark.parametrize("answer", [StoreUnavailableError("gone"), HandResult.STALE, HandResult.GONE])
def test_a_hand_out_that_was_not_stored_with_its_token_is_stored_afterwards(
    bench: Bench, answer: BrokerError | HandResult
) -> None:
    async def story() -> None:
        one = await bench.process()
        key = await one.key("acme/*")
        before: list[int] = []

        async def hand(*arguments: Any, **named: Any) -> HandResult:
            before.append(calls(one, "read"))
            if len(before) > 1:
                return await one.sealed.hand(*arguments, **named)
            if isinstance(answer, BrokerError):
                raise answer
            return answer

        one.store_does(hand=hand)
        assert (await one.issue(key, "widgets")).cached is False
        assert len(before) == 2
        assert before[0] < before[1]  # the decision that counts was made anew
        (issued,) = await one.events("token.issued")
        assert (issued["count"], issued["cached"]) == (1, False)
        assert (one.asked("mint"), calls(one, "drop_token")) == (1, 0)

    bench.play(story())


def test_a_hand_out_that_the_store_may_have_lost_is_stored_again(bench: Bench) -> None:
    """The store was found to have gone back, say, between a token's COMMIT and the READ after it."""

    async def story() -> None:
        one = await bench.process()
        key = await one.key("acme/*")

        async def and_lose(*arguments: Any, **named: Any) -> CommitResult:
            done = await one.sealed.commit(*arguments, **named)
            await asyncio.sleep(0.5)
            assert len(await one.events("token.issued")) == 1
            one.sealed._generation += 1
            return done

        one.store_does(commit=and_lose)
        await one.issue(key, "widgets")
        assert calls(one, "hand") == 2

    bench.play(story())


def test_a_request_that_ends_before_its_mint_was_handed_nothing(bench: Bench) -> None:
    """The mint goes on, and the next request has its token."""

    async def story() -> None:
        one = await bench.process()
        with_settings(one, timeout_s=1.0)
        key = await one.key("acme/*")
        mint = one.line._inner.mint

        async def slowly(*arguments: Any, **named: Any) -> Any:
            await asyncio.sleep(3)
            return await mint(*arguments, **named)

        one.github_does(mint=slowly)
        assert isinstance(await one.refused(key, "widgets"), GitHubTimeoutError)
        await asyncio.sleep(5)
        assert (calls(one, "commit"), calls(one, "hand")) == (1, 0)
        assert await one.events("token.issued") == []
        assert (await one.issue(key, "widgets")).cached is True
        assert one.asked("mint") == 1

    bench.play(story())


def test_a_token_whose_commit_was_not_heard_of_is_not_revoked(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        key = await one.key("acme/*")

        async def unheard(*arguments: Any, **named: Any) -> CommitResult:
            await one.sealed.commit(*arguments, **named)
            raise StoreUnavailableError("no answer")

        one.store_does(commit=unheard)
        assert isinstance(await one.refused(key, "widgets"), StoreUnavailableError)
        await asyncio.sleep(30)
        (token,) = bench.github.minted.values()
        assert bench.github.alive(token)
        assert (await one.issue(key, "widgets")).token.sha256 == token.sha

    bench.play(story())


def test_a_key_that_is_narrowed_while_its_token_is_minted_is_handed_nothing(bench: Bench) -> None:
    """Nor does the audit say that it was: what is stored with the token goes by the decision before."""

    async def story() -> None:
        one = await bench.process()
        key = await one.key("acme/*")

        async def narrowed(*arguments: Any, **named: Any) -> CommitResult:
            change = KeyChange(repositories=("acme/gadgets",))
            await one.rooms.keys.change(key.id, change, by="ops", actor=ADMIN)
            return await one.sealed.commit(*arguments, **named)

        one.store_does(commit=narrowed)
        held = one.sealed.hand

        async def after_the_change(*arguments: Any, **named: Any) -> HandResult:
            await asyncio.sleep(5)
            return await held(*arguments, **named)

        one.store_does(hand=after_the_change)
        assert isinstance(await one.refused(key, "widgets"), ForbiddenError)
        assert (one.asked("mint"), calls(one, "hand")) == (1, 1)
        assert await one.events("token.issued") == []

    bench.play(story())


def test_a_key_that_is_revoked_right_after_its_token_was_stored_gets_no_token(bench: Bench) -> None:
    """The hand-out is in the register, so the token dies with the key; it has not left."""

    async def story() -> None:
        one = await bench.process()
        key = await one.key("acme/*")
        commit = one.sealed.commit

        async def and_then(*arguments: Any, **named: Any) -> CommitResult:
            done = await commit(*arguments, **named)
            await asyncio.sleep(0.5)
            assert len(await one.events("token.issued")) == 1
            killed = await one.rooms.keys.revoke(key.id, by="ops", actor=ADMIN, kill=True)
            assert len(killed) == 1
            await one.rooms.ender.kill(killed)
            return done

        one.store_does(commit=and_then)
        assert isinstance(await one.refused(key, "widgets"), InvalidApiKeyError)
        (token,) = bench.github.minted.values()
        assert not bench.github.alive(token)

    bench.play(story())


def test_so_many_hand_outs_are_remembered(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may be forgotten, which costs a step of the store and nothing else."""
    monkeypatch.setattr(issuing, "_HANDED_REMEMBERED", 2)

    async def story() -> None:
        one = await bench.process()
        keys = [await one.key("acme/*") for _ in range(5)]
        for key in keys:
            await one.issue(key, "widgets")
        hands = calls(one, "hand")
        for key in keys[2:]:
            await one.issue(key, "widgets")
        assert calls(one, "hand") == hands
        for key in keys[:2]:
            await one.issue(key, "widgets")
        assert calls(one, "hand") == hands + 2
        assert len(await one.events("token.issued")) == 5

    bench.play(story())


def test_a_keys_limit_counts_each_request_once(bench: Bench) -> None:
    """Also one that comes back from a mint, or is decided anew."""

    async def story() -> None:
        one = await bench.process()
        key = await one.key("acme/*", limit=2)
        await one.issue(key, "widgets")  # cold: decided twice
        await one.issue(key, "widgets")
        assert isinstance(await one.refused(key, "widgets"), RateLimitedError)
        (denied,) = await denials(one)
        assert denied["code"] == "rate_limited"

    bench.play(story())


# -- which token -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("min_ttl_s", "left_s", "same"), [(0, 302, True), (0, 298, False), (900, 902, True),
                                                         (900, 898, False), (100, 298, False)])  # fmt: skip
def test_a_cached_token_lives_long_enough(bench: Bench, min_ttl_s: int, left_s: float, *, same: bool) -> None:
    async def story() -> None:
        one = await bench.process()
        with_settings(one, refresh_ahead_s=0.0)
        key = await one.key("acme/*")
        first = (await one.issue(key, "widgets")).token
        await asyncio.sleep(first.expires_at - one.sealed.now() - left_s)
        again = await one.issue(key, "widgets", min_ttl_s=min_ttl_s)
        assert (again.token == first) is same
        assert again.cached is same

    bench.play(story())


@pytest.mark.parametrize(("hand_outs", "off_s"), [(5, 0.0), (1, 600.0), (5, -600.0)])
@pytest.mark.parametrize(("left_s", "refreshed"), [(902.0, False), (898.0, True)])
def test_a_refresh_begins_so_long_before_the_end(
    bench: Bench, left_s: float, hand_outs: int, off_s: float, *, refreshed: bool
) -> None:
    """By GitHub's clock."""

    async def story() -> None:
        bench.github.clock_off_s = off_s
        one = await bench.process()
        key = await one.key("acme/*")
        for _ in range(hand_outs):
            first = (await one.issue(key, "widgets")).token
        await asyncio.sleep(first.expires_at - bench.github.now() - left_s)
        assert (await one.issue(key, "widgets")).token == first
        await asyncio.sleep(0.5)
        assert one.asked("mint") == (2 if refreshed else 1)
        assert ((await one.issue(key, "widgets")).token == first) is not refreshed

    bench.play(story())


def test_a_refresh_that_failed_a_moment_ago_is_not_begun_again(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        key = await one.key("acme/*")
        first = (await one.issue(key, "widgets")).token
        await asyncio.sleep(first.expires_at - one.sealed.now() - 800)
        one.github_does(mint=failing(GitHubUnavailableError("500")))
        for _ in range(3):
            assert (await one.issue(key, "widgets")).token == first
            await asyncio.sleep(0.5)
        assert one.asked("mint") == 2
        assert calls(one, "acquire") == 2  # READ tells the failure: nobody asks for the lease

    bench.play(story())


def test_refresh_is_one_mint_in_half_a_minute(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        key = await one.key("acme/*")
        first = (await one.issue(key, "widgets")).token
        second = await one.issue(key, "widgets", refresh=True)
        assert second.token != first
        assert second.cached is False
        third = await one.issue(key, "widgets", refresh=True)
        assert (third.token, third.cached) == (second.token, True)
        await asyncio.sleep(31)
        assert (await one.issue(key, "widgets", refresh=True)).token != second.token

    bench.play(story())


def test_a_refresh_that_waited_for_the_installation_takes_what_was_minted_meanwhile(bench: Bench) -> None:
    """It is newer than the request, whatever the request waited for."""

    async def story() -> None:
        one, two = await bench.process(), await bench.process()
        key = await one.key("acme/*")
        first = (await one.issue(key, "widgets")).token
        await asyncio.sleep(TTL_S + 3600)  # the token has expired, and what is known of the owner is old
        go_on = second_read_waits(one)
        waited = asyncio.create_task(one.issue(key, "widgets", refresh=True))
        plain = await two.issue(key, "widgets")
        go_on.set()
        assert (await waited).token == plain.token != first
        assert one.asked("mint") + two.asked("mint") == 2

    bench.play(story())


def test_a_refresh_is_not_held_up_by_a_failure_that_cools_down(bench: Bench) -> None:
    """The caller says that the token is bad; others are given the failure, or the old one."""

    async def story() -> None:
        one = await bench.process()
        key = await one.key("acme/*")
        mint = one.line._inner.mint
        one.github_does(mint=failing(GitHubUnavailableError("500"), times=1, then=mint))
        assert isinstance(await one.refused(key, "widgets"), GitHubUnavailableError)
        one.store.calls.clear()
        assert isinstance(await one.refused(key, "widgets"), GitHubUnavailableError)
        assert calls(one, "acquire") == 0  # READ has told it
        assert isinstance(await one.refused(key, "widgets", refresh=True), GitHubUnavailableError)
        assert calls(one, "acquire") == 1
        assert one.asked("mint") == 1

    bench.play(story())


def test_a_refresh_whose_gate_was_passed_is_not_asked_for_it_again(bench: Bench) -> None:
    """A refresh that is overtaken is decided anew, and still is the one that may mint."""

    async def story() -> None:
        one = await bench.process()
        key = await one.key("acme/*")
        first = (await one.issue(key, "widgets")).token

        async def fenced(lead: Lead, *_: object, **__: object) -> CommitResult:
            one.store._instead.clear()
            await one.sealed.release(lead)
            return CommitResult.FENCED

        one.store_does(commit=fenced)
        again = await one.issue(key, "widgets", refresh=True)
        assert again.token != first
        assert (again.cached, one.asked("mint"), calls(one, "refresh_gate")) == (False, 3, 1)

    bench.play(story())


def test_a_token_of_an_installation_that_was_replaced_is_not_served(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        key = await one.key("acme/*")
        first = (await one.issue(key, "widgets")).token
        lead = await one.sealed.lease("o:acme")
        assert lead is not None
        bench.github.install("acme", ["widgets"])
        found = replace(bench.github.installed["acme"], checked_at=one.sealed.now())
        await one.sealed.put_owner(lead, "acme", found, event=AuditEvent(issuing.Event.OWNER_CHANGED))
        await one.sealed.release(lead)
        second = (await one.issue(key, "widgets")).token
        assert second.installation_id != first.installation_id

    bench.play(story())


def test_a_token_that_the_register_has_no_more_is_dropped(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        key = await one.key("acme/*")
        answers = [HandResult.GONE, HandResult.STALE]

        async def hand(*arguments: Any, **named: Any) -> HandResult:
            return answers.pop() if answers else await one.sealed.hand(*arguments, **named)

        one.store_does(hand=hand)
        assert (await one.issue(key, "widgets")).cached is False
        assert calls(one, "drop_token") == 1
        assert one.asked("mint") == 2

    bench.play(story())


def test_what_keeps_changing_is_given_up_in_the_end(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        key = await one.key("acme/*")
        await one.issue(key, "widgets")
        one.rooms.issuer._handed = issuing.HandOuts()

        async def stale(*_: object, **__: object) -> HandResult:
            return HandResult.STALE

        one.store_does(hand=stale)
        one.store.calls.clear()
        error = await one.refused(key, "widgets")
        assert (type(error), error.retry_after_s) == (StoreUnavailableError, 1.0)
        assert one.store.calls["hand"] == one.store.calls["read"] == 5
        one.store_does(hand=one.sealed.hand)
        one.store.calls.clear()
        await one.issue(key, "widgets")
        assert calls(one, "hand") == 1  # what was refused is not taken for stored
        (denied,) = await denials(one)
        assert denied["code"] == "store_unavailable"

    bench.play(story())


def test_a_mint_that_is_overtaken_is_tried_again_by_the_same_request(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        key = await one.key("acme/*")
        mint = one.line._inner.mint
        ends = 2

        async def overtaken(*arguments: Any, **named: Any) -> Any:
            nonlocal ends
            minted = await mint(*arguments, **named)
            if ends:
                ends -= 1
                await one.sealed.end(EndKind.REVOKE, WIDGETS, None, by="ops", reason="leaked")
            return minted

        one.github_does(mint=overtaken)
        issued = await one.issue(key, "widgets")
        await asyncio.sleep(1)
        assert bench.alive() == [issued.token.sha256]
        assert one.asked("mint") == 3

    bench.play(story())


# -- what does not serve ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "kind"), [("account_id", BlockedError), ("suspended", InstallationSuspendedError)]
)
def test_an_installation_that_does_not_serve_refuses_what_is_cached(
    bench: Bench, what: str, kind: type[BrokerError]
) -> None:
    async def story() -> None:
        one = await bench.process()
        key = await one.key("acme/*")
        await one.issue(key, "widgets")
        known = await one.known()
        assert known is not None
        await one.rooms.installations.learn("acme", known, replace(known, **{what: 4711}))
        error = await one.refused(key, "widgets")
        assert type(error) is kind
        assert calls(one, "acquire") == 1  # of the first one
        if kind is BlockedError:
            assert error.public.startswith("Another GitHub account now has this owner's name.")
        assert one.asked("mint") == 1

    bench.play(story())


def test_a_block_is_told_and_nothing_is_minted(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        key, stranger = await one.key("acme/*"), await one.key("globex/*")
        await one.rooms.ender.block(WIDGETS, ADMIN, reason="incident")
        assert type(await one.refused(key, "widgets")) is BlockedError
        assert type(await one.refused(stranger, "widgets")) is ForbiddenError  # policy first
        assert one.asked("mint") == 0

    bench.play(story())


def test_an_old_picture_is_looked_at_again_before_it_serves(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        key = await one.key("acme/*")
        first = (await one.issue(key, "widgets")).token
        assert "acme" not in one.rooms.installations._in_use or one.asked("installation") == 0
        await asyncio.sleep(TTL_S - 5)
        await one.issue(key, "widgets")
        assert "acme" in one.rooms.installations._in_use
        assert one.asked("installation") == 0
        await asyncio.sleep(10)
        assert (await one.issue(key, "widgets")).token == first
        assert one.asked("installation") == 1
        await asyncio.sleep(TTL_S + 5)
        bench.github.install("acme", ["widgets"])
        second = (await one.issue(key, "widgets")).token
        assert second.installation_id != first.installation_id

    bench.play(story())


def test_an_old_picture_serves_while_github_cannot_be_asked(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        key = await one.key("acme/*")
        first = (await one.issue(key, "widgets")).token
        await asyncio.sleep(TTL_S + 1)
        one.github_does(installation=failing(GitHubUnavailableError("500")))
        for _ in range(3):
            assert (await one.issue(key, "widgets")).token == first
        assert one.asked("installation") == 1

    bench.play(story())


def test_the_requests_own_time_ends_a_wait_for_github(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        key = await one.key("acme/*")
        one.github_does(mint=after(40, one.line._inner.mint))
        began = bench.loop.time()
        error = await one.refused(key, "widgets")
        assert type(error) is GitHubTimeoutError
        assert 24.9 < bench.loop.time() - began < 25.1
        (denied,) = await denials(one)
        assert (denied["code"], denied["key_id"], denied["repositories"]) == (
            "github_unavailable", key.id, ["acme/widgets"],
        )  # fmt: skip
        await asyncio.sleep(20)
        assert (await one.issue(key, "widgets")).cached is True  # it went on

    bench.play(story())


def test_the_requests_own_time_ends_a_wait_for_a_picture(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        with_settings(one, timeout_s=2.0)
        key = await one.key("acme/*")
        await one.issue(key, "widgets")
        await asyncio.sleep(TTL_S + 1)
        one.github_does(installation=after(40, one.line._inner.installation))
        began = bench.loop.time()
        assert type(await one.refused(key, "widgets")) is GitHubTimeoutError
        assert 1.9 < bench.loop.time() - began < 2.1

    bench.play(story())


# -- who asks --------------------------------------------------------------------------------------


def wrong(key: PresentedKey) -> PresentedKey:
    """Return another key of the same id."""
    return generate()[1]._replace(id=key.id)


def test_strangers_are_on_the_log_alone_and_from_one_address_in_few_lines(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        key = await one.key("acme/*")
        lines = logged(one)
        for number in range(120):
            told = await one.refused(generate()[1] if number % 2 else wrong(key), "widgets")
            assert type(told) is InvalidApiKeyError
        assert {(str(each.event), each.code, each.key_id) for each in lines} == {
            ("token.denied", "invalid_api_key", None)
        }
        assert {(each.request_id, each.client_ip) for each in lines} == {("request-1", "192.0.2.7")}
        assert [each.count for each in lines[:30]] == [None] * 30
        folded = [each.count or 0 for each in lines[30:]]  # one line in ten seconds tells how many
        assert 1 <= len(folded) < 5
        assert min(folded) > 20
        assert 60 < sum(folded) <= 90
        assert await denials(one) == []
        assert (await one.issue(key, "widgets")).cached is False

    bench.play(story())


def test_strangers_who_are_turned_away_fill_the_store_as_little(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ROOM", 1)

    async def story() -> None:
        one = await bench.process()
        for _ in range(35):
            await one.refused(generate()[1], "widgets")
        told = await asyncio.gather(*(one.refused(generate()[1], "widgets") for _ in range(5)))
        assert {type(each) for each in told} == {InvalidApiKeyError, RateLimitedError}
        await one.rooms.auditor.flush(everything=True)
        assert await denials(one) == []

    bench.play(story())


def test_a_key_that_ended_while_it_waited_is_a_stranger_from_then_on(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        key = await one.key("acme/*")
        mint = one.line._inner.mint

        async def ended(*arguments: Any, **named: Any) -> Any:
            await one.rooms.keys.revoke(key.id, by="ops")
            return await mint(*arguments, **named)

        one.github_does(mint=ended)
        lines = logged(one)
        assert type(await one.refused(key, "widgets")) is InvalidApiKeyError
        assert [(str(each.event), each.key_id) for each in lines] == [("token.denied", key.id)]
        assert await denials(one) == []
        assert await one.events("token.issued") == []

    bench.play(story())


def test_a_flood_of_strangers_waits_and_a_known_key_does_not(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        key, fresh = await one.key("acme/*"), await one.key("acme/*")
        await one.issue(key, "widgets")
        for _ in range(35):
            await one.refused(generate()[1], "widgets")

        async def took(presented: PresentedKey) -> float:
            began = bench.loop.time()
            await one.issue(presented, "widgets")
            return bench.loop.time() - began

        assert await took(key) < 0.1
        assert await took(fresh) > 0.2  # good, and not yet seen
        assert await took(fresh) < 0.1

    bench.play(story())


def test_a_key_whose_record_changed_in_that_moment_is_read_again(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        key = await one.key("acme/*")
        await one.issue(key, "widgets")
        overtaken = 1

        def older() -> ApiKeyRecord:
            raise OvertakenError("an older record than one that was seen")

        async def read(query: ReadQuery) -> Any:
            nonlocal overtaken
            overtaken -= 1
            seen = await one.sealed.read(query)
            return Wrapped(seen, key=older) if overtaken >= 0 else seen

        one.store_does(read=read)
        one.store.calls.clear()
        await one.issue(key, "widgets")
        assert one.store.calls["read"] == 2
        overtaken = 2
        assert isinstance(await one.refused(key, "widgets"), OvertakenError)

    bench.play(story())


def test_the_key_from_the_settings_needs_no_record(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        presented = generate()[1]
        policy = KeyPolicy("bootstrap", Role.ADMIN, ("acme/*",), ("contents", "metadata"))
        one.rooms.issuer.admin = ApiKeyRecord(
            presented.id, presented.sha256, policy.name, policy.role, policy.repositories, policy.permissions,
            created_at=0, created_by="settings",
        )  # fmt: skip
        assert (await one.issue(presented, "widgets")).cached is False
        assert type(await one.refused(wrong(presented), "widgets")) is InvalidApiKeyError
        assert type(await one.refused(generate()[1], "widgets")) is InvalidApiKeyError
        assert (await one.rooms.issuer.who(presented, ORIGIN))[1] is None
        assert (await one.issue(await one.key("acme/*"), "widgets")).cached is True  # others are who they are

    bench.play(story())


def test_a_limit_that_is_used_up_is_audited_whatever_was_asked(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        key = await one.key("acme/*", limit=2)
        issuer = one.rooms.issuer
        caller, used_at = await issuer.who(key, ORIGIN)
        assert (caller.id, used_at) == (key.id, None)
        await issuer.admitted(key, ORIGIN)
        lines = logged(one)
        with pytest.raises(RateLimitedError):
            await issuer.admitted(key, ORIGIN)
        who = {"key_id": key.id, "key_name": "test", "request_id": "request-1", "client_ip": "192.0.2.7"}
        (denied,) = await denials(one)
        assert denied == {
            "event": "token.denied", **who, "code": "rate_limited", "count": 1, "reason": denied["reason"],
        }  # fmt: skip
        with pytest.raises(RateLimitedError):
            await issuer.refuse(key, InvalidRequestError("not a shape"), ORIGIN)
        assert [each.code for each in lines] == ["rate_limited", "rate_limited"]

    bench.play(story())


def test_a_request_that_makes_no_sense_is_audited_once_it_is_known_whose_it_is(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        key = await one.key("acme/*")
        lines = logged(one)
        await one.rooms.issuer.refuse(key, InvalidRequestError("not a shape"), ORIGIN)
        (denied,) = await denials(one)
        assert denied == {
            "event": "token.denied",
            "key_id": key.id,
            "key_name": "test",
            "request_id": "request-1",
            "client_ip": "192.0.2.7",
            "code": "invalid_request",
            "reason": "not a shape",
            "count": 1,
        }
        assert len(lines) == 1
        with pytest.raises(InvalidApiKeyError):
            await one.rooms.issuer.refuse(generate()[1], InvalidRequestError("not a shape"), ORIGIN)
        assert len(await denials(one)) == 1

    bench.play(story())


def test_when_a_key_was_last_used_is_told_to_the_minute(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        key = await one.key("acme/*")
        await one.issue(key, "widgets")
        await one.rooms.auditor.flush(everything=True)
        _, used_at = await one.rooms.issuer.who(key, ORIGIN)
        assert used_at is not None
        assert 0 <= one.sealed.now() - used_at <= 60

    bench.play(story())


def test_what_a_refusal_says_of_what_was_asked(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        key = await one.key("globex/*")
        lines = logged(one)
        names = [f"r{number:02}" for number in range(30)]
        await one.refused(key, *names)
        await one.refused(key)
        some, wide = lines
        assert some.repositories == tuple(f"acme/{name}" for name in names[:20])
        assert (some.permissions, some.owner) == (("contents", "metadata"), "acme")
        assert (wide.repositories, wide.owner) == (None, "acme")

    bench.play(story())


def test_what_differs_only_in_who_asks_is_one_record_and_its_line_says_who(bench: Bench) -> None:
    """From some hand-outs on the line is rendered once; what is asked by others is not mixed up with it."""

    async def story() -> None:
        one = await bench.process()
        key, other = await one.key("acme/*"), await one.key("acme/*")
        for number in range(30):
            request = issuing.TokenRequest(scope("widgets"))
            for presented in (key, other):
                await one.rooms.issuer.issue(presented, request, Origin(f"request-{number}", "192.0.2.8"))
        await one.rooms.auditor.flush(everything=True)
        told = await one.events("token.issued")
        for presented in (key, other):
            first, counted = [each for each in told if each["key_id"] == presented.id]
            assert (first["count"], counted["count"]) == (1, 29)
            assert (counted["request_id"], counted["client_ip"]) == ("request-29", "192.0.2.8")
            assert counted["cached"] is True
        assert one.meter.again > 40  # all but the first of each

    bench.play(story())


def test_after_an_outage_a_hand_out_is_recorded_again(bench: Bench) -> None:
    """The store may have lost its last moment: also where the line of the log was ready."""

    async def story() -> None:
        one = await bench.process()
        key = await one.key("acme/*")
        for _ in range(10):
            await one.issue(key, "widgets")
        assert calls(one, "hand") == 1
        bench.database.down_until = bench.loop.time() + 1
        assert type(await one.refused(key, "widgets")) is StoreUnavailableError
        await asyncio.sleep(5)
        await one.issue(key, "widgets")
        assert calls(one, "hand") == 2

    bench.play(story())


def test_a_read_that_fails_is_told_and_no_stranger_is_counted(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        key = await one.key("acme/*")
        one.store_does(read=failing(StoreUnavailableError("away")))
        for _ in range(40):
            assert type(await one.refused(key, "widgets")) is StoreUnavailableError
        assert one.rooms.issuer._strangers._sources == {}
        one.store._instead.clear()
        assert (await one.sealed.read(ReadQuery())).now > 0
        await one.issue(key, "widgets")

    bench.play(story())
