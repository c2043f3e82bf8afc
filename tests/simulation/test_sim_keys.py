"""The register of keys, write by write: what crosses, what has no answer, what is refused."""

from dataclasses import replace
from typing import Any

import pytest
from sim_bench import ADMIN, Bench, Process, failing

from broker.errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    StoreLostError,
    StoreUnavailableError,
)
from broker.issuing.keys import KeyChange, KeyPolicy, KeyRegister
from broker.model import ApiKeyRecord, Role
from broker.ports import AuditEvent, KeyEntry

POLICY = KeyPolicy("nightly", Role.CALLER, ("acme/*",), ("contents", "metadata"), 60)


def register_of(process: Process, *, bootstrap_id: str | None = None) -> tuple[KeyRegister, list[AuditEvent]]:
    """Return the use case, and the list that its lines of the log go to."""
    lines: list[AuditEvent] = []
    return KeyRegister(process.store, bootstrap_id=bootstrap_id, log=lines.append), lines


async def made(register: KeyRegister, **more: Any) -> ApiKeyRecord:
    return (await register.create(POLICY, by="ops", actor=ADMIN, **more))[1]


async def records(register: KeyRegister) -> list[ApiKeyRecord]:
    return [entry.record for entry in (await register.list(cursor=None, limit=50)).items]


def crossing(process: Process, change: KeyChange, *, times: int = 1) -> Any:
    """Return a KEY WRITE before which somebody else changes that key."""
    other = KeyRegister(process.sealed)
    left = times

    async def write_key(before: KeyEntry, *arguments: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            await other.change(before.record.id, change, by="another admin", actor=ADMIN)
        return await process.sealed.write_key(before, *arguments, **named)

    return write_key


def names(lines: list[AuditEvent]) -> list[str]:
    return [str(line.event) for line in lines]


def test_a_policy_is_checked() -> None:
    """An admin may have no repositories, or some; a caller must."""

    def parsed(role: Role, *patterns: str, name: str = "x") -> tuple[str, ...]:
        return KeyPolicy.parse(
            name=name, role=role, repositories=patterns, permissions=None, rate_limit_per_minute=None
        ).repositories

    assert parsed(Role.ADMIN) == ()
    assert parsed(Role.ADMIN, "Acme/*") == parsed(Role.CALLER, "Acme/*") == ("acme/*",)
    with pytest.raises(InvalidRequestError):
        parsed(Role.CALLER)
    with pytest.raises(InvalidRequestError) as refused:
        parsed(Role.CALLER, "acme/*", name="")
    assert refused.value.public.startswith("name:")


# -- making and changing ---------------------------------------------------------------------------


def test_a_key_that_would_have_ended_is_not_made_nor_changed_so(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        register, lines = register_of(one)
        now = int(await register._time())
        for ended in (now - 1, now):
            with pytest.raises(InvalidRequestError):
                await made(register, expires_at=ended)
        with pytest.raises(InvalidRequestError):
            await made(register, expires_in_s=-1)
        record = await made(register, expires_at=now + 5)
        assert record.expires_at == now + 5
        for ended in (now - 1, now):
            with pytest.raises(InvalidRequestError):
                await register.change(record.id, KeyChange(expires_at=ended), by="ops", actor=ADMIN)
        later = await register.change(record.id, KeyChange(expires_at=None), by="ops", actor=ADMIN)
        assert later.expires_at is None
        assert (await made(register, expires_in_s=90)).expires_at in {now + 90, now + 91}
        assert names(lines) == ["key.created", "key.changed", "key.created"]

    bench.play(story())


def test_what_is_said_of_changes(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        register, lines = register_of(one)
        record = await made(register)
        await register.change(record.id, KeyChange(name="hourly"), by="b" * 300, actor=ADMIN)
        await register.revoke(record.id, by="broker keys revoke")
        who = {"key_id": record.id, "request_id": "request-1", "client_ip": "192.0.2.1"}
        (created,) = await one.events("key.created")
        assert created == {"event": "key.created", **who, "key_name": "nightly", "reason": "by ops"}
        (changed,) = await one.events("key.changed")
        assert changed["key_name"] == "hourly"
        assert changed["reason"] == "by " + "b" * 197
        (revoked,) = await one.events("key.revoked")
        assert revoked == {
            "event": "key.revoked", "key_id": record.id, "key_name": "hourly",
            "reason": "by broker keys revoke",
        }  # fmt: skip
        assert names(lines) == ["key.created", "key.changed", "key.revoked"]

    bench.play(story())


@pytest.mark.parametrize("verb", ["change", "rotate", "revoke"])
def test_a_record_that_keeps_changing_is_given_up(bench: Bench, verb: str) -> None:
    async def story() -> None:
        one = await bench.process()
        register, lines = register_of(one)
        record = await made(register)
        one.store_does(
            write_key=crossing(one, KeyChange(name="n"), times=10 if verb != "rotate" else 1 << 30)
        )
        if verb == "rotate":  # the copies that are revoked on the way are written without being crossed
            write = one.store._instead["write_key"]

            async def write_key(before: KeyEntry, *arguments: Any, **named: Any) -> Any:
                call = write if before.record.id == record.id else one.sealed.write_key
                return await call(before, *arguments, **named)

            one.store_does(write_key=write_key)
        calls = {
            "change": lambda: register.change(record.id, KeyChange(name="x"), by="ops", actor=ADMIN),
            "rotate": lambda: register.rotate(record.id, overlap_s=0, by="ops", actor=ADMIN),
            "revoke": lambda: register.revoke(record.id, by="ops"),
        }
        lines.clear()
        with pytest.raises(StoreUnavailableError) as given_up:
            await calls[verb]()
        assert given_up.value.retry_after_s == 1.0
        if verb == "rotate":
            copies = [each for each in await records(register) if each.id != record.id]
            assert len(copies) == 10
            assert all(each.revoked_at is not None for each in copies)
            assert names(lines) == ["key.created", "key.revoked"] * 10
        else:
            assert lines == []
            await calls[verb]()  # nobody crosses it now
            assert len(lines) == 1

    bench.play(story())


def test_what_is_not_there_or_not_ours_to_change(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        register, lines = register_of(one, bootstrap_id="b" * 12)
        calls = (
            lambda key_id: register.change(key_id, KeyChange(name="x"), by="ops", actor=ADMIN),
            lambda key_id: register.rotate(key_id, overlap_s=0, by="ops", actor=ADMIN),
            lambda key_id: register.revoke(key_id, by="ops"),
        )
        for call in calls:
            with pytest.raises(NotFoundError):
                await call("0" * 12)
            with pytest.raises(ConflictError, match="BROKER_ADMIN_KEY"):
                await call("b" * 12)
        register.use_bootstrap("c" * 12)
        with pytest.raises(NotFoundError):
            await calls[0]("b" * 12)
        with pytest.raises(ConflictError):
            await calls[0]("c" * 12)
        revoked = await made(register)
        await register.revoke(revoked.id, by="ops")
        for call in calls[:2]:
            with pytest.raises(ConflictError, match="revoked"):
                await call(revoked.id)
        caller = await made(register)
        with pytest.raises(InvalidRequestError):
            await register.change(caller.id, KeyChange(repositories=()), by="ops", actor=ADMIN)
        assert names(lines) == ["key.created", "key.revoked", "key.created"]

    bench.play(story())


def test_a_key_is_revoked_again_at_the_time_of_the_first(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        register, _ = register_of(one)
        key = await one.key("acme/*")
        sha256 = (await one.issue(key, "widgets")).token.sha256
        assert await register.revoke(key.id, by="ops") == ()
        first = (await register.show(key.id)).record
        await one.rooms.auditor.flush(everything=True)
        assert await register.revoke(key.id, by="ops", kill=True) == (sha256,)
        again = (await register.show(key.id)).record
        assert again == replace(first, version=first.version + 1)

    bench.play(story())


# -- rotating --------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap_s", [0, 60])
def test_a_rotation_copies_what_is_there_when_the_old_key_ends(bench: Bench, overlap_s: int) -> None:
    """Somebody narrows the key in that very moment: the copy of the wide one ends, a narrow one is made."""

    async def story() -> None:
        one = await bench.process()
        register, lines = register_of(one)
        old = await made(register, expires_in_s=3600)
        lines.clear()
        one.store_does(write_key=crossing(one, KeyChange(repositories=("acme/widgets",))))
        _, new = await register.rotate(old.id, overlap_s=overlap_s, by="ops", actor=ADMIN)
        assert new.repositories == ("acme/widgets",)
        assert new.expires_at == old.expires_at
        by_id = {each.id: each for each in await records(register)}
        (copy,) = set(by_id) - {old.id, new.id}
        assert (by_id[copy].repositories, by_id[copy].revoked_at is None) == (("acme/*",), False)
        assert by_id[old.id].repositories == ("acme/widgets",)
        ended = by_id[old.id]
        if overlap_s:
            assert ended.revoked_at is None
            assert ended.expires_at is not None
            assert 59 <= ended.expires_at - one.sealed.now() <= 61
        else:
            assert ended.revoked_at is not None
        assert names(lines) == ["key.created", "key.revoked", "key.created", "key.rotated"]
        assert {(line.request_id, line.reason) for line in lines} == {("request-1", "by ops")}

    bench.play(story())


def test_an_overlap_ends_no_later_than_the_key(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        register, _ = register_of(one)
        old = await made(register, expires_in_s=30)
        await register.rotate(old.id, overlap_s=60, by="ops", actor=ADMIN)
        assert (await register.show(old.id)).record.expires_at == old.expires_at

    bench.play(story())


@pytest.mark.parametrize("done", [True, False], ids=["done", "not done"])
def test_a_last_step_without_an_answer_is_written_again_until_it_is_known(
    bench: Bench, *, done: bool
) -> None:
    async def story() -> None:
        one = await bench.process()
        register, lines = register_of(one)
        old = await made(register)
        lines.clear()
        tries = 0

        async def write_key(before: KeyEntry, *arguments: Any, **named: Any) -> Any:
            nonlocal tries
            tries += 1
            if tries > 3:
                return await one.sealed.write_key(before, *arguments, **named)
            if done:
                await one.sealed.write_key(before, *arguments, **named)
            raise StoreUnavailableError("the answer is lost")

        one.store_does(write_key=write_key)
        began = bench.loop.time()
        _, new = await register.rotate(old.id, overlap_s=0, by="ops", actor=ADMIN)
        assert 0.7 < bench.loop.time() - began < 1
        assert {each.id for each in await records(register)} == {old.id, new.id}
        assert names(lines) == ["key.created", "key.rotated"]

    bench.play(story())


def test_a_last_step_that_gets_no_answer_for_long_leaves_no_copy(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        register, lines = register_of(one)
        old = await made(register)
        lines.clear()
        away = failing(StoreUnavailableError("away"))

        async def write_key(before: KeyEntry, *arguments: Any, **named: Any) -> Any:
            call = away if before.record.id == old.id else one.sealed.write_key
            return await call(before, *arguments, **named)

        one.store_does(write_key=write_key)
        began = bench.loop.time()
        with pytest.raises(StoreUnavailableError):
            await register.rotate(old.id, overlap_s=0, by="ops", actor=ADMIN)
        assert 2.9 < bench.loop.time() - began < 3.5
        (copy,) = [each for each in await records(register) if each.id != old.id]
        assert copy.revoked_at is not None
        assert (await register.show(old.id)).record == old
        assert [(str(line.event), line.request_id, line.reason) for line in lines] == [
            ("key.created", "request-1", "by ops"),
            ("key.revoked", "request-1", "by ops"),
        ]
        one.store._instead.clear()
        await register.rotate(old.id, overlap_s=0, by="ops", actor=ADMIN)

    bench.play(story())


def test_another_store_is_no_answer_to_wait_for(bench: Bench) -> None:
    async def story() -> None:
        one = await bench.process()
        register, _ = register_of(one)
        old = await made(register)
        one.store_does(write_key=failing(StoreLostError("emptied")))
        began = bench.loop.time()
        with pytest.raises(StoreLostError):
            await register.rotate(old.id, overlap_s=0, by="ops", actor=ADMIN)
        assert bench.loop.time() - began < 1

    bench.play(story())
