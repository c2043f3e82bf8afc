"""Ending, token by token: what GitHub is asked, what the admin is told, what the background does and when."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from sim_bench import ADMIN, Bench, Process, after, failing

from broker.errors import (
    GitHubRateLimitedError,
    GitHubUnavailableError,
    StoreUnavailableError,
)
from broker.issuing import ending
from broker.issuing.ending import Actor, Outcome
from broker.issuing.installations import kept
from broker.model import Secret, Target, TargetKind, token_sha256
from broker.ports import Doomed, EndKind

ALL = Target(TargetKind.ALL)
ACME = Target(TargetKind.OWNER, "acme")
WIDGETS = Target(TargetKind.REPOSITORY, "acme/widgets")


async def tokens(process: Process, number: int) -> list[str]:
    """Have so many tokens minted; return their SHA-256."""
    names = [f"r{each}" for each in range(number)]
    process.bench.github.install("acme", [*names, "widgets"])
    return list(await asyncio.gather(*(process.mint(name) for name in names)))


async def put_into_outbox(process: Process, target: Target = ALL, *, by: str = "ops") -> tuple[str, ...]:
    return (await process.sealed.end(EndKind.REVOKE, target, None, by=by, reason="leaked")).shas


async def left(process: Process) -> list[str]:
    return [one.sha256 for one in await process.sealed.doomed(None, limit=5000)]


def told(outcome: Outcome) -> tuple[int, int, int, int]:
    return outcome.revoked, outcome.failed, outcome.pending, len(outcome.remaining)


def only(sha: str, error: Exception, then: Any) -> Any:
    """Return a revocation that fails for one token."""

    async def revoke(token: Secret) -> None:
        if token_sha256(token) == sha:
            raise error
        await then(token)

    return revoke


# -- what an admin is told -------------------------------------------------------------------------


def test_each_fate_is_counted(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        shas = await tokens(one, 3)
        error = GitHubUnavailableError("500")
        one.github_does(revoke=only(shas[1], error, one.line._inner.revoke))
        outcome = await one.rooms.ender.revoke(ALL, ADMIN, reason="leaked")
        assert told(outcome) == (2, 1, 0, 1)
        ((sha, expires_at),) = outcome.remaining
        (token,) = [each for each in bench.github.minted.values() if each.sha == sha]
        assert (sha, expires_at) == (shas[1], token.expires_at)
        assert sorted(one.meter.fates) == ["failed", "revoked", "revoked"]
        assert await left(one) == [shas[1]]

    bench.play(story())


def test_a_hundred_of_those_that_remain_are_named(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        await tokens(one, 101)
        one.github_does(revoke=failing(GitHubUnavailableError("500")))
        assert told(await one.rooms.ender.revoke(ALL, ADMIN, reason="leaked")) == (0, 101, 0, 100)

    bench.play(story())


def test_the_answer_comes_in_time_and_the_rest_is_pending(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        shas = await tokens(one, 12)
        one.github_does(revoke=after(6, one.line._inner.revoke))
        began = bench.loop.time()
        outcome = await one.rooms.ender.revoke(ALL, ADMIN, reason="leaked")
        assert 8.9 < bench.loop.time() - began < 9.1
        assert told(outcome) == (8, 0, 4, 4)  # eight at once
        assert one.rooms.ender._wake.is_set()
        assert len(await left(one)) == 4
        assert {sha for sha, _ in outcome.remaining} < set(shas)

    bench.play(story())


def test_nothing_in_reach_is_nothing_to_do(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        assert told(await one.rooms.ender.revoke(ALL, ADMIN, reason="leaked")) == (0, 0, 0, 0)
        assert one.store.calls.get("doomed", 0) == 0

    bench.play(story())


@pytest.mark.parametrize(
    ("target", "revoked"), [(ALL, 1), (Target(TargetKind.TOKEN, "that one"), 1), (ACME, 0), (WIDGETS, 0)]
)
def test_what_another_process_has_ended_counts_where_no_condition_decided(
    bench: Bench, target: Target, revoked: int
) -> None:
    """For a repository and an owner it may have been spared there: it is not said to be dead."""

    async def story() -> None:
        one, two = await bench.process(), await bench.process()
        bench.github.install("acme", ["widgets"])
        sha = await one.mint("widgets")
        wanted = replace(target, name=sha) if target.name == "that one" else target

        async def slower(*arguments: Any, **named: Any) -> Any:
            await two.rooms.ender.kill([sha])
            return await one.sealed.doomed(*arguments, **named)

        one.store_does(doomed=slower)
        assert told(await one.rooms.ender.revoke(wanted, ADMIN, reason="leaked")) == (revoked, 0, 0, 0)
        assert bench.alive() == []

    bench.play(story())


def test_an_owner_whose_account_changed_ends_by_its_name_alone(bench: Bench) -> None:
    """What is known of it is the stranger's installation: nothing of that number is ours to end."""

    async def story() -> None:
        one = await bench.process()
        known = await one.rooms.installations.find("acme", None)
        assert await one.rooms.ender._installation_of(ACME) == known.id
        assert await one.rooms.ender._installation_of(Target(TargetKind.OWNER, "nobody")) is None
        assert await one.rooms.ender._installation_of(WIDGETS) is None
        await one.rooms.installations.learn("acme", known, replace(known, id=77, account_id=4711))
        assert await one.rooms.ender._installation_of(ACME) is None

    bench.play(story())


def test_a_store_that_is_away_leaves_them_pending(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        await tokens(one, 2)
        one.store_does(doomed=failing(StoreUnavailableError("away")))
        assert told(await one.rooms.ender.revoke(ALL, ADMIN, reason="leaked")) == (0, 0, 2, 0)

    bench.play(story())


def test_very_many_are_asked_for_in_parts(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "_ASKED_AT_MOST", 3)

    async def story() -> None:
        one = await bench.process()
        shas = await tokens(one, 7)
        asked: list[tuple[int, int]] = []

        async def doomed(part: Any, *, limit: int) -> Any:
            asked.append((len(part), limit))
            if len(asked) == 2:
                raise StoreUnavailableError("away")
            return await one.sealed.doomed(part, limit=limit)

        one.store_does(doomed=doomed)
        assert told(await one.rooms.ender.revoke(ALL, ADMIN, reason="leaked")) == (4, 0, 3, 0)
        assert asked == [(3, 6), (3, 6), (1, 6)]
        assert len(await left(one)) == 3
        assert set(await left(one)) < set(shas)

    bench.play(story())


def test_as_many_as_were_asked_for_may_not_be_all(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token may stand there several times: where the reply is full, who is missing is not gone."""
    monkeypatch.setattr(ending, "_ASKED_AT_MOST", 2)

    async def story() -> None:
        one = await bench.process()
        shas = await tokens(one, 2)
        await put_into_outbox(one)
        (first, second) = await one.sealed.doomed(shas, limit=9)

        async def doomed(part: Any, *, limit: int) -> Any:
            assert limit == 4
            return [replace(first, only=f"o:{number}") for number in range(4)]

        one.store_does(doomed=doomed)
        outcome = await one.rooms.ender.kill(shas)
        assert (outcome.revoked, outcome.pending) == (1, 1)
        assert await left(one) == [first.sha256, second.sha256] or bench.alive() == [second.sha256]

    bench.play(story())


# -- one by one ------------------------------------------------------------------------------------


def doomed_of(found: Doomed, **changed: Any) -> Doomed:
    return replace(found, **changed)


async def fates(process: Process, doomed: list[Doomed]) -> tuple[float | None, list[tuple[str, str]]]:
    """End them; return in how many seconds to try again, and what was told."""
    heard: list[tuple[str, str]] = []
    again = await process.rooms.ender._end_all(
        doomed, lambda one, fate: heard.append((one.sha256, fate.value))
    )
    return again, heard


def test_what_is_out_of_reach_is_spared_and_taken_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "_BATCH", 2)

    async def story() -> None:
        one = await bench.process()
        await tokens(one, 5)
        await put_into_outbox(one)
        found = [doomed_of(each, matches=False) for each in await one.sealed.doomed(None, limit=9)]
        one.store_does(settle=failing(StoreUnavailableError("away"), times=1, then=one.sealed.settle))
        again, heard = await fates(one, found)
        assert again is None
        assert heard == [(each.sha256, "spared") for each in found]
        assert one.store.calls["settle"] == 3
        assert len(await left(one)) == 2  # that part of two was not taken
        assert one.asked("revoke") == 0
        assert len(bench.alive()) == 5

    bench.play(story())


def test_what_does_not_open_is_told_kept_and_looked_at_again_later(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        await tokens(one, 2)
        await put_into_outbox(one)
        first, second = await one.sealed.doomed(None, limit=9)
        unreadable = doomed_of(first, token=None, matches=False, unreadable=True)
        again, heard = await fates(one, [unreadable, second])
        assert again == 5.0
        assert heard == [(first.sha256, "failed"), (second.sha256, "revoked")]
        assert sorted(one.meter.fates) == ["failed", "revoked"]
        assert await left(one) == [first.sha256]
        assert (await fates(one, [])) == (None, [])

    bench.play(story())


@pytest.mark.parametrize(("retry_after_s", "again_s"), [(3.5, 3.5), (1.0, 2.0), (600.0, 5.0), (None, 2.0)])
def test_when_github_says_wait_the_owners_others_are_not_tried(
    bench: Bench, retry_after_s: float | None, again_s: float
) -> None:
    async def story() -> None:
        one = await bench.process()
        await tokens(one, 20)
        await put_into_outbox(one)
        limit = GitHubRateLimitedError("429", retry_after_s=retry_after_s)
        one.github_does(revoke=after(0.2, failing(limit)))
        again, heard = await fates(one, list(await one.sealed.doomed(None, limit=30)))
        assert again == again_s
        assert {fate for _, fate in heard} == {"pending"}
        assert one.asked("revoke") == 8
        wait_s = 60.0 if retry_after_s is None else retry_after_s
        assert wait_s - 1 < await one.sealed.paused("acme") <= wait_s

    bench.play(story())


def test_a_pause_that_others_were_told_is_kept(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        await tokens(one, 3)
        await put_into_outbox(one)
        await one.sealed.pause("acme", seconds=4.0)
        again, heard = await fates(one, list(await one.sealed.doomed(None, limit=9)))
        assert again is not None
        assert 3.5 < again <= 4.0
        assert [fate for _, fate in heard] == ["pending"] * 3
        assert one.asked("revoke") == 0

    bench.play(story())


def test_it_is_tried_again_when_the_first_wait_is_over(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        await tokens(one, 2)
        await put_into_outbox(one)
        first, second = await one.sealed.doomed(None, limit=9)
        await one.sealed.pause("acme", seconds=3.5)
        await one.sealed.pause("elsewhere", seconds=30.0)
        again, _ = await fates(one, [first, doomed_of(second, owner="elsewhere")])
        assert again is not None
        assert 3 < again <= 3.5

    bench.play(story())


def test_a_failure_is_tried_again_soon_though_others_have_to_wait(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        shas = await tokens(one, 2)
        await put_into_outbox(one)
        first, second = await one.sealed.doomed(None, limit=9)
        await one.sealed.pause("elsewhere", seconds=30.0)
        one.github_does(revoke=failing(GitHubUnavailableError("500")))
        again, heard = await fates(one, [first, doomed_of(second, owner="elsewhere")])
        assert again == 2.0
        assert dict(heard) == {first.sha256: "failed", second.sha256: "pending"}
        assert set(shas) == {first.sha256, second.sha256}

    bench.play(story())


def test_a_store_that_is_away_in_the_middle_changes_nothing_at_github(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        await tokens(one, 1)
        await put_into_outbox(one)
        found = list(await one.sealed.doomed(None, limit=9))
        one.store_does(paused=failing(StoreUnavailableError("away")))
        again, heard = await fates(one, found)
        assert again == 2.0
        assert [fate for _, fate in heard] == ["pending"]
        assert one.asked("revoke") == 0
        one.store._instead.clear()
        # GitHub says wait, and the store does not take it; or it is dead, and the store does not take that.
        one.store_does(pause=failing(StoreUnavailableError("away")))
        one.github_does(revoke=failing(GitHubRateLimitedError("429", retry_after_s=3.0)))
        assert (await fates(one, found))[1][0][1] == "pending"
        one.line._instead.clear()
        one.store_does(settle=failing(StoreUnavailableError("away")))
        again, heard = await fates(one, found)
        assert (again, [fate for _, fate in heard]) == (None, ["revoked"])
        assert bench.alive() == []
        assert len(await left(one)) == 1

    bench.play(story())


@pytest.mark.parametrize(
    ("by", "key_id", "reason"),
    [
        ("0aB3dE6gH9jK", "0aB3dE6gH9jK", "leaked"),
        ("broker keys revoke", None, "leaked, broker keys revoke"),
        ("", None, "leaked"),
    ],
)
def test_who_ended_it_is_told_with_each(bench: Bench, by: str, key_id: str | None, reason: str) -> None:
    async def story() -> None:
        one = await bench.process()
        (sha,) = await tokens(one, 1)
        await put_into_outbox(one, by=by)
        found = await one.sealed.doomed(None, limit=9)
        logged = one.meter.lines
        await fates(one, [doomed_of(found[0], request_id="request-7")])
        (event,) = await one.events("token.revoked")
        token = bench.github.minted[sha]
        assert event == {
            "event": "token.revoked",
            "request_id": "request-7",
            **({"key_id": key_id} if key_id else {}),
            "owner": "acme",
            "repositories": ["acme/r0"],
            "permissions": {"contents": "read", "metadata": "read"},
            "installation_id": token.installation_id,
            "token_sha256": sha,
            "expires_at": event["expires_at"],
            "reason": reason,
        }
        assert len(logged) == 1
        await fates(one, list(found))  # another process was faster: it is not told twice
        assert len(logged) == 1

    bench.play(story())


def test_a_long_reason_is_cut_and_an_empty_one_left_out(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        await tokens(one, 2)
        await put_into_outbox(one, by="")
        first, second = await one.sealed.doomed(None, limit=9)
        await fates(one, [doomed_of(first, reason="x" * 300), doomed_of(second, reason="")])
        long, none = sorted(await one.events("token.revoked"), key=lambda each: "reason" not in each)
        assert long["reason"] == "x" * 200
        assert "reason" not in none

    bench.play(story())


# -- in the background -----------------------------------------------------------------------------


def test_what_is_in_the_outbox_is_worked_off_by_itself(bench: Bench) -> None:
    async def story() -> None:
        one, two = await bench.process(), await bench.process()
        await tokens(one, 3)
        for process in (one, two):
            process.rooms.ender.start()
        await asyncio.sleep(1)
        await put_into_outbox(one)  # as a process does that is killed then
        await asyncio.sleep(3.5)
        assert len(bench.alive()) == 3
        await asyncio.sleep(2)  # it is looked at each 5 s
        assert bench.alive() == []
        assert await left(one) == []
        assert await one.sealed.lease("job:revoke") is not None  # given back
        for process in (one, two):
            await process.rooms.ender.stop()

    bench.play(story())


def test_what_was_not_done_in_time_goes_on_at_once(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        await tokens(one, 10)
        one.github_does(revoke=after(6, one.line._inner.revoke))
        await one.rooms.ender.revoke(ALL, ADMIN, reason="leaked")
        one.rooms.ender.start()
        await asyncio.sleep(6.2)
        assert bench.alive() == []
        await one.rooms.ender.stop()

    bench.play(story())


def test_one_process_of_all_works_it_off(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        await tokens(one, 2)
        await put_into_outbox(one)
        held = await one.sealed.lease("job:revoke")
        assert held is not None
        await one.rooms.ender._work_off_once()
        assert one.asked("revoke") == 0
        await one.sealed.release(held)
        await one.rooms.ender._work_off_once()
        assert one.asked("revoke") == 2
        reads = one.store.calls["lease"]
        await one.rooms.ender._work_off_once()
        assert one.store.calls["lease"] == reads  # an empty outbox costs no lease

    bench.play(story())


def test_a_failure_is_tried_again_each_two_seconds_under_one_lease(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        await tokens(one, 1)
        await put_into_outbox(one)
        revoke = one.line._inner.revoke
        one.github_does(revoke=failing(GitHubUnavailableError("500"), times=5, then=revoke))
        leases = one.store.calls["lease"]
        began = bench.loop.time()
        await one.rooms.ender._work_off_once()
        assert bench.alive() == []
        assert 10 < bench.loop.time() - began < 11
        assert one.store.calls["lease"] == leases + 1

    bench.play(story())


def test_what_has_to_wait_does_not_stand_before_all_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More and more are looked at until those of other owners are among them; then it begins anew."""
    monkeypatch.setattr(ending, "_BATCH", 2)
    monkeypatch.setattr(ending, "_MOST", 6)

    async def story() -> None:
        one = await bench.process()
        await tokens(one, 7)
        await put_into_outbox(one)
        limits: list[int] = []

        async def doomed(shas: Any, *, limit: int) -> Any:
            limits.append(limit)
            return await one.sealed.doomed(shas, limit=limit)

        one.store_does(doomed=doomed)
        revoke = one.line._inner.revoke
        one.github_does(revoke=failing(GitHubUnavailableError("500"), times=2 + 4 + 6, then=revoke))
        await one.rooms.ender._work_off_once()
        assert limits == [1, 2, 4, 6, 6, 2, 2]
        assert bench.alive() == []

    bench.play(story())


def test_a_lease_that_is_lost_ends_the_work(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        await tokens(one, 1)
        await put_into_outbox(one)

        async def lost(_: object) -> bool:
            return False

        one.store_does(renew=lost)
        one.github_does(revoke=failing(GitHubUnavailableError("500")))
        await one.rooms.ender._work_off_once()
        assert one.asked("revoke") == 1

    bench.play(story())


@pytest.mark.parametrize(("lasts_s", "at"), [(1.0, []), (1.6, [1.5]), (5.0, [1.5, 3.0, 4.5])])
def test_a_lease_is_renewed_while_its_block_runs_and_not_after(
    bench: Bench, lasts_s: float, at: list[float]
) -> None:
    async def story() -> None:
        one = await bench.process()
        lead = await one.store.lease("job:story")
        assert lead is not None
        now = asyncio.get_running_loop().time
        began, renewed = now(), []

        async def renew(_: object) -> bool:
            renewed.append(round(now() - began, 3))
            return True

        one.store_does(renew=renew)
        async with kept(one.store, lead) as ours:
            await asyncio.sleep(lasts_s)
            assert ours()
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "lease-renewal"]
        await asyncio.sleep(5)
        assert renewed == at

    bench.play(story())


def test_the_background_survives_a_store_that_is_away(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        await tokens(one, 1)
        await put_into_outbox(one)
        away = StoreUnavailableError("away")
        one.store_does(
            doomed=failing(away, times=2, then=one.sealed.doomed),
            release=failing(away, times=1, then=one.sealed.release),
        )
        one.rooms.ender.start()
        await asyncio.sleep(16)
        assert bench.alive() == []
        await one.rooms.ender.stop()

    bench.play(story())


def test_the_end_begins_no_other_call_and_waits_for_those_that_run(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        await one.rooms.ender.stop()  # nothing was started
        one = await bench.process()
        await tokens(one, 10)
        await put_into_outbox(one)
        one.github_does(revoke=after(1, one.line._inner.revoke))
        one.rooms.ender.start()
        one.rooms.ender._wake.set()
        await asyncio.sleep(0.5)
        began = bench.loop.time()
        await one.rooms.ender.stop()
        assert bench.loop.time() - began < 1
        assert (len(bench.alive()), one.asked("revoke")) == (2, 8)
        assert len(await left(one)) == 2

    bench.play(story())


def test_the_end_of_who_has_nothing_to_do_is_at_once(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        one.rooms.ender.start()
        await asyncio.sleep(0.5)
        began = bench.loop.time()
        await one.rooms.ender.stop()
        assert bench.loop.time() - began < 0.5

    bench.play(story())


def test_the_end_does_not_wait_for_a_github_that_is_silent(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        await tokens(one, 1)
        await put_into_outbox(one)
        one.github_does(revoke=after(60, one.line._inner.revoke))
        one.rooms.ender.start()
        one.rooms.ender._wake.set()
        await asyncio.sleep(0.5)
        began = bench.loop.time()
        await one.rooms.ender.stop(within_s=2)
        assert 1.9 < bench.loop.time() - began < 3.1
        assert len(await left(one)) == 1
        working = one.rooms.ender._working
        assert working is not None
        assert working.done()

    bench.play(story())


# -- what is recorded ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "named"),
    [
        (ALL, {"reason": "leaked"}),
        (ACME, {"owner": "acme", "reason": "leaked"}),
        (WIDGETS, {"owner": "acme", "repositories": ["acme/widgets"], "reason": "leaked"}),
        (Target(TargetKind.TOKEN, "A" * 43 + "="), {"token_sha256": "A" * 43 + "=", "reason": "leaked"}),
        (Target(TargetKind.TOKEN, "A/" * 21 + "A="), {"token_sha256": "A/" * 21 + "A=", "reason": "leaked"}),
    ],
)
def test_what_a_revocation_says(bench: Bench, target: Target, named: dict[str, Any]) -> None:
    async def story() -> None:
        one = await bench.process()
        await one.rooms.ender.revoke(target, ADMIN, reason="leaked")
        who = {
            "request_id": "request-1",
            "client_ip": "192.0.2.1",
            "key_id": "ops",
            "key_name": "ops",
        }
        assert await one.events("token.revoked") == [{"event": "token.revoked", **who, **named}]

    bench.play(story())


def test_what_blocks_say_and_that_lifting_none_says_nothing(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        logged = one.meter.lines
        actor = Actor("ops", "ops")
        assert await one.rooms.ender.unblock(WIDGETS, actor) is False
        assert logged == []
        await one.rooms.ender.block(WIDGETS, actor, reason="x" * 300)
        (block,) = await one.rooms.ender.blocks()
        assert (block.target, block.by, block.reason[:3]) == (WIDGETS, "ops", "xxx")
        assert await one.rooms.ender.unblock(WIDGETS, actor) is True
        assert [str(each.event) for each in logged] == ["block.set", "block.lifted"]
        (said,) = await one.events("block.set")
        assert said["reason"] == "x" * 200
        (lifted,) = await one.events("block.lifted")
        assert lifted["reason"] == "repository"

    bench.play(story())
