"""END, the outbox, webhooks and owners: the verbs by which something stops, over every ``Backend``."""

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from test_backend import (
    ID,
    OTHER,
    SCOPE,
    SHA,
    acquiring,
    committing,
    events,
    keying,
    mint,
    owning,
    row,
    started,
)

from broker.errors import InvalidRequestError
from broker.store.backend import Backend, EndArgs, OutboxEntry, OwnerRow, Row, Want

OpenBackend = Callable[..., Awaitable[Backend]]

NOTE = b'{"by":"admin"}'
MANY = 10_000


@pytest.fixture
async def store(backend: Backend) -> Backend:
    return await started(backend)


def ending(**changes: Any) -> EndArgs:
    plain = EndArgs(store_id=ID, marks=("m:all",), note=NOTE, audit=row("test.ended"))
    return dataclasses.replace(plain, **changes)


async def fields(backend: Backend, *prefixes: str) -> dict[str, bytes]:
    state = await backend.load()
    return {name: value for name, value in state.fields.items() if name.startswith(prefixes)}


async def hand(backend: Backend, sha: str = SHA, key_id: str = "key-1") -> str:
    """HAND on what the store says now."""
    epoch = (await backend.read(Want())).epoch
    return await backend.hand(
        store_id=ID, epoch=epoch, sha=sha, key_id=key_id, audit=row("token.issued", key_id=key_id)
    )


async def cached(backend: Backend, scope: str = SCOPE) -> bytes | None:
    name = f"T:{scope}"
    return (await backend.read(Want(strings=(name,)))).strings.get(name)


async def mint_some(backend: Backend, *names: str, **changes: Any) -> None:
    """Mint a token for each name: sha and scope are named after it."""
    epoch = (await backend.read(Want())).epoch
    await asyncio.gather(
        *(
            mint(
                backend,
                **{
                    "scope": f"scope-{name}",
                    "sha": f"sha-{name}",
                    "blob": b"blob %s" % name.encode(),
                    "nonce": f"nonce-{name}",
                    "epoch": epoch,
                    **changes,
                },
            )
            for name in names
        )
    )


async def waiting(backend: Backend) -> list[tuple[str, str]]:
    return sorted((entry.sha, entry.only) for entry in await backend.outbox(None, limit=100))


def revoked(sha: str) -> Row:
    return row("token.revoked", request_id=sha)


# -- END -----------------------------------------------------------------------------------------


async def test_an_end_raises_the_epoch_once_and_marks_with_it(store: Backend) -> None:
    reply = await store.end(ending(marks=("m:o:acme", "m:r:acme/app", "f:o:acme")))
    assert (reply.verdict, reply.epoch, reply.shas) == ("ok", 8, ())
    marks = await fields(store, "m:", "f:", "b:")
    assert set(marks) == {"m:o:acme", "m:r:acme/app", "f:o:acme"}
    for mark in marks.values():
        epoch, at = mark.split(b":")
        assert epoch == b"8"
        assert abs(int(at) - time.time()) < 5
    assert (await store.read(Want())).epoch == 8
    assert await events(store) == ["test.ended"]
    # Repeated after a lost reply it only raises the epoch again. Without an event, none is written.
    assert (await store.end(ending(marks=("m:o:acme",), audit=None))).epoch == 9
    assert (await fields(store, "m:o:"))["m:o:acme"].startswith(b"9:")
    assert (await fields(store, "m:r:"))["m:r:acme/app"].startswith(b"8:")
    assert await events(store) == ["test.ended"]


async def test_an_end_in_another_store_is_lost(store: Backend) -> None:
    await mint(store)
    args = ending(store_id=OTHER, reach="all", blocks={"b:o:acme": b"sealed"})
    assert (await store.end(args)).verdict == "lost"
    assert (await store.read(Want())).epoch == 7
    assert await fields(store, "m:", "b:") == {}
    assert await waiting(store) == []
    assert await events(store) == ["token.minted"]


async def test_a_reach_that_nobody_knows_ends_nothing(store: Backend) -> None:
    with pytest.raises(KeyError):
        await store.end(ending(reach="repository:acme/app"))
    assert (await store.read(Want())).epoch == 7
    assert await fields(store, "m:") == {}


async def test_what_was_read_before_an_end_is_not_handed_out(open_backend: OpenBackend) -> None:
    one, two = await open_backend(), await open_backend()
    await started(one)
    await mint(one)
    seen = (await one.read(Want())).epoch
    await two.end(ending(marks=("m:o:acme",)))
    stale = await one.hand(store_id=ID, epoch=seen, sha=SHA, key_id="key-1", audit=row("token.issued"))
    assert stale == "stale"
    assert await events(one, event="token.issued") == []


@pytest.mark.parametrize("mark", ["m:all", "m:o:acme", "m:w:acme", "m:r:acme/app"])
async def test_a_token_under_way_at_an_end_is_not_kept(store: Backend, mark: str) -> None:
    marks = ("m:all", "m:o:acme", "m:w:acme", "m:r:acme/app")
    lead = await store.acquire(acquiring())
    await store.end(ending(marks=(mark, "m:o:other")))
    assert await store.commit(committing(epoch=lead.epoch, marks=marks)) == "revoked"
    assert await cached(store) is None
    await store.release(SCOPE, "nonce-1")
    again = await store.acquire(acquiring())
    assert again.epoch == lead.epoch + 1
    assert await store.commit(committing(epoch=again.epoch, marks=marks)) == "ok"


async def test_an_end_elsewhere_disturbs_no_mint(store: Backend) -> None:
    lead = await store.acquire(acquiring())
    await store.end(ending(marks=("m:o:other", "m:r:acme/lib")))
    assert await store.commit(committing(epoch=lead.epoch)) == "ok"


@pytest.mark.parametrize(
    ("block", "wide", "asked"),
    [
        ("b:o:acme", "", ("b:o:acme", "b:r:acme/app")),
        ("b:r:acme/app", "b:w:acme", ("b:o:acme", "b:r:acme/app")),
        # A token for the whole owner asks for the count alone.
        ("b:r:acme/app", "b:w:acme", ("b:o:acme", "b:w:acme")),
    ],
)
async def test_what_is_blocked_is_not_kept_until_the_block_is_lifted(
    store: Backend, block: str, wide: str, asked: tuple[str, ...]
) -> None:
    await store.end(ending(marks=(), blocks={block: b"sealed who"}, wide=wide))
    lead = await store.acquire(acquiring())
    minted = committing(epoch=lead.epoch, blocks=asked)
    assert await store.commit(minted) == "blocked"
    lifted = ending(marks=(), blocks={block: None}, wide=wide, must_exist=block)
    assert (await store.end(lifted)).verdict == "ok"
    assert await store.commit(minted) == "ok"


async def test_repository_blocks_are_counted_once_each(store: Backend) -> None:
    async def block(name: str, value: bytes | None, **more: Any) -> Mapping[str, bytes]:
        await store.end(ending(marks=(), blocks={name: value}, wide="b:w:acme", **more))
        return await fields(store, "b:")

    first = {"b:r:acme/app": b"one"}
    assert await block("b:r:acme/app", b"one") == {**first, "b:w:acme": b"1"}
    assert await block("b:r:acme/app", b"two") == {"b:r:acme/app": b"two", "b:w:acme": b"1"}
    two = await block("b:r:acme/lib", b"three")
    assert two == {"b:r:acme/app": b"two", "b:r:acme/lib": b"three", "b:w:acme": b"2"}
    # Lifting what is not blocked does not count, nor does what is no repository of this owner.
    assert await block("b:r:acme/none", None) == two
    assert await block("b:r:acme/none", None, must_exist="b:r:acme/none") == two
    assert await block("b:o:acme", b"all of it") == {**two, "b:o:acme": b"all of it"}
    assert await block("b:r:acme-two/app", b"x") == {
        **two,
        "b:o:acme": b"all of it",
        "b:r:acme-two/app": b"x",
    }
    assert (await block("b:r:acme/app", None))["b:w:acme"] == b"1"
    left = await block("b:r:acme/lib", None)
    assert set(left) == {"b:o:acme", "b:r:acme-two/app"}
    assert set(await block("b:r:acme/lib", None)) == set(left)


async def test_concurrent_blocks_are_counted_right(open_backend: OpenBackend) -> None:
    one, two = await open_backend(), await open_backend()
    await started(one)

    def put(number: int, value: bytes | None) -> Awaitable[object]:
        args = ending(marks=(), blocks={f"b:r:acme/r{number % 10}": value}, wide="b:w:acme", audit=None)
        return (one if number % 3 else two).end(args)

    await asyncio.gather(*(put(number, b"x") for number in range(40)))
    assert (await fields(one, "b:w:"))["b:w:acme"] == b"10"
    assert (await one.read(Want())).epoch == 47
    await asyncio.gather(*(put(number, None) for number in range(27)))
    assert await fields(one, "b:") == {}


async def test_lifting_what_is_not_blocked_changes_nothing(store: Backend) -> None:
    await mint(store)
    args = ending(
        marks=("m:o:acme",), blocks={"b:o:acme": None}, must_exist="b:o:acme", reach="all", wide="b:w:acme"
    )
    assert (await store.end(args)).verdict == "absent"
    assert (await store.read(Want())).epoch == 7
    assert await fields(store, "m:", "b:") == {}
    assert await waiting(store) == []
    assert await events(store) == ["token.minted"]
    await store.end(ending(marks=(), blocks={"b:o:acme": b"sealed"}))
    done = await asyncio.gather(*(store.end(args) for _ in range(5)))
    assert sorted(reply.verdict for reply in done) == ["absent"] * 4 + ["ok"]


# -- whom it reaches -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reach", "shas"),
    [
        ("", []),
        ("all", ["sha-a", "sha-b", "sha-c"]),
        ("o:acme", ["sha-a", "sha-b"]),
        ("o:other", ["sha-c"]),
        ("o:nobody", []),
        ("t:sha-b", ["sha-b"]),
        ("t:sha-x", []),
    ],
)
@pytest.mark.parametrize("only", ["", "acme/app"])
async def test_a_reach_is_put_into_the_outbox(store: Backend, reach: str, shas: list[str], only: str) -> None:
    await mint_some(store, "a", "b")
    await mint_some(store, "c", owner="other")
    reply = await store.end(ending(reach=reach, only=only))
    assert sorted(reply.shas) == shas
    assert await waiting(store) == [(sha, only) for sha in shas]
    for entry in await store.outbox(None, limit=10):
        name = entry.sha.removeprefix("sha-")
        assert entry == OutboxEntry(
            sha=entry.sha,
            only=only,
            note=NOTE,
            owner="other" if name == "c" else "acme",
            scope=f"scope-{name}",
            blob=b"blob " + name.encode(),
            expires_at=pytest.approx(time.time() + 3600, abs=30),  # type: ignore[arg-type]
        )


async def test_expired_tokens_are_left_alone(store: Backend) -> None:
    now = time.time()
    await mint_some(store, "live")
    await mint_some(store, "just", expires_at=now - 20)
    await mint_some(store, "dead", expires_at=now - 120)
    assert sorted((await store.end(ending(reach="o:acme"))).shas) == ["sha-just", "sha-live"]
    assert sorted((await store.end(ending(reach="all"))).shas) == ["sha-just", "sha-live"]
    assert (await store.end(ending(reach="t:sha-dead"))).shas == ()
    assert [entry.sha for entry in await store.outbox(None, limit=9)] == ["sha-just", "sha-live"]


async def test_one_token_ends_for_all_who_hold_it(store: Backend) -> None:
    await mint_some(store, "a", "b")
    assert [await hand(store, "sha-a", key) for key in ("one", "two")] == ["first", "first"]
    reply = await store.end(ending(marks=(), reach="t:sha-a"))
    assert reply.shas == ("sha-a",)
    assert await cached(store, "scope-a") is None
    assert [await hand(store, "sha-a", key) for key in ("one", "two", "three")] == ["gone"] * 3
    assert await cached(store, "scope-b") == b"blob b"
    assert await hand(store, "sha-b", "one") == "first"
    # Not dead yet: it can be named again, and is still among those in reach of all.
    assert (await store.end(ending(reach="t:sha-a"))).shas == ("sha-a",)
    assert sorted((await store.end(ending(reach="all"))).shas) == ["sha-a", "sha-b"]
    # The scope is free for the next mint.
    await mint_some(store, "c", scope="scope-a")
    assert await hand(store, "sha-c", "one") == "first"


async def test_a_newer_token_of_the_same_scope_stays_in_the_cache(store: Backend) -> None:
    await mint_some(store, "old", scope="scope-x")
    await mint_some(store, "new", scope="scope-x")
    assert (await store.end(ending(marks=(), reach="t:sha-old"))).shas == ("sha-old",)
    assert await cached(store, "scope-x") == b"blob new"
    assert await hand(store, "sha-new") == "first"
    assert await hand(store, "sha-old") == "gone"


async def test_ten_thousand_tokens_end_in_one_step(store: Backend) -> None:
    expires_at = time.time() + 3000
    for start in range(0, MANY, 200):
        names = (f"{number:05}" for number in range(start, start + 200))
        await mint_some(store, *names, expires_at=expires_at)
    begin = time.monotonic()
    reply = await store.end(ending(reach="all"))
    took_s = time.monotonic() - begin
    assert len(set(reply.shas)) == MANY
    assert took_s < 8  # an admin is answered within 10 s; where nothing else runs it takes well under 1
    assert len(await store.outbox(None, limit=50)) == 50
    assert len(await store.outbox(reply.shas[:1000], limit=2000)) == 1000
    (last,) = await store.outbox(reply.shas[-1:], limit=50)
    assert last.blob is not None
    assert (await store.read(Want())).epoch == 8


# -- KEY WRITE with kill -------------------------------------------------------------------------


async def test_a_killed_key_takes_along_what_was_handed_to_it(store: Backend) -> None:
    await store.write_key(keying())
    await mint_some(store, "mine", "shared", "other")
    for sha, key_id in (("mine", "key-1"), ("shared", "key-1"), ("shared", "key-2"), ("other", "key-2")):
        assert await hand(store, f"sha-{sha}", key_id) == "first"
    killing = keying(expected=b"sealed key", blob=b"revoked", audit=row("key.revoked"), kill=NOTE)
    assert (await store.write_key(dataclasses.replace(killing, store_id=OTHER))).verdict == "lost"
    assert (await store.write_key(dataclasses.replace(killing, expected=b"older"))).verdict == "changed"
    assert await waiting(store) == []
    reply = await store.write_key(killing)
    assert (reply.verdict, sorted(reply.shas)) == ("ok", ["sha-mine", "sha-shared"])
    assert await waiting(store) == [("sha-mine", ""), ("sha-shared", "")]
    assert {entry.note for entry in await store.outbox(reply.shas, limit=9)} == {NOTE}
    assert (await store.read(Want())).epoch == 9  # or a hand-out under way would be missed
    assert [await cached(store, f"scope-{name}") for name in ("mine", "shared", "other")] == [
        None,
        None,
        b"blob other",
    ]
    assert await hand(store, "sha-shared", "key-2") == "gone"
    assert await hand(store, "sha-other", "key-2") == "again"
    assert await events(store, event="key.revoked") == ["key.revoked"]


async def test_a_killed_key_leaves_newer_tokens_and_dead_ones(store: Backend) -> None:
    await store.write_key(keying())
    await mint_some(store, "old", scope="scope-x")
    await mint_some(store, "expired", expires_at=time.time() - 120)
    await mint_some(store, "revoked")
    for name in ("old", "expired", "revoked"):
        await hand(store, f"sha-{name}")
    await mint_some(store, "new", scope="scope-x")
    await store.end(ending(marks=(), reach="t:sha-revoked"))
    await store.settle(ID, [("sha-revoked", "", revoked("sha-revoked"))])
    killing = keying(expected=b"sealed key", blob=b"revoked", kill=NOTE)
    assert (await store.write_key(killing)).shas == ("sha-old",)
    assert await cached(store, "scope-x") == b"blob new"
    assert await hand(store, "sha-new", "key-2") == "first"


async def test_a_key_without_tokens_can_be_killed(store: Backend) -> None:
    await store.write_key(keying())
    assert (await store.write_key(keying(expected=b"sealed key", blob=b"x", kill=b""))).verdict == "ok"
    assert await waiting(store) == []


async def test_no_hand_out_escapes_a_kill(open_backend: OpenBackend) -> None:
    """Whatever was handed out is on the list; whatever comes later is refused."""
    one, two = await open_backend(), await open_backend()
    await started(one)
    await one.write_key(keying())
    names = [f"{number}" for number in range(60)]
    await mint_some(one, *names)

    async def try_hand(name: str) -> tuple[str, str]:
        await asyncio.sleep(int(name) / 10_000)
        verdict = await one.hand(
            store_id=ID, epoch=7, sha=f"sha-{name}", key_id="key-1", audit=row("token.issued")
        )
        return f"sha-{name}", verdict

    async def kill() -> tuple[str, ...]:
        await asyncio.sleep(0.003)
        return (await two.write_key(keying(expected=b"sealed key", blob=b"x", kill=NOTE))).shas

    killed, *handed = await asyncio.gather(kill(), *(try_hand(name) for name in names))
    assert {sha for sha, verdict in handed if verdict == "first"} == set(killed)
    assert {verdict for _, verdict in handed} <= {"first", "stale"}


# -- the outbox ----------------------------------------------------------------------------------


async def test_the_outbox_gives_the_oldest_first(store: Backend) -> None:
    now = time.time()
    for name, left_s in (("c", 300), ("a", 100), ("d", 400), ("b", 200)):
        await mint_some(store, name, expires_at=now + left_s)
    assert await store.outbox(None, limit=10) == ()
    await store.end(ending(reach="all"))

    async def shas(of: list[str] | None, limit: int) -> str:
        return "".join(entry.sha.removeprefix("sha-") for entry in await store.outbox(of, limit=limit))

    assert await shas(None, 10) == "abcd"
    assert await shas(None, 2) == "ab"
    assert await shas(["sha-d", "sha-b", "sha-x", "sha-d"], 10) == "bd"
    assert await shas(["sha-d", "sha-b", "sha-c"], 2) == "bc"
    assert await shas([], 10) == ""
    assert await shas(["sha"], 10) == ""


async def test_a_token_may_wait_for_several_reasons(store: Backend) -> None:
    await mint_some(store, "a", "b")
    await store.end(ending(reach="all", only="acme/app", note=b"first"))
    await store.end(ending(reach="t:sha-a", note=b"second"))
    await store.end(ending(reach="o:acme", only="acme/app", note=b"third"))
    assert await waiting(store) == [("sha-a", ""), ("sha-a", "acme/app"), ("sha-b", "acme/app")]
    entries = await store.outbox(["sha-a"], limit=10)
    assert {(entry.only, entry.note) for entry in entries} == {("", b"second"), ("acme/app", b"third")}
    assert await store.settle(ID, [("sha-a", "acme/app", None)]) == 1
    assert await waiting(store) == [("sha-a", ""), ("sha-b", "acme/app")]


async def test_what_is_settled_is_gone_and_written_down_once(open_backend: OpenBackend) -> None:
    one, two = await open_backend(), await open_backend()
    await started(one)
    names = [f"{number:03}" for number in range(250)]
    await mint_some(one, *names)
    shas = (await one.end(ending(reach="all"))).shas
    done = [(sha, "", revoked(sha)) for sha in shas]
    assert await one.settle(OTHER, done) == 0
    assert await one.settle(ID, []) == 0
    counts = await asyncio.gather(one.settle(ID, done), two.settle(ID, done), one.settle(ID, done[:50] * 2))
    assert sum(counts) == 250
    assert await two.outbox(None, limit=10) == ()
    assert len(await events(one, event="token.revoked", limit=1000)) == 250
    assert await one.settle(ID, done) == 0
    assert await events(one, request_id="sha-007") == ["token.revoked"]


async def test_a_revoked_token_is_never_listed_again(store: Backend) -> None:
    await store.write_key(keying())
    await mint_some(store, "dead", "spared")
    for sha in ("sha-dead", "sha-spared"):
        await hand(store, sha)
    await store.end(ending(marks=(), reach="all", only="acme/app"))
    done = [("sha-dead", "acme/app", revoked("sha-dead")), ("sha-spared", "acme/app", None)]
    assert await store.settle(ID, done) == 2
    assert await events(store, event="token.revoked") == ["token.revoked"]
    assert await hand(store, "sha-dead", "key-2") == "gone"
    assert await hand(store, "sha-spared", "key-2") == "first"
    for reach in ("all", "o:acme"):
        assert (await store.end(ending(marks=(), reach=reach))).shas == ("sha-spared",)
    assert (await store.end(ending(marks=(), reach="t:sha-dead"))).shas == ()
    assert await hand(store, "sha-dead") == "gone"
    killing = keying(expected=b"sealed key", blob=b"x", kill=NOTE)
    assert (await store.write_key(killing)).shas == ("sha-spared",)


async def test_a_token_revoked_for_one_reason_may_still_wait_for_another(store: Backend) -> None:
    await mint_some(store, "a")
    await store.end(ending(reach="all", only="acme/app"))
    await store.end(ending(reach="t:sha-a"))
    assert await store.settle(ID, [("sha-a", "acme/app", revoked("sha-a"))]) == 1
    assert await waiting(store) == [("sha-a", "")]
    # Said twice in one breath, it counts once.
    assert await store.settle(ID, [("sha-a", "", revoked("again"))] * 2) == 1
    assert await waiting(store) == []
    assert await events(store, request_id="again") == ["token.revoked"]


async def test_settling_what_never_waited_does_nothing(store: Backend) -> None:
    await mint_some(store, "a")
    done = [("sha-a", "", revoked("sha-a")), ("sha-x", "", revoked("sha-x")), ("sha-x", "", None)]
    assert await store.settle(ID, done) == 0
    assert await events(store) == ["token.minted"]
    assert await hand(store, "sha-a") == "first"


# -- webhooks ------------------------------------------------------------------------------------


@pytest.fixture
def short_memory(monkeypatch: pytest.MonkeyPatch) -> float:
    """Deliveries are known again for 0.3 s; returns how long to sleep until one is forgotten."""
    monkeypatch.setattr("broker.store.redis.HOOK_LIFE_S", 0.3)
    monkeypatch.setattr("broker.store.sqlite.HOOK_LIFE_S", 0.3)
    return 0.4


@pytest.mark.parametrize(("body", "guid"), [("same", "same"), ("same", "other {}"), ("other {}", "same")])
async def test_a_delivery_is_kept_once(open_backend: OpenBackend, body: str, guid: str) -> None:
    """By its id, which GitHub repeats, and by its body, which is all that is signed."""
    one, two = await open_backend(), await open_backend()
    await started(one)
    done = await asyncio.gather(
        *(
            (one if n % 2 else two).hook(
                ID, body_sha=body.format(n), guid=guid.format(n), blob=b"blob %d" % n
            )
            for n in range(50)
        )
    )
    assert sorted(done) == ["ok"] + ["seen"] * 49
    ((_, blob),) = await one.hooks(limit=100)
    assert blob == b"blob %d" % done.index("ok")


async def test_a_delivery_that_was_refused_leaves_no_trace(store: Backend) -> None:
    assert await store.hook(OTHER, body_sha="b1", guid="g1", blob=b"one") == "lost"
    assert await store.hook(ID, body_sha="b1", guid="g1", blob=b"one") == "ok"
    # What was seen by its body must not burn the id that it came with, nor the other way round.
    assert await store.hook(ID, body_sha="b1", guid="g2", blob=b"two") == "seen"
    assert await store.hook(ID, body_sha="b2", guid="g1", blob=b"two") == "seen"
    assert await store.hook(ID, body_sha="b2", guid="g2", blob=b"two") == "ok"
    # Names of ids and bodies do not meet.
    assert await store.hook(ID, body_sha="g1", guid="b1", blob=b"three") == "ok"
    assert [blob for _, blob in await store.hooks(limit=9)] == [b"one", b"two", b"three"]


async def test_deliveries_wait_in_order_until_they_are_done(open_backend: OpenBackend) -> None:
    one = await started(await open_backend())
    for number in range(20):
        await one.hook(ID, body_sha=f"b{number}", guid=f"g{number}", blob=b"\x00%d" % number)
    await one.close()
    two = await open_backend()
    first = await two.hooks(limit=5)
    assert [blob for _, blob in first] == [b"\x00%d" % number for number in range(5)]
    # Reading takes nothing away.
    assert await two.hooks(limit=5) == first
    await two.hooks_done([first[3][0], first[0][0]])
    await two.hooks_done([first[3][0]])
    await two.hooks_done([])
    left = await two.hooks(limit=100)
    assert [blob for _, blob in left] == [b"\x00%d" % n for n in range(20) if n not in {0, 3}]
    await two.hooks_done([place for place, _ in left])
    assert await two.hooks(limit=100) == ()
    # A place is not given twice.
    assert await two.hook(ID, body_sha="b0", guid="g0", blob=b"x") == "seen"
    assert await two.hook(ID, body_sha="new", guid="new", blob=b"x") == "ok"
    ((place, _),) = await two.hooks(limit=100)
    assert place not in {one_place for one_place, _ in (*first, *left)}


async def test_a_delivery_is_forgotten_in_the_end(store: Backend, short_memory: float) -> None:
    assert await store.hook(ID, body_sha="b", guid="g", blob=b"x") == "ok"
    assert await store.hook(ID, body_sha="b", guid="g", blob=b"x") == "seen"
    await asyncio.sleep(short_memory)
    assert await store.hook(ID, body_sha="b", guid="g", blob=b"y") == "ok"
    assert [blob for _, blob in await store.hooks(limit=9)] == [b"x", b"y"]


# -- owners --------------------------------------------------------------------------------------


async def keep_owner(backend: Backend, owner: str, installation_id: int, **changes: Any) -> None:
    lease = f"o:{owner}"
    await backend.lease(ID, lease, "nonce-1")
    pin = await backend.pin(owner)
    epoch = (await backend.read(Want())).epoch
    args = owning(
        owner=owner,
        lease=lease,
        epoch=epoch,
        marks=(f"m:o:{owner}",),
        installation_id=installation_id,
        blob=b"sealed " + owner.encode(),
        expected_pin=pin,
        pin=pin or b"pin of " + owner.encode(),
    )
    assert await backend.put_owner(dataclasses.replace(args, **changes)) == "ok"


async def test_an_installation_finds_its_owner(store: Backend) -> None:
    assert await store.owner_of(42) is None
    await keep_owner(store, "acme", 42)
    await keep_owner(store, "other", 43)
    assert [await store.owner_of(number) for number in (42, 43, 44)] == ["acme", "other", None]
    # Installed anew: the old id stands for nobody.
    await keep_owner(store, "acme", 77)
    assert [await store.owner_of(number) for number in (42, 77)] == [None, "acme"]
    # Renamed: the id stands for the new name, also when the old one is forgotten or installs anew.
    await keep_owner(store, "acme-two", 77)
    assert await store.owner_of(77) == "acme-two"
    await keep_owner(store, "acme", 77, blob=None)
    assert await store.owner_of(77) == "acme-two"
    await keep_owner(store, "acme", 78)
    assert [await store.owner_of(number) for number in (77, 78)] == ["acme-two", "acme"]
    # It does not go back to the old name by itself.
    await keep_owner(store, "acme-three", 78)
    await keep_owner(store, "acme-three", 78, blob=None)
    assert await store.owner_of(78) is None


@pytest.mark.parametrize("told", [42, 0])
async def test_a_forgotten_owner_has_no_installation(store: Backend, told: int) -> None:
    await keep_owner(store, "acme", 42)
    await keep_owner(store, "acme", told, blob=None)
    assert await store.owner_of(42) is None
    assert await store.owners(cursor=None, limit=9) == ((), None)


async def test_owners_are_listed_with_their_live_tokens(store: Backend) -> None:
    names = ["acme", "acme-two", "acme0", "b", "b-c", "b_d", "zz"]
    for number, owner in enumerate(reversed(names)):
        await keep_owner(store, owner, number)
    await mint_some(store, "1", "2", "3")
    await mint_some(store, "4", owner="zz")
    await mint_some(store, "5", owner="zz", expires_at=time.time() - 10)
    await mint_some(store, "6", owner="unknown")
    found: list[OwnerRow] = []
    cursor: str | None = None
    while True:
        rows, cursor = await store.owners(cursor=cursor, limit=3)
        found += rows
        if cursor is None:
            break
        assert len(rows) == 3
    assert [each.owner for each in found] == names
    assert found[0] == OwnerRow("acme", b"sealed acme", 3)
    assert [each.live for each in found] == [3, 0, 0, 0, 0, 0, 1]
    # What is ended lives until GitHub said so.
    await store.end(ending(reach="all"))
    await store.settle(ID, [("sha-1", "", revoked("sha-1")), ("sha-2", "", None)])
    rows, cursor = await store.owners(cursor=None, limit=1)
    assert (rows[0].live, cursor) == (2, "acme")
    assert await store.owners(cursor="zz", limit=9) == ((), None)


async def test_cursors_of_no_owner_are_refused(store: Backend) -> None:
    for cursor in ("", "Acme", "a b", "a\n", "é", "a" * 101):
        with pytest.raises(InvalidRequestError):
            await store.owners(cursor=cursor, limit=1)


async def test_an_accepted_account_starts_anew(store: Backend) -> None:
    await keep_owner(store, "acme", 42)
    lead = await store.acquire(acquiring())

    async def accept(**changes: Any) -> str:
        plain: dict[str, Any] = {
            "store_id": ID,
            "owner": "acme",
            "expected_pin": b"pin of acme",
            "pin": b"accepted",
            "audit": row("owner.accepted", owner="acme"),
        }
        return (await store.accept(**{**plain, **changes})).verdict

    assert await accept(store_id=OTHER) == "lost"
    assert await accept(expected_pin=b"older") == "changed"
    assert await accept(owner="nobody") == "changed"
    assert (await store.read(Want())).epoch == 7
    assert await fields(store, "m:") == {}
    done = await asyncio.gather(*(accept(pin=b"accepted %d" % number) for number in range(10)))
    assert sorted(done) == ["changed"] * 9 + ["ok"]
    assert await store.pin("acme") == b"accepted %d" % done.index("ok")
    assert (await store.read(Want(strings=("O:acme",)))).strings == {}
    assert await store.owner_of(42) is None
    assert await events(store, event="owner.accepted") == ["owner.accepted"]
    # What was under way for the old account is not kept.
    assert (await store.read(Want())).epoch == 8
    assert (await fields(store, "m:"))["m:o:acme"].startswith(b"8:")
    assert await store.commit(committing(epoch=lead.epoch)) == "revoked"
    await store.lease(ID, "o:acme", "nonce-1")
    pin = await store.pin("acme")
    assert await store.put_owner(owning(epoch=7, expected_pin=pin, pin=pin)) == "stale"
    await keep_owner(store, "acme", 43)
    assert await store.owner_of(43) == "acme"


# -- keeping house -------------------------------------------------------------------------------


async def test_sweep_removes_marks_that_end_nothing_any_more(open_backend: OpenBackend) -> None:
    now = int(time.time())
    old = dict.fromkeys(("m:all", "m:o:a", "m:w:a", "m:r:a/b", "f:o:a"), b"7:%d" % (now - 7300))
    old |= {f"m:r:acme/r{number}": b"3:%d" % (now - 10_000) for number in range(700)}
    young = {"m:o:b": b"7:%d" % (now - 7000), "f:o:b": b"7:%d" % now, "m:o:c": b"7:"}
    other = {"b:o:a": b"1:1", "b:w:a": b"1", "gh_offset": b"0.0", "m": b"1:1", "f:a": b"1:1"}
    store = await started(await open_backend(), **old, **young, **other)
    await store.sweep()
    left = dict((await store.load()).fields)
    for name in ("id", "schema", "epoch", "dk:1:ff", *young, *other):
        left.pop(name)
    assert left == {}
    assert (await store.read(Want())).epoch == 7


async def test_sweep_never_removes_a_mark_that_was_set_again(open_backend: OpenBackend) -> None:
    names = tuple(f"m:r:acme/r{number}" for number in range(900))
    one = await started(await open_backend(), **dict.fromkeys(names, b"3:1700000000"))
    two = await open_backend()
    await asyncio.gather(one.sweep(), *(two.end(ending(marks=names[at::9])) for at in range(9)))
    marks = await fields(one, "m:")
    assert set(marks) == set(names)
    assert b"3" not in {mark.partition(b":")[0] for mark in marks.values()}


async def test_sweep_leaves_an_outbox_that_can_be_worked_off(store: Backend) -> None:
    await mint_some(store, "a", "b")
    await store.end(ending(reach="all"))
    await store.hook(ID, body_sha="b", guid="g", blob=b"x")
    await keep_owner(store, "acme", 42)
    await store.sweep()
    assert await waiting(store) == [("sha-a", ""), ("sha-b", "")]
    assert await store.hook(ID, body_sha="b", guid="g", blob=b"x") == "seen"
    assert len(await store.hooks(limit=9)) == 1
    assert await store.owner_of(42) == "acme"
    assert len((await store.owners(cursor=None, limit=9))[0]) == 1
