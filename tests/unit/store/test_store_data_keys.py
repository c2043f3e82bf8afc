"""Which keys open the store: what a reseal dropped stays dropped, and a swap of keys survives an outage."""

import json
import logging
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path

import pytest

from broker.errors import StoreError, StoreLostError, StoreRegressedError
from broker.model import ApiKeyRecord, Role
from broker.ports import AuditEvent, Event, ReadQuery, StoreHealth
from broker.store.adopting import adopt, survey
from broker.store.resealing import reseal
from broker.store.seal import KeyEncryptionKey, Kind, Sealer
from broker.store.sealed import SealedStore, identity, open_all
from broker.store.sqlite import SqliteBackend

OLD, NEW, THIRD = (KeyEncryptionKey.of_secret(one * 32, origin="a test") for one in (b"x", b"y", b"z"))
FORGED = ApiKeyRecord(
    id="B" * 12,
    sha256="f" * 64,
    name="forged",
    role=Role.ADMIN,
    repositories=("*/*",),
    permissions=("contents", "metadata"),
    created_at=1,
    created_by="nobody",
)


@pytest.fixture
async def raw(tmp_path: Path) -> AsyncIterator[SqliteBackend]:
    backend = SqliteBackend(tmp_path / "broker.db")
    await backend.connect()
    yield backend
    await backend.close()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SealedStore]:
    """A process that has made the store and seen it."""
    made = SealedStore(SqliteBackend(tmp_path / "broker.db"), [OLD])
    await made.open()
    await made.read(ReadQuery())
    yield made
    await made.close()


async def forge(tmp_path: Path, store: SealedStore, raw: SqliteBackend, *, last: bool) -> None:
    """Do the runbook of a leaked dump; then forge as who read the store in the midst of it.

    ``last``: with its last step, another wrapping key.
    """
    state = await raw.load()
    store_id = identity(state)
    leaked = open_all(state, store_id, [OLD])[1]
    await store.use_keks([NEW])
    await store.forget_key(OLD.fingerprint)
    wrap = (await raw.load()).fields[NEW.field(1)]
    assert (await reseal(raw, [NEW], grace_s=0)).number == 2
    await store.read(ReadQuery())  # learns of it
    if last:
        await store.use_keks([THIRD])
        await store.forget_key(NEW.fingerprint)
    blob = Sealer(store_id, {1: leaked}).seal(Kind.KEY, FORGED.id, json.dumps(asdict(FORGED)).encode())
    db = sqlite3.connect(tmp_path / "broker.db")
    db.execute("INSERT INTO state VALUES (?, ?)", (NEW.field(1), wrap))
    db.execute("UPDATE state SET value = ? WHERE name = 'data_keys'", (b"1,2",))
    db.execute("INSERT INTO keys VALUES (?, ?, ?, ?)", (FORGED.id, blob, None, 99))
    db.commit()
    db.close()


async def test_a_data_key_that_was_dropped_opens_nothing_again(
    tmp_path: Path, store: SealedStore, raw: SqliteBackend, caplog: pytest.LogCaptureFixture
) -> None:
    await forge(tmp_path, store, raw, last=False)
    for _ in range(2):
        with pytest.raises(StoreLostError, match="does not open"):
            (await store.read(ReadQuery(FORGED.id))).key()
    told = [one for one in caplog.records if "reseal dropped are in the store again" in one.message]
    assert [one.levelno for one in told] == [logging.CRITICAL]  # once, not with each look
    await store.read(ReadQuery())  # whoever asks for something else is served
    await store.use_keks([NEW, THIRD])  # and it gets no wrap by a new key
    assert THIRD.field(1) not in (await raw.load()).fields
    assert THIRD.field(2) in (await raw.load()).fields


async def test_an_operator_may_accept_a_copy_from_before_a_reseal(
    tmp_path: Path, store: SealedStore, raw: SqliteBackend
) -> None:
    await forge(tmp_path, store, raw, last=False)
    await adopt(raw, [NEW], await survey(raw, [NEW]))
    await store._attach()
    assert (await store.read(ReadQuery(FORGED.id))).key() == FORGED


async def test_after_the_runbook_a_fresh_process_takes_no_forged_record(
    tmp_path: Path, store: SealedStore, raw: SqliteBackend
) -> None:
    await forge(tmp_path, store, raw, last=True)
    fresh = SealedStore(SqliteBackend(tmp_path / "broker.db"), [THIRD])
    await fresh.open()
    with pytest.raises(StoreError, match=r"data key 1 is wrapped by"):
        await fresh.read(ReadQuery(FORGED.id))
    await fresh.close()


async def test_keys_swapped_while_the_store_is_away_open_it_when_it_is_back(
    store: SealedStore, raw: SqliteBackend
) -> None:
    store._detach(StoreRegressedError("the moment after a failover"))
    assert store.health is StoreHealth.LOST
    await store.use_keks([NEW])
    await store.read(ReadQuery())
    assert store.keks == (NEW,)
    assert NEW.field(1) in (await raw.load()).fields
    await store.forget_key(OLD.fingerprint)  # configured no more
    store._detach(StoreRegressedError("again"))
    await store._attach()
    await store.read(ReadQuery())
    assert OLD.field(1) not in (await raw.load()).fields


async def test_keys_swapped_in_an_outage_are_not_lost_with_the_first_try(
    store: SealedStore, raw: SqliteBackend
) -> None:
    store._detach(StoreRegressedError("the moment after a failover"))
    store._quiet_until = float("inf")  # other brokers mend
    for keks in ([NEW], [THIRD]):
        with pytest.raises(StoreRegressedError):
            await store.use_keks(keks)
    store._quiet_until = 0.0
    await store._attach()  # as the next look does
    fields = (await raw.load()).fields
    assert (THIRD.field(1) in fields, NEW.field(1) in fields) == (True, False)
    await store.create_key(FORGED, AuditEvent(Event.KEY_CREATED, key_id=FORGED.id))
