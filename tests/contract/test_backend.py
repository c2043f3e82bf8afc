"""The raw store's verbs and verdicts, over every implementation of ``Backend``."""

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from broker.store.backend import (
    AcquireArgs,
    AcquireReply,
    AuditPage,
    AuditWant,
    Backend,
    CommitArgs,
    EndArgs,
    Entry,
    KeyWriteArgs,
    OwnerArgs,
    Place,
    Row,
    Want,
)

OpenBackend = Callable[..., Awaitable[Backend]]

ID = b"store-one"
OTHER = b"store-two"
SHA = "a" * 43
SCOPE = "scope-one"
STATE = {"id": ID, "schema": b"1", "epoch": b"7", "dk:1:ff": b"wrapped"}


def row(event: str = "test.event", **parts: Any) -> Row:
    return Row(event=event, body='{"event":"' + event + '"}', **parts)


async def started(backend: Backend, **fields: bytes) -> Backend:
    assert await backend.initialise({**STATE, **fields})
    return backend


@pytest.fixture
async def store(backend: Backend) -> Backend:
    return await started(backend)


async def with_fields(open_backend: OpenBackend, fields: dict[str, bytes]) -> Backend:
    """Return a store whose state holds marks or blocks: no verb of this port writes them yet."""
    return await started(await open_backend(), **fields)


def acquiring(**changes: Any) -> AcquireArgs:
    plain = AcquireArgs(
        store_id=ID,
        scope=SCOPE,
        nonce="nonce-1",
        expected_token=None,
        owner="acme",
        failure=f"F:{SCOPE}",
        floor=("m:all", "m:o:acme", "f:o:acme"),
        budget=None,
        budget_limit=0,
    )
    return dataclasses.replace(plain, **changes)


def committing(**changes: Any) -> CommitArgs:
    plain = CommitArgs(
        store_id=ID,
        scope=SCOPE,
        owner="acme",
        nonce="nonce-1",
        epoch=7,
        marks=("m:all", "m:o:acme", "m:r:acme/app"),
        blocks=("b:o:acme", "b:r:acme/app", "b:w:acme"),
        blob=b"sealed token",
        sha=SHA,
        expires_at=time.time() + 3600,
        gh_offset=None,
        audit=row("token.minted", owner="acme"),
    )
    return dataclasses.replace(plain, **changes)


def keying(**changes: Any) -> KeyWriteArgs:
    plain = KeyWriteArgs(
        store_id=ID,
        key_id="key-1",
        expected=None,
        blob=b"sealed key",
        purge_at=None,
        audit=row("key.created", key_id="key-1"),
    )
    return dataclasses.replace(plain, **changes)


def owning(**changes: Any) -> OwnerArgs:
    plain = OwnerArgs(
        store_id=ID,
        owner="acme",
        lease="o:acme",
        nonce="nonce-1",
        epoch=7,
        marks=("m:o:acme",),
        installation_id=42,
        blob=b"sealed owner",
        expected_pin=None,
        pin=b"sealed pin",
    )
    return dataclasses.replace(plain, **changes)


async def mint(backend: Backend, **changes: Any) -> None:
    args = committing(**changes)
    seen = (await backend.read(Want(strings=(f"T:{args.scope}",)))).strings.get(f"T:{args.scope}")
    reply = await backend.acquire(
        acquiring(scope=args.scope, nonce=args.nonce, expected_token=seen, failure=f"F:{args.scope}")
    )
    assert reply.verdict == "lead"
    assert await backend.commit(args) == "ok"


async def events(backend: Backend, **want: Any) -> list[str]:
    page = await backend.audit(AuditWant(ascending=True, **want))
    return [stored.body.split('"')[3] for stored in page.rows]


async def pages(backend: Backend, want: AuditWant) -> list[AuditPage]:
    found = [await backend.audit(want)]
    while found[-1].cursor is not None:
        found.append(await backend.audit(dataclasses.replace(want, cursor=found[-1].cursor)))
        assert len(found) < 1000
    return found


# -- state ---------------------------------------------------------------------------------------


async def test_an_empty_store_has_no_identity(backend: Backend) -> None:
    state = await backend.load()
    assert (dict(state.fields), state.keys_id, dict(state.key_wraps), state.holds_keys) == (
        {},
        None,
        {},
        False,
    )
    view = await backend.read(Want())
    assert (view.store_id, view.keys_id, view.epoch, view.gh_offset) == (None, None, 0, 0.0)


async def test_initialise_writes_the_identity_twice(store: Backend) -> None:
    state = await store.load()
    assert dict(state.fields) == STATE
    assert state.keys_id == ID
    assert dict(state.key_wraps) == {"dk:1:ff": b"wrapped"}
    assert not state.holds_keys
    view = await store.read(Want())
    assert (view.store_id, view.keys_id, view.epoch) == (ID, ID, 7)


async def test_initialise_happens_once_however_many_race(open_backend: OpenBackend) -> None:
    backends = [await open_backend() for _ in range(3)]
    ids = [f"id-{number}".encode() for number in range(30)]
    done = await asyncio.gather(
        *(backends[number % 3].initialise({**STATE, "id": each}) for number, each in enumerate(ids))
    )
    assert done.count(True) == 1
    state = await backends[0].load()
    assert state.fields["id"] == state.keys_id == ids[done.index(True)]


async def test_add_wraps_reaches_both_places_of_this_store_only(store: Backend) -> None:
    assert not await store.add_wraps(OTHER, {"dk:1:ee": b"no"})
    assert await store.add_wraps(ID, {"dk:1:ee": b"second"})
    state = await store.load()
    wraps = {"dk:1:ff": b"wrapped", "dk:1:ee": b"second"}
    assert dict(state.key_wraps) == wraps
    assert {name: value for name, value in state.fields.items() if name.startswith("dk:")} == wraps


async def test_load_says_whether_there_are_keys(store: Backend) -> None:
    assert (await store.write_key(keying())).verdict == "ok"
    assert (await store.load()).holds_keys


# -- READ ----------------------------------------------------------------------------------------


async def test_a_store_is_mended_only_as_it_was_found(store: Backend) -> None:
    assert not await store.mend((ID, OTHER), ID, {"epoch": b"99"})
    assert not await store.mend((None, ID), ID, {"epoch": b"99"})
    assert (await store.load()).fields["epoch"] == b"7"
    fields = {"epoch": b"6", "dk:2:ff": b"wrapped", "adopt:ff": b"proof"}
    assert await store.mend((ID, ID), ID, fields)
    state = await store.load()
    assert state.fields == {**STATE, "dk:2:ff": b"wrapped", "adopt:ff": b"proof"}
    assert state.key_wraps == {"dk:1:ff": b"wrapped", "dk:2:ff": b"wrapped"}
    assert await store.mend((ID, ID), OTHER, {"epoch": b"12"})
    view = await store.read(Want())
    assert (view.store_id, view.keys_id, view.epoch) == (OTHER, OTHER, 12)


async def test_every_decision_marks_what_it_is_asked_to(store: Backend) -> None:
    async def marks() -> dict[str, bytes]:
        view = await store.read(Want(fields=("w:one", "w:two")))
        return {name: value.partition(b":")[0] for name, value in view.fields.items() if name[:2] == "w:"}

    created = await store.write_key(keying(marks=("w:one",)))
    assert (created.verdict, created.epoch, await marks()) == ("ok", 8, {"w:one": b"8"})
    assert (await store.write_key(keying(marks=("w:two",)))).verdict == "changed"
    await store.lease(ID, "o:acme", "nonce-1")
    assert await store.put_owner(owning()) == "ok"
    accepted = await store.accept(
        store_id=ID,
        owner="acme",
        expected_pin=b"sealed pin",
        pin=b"new",
        audit=row("owner.accepted"),
        marks=("w:two",),
    )
    assert (accepted.verdict, accepted.epoch) == ("ok", 9)
    assert await marks() == {"w:one": b"8", "w:two": b"9"}


async def test_sealed_entries_are_found_and_replaced_as_they_were_found(store: Backend) -> None:
    for number in range(450):
        await store.write_key(keying(key_id=f"k{number}", blob=b"key %d" % number))
    await store.lease(ID, "o:acme", "nonce-1")
    assert await store.put_owner(owning()) == "ok"
    await mint(store)
    await store.hook(ID, body_sha="b", guid="g", blob=b"hook")
    await store.end(EndArgs(store_id=ID, marks=("m:o:x",), blocks={"b:o:x": b"block"}))
    found = {place: [one async for some in store.sealed(place) for one in some] for place in Place}
    assert {entry.name for entry in found.pop(Place.KEYS)} == {f"k{number}" for number in range(450)}
    names = {place: [(one.name, one.blob, one.scope) for one in some] for place, some in found.items()}
    hook = names.pop(Place.HOOKS)
    assert [blob for _, blob, _ in hook] == [b"hook"]
    assert names == {
        Place.NAMES: [("acme", b"sealed pin", "")],
        Place.OWNERS: [("acme", b"sealed owner", "")],
        Place.TOKENS: [(SHA, b"sealed token", SCOPE)],
        Place.BLOCKS: [("b:o:x", b"block", "")],
    }
    entries = [*(some[0] for some in found.values()), Entry(Place.KEYS, "k7", b"key 7")]
    for entry in entries:
        assert not await store.reseal(OTHER, entry, b"new")
        assert not await store.reseal(ID, dataclasses.replace(entry, blob=b"older"), b"new")
        assert await store.reseal(ID, entry, b"new " + entry.blob)
        assert not await store.reseal(ID, entry, b"newer")
    view = await store.read(Want(("b:o:x",), ("k7",), (f"T:{SCOPE}", "O:acme")))
    assert view.keys == {"k7": b"new key 7"}
    assert view.strings == {f"T:{SCOPE}": b"new sealed token", "O:acme": b"new sealed owner"}
    assert view.fields["b:o:x"] == b"new block"
    assert await store.pin("acme") == b"new sealed pin"
    assert [blob for _, blob in await store.hooks(limit=9)] == [b"new hook"]
    await store.end(EndArgs(store_id=ID, marks=("m:all",), reach="all"))
    assert [entry.blob for entry in await store.outbox(None, limit=9)] == [b"new sealed token"]


async def test_a_token_that_was_replaced_meanwhile_stays_in_the_cache(store: Backend) -> None:
    await mint(store)
    ((entry,),) = [some async for some in store.sealed(Place.TOKENS) if some]
    await mint(store, sha="b" * 43, blob=b"newer", nonce="nonce-2")
    assert await store.reseal(ID, entry, b"resealed")
    assert (await store.read(Want(strings=(f"T:{SCOPE}",)))).strings == {f"T:{SCOPE}": b"newer"}


async def test_a_data_keys_wrap_is_never_replaced(store: Backend) -> None:
    assert await store.mend((ID, ID), ID, {"dk:1:ff": b"another", "dk:2:ff": b"second"})
    state = await store.load()
    assert (state.fields["dk:1:ff"], state.key_wraps["dk:1:ff"]) == (b"wrapped", b"wrapped")


async def test_a_store_that_takes_writes_says_so(store: Backend) -> None:
    await store.probe()


async def test_read_leaves_out_what_is_not_there(store: Backend) -> None:
    await store.write_key(keying())
    await mint(store, gh_offset=-2.5)
    view = await store.read(
        Want(
            fields=("schema", "m:all"),
            keys=("key-1", "key-2"),
            strings=(f"T:{SCOPE}", "T:other", f"F:{SCOPE}", f"F:refresh:{SCOPE}", "O:acme"),
        )
    )
    assert view.fields["schema"] == b"1"
    assert "m:all" not in view.fields
    assert dict(view.keys).get("key-1") == b"sealed key"
    assert "key-2" not in view.keys
    assert dict(view.strings) == {f"T:{SCOPE}": b"sealed token"}
    assert view.gh_offset == -2.5
    assert abs(view.now - time.time()) < 2


async def _in_a_task(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


async def test_merged_reads_each_get_their_own(store: Backend) -> None:
    for number in range(60):
        await mint(store, scope=f"s{number}", blob=f"blob {number}".encode(), sha=f"sha{number}")
        await store.write_key(keying(key_id=f"k{number}", blob=f"key {number}".encode()))

    async def one(number: int) -> None:
        await asyncio.sleep((number % 5) / 1000)
        which = number % 60
        view = await store.read(Want(keys=(f"k{which}",), strings=(f"T:s{which}", f"T:none{which}")))
        assert view.store_id == ID
        assert view.keys[f"k{which}"] == f"key {which}".encode()
        assert view.strings[f"T:s{which}"] == f"blob {which}".encode()
        assert f"T:none{which}" not in view.strings

    await asyncio.gather(*(one(number) for number in range(600)))


async def test_cancelled_callers_shift_nobodys_reply(store: Backend) -> None:
    """A cancelled command once gave every later caller the reply of the one before."""
    for number in range(20):
        await store.write_key(keying(key_id=f"k{number}", blob=f"key {number}".encode()))
    checked = 0

    async def one(number: int) -> None:
        nonlocal checked
        which = number % 20
        view = await store.read(Want(keys=(f"k{which}",)))
        assert dict(view.keys)[f"k{which}"] == f"key {which}".encode()
        # Writes share a connection too.
        assert await store.take(f"n{number}", chunk=which + 1, limit=100) == (
            which + 1,
            pytest.approx(30, abs=31),
        )
        checked += 1

    for turn in range(40):
        tasks = [asyncio.create_task(one(turn * 20 + number)) for number in range(20)]
        await asyncio.sleep((turn % 8) / 4000)
        for task in tasks[:: 1 + turn % 3]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError | None) for result in results)
    await asyncio.gather(*(one(number + 10_000) for number in range(20)))
    assert checked >= 20


# -- HAND ----------------------------------------------------------------------------------------


async def test_hand_records_each_key_once(store: Backend) -> None:
    await mint(store)

    async def hand(key_id: str) -> str:
        return await store.hand(
            store_id=ID, epoch=7, sha=SHA, key_id=key_id, audit=row("token.issued", key_id=key_id)
        )

    assert [await hand("a"), await hand("a"), await hand("b")] == ["first", "again", "first"]
    assert await events(store, event="token.issued") == ["token.issued"] * 2
    done = await asyncio.gather(*(hand("c") for _ in range(20)))
    assert done.count("first") == 1


async def test_hand_refuses_what_the_reader_cannot_know(store: Backend) -> None:
    await mint(store)
    hand = {"store_id": ID, "epoch": 7, "sha": SHA, "key_id": "a", "audit": row("token.issued")}

    async def with_(**changes: Any) -> str:
        return await store.hand(**{**hand, **changes})  # type: ignore[arg-type]

    assert await with_(store_id=OTHER) == "lost"
    assert await with_(sha="b" * 43) == "gone"
    assert await with_(epoch=6) == "stale"
    assert await with_(epoch=6, sha="b" * 43) == "stale"
    assert await events(store, event="token.issued") == []


async def test_a_key_narrowed_between_read_and_hand_makes_the_hand_stale(
    open_backend: OpenBackend,
) -> None:
    """Drop the comparison of epochs and this fails: a revoked key would still get its token."""
    one, two = await open_backend(), await open_backend()
    await started(one)
    await one.write_key(keying())
    await mint(one)
    seen = await one.read(Want(keys=("key-1",)))
    assert (await two.write_key(keying(expected=b"sealed key", blob=b"revoked"))).verdict == "ok"
    assert (
        await one.hand(store_id=ID, epoch=seen.epoch, sha=SHA, key_id="key-1", audit=row("token.issued"))
        == "stale"
    )
    assert (await one.read(Want())).epoch == seen.epoch + 1


# -- ACQUIRE -------------------------------------------------------------------------------------


async def test_one_of_a_hundred_leads(open_backend: OpenBackend) -> None:
    one, two = await open_backend(), await open_backend()
    await started(one)
    replies = await asyncio.gather(
        *((one if n % 2 else two).acquire(acquiring(nonce=f"nonce-{n}")) for n in range(100))
    )
    verdicts = [reply.verdict for reply in replies]
    assert verdicts.count("lead") == 1
    assert verdicts.count("wait") == 99
    assert replies[verdicts.index("lead")] == AcquireReply("lead", epoch=7)
    # Another scope does not wait for it.
    assert (await one.acquire(acquiring(scope="other", failure="F:other"))).verdict == "lead"


async def test_acquire_of_another_store_is_lost(store: Backend) -> None:
    assert (await store.acquire(acquiring(store_id=OTHER))).verdict == "lost"


async def test_acquire_notices_that_somebody_minted_meanwhile(store: Backend) -> None:
    assert (await store.acquire(acquiring(expected_token=b"x"))).verdict == "changed"
    await mint(store)
    assert (await store.acquire(acquiring())).verdict == "changed"
    assert (await store.acquire(acquiring(expected_token=b"older"))).verdict == "changed"
    assert (await store.acquire(acquiring(expected_token=b"sealed token"))).verdict == "lead"


@pytest.mark.parametrize("name", ["app", "o:acme"])
async def test_acquire_waits_while_github_says_so(store: Backend, name: str) -> None:
    await store.pause("o:somebody", 30)
    await store.pause(name, 30)
    reply = await store.acquire(acquiring())
    assert reply.verdict == "paused"
    assert 28 < reply.wait_s <= 30


async def test_a_failure_cools_down(store: Backend) -> None:
    assert (await store.acquire(acquiring())).verdict == "lead"
    failure = b'7:{"code":"x"}'
    failing = {"scope": SCOPE, "failure": f"F:{SCOPE}", "value": failure, "cooldown_s": 0.3}
    assert not await store.fail(nonce="somebody", **failing)  # type: ignore[arg-type]
    assert (await store.acquire(acquiring())).verdict == "wait"
    assert await store.fail(nonce="nonce-1", **failing)  # type: ignore[arg-type]
    assert await store.acquire(acquiring()) == AcquireReply("failed", failure=failure)
    assert (await store.read(Want(strings=(f"F:{SCOPE}",)))).strings[f"F:{SCOPE}"] == failure
    # Only the name asked for forbids.
    assert (await store.acquire(acquiring(failure=f"F:refresh:{SCOPE}"))).verdict == "lead"
    await store.release(SCOPE, "nonce-1")
    await asyncio.sleep(0.4)
    assert (await store.acquire(acquiring())).verdict == "lead"
    assert f"F:{SCOPE}" not in (await store.read(Want(strings=(f"F:{SCOPE}",)))).strings


@pytest.mark.parametrize(("mark", "verdict"), [(b"7:1700000000", "failed"), (b"8:1700000000", "lead")])
@pytest.mark.parametrize("name", ["m:all", "m:o:acme", "f:o:acme"])
async def test_a_mark_above_a_failure_voids_it(
    open_backend: OpenBackend, name: str, mark: bytes, verdict: str
) -> None:
    store = await with_fields(open_backend, {name: mark, "m:o:other": b"99:1"})
    assert (await store.acquire(acquiring())).verdict == "lead"
    assert await store.fail(scope=SCOPE, nonce="nonce-1", failure=f"F:{SCOPE}", value=b"7:{}", cooldown_s=30)
    assert (await store.acquire(acquiring())).verdict == verdict


async def test_a_refresh_that_failed_leaves_the_token(store: Backend) -> None:
    await mint(store)
    seen = acquiring(expected_token=b"sealed token", failure=f"F:refresh:{SCOPE}")
    assert (await store.acquire(seen)).verdict == "lead"
    await store.fail(scope=SCOPE, nonce="nonce-1", failure=f"F:refresh:{SCOPE}", value=b"7:{}", cooldown_s=30)
    view = await store.read(Want(strings=(f"T:{SCOPE}", f"F:refresh:{SCOPE}")))
    assert view.strings[f"T:{SCOPE}"] == b"sealed token"
    assert (await store.acquire(seen)).verdict == "failed"


async def test_verdicts_come_in_their_order(store: Backend) -> None:
    """lost, changed, paused, failed, wait, budget, lead: each hides those behind it."""
    args = acquiring(budget="key-1:mint", budget_limit=1)
    assert (await store.acquire(args)).verdict == "lead"
    assert (await store.acquire(args)).verdict == "wait"
    await store.fail(scope=SCOPE, nonce="nonce-1", failure="F:x", value=b"7:{}", cooldown_s=30)
    assert (await store.acquire(args)).verdict == "budget"
    assert (await store.acquire(dataclasses.replace(args, failure="F:x"))).verdict == "failed"
    await store.pause("app", 30)
    assert (await store.acquire(dataclasses.replace(args, failure="F:x"))).verdict == "paused"
    assert (await store.acquire(dataclasses.replace(args, expected_token=b"x"))).verdict == "changed"
    assert (
        await store.acquire(dataclasses.replace(args, expected_token=b"x", store_id=OTHER))
    ).verdict == "lost"


async def test_the_mint_budget_is_charged_to_leaders_only(open_backend: OpenBackend) -> None:
    one, two = await open_backend(), await open_backend()
    await started(one)
    await next_minute_is_far()
    budget = {"budget": "key-1:mint", "budget_limit": 3}
    replies = await asyncio.gather(
        *((one if n % 2 else two).acquire(acquiring(nonce=f"n{n}", **budget)) for n in range(10))
    )
    assert sorted(reply.verdict for reply in replies) == ["lead"] + ["wait"] * 9
    for scope in ("s1", "s2"):
        assert (await two.acquire(acquiring(scope=scope, failure=f"F:{scope}", **budget))).verdict == "lead"
    reply = await one.acquire(acquiring(scope="s3", failure="F:s3", **budget))
    assert reply.verdict == "budget"
    assert 0 < reply.wait_s <= 60
    # Nobody else pays.
    other = {"budget": "key-2:mint", "budget_limit": 3}
    assert (await one.acquire(acquiring(scope="s3", failure="F:s3", **other))).verdict == "lead"


# -- leases --------------------------------------------------------------------------------------


async def test_a_lease_has_one_holder_until_it_is_released(open_backend: OpenBackend) -> None:
    one, two = await open_backend(), await open_backend()
    await started(one)
    assert not (await one.lease(OTHER, "job:sweep", "n1"))[0]
    assert await one.lease(ID, "job:sweep", "n1") == (True, 7)
    assert not (await two.lease(ID, "job:sweep", "n2"))[0]
    await two.release("job:sweep", "n2")
    assert not await two.renew("job:sweep", "n2")
    assert await one.renew("job:sweep", "n1")
    assert not (await two.lease(ID, "job:sweep", "n2"))[0]
    await one.release("job:sweep", "n1")
    assert not await one.renew("job:sweep", "n1")
    assert (await two.lease(ID, "job:sweep", "n2"))[0]


async def test_a_dead_leaders_lease_ends_and_a_renewed_one_lasts(store: Backend, short_lease: float) -> None:
    assert (await store.lease(ID, "job:a", "n1"))[0]
    assert (await store.lease(ID, "job:b", "n1"))[0]
    for _ in range(5):
        await asyncio.sleep(short_lease / 5)
        assert await store.renew("job:b", "n1")
    assert (await store.lease(ID, "job:a", "n2"))[0]
    assert not (await store.lease(ID, "job:b", "n2"))[0]
    assert not await store.renew("job:a", "n1")


async def test_a_paused_leader_cannot_overwrite_its_successor(store: Backend, short_lease: float) -> None:
    """The nonce compared in the store is the fence: the first one wakes up after its lease has ended."""
    assert (await store.acquire(acquiring(nonce="slow"))).verdict == "lead"
    await asyncio.sleep(short_lease)
    assert await store.commit(committing(nonce="slow")) == "fenced"
    assert (await store.acquire(acquiring(nonce="quick"))).verdict == "lead"
    assert await store.commit(committing(nonce="slow", blob=b"late")) == "fenced"
    assert not await store.fail(scope=SCOPE, nonce="slow", failure=f"F:{SCOPE}", value=b"7:{}", cooldown_s=30)
    assert await store.commit(committing(nonce="quick", blob=b"in time")) == "ok"
    assert await store.commit(committing(nonce="slow", blob=b"late", sha="c" * 43)) == "fenced"
    view = await store.read(Want(strings=(f"T:{SCOPE}", f"F:{SCOPE}")))
    assert dict(view.strings) == {f"T:{SCOPE}": b"in time"}
    assert await events(store) == ["token.minted"]


# -- COMMIT --------------------------------------------------------------------------------------


async def test_commit_keeps_token_clears_failures_and_ends_the_lease(store: Backend) -> None:
    assert (await store.acquire(acquiring())).verdict == "lead"
    await store.fail(scope=SCOPE, nonce="nonce-1", failure=f"F:refresh:{SCOPE}", value=b"7:{}", cooldown_s=30)
    assert (await store.acquire(acquiring())).verdict == "lead"
    assert await store.commit(committing(gh_offset=1.25)) == "ok"
    view = await store.read(Want(strings=(f"T:{SCOPE}", f"F:refresh:{SCOPE}")))
    assert dict(view.strings) == {f"T:{SCOPE}": b"sealed token"}
    assert view.gh_offset == 1.25
    assert (await store.acquire(acquiring(expected_token=b"sealed token"))).verdict == "lead"
    assert await events(store) == ["token.minted"]


async def test_commit_into_another_store_is_lost(store: Backend) -> None:
    assert (await store.acquire(acquiring())).verdict == "lead"
    assert await store.commit(committing(store_id=OTHER)) == "lost"


async def test_commit_without_the_lease_is_fenced(store: Backend) -> None:
    assert await store.commit(committing()) == "fenced"
    assert (await store.acquire(acquiring())).verdict == "lead"
    assert await store.commit(committing(nonce="somebody")) == "fenced"


async def test_commit_repeated_after_a_lost_reply_is_ok_once(store: Backend) -> None:
    assert (await store.acquire(acquiring())).verdict == "lead"
    assert [await store.commit(committing()) for _ in range(2)] == ["ok", "ok"]
    assert await events(store) == ["token.minted"]


@pytest.mark.parametrize("name", ["m:all", "m:o:acme", "m:w:acme", "m:r:acme/app", "m:r:acme/lib"])
@pytest.mark.parametrize(("mark", "verdict"), [(b"7:1700000000", "ok"), (b"8:1700000000", "revoked")])
async def test_commit_against_each_mark(
    open_backend: OpenBackend, name: str, mark: bytes, verdict: str
) -> None:
    store = await with_fields(open_backend, {name: mark, "m:r:acme/unasked": b"99:1"})
    assert (await store.acquire(acquiring())).verdict == "lead"
    marks = ("m:all", "m:o:acme", "m:w:acme", "m:r:acme/app", "m:r:acme/lib")
    assert await store.commit(committing(marks=marks)) == verdict
    kept = (await store.read(Want(strings=(f"T:{SCOPE}",)))).strings
    assert (f"T:{SCOPE}" in kept) == (verdict == "ok")


@pytest.mark.parametrize(
    ("name", "value", "verdict"),
    [
        ("b:o:acme", b"sealed who and why", "blocked"),
        ("b:r:acme/app", b"sealed who and why", "blocked"),
        ("b:w:acme", b"2", "blocked"),
        ("b:w:acme", b"0", "ok"),
        ("b:r:acme/unasked", b"sealed", "ok"),
    ],
)
async def test_commit_against_each_block(
    open_backend: OpenBackend, name: str, value: bytes, verdict: str
) -> None:
    store = await with_fields(open_backend, {name: value})
    assert (await store.acquire(acquiring())).verdict == "lead"
    assert await store.commit(committing()) == verdict
    kept = (await store.read(Want(strings=(f"T:{SCOPE}",)))).strings
    assert (f"T:{SCOPE}" in kept) == (verdict == "ok")


async def test_commit_takes_the_reach_of_500_repositories(open_backend: OpenBackend) -> None:
    names = [f"acme/repository-{number}" for number in range(500)]
    store = await with_fields(open_backend, {f"m:r:{names[-1]}": b"8:1"})
    assert (await store.acquire(acquiring())).verdict == "lead"
    reach = committing(
        marks=tuple(f"m:r:{name}" for name in names), blocks=tuple(f"b:r:{name}" for name in names)
    )
    assert await store.commit(reach) == "revoked"
    assert await store.commit(dataclasses.replace(reach, epoch=8)) == "ok"


async def test_a_token_is_gone_when_it_has_expired(store: Backend) -> None:
    await mint(store, expires_at=time.time() + 0.3)
    await asyncio.sleep(0.4)
    assert dict((await store.read(Want(strings=(f"T:{SCOPE}",)))).strings) == {}
    assert (await store.acquire(acquiring())).verdict == "lead"


async def test_drop_token_drops_that_one_only(store: Backend) -> None:
    await mint(store)
    await store.drop_token(SCOPE, b"another")
    assert (await store.read(Want(strings=(f"T:{SCOPE}",)))).strings
    await store.drop_token(SCOPE, b"sealed token")
    assert not (await store.read(Want(strings=(f"T:{SCOPE}",)))).strings


# -- pauses, gates, counters ---------------------------------------------------------------------


async def test_a_pause_is_never_shortened_and_ends(store: Backend) -> None:
    await mint(store)
    await store.pause("app", 20)
    await store.pause("app", 1)
    assert 18 < await store.paused(["app"]) <= 20
    in_one_batch = (
        store.paused(["o:acme"]),
        store.read(Want(strings=(f"T:{SCOPE}",))),
        store.paused(["app"]),
    )
    alone, view, whole = await asyncio.gather(*map(_in_a_task, in_one_batch))
    assert alone == 0
    assert f"T:{SCOPE}" in view.strings
    assert 18 < whole <= 20
    await store.pause("app", 40)
    assert 38 < await store.paused(["o:acme", "app"]) <= 40
    assert await store.paused(["o:acme"]) == 0
    assert await store.paused([]) == 0
    await store.pause("o:acme", 0.2)
    await asyncio.sleep(0.3)
    assert await store.paused(["o:acme"]) == 0


async def test_a_pause_lasts_an_hour_at_most(store: Backend) -> None:
    await store.pause("app", 86400)
    assert 3590 < await store.paused(["app"]) <= 3600


async def test_a_gate_opens_for_one(open_backend: OpenBackend) -> None:
    one, two = await open_backend(), await open_backend()
    done = await asyncio.gather(*((one if n % 2 else two).gate(SCOPE, 0.3) for n in range(20)))
    assert done.count(True) == 1
    assert await one.gate("another", 0.3)
    await asyncio.sleep(0.4)
    assert await two.gate(SCOPE, 0.3)


async def next_minute_is_far() -> None:
    """Windows are minutes of the clock: a test that counts must not straddle two."""
    left = 60 - time.time() % 60
    if left < 3:
        await asyncio.sleep(left + 0.05)


async def test_counters_never_pass_the_limit(open_backend: OpenBackend) -> None:
    one, two = await open_backend(), await open_backend()
    await next_minute_is_far()
    taken = await asyncio.gather(
        *((one if n % 2 else two).take("key-1:rate", chunk=7, limit=100) for n in range(40))
    )
    assert sum(granted for granted, _ in taken) == 100
    assert all(0 <= granted <= 7 and 0 < left_s <= 60 for granted, left_s in taken)
    assert (await one.take("key-1:rate", chunk=7, limit=100))[0] == 0
    assert (await one.take("key-1:rate", chunk=7, limit=103))[0] == 3
    assert (await one.take("key-1:rate", chunk=7, limit=50))[0] == 0
    assert (await two.take("key-2:rate", chunk=7, limit=100))[0] == 7


# -- keys ----------------------------------------------------------------------------------------


async def test_keys_are_compared_and_set(open_backend: OpenBackend) -> None:
    one, two = await open_backend(), await open_backend()
    await started(one)
    assert (await one.write_key(keying(store_id=OTHER))).verdict == "lost"
    assert (await one.write_key(keying(expected=b"nothing there"))).verdict == "changed"
    assert (await one.write_key(keying())).verdict == "ok"
    assert (await two.write_key(keying(blob=b"again"))).verdict == "changed"
    assert (await two.write_key(keying(expected=b"sealed key", blob=b"renamed"))).verdict == "ok"
    assert (await one.write_key(keying(expected=b"sealed key", blob=b"crossing"))).verdict == "changed"
    assert (await one.read(Want(keys=("key-1",)))).keys["key-1"] == b"renamed"
    assert (await one.read(Want())).epoch == 9  # each that was taken raised it, a creation and a rename too
    assert (await one.write_key(keying(expected=b"renamed", blob=b"revoked"))).verdict == "ok"
    assert (await two.read(Want())).epoch == 10
    assert await events(one) == ["key.created"] * 3


async def test_one_of_many_changes_of_a_key_wins(store: Backend) -> None:
    await store.write_key(keying())
    done = await asyncio.gather(
        *(store.write_key(keying(expected=b"sealed key", blob=b"%d" % n)) for n in range(50))
    )
    verdicts = [reply.verdict for reply in done]
    assert sorted(verdicts) == ["changed"] * 49 + ["ok"]
    view = await store.read(Want(keys=("key-1",)))
    assert view.keys["key-1"] == b"%d" % verdicts.index("ok")
    assert view.epoch == 9


async def test_keys_are_listed_in_order_of_creation(store: Backend) -> None:
    assert (await store.list_keys(cursor=None, limit=10)).rows == ()
    names = [f"k{(number * 7) % 25:02}" for number in range(25)]
    for name in names:
        await store.write_key(keying(key_id=name, blob=name.encode()))
    # A change does not move a key.
    await store.write_key(keying(key_id=names[3], expected=names[3].encode(), blob=b"changed"))
    await store.touch({names[4]: 1000})
    found: list[tuple[str, bytes, int | None]] = []
    cursor: str | None = None
    while True:
        page = await store.list_keys(cursor=cursor, limit=10)
        assert len(page.rows) <= 10
        found += page.rows
        cursor = page.cursor
        if cursor is None:
            break
        if len(found) == 10:
            # One that is created meanwhile comes at the end.
            await store.write_key(keying(key_id="late", blob=b"late"))
    assert [key_id for key_id, _, _ in found] == [*names, "late"]
    assert found[3][1] == b"changed"
    assert [used for _, _, used in found][3:6] == [None, 1000, None]


async def test_the_last_use_only_ever_grows(store: Backend) -> None:
    await store.touch({})
    for name in ("key-1", "key-2"):
        await store.write_key(keying(key_id=name))
    assert await store.last_used("key-1") is None
    await store.touch({"key-1": 1000, "key-2": 5})
    await store.touch({"key-1": 940, "key-2": 60})
    assert await store.last_used("key-1") == 1000
    assert await store.last_used("key-2") == 60


async def test_sweep_purges_what_is_due_and_nothing_else(store: Backend) -> None:
    past, future = time.time() - 1, time.time() + 3600
    for name, purge_at in (("due", past), ("later", future), ("never", None), ("back", past)):
        await store.write_key(keying(key_id=name, purge_at=purge_at))
    await store.write_key(keying(key_id="back", expected=b"sealed key", purge_at=None))
    await store.touch({"due": 1, "later": 1, "nobody": 1})
    await store.sweep()
    assert [row[0] for row in (await store.list_keys(cursor=None, limit=10)).rows] == [
        "later",
        "never",
        "back",
    ]
    assert "due" not in (await store.read(Want(keys=("due",)))).keys
    assert await store.last_used("due") is None
    assert await store.last_used("nobody") is None
    assert await store.last_used("later") == 1
    # The name is free again, and the sequence goes on.
    before = (await store.list_keys(cursor=None, limit=2)).cursor
    assert (await store.write_key(keying(key_id="due"))).verdict == "ok"
    page = await store.list_keys(cursor=before, limit=10)
    assert [row[0] for row in page.rows] == ["back", "due"]


async def test_a_page_goes_on_behind_keys_that_were_purged(store: Backend) -> None:
    for name in ("a", "b", "c"):
        await store.write_key(keying(key_id=name, purge_at=time.time() - 1 if name != "a" else None))
    cursor = (await store.list_keys(cursor=None, limit=2)).cursor
    await store.sweep()
    await store.write_key(keying(key_id="d"))
    assert [row[0] for row in (await store.list_keys(cursor=cursor, limit=2)).rows] == ["d"]


# -- owners --------------------------------------------------------------------------------------


async def test_owners_are_kept_and_pinned(store: Backend) -> None:
    assert await store.pin("acme") is None
    assert await store.put_owner(owning()) == "fenced"
    assert (await store.lease(ID, "o:acme", "nonce-1"))[0]
    assert await store.put_owner(owning(store_id=OTHER)) == "lost"
    assert await store.put_owner(owning(expected_pin=b"an older one")) == "changed"
    assert await store.put_owner(owning(nonce="somebody")) == "fenced"
    assert await store.put_owner(owning()) == "ok"
    assert await store.pin("acme") == b"sealed pin"
    assert (await store.read(Want(strings=("O:acme",)))).strings["O:acme"] == b"sealed owner"
    # Another account under the same name does not move the pin.
    assert await store.put_owner(owning(pin=b"a stranger")) == "changed"
    assert await store.pin("acme") == b"sealed pin"
    # Equal: as it was. Another: replaced, if the old one was known.
    pinned = owning(expected_pin=b"sealed pin", blob=b"newer")
    assert await store.put_owner(pinned) == "ok"
    assert await store.put_owner(dataclasses.replace(pinned, pin=b"accepted")) == "ok"
    assert await store.pin("acme") == b"accepted"
    assert (await store.read(Want(strings=("O:acme",)))).strings["O:acme"] == b"newer"


async def test_an_owner_can_be_forgotten_but_not_its_pin(store: Backend) -> None:
    await store.lease(ID, "o:acme", "nonce-1")
    await store.put_owner(owning())
    forgotten = owning(blob=None, expected_pin=b"sealed pin", pin=b"sealed pin")
    assert await store.put_owner(forgotten) == "ok"
    assert dict((await store.read(Want(strings=("O:acme",)))).strings) == {}
    assert await store.pin("acme") == b"sealed pin"
    assert await store.put_owner(dataclasses.replace(forgotten, pin=None)) == "ok"
    assert await store.pin("acme") == b"sealed pin"


@pytest.mark.parametrize(("mark", "verdict"), [(b"7:1", "ok"), (b"8:1", "stale")])
async def test_an_answer_older_than_a_mark_is_stale(
    open_backend: OpenBackend, mark: bytes, verdict: str
) -> None:
    store = await with_fields(open_backend, {"m:o:acme": mark})
    await store.lease(ID, "o:acme", "nonce-1")
    assert await store.put_owner(owning()) == verdict
    assert (await store.pin("acme") is not None) == (verdict == "ok")


# -- audit ---------------------------------------------------------------------------------------


async def test_append_only_to_this_store(store: Backend) -> None:
    assert not await store.append(OTHER, [row("no")])
    assert await store.append(ID, [])
    assert await store.append(ID, [row(f"event.{number}") for number in range(450)])
    assert await events(store, limit=1000) == [f"event.{number}" for number in range(450)]


async def test_audit_filters(store: Backend) -> None:
    await store.append(
        ID,
        [
            row("a", key_id="key-1", owner="acme", repositories=("acme/app", "acme/lib"), request_id="r1"),
            row("b", key_id="key-1", owner="acme", repositories=("acme/app-two",), request_id="r2"),
            row("a", key_id="key-2", owner="acme", request_id="r3"),
        ],
    )

    async def ids(**want: Any) -> list[str]:
        return await events(store, **want)

    assert await ids() == ["a", "b", "a"]
    assert await ids(key_id="key-1") == ["a", "b"]
    assert await ids(repository="acme/app") == ["a"]
    assert await ids(repository="acme/lib") == ["a"]
    assert await ids(repository="acme") == []
    assert await ids(event="b") == ["b"]
    assert await ids(request_id="r3") == ["a"]
    assert await ids(event="a", key_id="key-2") == ["a"]
    assert await ids(event="b", key_id="key-2") == []


@pytest.mark.parametrize("ascending", [True, False])
async def test_audit_pages_without_gap_or_repeat(store: Backend, ascending: bool) -> None:
    await store.append(ID, [row(f"e{number}", key_id=f"k{number % 3}") for number in range(100)])
    order = [f"e{number}" for number in range(100)]
    found = await pages(store, AuditWant(ascending=ascending, limit=7))
    bodies = [stored.body.split('"')[3] for page in found for stored in page.rows]
    assert bodies == (order if ascending else order[::-1])
    assert all(len(page.rows) <= 7 for page in found)
    assert len({stored.id for page in found for stored in page.rows}) == 100
    assert all(abs(stored.time - time.time()) < 60 for page in found for stored in page.rows)
    # A page that was filtered may be short, yet the pages together are whole.
    for scan in (10, 2000):
        found = await pages(store, AuditWant(ascending=ascending, limit=7, scan=scan, key_id="k1"))
        assert sum(len(page.rows) for page in found) == 33


async def test_following_the_audit_gets_what_came_later(store: Backend) -> None:
    await store.append(ID, [row("one"), row("two")])
    page = await store.audit(AuditWant(ascending=True))
    last = page.rows[-1].id
    assert (await store.audit(AuditWant(ascending=True, cursor=last))).rows == ()
    await store.append(ID, [row("three")])
    assert await events(store, cursor=last) == ["three"]


async def test_audit_between_times(store: Backend) -> None:
    await store.append(ID, [row("early")])
    await asyncio.sleep(0.05)
    middle = (await store.read(Want())).now
    await asyncio.sleep(0.05)
    await store.append(ID, [row("late")])
    assert await events(store, since=middle) == ["late"]
    assert await events(store, until=middle) == ["early"]
    assert await events(store, since=middle, until=middle) == []
    assert await events(store, since=0, until=middle + 3600) == ["early", "late"]
    (stored,) = (await store.audit(AuditWant(event="late"))).rows
    assert await events(store, since=stored.time) == ["late"]
    assert await events(store, until=stored.time) == ["early"]
    newest_first = await store.audit(AuditWant(since=middle))
    assert [each.id for each in newest_first.rows] == [stored.id]


async def test_old_audit_events_are_not_shown_and_swept(open_backend: OpenBackend) -> None:
    store = await started(await open_backend(audit_retention_s=0.3))
    patient = await open_backend()
    await store.append(ID, [row("old")])
    await asyncio.sleep(0.4)
    await store.append(ID, [row("new")])
    assert await events(store) == ["new"]
    assert [len(page.rows) for page in await pages(store, AuditWant())] == [1]
    assert await events(patient) == ["old", "new"]
    await store.sweep()
    assert await events(patient) == ["new"]


async def test_the_audit_has_a_bound(open_backend: OpenBackend) -> None:
    store = await started(await open_backend(audit_max_events=20))
    await store.append(ID, [row(f"e{number}") for number in range(300)])
    await store.sweep()
    assert await events(store, limit=1000) == [f"e{number}" for number in range(280, 300)]


# -- life ----------------------------------------------------------------------------------------


async def test_close_is_idempotent_and_connect_may_be_repeated(open_backend: OpenBackend) -> None:
    backend = await open_backend()
    await started(backend)
    await backend.connect()
    await backend.close()
    await backend.close()
    await backend.connect()
    assert (await backend.read(Want())).store_id == ID


async def test_two_processes_see_each_others_writes_at_once(open_backend: OpenBackend) -> None:
    one, two = await open_backend(), await open_backend()
    await started(one)
    blob = b"sealed key"
    await one.write_key(keying())
    for number in range(50):
        writer, reader = (one, two) if number % 2 else (two, one)
        new = b"%d" % number
        assert (await writer.write_key(keying(expected=blob, blob=new))).verdict == "ok"
        blob = new
        view = await reader.read(Want(keys=("key-1",)))
        assert (view.keys["key-1"], view.epoch) == (blob, 9 + number)
