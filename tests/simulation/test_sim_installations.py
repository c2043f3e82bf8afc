"""Looking up and watching installations, call by call: who asks GitHub, when, and what of it is kept."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from sim_bench import Bench, Process, after, failing
from sim_replica import COOLDOWN_S, TTL_S

from broker.errors import (
    GitHubError,
    GitHubRateLimitedError,
    GitHubTimeoutError,
    NotInstalledError,
    RenamedError,
    StoreUnavailableError,
)
from broker.issuing import installations as watching
from broker.model import Installation, RepositoryName, Target, TargetKind
from broker.ports import EndKind

WIDGETS = RepositoryName("acme", "widgets")


async def learned(process: Process) -> Installation:
    """Have the process look acme up."""
    return await process.rooms.installations.find("acme", WIDGETS)


async def due(process: Process) -> Installation:
    """Have the process look acme up, and let time pass until the watch would look again."""
    known = await learned(process)
    process.rooms.installations.used("acme")
    await asyncio.sleep(TTL_S / 2 + 1)
    return known


# -- finding ---------------------------------------------------------------------------------------


def test_a_stale_installation_is_looked_up_anew(bench: Bench) -> None:
    """What the store knows is returned, but not if GitHub has just called that id stale."""

    async def story() -> None:
        one = await bench.process()
        first = await learned(one)
        assert await learned(one) == first
        assert one.asked("repository_installation") == 1
        bench.github.install("acme", ["widgets"])
        assert await learned(one) == first  # from the store
        again = await one.rooms.installations.find("acme", WIDGETS, not_id=first.id)
        assert again.id == bench.github.installed["acme"].id != first.id
        assert one.asked("repository_installation") == 2
        assert await learned(one) == again

    bench.play(story())


def test_a_look_up_past_a_stale_id_is_not_shared_with_others(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        first = await learned(one)
        bench.github.install("acme", ["widgets"])
        one.store_does(read=after(0.1, one.sealed.read))  # both are under way at once
        find = one.rooms.installations.find
        known, past, again = await asyncio.gather(
            find("acme", WIDGETS),
            find("acme", WIDGETS, not_id=first.id),
            find("acme", WIDGETS, not_id=first.id),
        )
        assert known.id == first.id
        assert past == again
        assert past.id != first.id
        assert one.asked("repository_installation") == 2  # with the first one

    bench.play(story())


def test_look_ups_of_several_repositories_end_in_one_call(bench: Bench) -> None:
    """Whoever gets the lease looks into the store once more: it may have been put there meanwhile."""

    async def story() -> None:
        one, two = await bench.process(), await bench.process()
        names = [RepositoryName("acme", name) for name in ("widgets", "gadgets", "gizmos")]
        found = await asyncio.gather(
            *(process.rooms.installations.find("acme", name) for process in (one, two) for name in names),
            one.rooms.installations.find("acme", None),
        )
        assert len({each.id for each in found}) == 1
        calls = ("repository_installation", "owner_installation")
        assert sum(process.asked(name) for process in (one, two) for name in calls) == 1

    bench.play(story())


def test_what_came_between_the_look_and_the_lease_is_taken(bench: Bench) -> None:
    async def story() -> None:
        one, two = await bench.process(), await bench.process()

        async def lease(what: str) -> Any:
            one.store._instead.clear()
            await learned(two)
            return await one.sealed.lease(what)

        one.store_does(lease=lease)
        assert await learned(one) == await two.known()
        assert one.asked("repository_installation") == 0
        assert await one.sealed.lease("o:acme") is not None  # given back

    bench.play(story())


def test_who_follows_a_look_up_asks_the_store_now_and_then(bench: Bench) -> None:
    async def story() -> None:
        one, two = await bench.process(), await bench.process()
        one.github_does(repository_installation=after(4, one.line._inner.repository_installation))
        leads = asyncio.create_task(learned(one))
        await asyncio.sleep(0.1)
        before = two.store.calls.get("lease", 0)
        assert await learned(two) == await leads
        assert two.asked("repository_installation") == 0
        assert 10 < two.store.calls["lease"] - before < 40

    bench.play(story())


def test_who_follows_bears_trouble_of_the_store_again_and_again(bench: Bench) -> None:
    """Each time for two seconds, as long as it is well in between."""

    async def story() -> None:
        one, two = await bench.process(), await bench.process()
        one.github_does(repository_installation=after(6, one.line._inner.repository_installation))
        leads = asyncio.create_task(learned(one))
        await asyncio.sleep(0.1)
        follows = asyncio.create_task(learned(two))
        for _ in range(2):
            await asyncio.sleep(0.5)
            two.store_does(lease=failing(StoreUnavailableError("away")))
            await asyncio.sleep(1.5)
            two.store._instead.clear()
        assert await follows == await leads

    bench.play(story())


def test_a_lease_is_kept_though_one_renewal_got_no_answer(bench: Bench) -> None:
    """A look-up that takes longer than a lease lives: nobody else asks meanwhile."""

    async def story() -> None:
        one, two = await bench.process(), await bench.process()
        one.github_does(repository_installation=after(9, one.line._inner.repository_installation))
        one.store_does(renew=failing(StoreUnavailableError("away"), times=1, then=one.sealed.renew))
        found = await asyncio.gather(learned(one), after(0.1, learned)(two))
        assert found[0] == found[1]
        assert (one.asked("repository_installation"), two.asked("repository_installation")) == (1, 0)

    bench.play(story())


def test_a_look_up_that_takes_too_long_is_a_timeout(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        one.github_does(repository_installation=after(40, one.line._inner.repository_installation))
        began = bench.loop.time()
        with pytest.raises(GitHubTimeoutError):
            await learned(one)
        assert 29 < bench.loop.time() - began < 32
        assert await one.sealed.lease("o:acme") is not None  # given back

    bench.play(story())


def test_a_look_up_that_fails_is_told_to_all_who_wait_and_ends_the_lease(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        one.github_does(repository_installation=failing(NotInstalledError("gone")))
        one.store_does(release=failing(StoreUnavailableError("away"), times=1, then=one.sealed.release))
        told = await asyncio.gather(learned(one), learned(one), return_exceptions=True)
        assert [type(each) for each in told] == [NotInstalledError] * 2
        assert told[0] is not told[1]
        assert one.asked("repository_installation") == 1
        assert one.rooms.installations._flights == {}

    bench.play(story())


def test_an_answer_that_was_overtaken_is_asked_for_again(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()

        async def overtaken(*_: object, **__: object) -> None:
            one.store._instead.clear()

        one.store_does(put_owner=overtaken)
        assert await learned(one) == await one.known()
        assert one.asked("repository_installation") == 2

    bench.play(story())


def test_an_owner_that_is_gone_is_forgotten_only_when_its_id_was_stale(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        first = await learned(one)
        one.github_does(repository_installation=failing(NotInstalledError("gone")))
        with pytest.raises(NotInstalledError):
            await one.rooms.installations.find("acme", WIDGETS, not_id=first.id)
        assert await one.known() is None
        with pytest.raises(NotInstalledError):
            await learned(one)

    bench.play(story())


def test_an_owner_of_another_name_is_not_kept(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        renamed = replace(bench.github.installed["acme"], login="Globex")

        async def found(_: object) -> Installation:
            return renamed

        one.github_does(repository_installation=found, owner_installation=found)
        for probe in (WIDGETS, None):
            with pytest.raises(RenamedError):
                await one.rooms.installations.find("acme", probe)
        assert await one.known() is None

    bench.play(story())


# -- watching --------------------------------------------------------------------------------------


def test_a_picture_that_another_replica_has_just_taken_is_enough(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        known = await learned(one)
        await one.rooms.installations.renewed("acme", replace(known, checked_at=known.checked_at - TTL_S))
        assert one.asked("installation") == 0
        await one.rooms.installations.renewed("acme", known)
        assert one.asked("installation") == 1
        looked = await one.known()
        assert looked is not None
        assert looked.checked_at > known.checked_at

    bench.play(story())


def test_of_all_replicas_one_looks(bench: Bench) -> None:
    async def story() -> None:
        one, two = await bench.process(), await bench.process()
        known = await learned(one)
        for each in (one, two):
            each.github_does(installation=after(1, each.line._inner.installation))
        leases = one.store.calls["lease"]
        await asyncio.gather(*(each.rooms.installations.renewed("acme", known) for each in (one, two, one)))
        assert one.asked("installation") + two.asked("installation") == 1
        assert one.store.calls["lease"] - leases == 1  # both of that process wait for one look
        assert await one.sealed.lease("c:acme") is not None  # given back

    bench.play(story())


def test_who_looks_holds_the_owners_lease(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        known = await learned(one)
        held = await one.sealed.lease("c:acme")
        assert held is not None
        await one.rooms.installations.renewed("acme", known)
        assert one.asked("installation") == 0
        await one.sealed.release(held)
        await one.rooms.installations.renewed("acme", known)
        assert one.asked("installation") == 1

    bench.play(story())


def test_what_was_dropped_meanwhile_is_looked_at_all_the_same(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        known = await learned(one)
        target = Target(TargetKind.OWNER, "acme")
        await one.sealed.end(EndKind.DROP, target, None, by="hook", reason="a hook")
        assert await one.known() is None
        await one.rooms.installations.renewed("acme", known)
        assert one.asked("installation") == 1
        assert await one.known() is not None

    bench.play(story())


def test_a_look_that_is_slow_is_not_waited_for_for_ever_and_then_not_at_all(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        await learned(one)
        one.github_does(installation=after(8, one.line._inner.installation))

        async def took() -> float:
            known = await one.known()
            assert known is not None
            began = bench.loop.time()
            await one.rooms.installations.renewed("acme", known)
            return bench.loop.time() - began

        assert 4.9 < await took() < 5.1
        assert await took() < 0.1
        await asyncio.sleep(4)
        assert one.asked("installation") == 1
        assert 4.9 < await took() < 5.1  # that look succeeded: the next one is waited for again

    bench.play(story())


def test_a_look_that_fails_is_not_repeated_within_the_cool_down(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        known = await learned(one)
        one.github_does(installation=failing(GitHubTimeoutError("silent")))
        renewed = one.rooms.installations.renewed
        await renewed("acme", known)
        await asyncio.sleep(COOLDOWN_S - 0.5)
        await renewed("acme", known)
        assert one.asked("installation") == 1
        await asyncio.sleep(1)
        await renewed("acme", known)
        await asyncio.sleep(1)  # in the background: nobody waits after a failure
        assert one.asked("installation") == 2
        assert await one.sealed.paused("acme") == 0

    bench.play(story())


def test_a_limit_that_the_store_does_not_take_is_a_look_that_failed(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        one = await bench.process()
        known = await learned(one)
        one.github_does(installation=failing(GitHubRateLimitedError("429", retry_after_s=30.0)))
        one.store_does(pause=failing(StoreUnavailableError("away")))
        await one.rooms.installations.renewed("acme", known)

    bench.play(story())
    assert "its last picture is served" in caplog.text


@pytest.mark.parametrize("whole_app", [True, False])
def test_a_limit_found_by_a_look_is_everybodys(bench: Bench, *, whole_app: bool) -> None:
    async def story() -> None:
        one, two = await bench.process(), await bench.process()
        known = await learned(one)
        limit = GitHubRateLimitedError("429", retry_after_s=30.0, whole_app=whole_app)
        one.github_does(installation=failing(limit))
        await one.rooms.installations.renewed("acme", known)
        assert 29 < await two.sealed.paused("acme") <= 30
        assert (await two.sealed.paused(None) > 0) is whole_app
        await asyncio.sleep(COOLDOWN_S + 1)
        one.github_does(installation=one.line._inner.installation)
        await one.rooms.installations.renewed("acme", known)
        await asyncio.sleep(1)
        assert one.asked("installation") == 1  # GitHub asked to wait
        await asyncio.sleep(20)
        await one.rooms.installations.renewed("acme", known)
        await asyncio.sleep(1)
        assert one.asked("installation") == 2

    bench.play(story())


def test_a_picture_is_old_when_its_time_is_over(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        known = await learned(one)
        is_old = one.rooms.installations.is_old
        now = one.sealed.now()
        assert not is_old(replace(known, checked_at=now - TTL_S + 1), now=now)
        assert is_old(replace(known, checked_at=now - TTL_S - 1), now=now)

    bench.play(story())


def test_the_watch_looks_at_what_is_in_use_and_half_as_old_as_may_be(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        await learned(one)
        rooms = one.rooms.installations
        rooms.used("nobody")
        rooms.used("acme")
        rooms.start()
        reads = one.store.calls["read"]
        await asyncio.sleep(TTL_S / 2 - 40)
        assert one.asked("installation") == 0
        assert 10 <= one.store.calls["read"] - reads <= 20  # of two owners, each 30 s
        await asyncio.sleep(80)
        assert one.asked("installation") == 1
        await asyncio.sleep(TTL_S / 2)
        assert one.asked("installation") == 2
        await asyncio.sleep(10 * TTL_S)
        assert one.asked("installation") <= 4  # nobody has used it for twice that time
        assert (rooms._in_use, rooms._not_before) == ({}, {})
        await rooms.stop()
        assert rooms._watching is not None
        assert rooms._watching.cancelled()

    bench.play(story())


def test_who_is_not_in_use_any_more_does_not_stand_before_who_is(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        await learned(one)
        rooms = one.rooms.installations
        rooms.used("nobody")
        rooms._not_before["nobody"] = 0.0
        await asyncio.sleep(2 * TTL_S + 1)
        rooms.used("acme")
        await rooms._watch_once()
        await asyncio.sleep(1)
        assert one.asked("installation") == 1
        assert (list(rooms._in_use), rooms._not_before) == (["acme"], {})

    bench.play(story())


def test_so_many_are_looked_at_one_by_one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "SWEEP_FROM", 1)

    async def story() -> None:
        bench.github.install("globex", ["x"])
        one = await bench.process()
        rooms = one.rooms.installations
        await learned(one)
        await rooms.find("globex", None)
        await asyncio.sleep(TTL_S / 2 + 1)
        rooms.used("acme")
        await rooms._watch_once()
        await asyncio.sleep(1)
        assert (one.asked("installation"), one.asked("installations")) == (1, 0)
        await asyncio.sleep(TTL_S / 2 + 1)
        rooms.used("globex")
        await rooms._watch_once()
        assert (one.asked("installation"), one.asked("installations")) == (1, 1)

    bench.play(story())


def test_the_watch_survives_a_store_that_is_away(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        await learned(one)
        one.rooms.installations.used("acme")
        one.store_does(read=failing(StoreUnavailableError("away"), times=20, then=one.sealed.read))
        one.rooms.installations.start()
        await asyncio.sleep(TTL_S)
        one.rooms.installations.used("acme")
        await asyncio.sleep(TTL_S)
        assert one.asked("installation") >= 1
        await one.rooms.installations.stop()

    bench.play(story())


def test_a_sweep_is_one_replicas(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """With more owners than SWEEP_FROM one list is read, under ``job:installations``."""
    monkeypatch.setattr(watching, "SWEEP_FROM", 0)

    async def story() -> None:
        one = await bench.process()
        known = await due(one)
        held = await one.sealed.lease("job:installations")
        assert held is not None
        await one.rooms.installations._watch_once()
        assert one.asked("installations") == 0
        await one.sealed.release(held)
        await one.rooms.installations._watch_once()
        assert (one.asked("installations"), one.asked("installation")) == (1, 0)
        looked = await one.known()
        assert looked is not None
        assert looked.checked_at > known.checked_at
        assert await one.sealed.lease("job:installations") is not None  # given back

    bench.play(story())


def test_a_sweep_that_github_refuses_changes_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "SWEEP_FROM", 0)

    async def story() -> None:
        one = await bench.process()
        known = await due(one)
        one.github_does(installations=failing(GitHubTimeoutError("silent")))
        await one.rooms.installations._watch_once()
        assert one.asked("installations") == 1
        assert await one.known() == known

    bench.play(story())


def test_a_sweep_forgets_what_is_gone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "SWEEP_FROM", 0)

    async def story() -> None:
        one = await bench.process()
        key = await one.key("acme/*")
        first = (await one.issue(key, "widgets")).token
        one.rooms.installations.used("acme")
        await asyncio.sleep(TTL_S / 2 + 1)
        bench.github.install("acme", ["widgets"])  # of another id now
        await one.rooms.installations._watch_once()
        assert (await one.issue(key, "widgets")).token.installation_id != first.installation_id

    bench.play(story())


def test_what_is_learned_drops_what_was_cached_under_another_picture(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        key = await one.key("acme/*")
        first = (await one.issue(key, "widgets")).token
        known = await one.known()
        assert known is not None
        learn = one.rooms.installations.learn
        assert await learn("acme", known, replace(known, login="ACME")) is False
        assert (await one.issue(key, "widgets")).token.sha256 == first.sha256
        fewer = replace(known, permissions={"contents": "read", "metadata": "read"})
        assert await learn("acme", known, fewer) is True
        kept = await one.known()
        assert kept is not None
        assert kept.permissions == fewer.permissions
        second = (await one.issue(key, "widgets")).token
        assert second.sha256 != first.sha256
        assert await learn("acme", fewer, replace(fewer, login="Globex")) is True
        assert (await one.issue(key, "widgets")).token.sha256 != second.sha256
        assert await one.sealed.lease("o:acme") is not None  # given back

    bench.play(story())


def test_what_is_learned_while_another_looks_it_up_is_left_to_that_one(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        known = await learned(one)
        held = await one.sealed.lease("o:acme")
        assert held is not None
        assert await one.rooms.installations.learn("acme", known, replace(known, suspended=True)) is True
        assert await one.known() is None  # dropped, and not filled in

    bench.play(story())


def test_another_account_under_the_name_is_recorded(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        one = await bench.process()
        known = await learned(one)
        stranger = replace(bench.github.installed["acme"], id=77, account_id=4711)
        await one.rooms.installations.learn("acme", known, stranger)
        (event,) = await one.events("owner.changed")
        assert event == {
            "event": "owner.changed",
            "owner": "acme",
            "installation_id": 77,
            "reason": "account 4711 appeared under a login pinned to another account",
        }
        found = await one.known()
        assert found is not None
        assert found.foreign

    bench.play(story())
    (alarm,) = [each for each in caplog.records if "pinned login" in each.getMessage()]
    assert (alarm.levelname, alarm.__dict__["owner"]) == ("CRITICAL", "acme")
    assert alarm.__dict__["installation_id"] == 77


def test_stopping_waits_for_what_runs_but_not_for_long(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        await one.rooms.installations.stop()  # there was nothing
        one.github_does(repository_installation=after(0.5, one.line._inner.repository_installation))
        finding = asyncio.create_task(learned(one))
        await asyncio.sleep(0.1)
        await one.rooms.installations.stop()
        assert (await finding).id == bench.github.installed["acme"].id
        assert bench.loop.time() < 0.8
        one.github_does(owner_installation=after(9, one.line._inner.owner_installation))
        slow = asyncio.create_task(one.rooms.installations.find("globex", None))
        await asyncio.sleep(0.1)
        began = bench.loop.time()
        await one.rooms.installations.stop()
        assert 0.9 < bench.loop.time() - began < 1.1
        with pytest.raises(GitHubError):
            await slow

    bench.play(story())
