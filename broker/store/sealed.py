"""The store as the use cases see it: opens and seals around a raw backend; I/O through it only.

Decisions that need a secret are made here, in Python; decisions that need atomicity are made by the
backend in one step. Every reply is opened with the identity that was asked for.

A process attaches to a store once it has seen its id and opened its data key, and accepts no other
store afterwards. While it is not attached every verb raises, and a background task tries again.
"""

import asyncio
import contextlib
import json
import logging
import secrets
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any, Final

from broker.errors import (
    ConflictError,
    NotFoundError,
    OvertakenError,
    StoreError,
    StoreLostError,
    StoreRegressedError,
    StoreUnavailableError,
)
from broker.model import (
    ApiKeyRecord,
    Failure,
    Installation,
    LiveToken,
    Role,
    Scope,
    Secret,
    Target,
    TargetKind,
)
from broker.ports import (
    Acquired,
    AuditEvent,
    AuditFilter,
    AuditRow,
    BlockEntry,
    Changed,
    CommitResult,
    Counts,
    Doomed,
    Ended,
    EndKind,
    HandResult,
    HookWork,
    KeyEntry,
    Lead,
    MintBudget,
    OverBudget,
    OwnerEntry,
    Page,
    Paused,
    ReadQuery,
    Snapshot,
    StoreHealth,
    Wait,
)
from broker.store.backend import (
    AcquireArgs,
    AuditWant,
    Backend,
    CommitArgs,
    EndArgs,
    EndReply,
    KeyWriteArgs,
    OutboxEntry,
    OwnerArgs,
    Row,
    State,
    View,
    Want,
    epoch_of,
)
from broker.store.memory import REMEMBERED_S, EndWritten, KeyWritten, Memory, OwnerAccepted, What
from broker.store.seal import (
    WRAP_PREFIX,
    KeyEncryptionKey,
    Kind,
    Sealer,
    SealError,
    new_data_key,
    open_data_keys,
    wrap_numbers,
)
from broker.wording import MAX_TEXT, audit_body

_log = logging.getLogger(__name__)

SCHEMA: Final = b"1"
KEY_AFTERLIFE_S: Final = 30 * 86400
_HEAL_EVERY_S: Final = 1.0
_VERSIONS_REMEMBERED: Final = 20_000
_PIN_ATTEMPTS: Final = 3
_ADOPTION_SLACK_S: Final = 300.0
"""So far apart may the clocks of two stores be."""
DATA_KEYS: Final = "data_keys"
"""The field that says which data keys there are, so that every read notices a change; itself not sealed."""
MENDED: Final = "mended"
"""The field that tells every process that one of them found the store gone back."""
_OTHERS_MEND_S: Final = 3.0
_OF_ADMINS: Final = frozenset({EndKind.REVOKE, EndKind.BLOCK, EndKind.UNBLOCK})
"""Endings that are acknowledged to somebody; the others only make the broker look again."""


class SealedStore:
    """``Store`` over a ``Backend``.

    Args:
        backend: the raw store.
        keks: keys that wrap the data key; the first that opens it is enough, all get a wrap.
    """

    def __init__(self, backend: Backend, keks: Sequence[KeyEncryptionKey]) -> None:
        self._backend = backend
        self._keks = tuple(keks)
        self._former: tuple[KeyEncryptionKey, ...] = ()
        self._sealer: Sealer | None = None
        self._store_id: bytes | None = None
        self._me = f"w:{secrets.token_hex(8)}"
        self._always = (self._me, DATA_KEYS, MENDED)
        self._memory = Memory()
        self._versions: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._adopted_at = 0.0
        self._data_keys: bytes | None = None
        self._least_data_key = 0
        self._dropped: set[int] = set()
        self._mended: bytes | None = None
        self._quiet_until = 0.0
        self._warned = False
        self._renewed_at = -_HEAL_EVERY_S
        self._heal: asyncio.Task[None] | None = None
        self._attaching = asyncio.Lock()
        self._renewing = asyncio.Lock()
        self._trusted: _Trusted | None = None
        self._read_now = 0.0
        self._read_at = 0.0
        self._generation = 0
        self._trouble: StoreError = StoreUnavailableError("the store has not answered yet")
        self.health = StoreHealth.DOWN
        self.answered_once = False

    # -- attaching -------------------------------------------------------------------------------

    async def open(self) -> None:
        """Attach, or begin to try again each second; does not raise."""
        with contextlib.suppress(StoreError):
            await self._attach()
        self._heal = asyncio.create_task(self._keep_attached(), name="store-heal")

    async def close(self) -> None:
        """Stop trying, close the backend."""
        if self._heal is not None:
            self._heal.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._heal
        await self._backend.close()

    async def _keep_attached(self) -> None:
        while True:
            await asyncio.sleep(_HEAL_EVERY_S)
            try:
                if self._sealer is None or self.health in {StoreHealth.DOWN, StoreHealth.LOST}:
                    await self._attach()
                else:
                    await self._look()
            except StoreError:
                pass  # told already, by whoever detached
            except Exception:  # noqa: BLE001 - the next look may find it well
                _log.exception("looking after the store failed")

    async def _look(self) -> None:
        """See what nobody asks for: whether the store is there, takes writes, and was adopted."""
        store_id, _ = self._attached()
        seen = await self.read(ReadQuery(), more=tuple(kek.adoption for kek in self._keks))
        adopted_at = self._adoption(seen.fields, store_id)
        if adopted_at is not None:
            self._adopt(adopted_at)
        if not self._warned:
            for warning in await self._backend.warnings():
                _log.warning("%s", warning)
            self._warned = True
        try:
            await self._backend.probe()
        except StoreUnavailableError as error:
            if self.health is StoreHealth.OK:
                _log.error("store takes no writes", extra={"cause": str(error)})
                self.health = StoreHealth.READ_ONLY
        else:
            if self.health is StoreHealth.READ_ONLY:
                _log.info("store takes writes again")
                self.health = StoreHealth.OK

    async def _attach(self) -> None:
        """See whether this is our store, open its data keys, leave wraps for every configured KEK.

        Raises:
            StoreUnavailableError: it does not answer.
            StoreLostError: it is not our store, or no configured key opens it.
        """
        async with self._attaching:
            try:
                await self._backend.connect()
                asked_at = asyncio.get_running_loop().time()
                state = await self._backend.load()
                if not state.fields and state.keys_id is None and not state.holds_keys:
                    await self._create()
                    state = await self._backend.load()
                store_id = identity(state)
                adopted_at = self._adoption(state.fields, store_id)
                if self._store_id not in {None, store_id} and adopted_at is None:
                    raise StoreLostError(
                        "this is another store than the one this process has seen; if that is meant, run "
                        "`broker store adopt`"
                    )
                least = self._least_data_key if self._store_id == store_id and adopted_at is None else 0
                data_keys = open_all(state, store_id, self._opening, least=least)
                self._warn_of_dropped(state, least)
                sealer = Sealer(store_id, data_keys)
                if self._store_id not in {None, store_id}:
                    self._memory = Memory()
                await self._settle_past(state, store_id, sealer, asked_at, adopted=adopted_at is not None)
                if self._store_id == store_id and state.fields.get(MENDED) not in {None, self._mended}:
                    self._wait_for_others(state.fields[MENDED])
                if asyncio.get_running_loop().time() < self._quiet_until:
                    raise StoreRegressedError("the store went back; other brokers mend what they know of it")
                await self._share_wraps(state, store_id, data_keys)
                if adopted_at is not None:
                    self._adopt(adopted_at)
            except StoreError as error:
                self._detach(error)
                raise
            if self._store_id != store_id:
                self._mended = state.fields.get(MENDED)
            self._store_id = store_id
            self._sealer = sealer
            self._former = ()
            self._least_data_key = min(data_keys)
            self._data_keys = state.fields.get(DATA_KEYS)
            if self.health is not StoreHealth.OK:
                _log.info("store attached", extra={"store_id": store_id.decode("ascii", "replace")})
            self.health = StoreHealth.OK
            self.answered_once = True

    @property
    def _opening(self) -> tuple[KeyEncryptionKey, ...]:
        """The keys that may open the store: until it is attached, those configured before as well."""
        return (*self._keks, *self._former)

    def _warn_of_dropped(self, state: State, least: int) -> None:
        """Tell, once, of data keys that are in the store again after a reseal had dropped them.

        Somebody who has such a key and has kept a wrap of it could forge records with it.
        """
        numbers = wrap_numbers({**state.fields, **state.key_wraps})
        dropped = {number for number in numbers if number < least}
        if dropped - self._dropped:
            _log.critical(
                "data keys that a reseal dropped are in the store again; they open nothing. If it went back, "
                "run `broker store reseal` again",
                extra={"numbers": sorted(dropped), "least": least},
            )
        self._dropped = dropped

    async def _create(self) -> None:
        if self._store_id is not None:
            raise StoreLostError(
                "the store is empty, but this process has seen it with data; restore it, or begin anew "
                "without keys: `broker store adopt --begin-anew`"
            )
        await create(self._backend, self._keks)

    async def _share_wraps(self, state: State, store_id: bytes, data_keys: Mapping[int, bytes]) -> None:
        """Leave a wrap of every data key for every configured KEK, in both places."""
        missing = {
            kek.field(number): kek.wrap(number, data_key, store_id)
            for number, data_key in data_keys.items()
            for kek in self._keks
            if kek.field(number) not in state.fields or kek.field(number) not in state.key_wraps
        }
        if missing and not await self._backend.add_wraps(store_id, missing):
            raise StoreLostError("the store changed its identity while it was opened")

    # -- a store that went back, or was adopted --------------------------------------------------

    def _adoption(self, fields: Mapping[str, bytes], store_id: bytes) -> float | None:
        """Return when an operator adopted the store, if that is news to this process.

        Who can write to the store could put back an old copy with an old adoption in it. So one counts only
        if it was made after the one that this process knows, and about when it last read the store or later.
        """
        found = 0.0
        for kek in self._opening:
            with contextlib.suppress(KeyError, SealError):
                found = max(found, kek.adopted_at(fields[kek.adoption], store_id))
        if self._store_id is None:
            self._adopted_at = max(self._adopted_at, found)  # a fresh process takes the store as it is
        news = found > self._adopted_at and found > self._read_now - _ADOPTION_SLACK_S
        return found if news else None

    def _adopt(self, adopted_at: float) -> None:
        """Believe what the store holds, also where it is older than what this process has seen."""
        self._adopted_at = adopted_at
        self._generation += 1
        self._versions.clear()
        _log.warning("store adopted by an operator", extra={"adopted_at": adopted_at})

    async def _settle_past(
        self, state: State, store_id: bytes, sealer: Sealer, asked_at: float, *, adopted: bool
    ) -> None:
        """Write again what the store has lost of what this process acknowledged.

        Raises:
            StoreRegressedError: more is gone than this process could know of, and nobody adopted it.
        """
        epoch, witness = _epoch(state), epoch_of(state.fields.get(self._me, b"0"))
        now = asyncio.get_running_loop().time()
        if self._memory.went_back(epoch, witness, asked_at) and not (
            adopted or self._memory.covers(epoch, now)
        ):
            raise StoreRegressedError(
                f"the store went back from epoch {self._memory.highest} to {epoch}, by more than "
                f"{REMEMBERED_S / 60:.0f} minutes (an old backup?): what was revoked since lives again in "
                "it. Restore a newer one, or accept it as it is with `broker store adopt`"
            )
        missing = self._memory.missing(witness, asked_at)
        if not missing and epoch >= self._memory.highest:
            self._memory.saw(epoch, now)
            return
        # First the epoch: what is written again must be above all that was handed out or minted before.
        least = self._memory.highest + 1
        mended = secrets.token_hex(8).encode()
        fields = {"epoch": b"%d" % least, MENDED: mended}
        if not await self._backend.mend((store_id, store_id), store_id, fields):
            raise StoreLostError("the store changed its identity while it was repaired")
        self._wait_for_others(mended)
        for decision in missing:
            written = await self._write_again(decision.what, store_id, sealer)
            self._memory.written_again(decision, written, asyncio.get_running_loop().time())
        _log.critical(
            "the store had lost what was acknowledged; written again",
            extra={
                "from_epoch": self._memory.highest,
                "to_epoch": epoch,
                "written_again": [str(one.what) for one in missing],
            },
        )
        self._memory.saw(least, asyncio.get_running_loop().time())

    def _wait_for_others(self, mended: bytes | None) -> None:
        """Serve nobody for some seconds: other processes have to write again what they acknowledged."""
        self._mended = mended
        self._generation += 1
        self._quiet_until = asyncio.get_running_loop().time() + _OTHERS_MEND_S

    async def _write_again(self, what: What, store_id: bytes, sealer: Sealer) -> int:
        """Return the epoch with which a lost decision is in the store again; 0 if it needs no writing."""
        match what:
            case KeyWritten():
                return await self._key_again(what, store_id, sealer)
            case EndWritten():
                again = replace(what, event=None if what.event is None else _again(what.event))
                return self._decided(await self._backend.end(self._end_args(again, store_id, sealer)))
            case OwnerAccepted():
                pinned = await self._backend.pin(what.owner)
                if pinned is None or _account(sealer, what.owner, pinned) == what.account_id:
                    return 0
                reply = await self._backend.accept(
                    store_id=store_id,
                    owner=what.owner,
                    expected_pin=pinned,
                    pin=_pin(sealer, what.owner, what.account_id),
                    audit=audit_row(_again(what.event)),
                    marks=(self._me,),
                )
                return self._decided(reply)

    async def _key_again(self, what: KeyWritten, store_id: bytes, sealer: Sealer) -> int:
        for _ in range(_PIN_ATTEMPTS):
            blob = (await self._backend.read(Want(keys=(what.record.id,)))).keys.get(what.record.id)
            if blob is not None and _open_key(sealer, what.record.id, blob).version >= what.record.version:
                return 0
            reply = await self._backend.write_key(
                self._key_args(replace(what, event=_again(what.event)), blob, store_id, sealer)
            )
            if reply.verdict != "changed":
                return self._decided(reply)
        raise StoreUnavailableError("a key's record kept changing while it was written again")

    def _decided(self, reply: EndReply) -> int:
        if reply.verdict == "lost":
            raise self._lost()
        return reply.epoch

    def _check_past(self, view: View) -> None:
        """Notice a store that went back; a read that was overtaken by another has merely seen less."""
        if self._memory.went_back(view.epoch, epoch_of(view.fields.get(self._me, b"0")), view.sent_at):
            raise StoreRegressedError(
                f"the store went back (an older copy, a failover?): it is at epoch {view.epoch}, and lacks "
                f"what was known to be written at epoch {self._memory.highest}"
            )
        if view.fields.get(MENDED) not in {None, self._mended}:
            raise StoreRegressedError("another broker found that the store went back")
        self._memory.saw(view.epoch, asyncio.get_running_loop().time())

    def _detach(self, error: StoreError) -> None:
        health = StoreHealth.LOST if isinstance(error, StoreLostError) else StoreHealth.DOWN
        if health is not self.health or str(error) != str(self._trouble):
            _log.log(
                logging.CRITICAL if health is StoreHealth.LOST else logging.ERROR,
                "store %s",
                health,
                extra={"cause": str(error)},
            )
        if self.health in {StoreHealth.OK, StoreHealth.READ_ONLY}:
            self._generation += 1  # when it is back, it may lack its last moment
        self.health = health
        self._trouble = error
        if health is StoreHealth.LOST:
            self._sealer = None

    def _lost(self) -> StoreLostError:
        error = StoreLostError("the store is not the one this process has seen (emptied or swapped)")
        self._detach(error)
        return error

    def _attached(self) -> tuple[bytes, Sealer]:
        """Return the store's id and the sealer, or raise why there is none."""
        if self._sealer is None or self._store_id is None:
            raise type(self._trouble)(str(self._trouble))
        return self._store_id, self._sealer

    async def _ready(self) -> tuple[bytes, Sealer]:
        """As ``_attached``, after one try of its own if the background has not come to it yet."""
        if self._sealer is None and not self._attaching.locked():
            await self._attach()
        return self._attached()

    @property
    def keks(self) -> tuple[KeyEncryptionKey, ...]:
        """The configured key-encryption keys."""
        return self._keks

    async def use_keks(self, keks: Sequence[KeyEncryptionKey]) -> None:
        """Go by these key-encryption keys from now on; each gets a wrap of the data key first.

        The old ones still count until then, so a key may also be swapped for another at once. If no
        configured key opened the store so far, one of these may.

        Raises:
            StoreError: there is no telling whether all have a wrap; the old ones count on: call it again.
        """
        if self._sealer is None:
            # Until it is attached the old ones open the store too; they get no wrap any more.
            former = (*self._former, *self._keks)
            self._keks = tuple(keks)
            self._former = tuple(kek for kek in former if kek not in keks)
            await self._attach()
            return
        store_id, _ = self._attached()
        state = await self._backend.load()
        copies = (state.fields, state.key_wraps)
        data_keys = open_all(state, store_id, (*self._keks, *keks), least=self._least_data_key)
        missing = {
            kek.field(number): kek.wrap(number, data_key, store_id)
            for number, data_key in data_keys.items()
            for kek in keks
            if any(kek.field(number) not in copy for copy in copies)
        }
        if missing and not await self._backend.add_wraps(store_id, missing):
            raise self._lost()
        self._keks = tuple(keks)

    async def wrapping_keys(self) -> list[tuple[str, str | None]]:
        """Return the fingerprints of the keys that open this store, each with the setting it is in."""
        await self._ready()
        state = await self._backend.load()
        held = wrap_numbers({**state.fields, **state.key_wraps}).values()
        origins = {kek.fingerprint: kek.origin for kek in self._keks}
        return [(one, origins.get(one)) for one in sorted({one for many in held for one in many})]

    async def forget_key(self, fingerprint: str) -> None:
        """Delete the wraps of a key-encryption key that is configured nowhere any more.

        Raises:
            ConflictError: it is configured here, or a data key would have no wrap left.
            NotFoundError: the store holds no wrap of it.
        """
        store_id, _ = await self._ready()
        if any(kek.fingerprint == fingerprint for kek in self._keks):
            raise ConflictError(public="That key is configured here: take it out of the settings first.")
        state = await self._backend.load()
        numbers = wrap_numbers({**state.fields, **state.key_wraps})
        names = [
            f"{WRAP_PREFIX}{number}:{fingerprint}" for number, held in numbers.items() if fingerprint in held
        ]
        if not names:
            known = sorted({one for held in numbers.values() for one in held})
            raise NotFoundError(public=f"The store holds no wrap of that key. It has: {', '.join(known)}.")
        if not await self._backend.drop_wraps(store_id, names):
            raise self._lost()

    def now(self) -> float:
        """Return store time, carried on since the last read."""
        return self._read_now + (asyncio.get_running_loop().time() - self._read_at)

    async def warnings(self) -> list[str]:
        """Return what an operator should know about the store."""
        await self._ready()
        return await self._backend.warnings()

    async def counts(self) -> Counts:
        """Return how much there is."""
        self._attached()
        return await self._backend.counts()

    async def sweep(self) -> None:
        """Delete what has expired."""
        self._attached()
        await self._backend.sweep()

    # -- READ and HAND ---------------------------------------------------------------------------

    async def read(self, query: ReadQuery, *, more: tuple[str, ...] = ()) -> "_Read":
        """READ; without a scope also ``more`` fields of the state."""
        self._attached()
        reach = None if query.scope is None else _Reach.of(query.scope)
        fields = more if reach is None else reach.fields
        strings = () if reach is None else reach.strings
        keys = () if query.key_id is None else (query.key_id,)
        try:
            view = await self._backend.read(Want((*fields, *self._always), keys, strings))
        except StoreUnavailableError as error:
            self._detach(error)
            raise
        trusted = self._trusted
        if trusted is None or trusted.view is not view:
            # One view answers many: it is looked at once, and so is what several of them ask.
            trusted = self._trusted = _Trusted(view, await self._checked(view))
        # Adopting the store, say, begins a new generation between two answers.
        name = (query.key_id, None if reach is None else reach.token, self._generation)
        seen = trusted.reads.get(name)
        if seen is None:
            seen = trusted.reads[name] = _Read(self, view, query, reach, trusted.sealer, self._generation)
        return seen

    async def _checked(self, view: View) -> Sealer:
        """Return what opens a view, if it is of the store that this process knows, as it knows it.

        Raises:
            StoreLostError: it is not.
        """
        store_id, sealer = self._attached()
        if view.store_id != store_id or view.keys_id != store_id:
            raise self._lost()
        try:
            self._check_past(view)
        except StoreLostError as error:
            self._detach(error)
            raise
        if self.health is not StoreHealth.READ_ONLY:
            self.health = StoreHealth.OK
        self._read_now, self._read_at = view.now, asyncio.get_running_loop().time()
        if view.fields.get(DATA_KEYS) != self._data_keys:
            sealer = await self._renewed(sealer, at_once=True)
        sealed = (blob for name, blob in view.strings.items() if not name.startswith("F:"))
        return await self._opener(sealer, (*view.keys.values(), *sealed))

    async def _opener(self, sealer: Sealer, blobs: Iterable[bytes]) -> Sealer:
        """Return what opens ``blobs``: somebody may have made a new data key meanwhile."""
        return await self._renewed(sealer, at_once=False) if sealer.lacks(blobs) else sealer

    async def _renewed(self, sealer: Sealer, *, at_once: bool) -> Sealer:
        """Return a sealer with the data keys that the store has now; looks for them once a second at most."""
        async with self._renewing:
            if self._sealer is sealer:
                now = asyncio.get_running_loop().time()
                if not at_once and now - self._renewed_at < _HEAL_EVERY_S:
                    return sealer
                self._renewed_at = now
                await self._attach()
            return self._attached()[1]

    def remember_version(self, record: ApiKeyRecord, asked_at: float) -> None:
        """Refuse a record older than one this process has seen: somebody put it back.

        Args:
            record: as it was read, or written.
            asked_at: loop time at which the read was asked for, or the write.

        Raises:
            StoreLostError: it is older than one seen before it was asked for.
            OvertakenError: a newer one was written while it was read: read again.
        """
        seen, seen_at = self._versions.get(record.id, (0, 0.0))
        if record.version < seen and asked_at <= seen_at:
            raise OvertakenError("a key's record changed while it was read", retry_after_s=1.0)
        if record.version < seen:
            _log.critical("key record put back to an older version", extra={"key_id": record.id})
            raise StoreLostError(f"the record of key {record.id} went back from version {seen}")
        if record.version > seen:
            self._versions[record.id] = record.version, asyncio.get_running_loop().time()
            self._versions.move_to_end(record.id)
            if len(self._versions) > _VERSIONS_REMEMBERED:
                self._versions.popitem(last=False)

    async def hand(self, token: LiveToken, *, epoch: int, event: AuditEvent) -> HandResult:
        """HAND."""
        store_id, _ = self._attached()
        verdict = await self._backend.hand(
            store_id=store_id,
            epoch=epoch,
            sha=token.sha256,
            key_id=event.key_id or "",
            audit=audit_row(event),
        )
        if verdict == "lost":
            raise self._lost()
        return HandResult(verdict)

    # -- ACQUIRE, COMMIT, FAIL, PAUSE ------------------------------------------------------------

    async def acquire(
        self, scope: Scope, *, seen: Snapshot, budget: MintBudget | None, ahead: bool = False
    ) -> Acquired:
        """ACQUIRE."""
        store_id, _ = self._attached()
        reach = _Reach.of(scope)
        nonce = secrets.token_hex(16)
        reply = await self._backend.acquire(
            AcquireArgs(
                store_id=store_id,
                scope=scope.id,
                nonce=nonce,
                expected_token=seen.raw_token(),
                owner=scope.owner,
                failure=_refresh_failure(scope) if ahead else _failure(scope),
                floor=(*reach.marks, reach.failure_mark),
                budget=f"{budget.key_id}:mint" if budget else None,
                budget_limit=budget.per_minute if budget else 0,
            )
        )
        match reply.verdict:
            case "lead":
                return Lead(scope.id, nonce, reply.epoch)
            case "wait":
                return Wait()
            case "changed":
                return Changed()
            case "paused":
                return Paused(reply.wait_s)
            case "budget":
                return OverBudget(reply.wait_s)
            case "failed":
                return _parse_failure(reply.failure) or Wait()
            case _:
                raise self._lost()

    async def lease(self, what: str) -> Lead | None:
        """Take the lease ``what``."""
        store_id, _ = self._attached()
        nonce = secrets.token_hex(16)
        taken, epoch = await self._backend.lease(store_id, what, nonce)
        return Lead(what, nonce, epoch) if taken else None

    async def renew(self, lead: Lead) -> bool:
        """Keep a lease."""
        return await self._backend.renew(lead.lease, lead.nonce)

    async def release(self, lead: Lead) -> None:
        """Give a lease back."""
        await self._backend.release(lead.lease, lead.nonce)

    async def commit(
        self,
        lead: Lead,
        scope: Scope,
        token: LiveToken,
        *,
        gh_offset: float,
        moved: bool,
        event: AuditEvent,
    ) -> CommitResult:
        """COMMIT."""
        store_id, sealer = self._attached()
        reach = _Reach.of(scope)
        blob = sealer.seal(Kind.TOKEN, scope.id, _dump_token(token))
        args = CommitArgs(
            store_id=store_id,
            scope=scope.id,
            owner=scope.owner,
            nonce=lead.nonce,
            epoch=lead.epoch,
            marks=reach.marks,
            blocks=reach.blocks,
            blob=blob,
            sha=token.sha256,
            expires_at=token.expires_at - gh_offset,
            gh_offset=gh_offset if moved else None,
            audit=audit_row(event),
        )
        try:
            verdict = await self._backend.commit(args)
        except StoreUnavailableError:
            # The reply is lost, not necessarily the write. COMMIT may be repeated; should that fail
            # too, the caller finds out later whether it was done.
            await asyncio.sleep(0.2)
            verdict = await self._backend.commit(args)
        if verdict == "lost":
            raise self._lost()
        return CommitResult(verdict)

    async def drop_token(self, seen: Snapshot) -> None:
        """Forget the cached token that ``seen`` found."""
        blob, scope_id = seen.raw_token(), seen.scope_id
        if blob is not None and scope_id is not None:
            await self._backend.drop_token(scope_id, blob)

    async def fail(
        self, lead: Lead, scope: Scope, failure: Failure, *, cooldown_s: float, ahead: bool
    ) -> None:
        """FAIL."""
        await self._backend.fail(
            scope=scope.id,
            nonce=lead.nonce,
            failure=_refresh_failure(scope) if ahead else _failure(scope),
            value=b"%d:%s" % (lead.epoch, _dump(asdict(failure))),
            cooldown_s=cooldown_s,
        )

    async def pause(self, owner: str | None, *, seconds: float) -> None:
        """PAUSE."""
        await self._backend.pause("app" if owner is None else f"o:{owner}", seconds)

    async def paused(self, owner: str | None) -> float:
        """Return the seconds left of the owner's or the app's pause."""
        return await self._backend.paused(("app",) if owner is None else ("app", f"o:{owner}"))

    async def refresh_gate(self, scope: Scope, *, seconds: float) -> bool:
        """Let one through in ``seconds``."""
        self._attached()
        return await self._backend.gate(scope.id, seconds)

    async def take(self, key_id: str, *, chunk: int, limit: int) -> tuple[int, float]:
        """RATE."""
        return await self._backend.take(f"{key_id}:rate", chunk=chunk, limit=limit)

    # -- owners ----------------------------------------------------------------------------------

    async def put_owner(
        self, lead: Lead, owner: str, installation: Installation, *, event: AuditEvent
    ) -> Installation | None:
        """OWNER: keep and pin."""
        store_id, sealer = self._attached()
        for _ in range(_PIN_ATTEMPTS):
            pinned = await self._backend.pin(owner)
            pin, foreign = pinned, False
            if pinned is None:
                pin = _pin(sealer, owner, installation.account_id)
            else:
                sealer = await self._opener(sealer, (pinned,))
                foreign = _account(sealer, owner, pinned) != installation.account_id
            known_foreign = foreign and await self._is_foreign(owner, installation.account_id)
            kept = replace(installation, foreign=foreign)
            args = OwnerArgs(
                store_id=store_id,
                owner=owner,
                lease=lead.lease,
                nonce=lead.nonce,
                epoch=lead.epoch,
                marks=(f"m:o:{owner}",),
                installation_id=kept.id,
                blob=sealer.seal(Kind.OWNER, owner, _dump({**asdict(kept), "epoch": lead.epoch})),
                expected_pin=pinned,
                pin=pin,
            )
            verdict = await self._backend.put_owner(args)
            if verdict == "lost":
                raise self._lost()
            if verdict == "ok":
                if foreign and not known_foreign:
                    await self.record([event])
                return kept
            if verdict != "changed":
                return None
        return None

    async def _is_foreign(self, owner: str, account_id: int) -> bool:
        """Return whether that account is on record as a foreign one already."""
        scope = Scope.of_owner("", owner, ("metadata",))
        known = (await self.read(ReadQuery(scope=scope))).installation()
        return known is not None and known.foreign and known.account_id == account_id

    async def drop_owner(self, lead: Lead, owner: str) -> None:
        """OWNER: forget."""
        store_id, _ = self._attached()
        pin = await self._backend.pin(owner)
        await self._backend.put_owner(
            OwnerArgs(
                store_id=store_id,
                owner=owner,
                lease=lead.lease,
                nonce=lead.nonce,
                epoch=lead.epoch,
                marks=(),
                installation_id=0,
                blob=None,
                expected_pin=pin,
                pin=pin,
            )
        )

    # -- keys ------------------------------------------------------------------------------------

    async def touch_keys(self, used: Mapping[str, int]) -> None:
        """LAST USED."""
        self._attached()
        await self._backend.touch(used)

    async def create_key(self, record: ApiKeyRecord, event: AuditEvent) -> None:
        """KEY WRITE: add."""
        if await self._write_key(None, KeyWritten(record, event, None)) is None:
            raise StoreUnavailableError("a key of that id exists; create it again")

    async def write_key(
        self,
        before: KeyEntry,
        after: ApiKeyRecord,
        event: AuditEvent,
        *,
        kill: bool = False,
    ) -> tuple[str, ...] | None:
        """KEY WRITE: compare-and-set."""
        after = replace(after, version=before.record.version + 1)
        note = outbox_note(event.reason or "", f"key {after.id} revoked", event.request_id) if kill else None
        return await self._write_key(before.version, KeyWritten(after, event, note))

    async def _write_key(self, expected: bytes | None, what: KeyWritten) -> tuple[str, ...] | None:
        store_id, sealer = await self._ready()
        reply = await self._backend.write_key(self._key_args(what, expected, store_id, sealer))
        self._decided(reply)
        if reply.verdict != "ok":
            return None
        now = asyncio.get_running_loop().time()
        self._memory.acknowledged(what, reply.epoch, now)
        # Whoever wrote the newer one knows that the older is old.
        self.remember_version(what.record, now)
        return reply.shas

    def _key_args(
        self, what: KeyWritten, expected: bytes | None, store_id: bytes, sealer: Sealer
    ) -> KeyWriteArgs:
        record = what.record
        ends = [at for at in (record.expires_at, record.revoked_at) if at is not None]
        return KeyWriteArgs(
            store_id=store_id,
            key_id=record.id,
            expected=expected,
            blob=sealer.seal(Kind.KEY, record.id, _dump(asdict(record))),
            purge_at=min(ends) + KEY_AFTERLIFE_S if ends else None,
            audit=audit_row(what.event),
            kill=what.kill,
            marks=(self._me,),
        )

    async def find_key(self, key_id: str) -> KeyEntry | None:
        """Return one key."""
        await self._ready()
        snapshot = await self.read(ReadQuery(key_id=key_id))
        try:
            record = snapshot.key()
        except OvertakenError:
            snapshot = await self.read(ReadQuery(key_id=key_id))
            record = snapshot.key()
        version = snapshot.raw_key()
        if record is None or version is None:
            return None
        return KeyEntry(record, version, await self._backend.last_used(key_id))

    async def list_keys(self, *, cursor: str | None, limit: int) -> Page[KeyEntry]:
        """Return keys in order of creation."""
        _, sealer = await self._ready()
        page = await self._backend.list_keys(cursor=cursor, limit=limit)
        sealer = await self._opener(sealer, (blob for _, blob, _ in page.rows))
        entries = tuple(
            KeyEntry(_open_key(sealer, key_id, blob), blob, used) for key_id, blob, used in page.rows
        )
        return Page(entries, page.cursor)

    # -- END and its outbox ----------------------------------------------------------------------

    async def end(
        self,
        kind: EndKind,
        target: Target,
        event: AuditEvent | None,
        *,
        by: str,
        reason: str,
        installation_id: int | None = None,
    ) -> Ended:
        """END."""
        store_id, sealer = await self._ready()
        what = EndWritten(kind, target, event, by, reason, installation_id, self.now())
        reply = await self._backend.end(self._end_args(what, store_id, sealer))
        self._decided(reply)
        if reply.verdict == "ok" and kind in _OF_ADMINS:
            self._memory.acknowledged(what, reply.epoch, asyncio.get_running_loop().time())
        return Ended(reply.verdict == "ok", reply.shas)

    def _end_args(self, what: EndWritten, store_id: bytes, sealer: Sealer) -> EndArgs:
        kind, target = what.kind, what.target
        kills = kind in {EndKind.REVOKE, EndKind.BLOCK}
        blocks: dict[str, bytes | None] = {}
        block = _block_field(target)
        if kind is EndKind.BLOCK:
            body = {"by": what.by, "reason": what.reason, "at": what.at}
            blocks[block] = sealer.seal(Kind.BLOCK, block, _dump(body))
        elif kind is EndKind.UNBLOCK:
            blocks[block] = None
        return EndArgs(
            store_id=store_id,
            marks=(*_end_marks(kind, target), *((self._me,) if kind in _OF_ADMINS else ())),
            blocks=blocks,
            wide=f"b:w:{target.owner}" if blocks and target.kind is TargetKind.REPOSITORY else "",
            must_exist=block if kind is EndKind.UNBLOCK else "",
            reach="" if not kills else "all" if what.installation_id else _end_reach(target),
            only=_end_only(target, what.installation_id),
            note=outbox_note(what.by, what.reason, what.event.request_id if what.event else None),
            audit=audit_row(what.event) if what.event else None,
        )

    async def doomed(self, shas: Sequence[str] | None, *, limit: int) -> Sequence[Doomed]:
        """Return tokens to revoke at GitHub."""
        _, sealer = self._attached()
        entries = await self._backend.outbox(shas, limit=limit)
        sealer = await self._opener(sealer, (one.blob for one in entries if one.blob is not None))
        return [self._doomed(sealer, entry) for entry in entries]

    def _doomed(self, sealer: Sealer, entry: OutboxEntry) -> Doomed:
        token = None
        if entry.blob is not None:
            try:
                token = _parse_token(entry.scope, sealer.open(Kind.TOKEN, entry.scope, entry.blob))
            except SealError as error:
                _log.critical("a registered token was refused", extra={"cause": str(error)})
        try:
            note = json.loads(entry.note)
        except ValueError:
            note = {}
        return Doomed(
            sha256=entry.sha,
            only=entry.only,
            token=token,
            matches=token is not None and _matches(entry, token),
            unreadable=token is None and entry.blob is not None,
            owner=entry.owner,
            expires_at=entry.expires_at,
            by=str(note.get("by", "")),
            reason=str(note.get("reason", "")),
            request_id=str(note.get("request_id", "")),
        )

    async def settle(self, done: Sequence[tuple[Doomed, AuditEvent | None]]) -> int:
        """Take tokens out of the outbox."""
        store_id, _ = self._attached()
        return await self._backend.settle(
            store_id,
            [(one.sha256, one.only, None if event is None else audit_row(event)) for one, event in done],
        )

    async def blocks(self) -> Sequence[BlockEntry]:
        """Return all blocks."""
        _, sealer = await self._ready()
        state = await self._backend.load()
        found = []
        for name, value in sorted(state.fields.items()):
            for prefix, kind in (("b:o:", TargetKind.OWNER), ("b:r:", TargetKind.REPOSITORY)):
                if not name.startswith(prefix):
                    continue
                try:
                    body = json.loads(sealer.open(Kind.BLOCK, name, value))
                except SealError as error:
                    _log.critical("a block was written by somebody else", extra={"cause": str(error)})
                    body = {"by": "unknown", "reason": "not written by this broker", "at": 0.0}
                found.append(BlockEntry(Target(kind, name.removeprefix(prefix)), **body))
        return found

    # -- webhooks --------------------------------------------------------------------------------

    async def keep_hook(self, work: HookWork, *, body_sha256: str) -> bool:
        """HOOK."""
        store_id, sealer = await self._ready()
        blob = sealer.seal(Kind.HOOK, body_sha256, _dump(asdict(work)))
        verdict = await self._backend.hook(
            store_id,
            body_sha=body_sha256,
            guid=work.guid,
            blob=f"{body_sha256}|".encode() + blob,
        )
        if verdict == "lost":
            raise self._lost()
        return verdict == "ok"

    async def hooks(self, *, limit: int) -> Sequence[tuple[str, HookWork | None]]:
        """Return queued work."""
        _, sealer = self._attached()
        found = await self._backend.hooks(limit=limit)
        sealer = await self._opener(sealer, (stored.partition(b"|")[2] for _, stored in found))
        return [(place, _open_hook(sealer, stored)) for place, stored in found]

    async def hooks_done(self, places: Sequence[str]) -> None:
        """Take work out of the queue."""
        self._attached()
        await self._backend.hooks_done(places)

    # -- owners as admins see them ---------------------------------------------------------------

    async def owner_of(self, installation_id: int) -> str | None:
        """Return the owner of an installation."""
        await self._ready()
        return await self._backend.owner_of(installation_id)

    async def owners(self, *, cursor: str | None, limit: int) -> Page[OwnerEntry]:
        """Return known owners."""
        _, sealer = await self._ready()
        rows, more = await self._backend.owners(cursor=cursor, limit=limit)
        sealer = await self._opener(sealer, (row.blob for row in rows))
        entries = []
        for row in rows:
            try:
                _, installation = _parse_owner(row.owner, sealer.open(Kind.OWNER, row.owner, row.blob))
            except SealError as error:
                _log.critical("stored owner refused", extra={"cause": str(error)})
                continue
            entries.append(OwnerEntry(installation, row.live))
        return Page(tuple(entries), more)

    async def accept_owner(self, owner: str, event: AuditEvent) -> Installation | None:
        """Pin the account that has the name now."""
        store_id, sealer = await self._ready()
        scope = Scope.of_owner("", owner, ("metadata",))
        known = (await self.read(ReadQuery(scope=scope))).installation()
        pinned = await self._backend.pin(owner)
        if known is None or not known.foreign or pinned is None:
            return None
        reply = await self._backend.accept(
            store_id=store_id,
            owner=owner,
            expected_pin=pinned,
            pin=_pin(sealer, owner, known.account_id),
            audit=audit_row(event),
            marks=(self._me,),
        )
        self._decided(reply)
        if reply.verdict != "ok":
            return None
        what = OwnerAccepted(owner, known.account_id, event)
        self._memory.acknowledged(what, reply.epoch, asyncio.get_running_loop().time())
        return known

    # -- audit -----------------------------------------------------------------------------------

    async def record(self, events: Sequence[AuditEvent]) -> None:
        """Append audit events."""
        store_id, _ = self._attached()
        if events and not await self._backend.append(store_id, [audit_row(event) for event in events]):
            raise self._lost()

    async def audit(self, wanted: AuditFilter, *, cursor: str | None, limit: int) -> Page[AuditRow]:
        """Return audit events."""
        await self._ready()
        page = await self._backend.audit(
            AuditWant(
                key_id=wanted.key_id,
                repository=wanted.repository.lower() if wanted.repository else None,
                event=wanted.event,
                request_id=wanted.request_id,
                since=wanted.since,
                until=wanted.until,
                ascending=wanted.ascending,
                cursor=cursor,
                limit=limit,
            )
        )
        rows = tuple(AuditRow(row.id, row.time, json.loads(row.body)) for row in page.rows)
        return Page(rows, page.cursor)


async def create(backend: Backend, keks: Sequence[KeyEncryptionKey]) -> bool:
    """Make a new store where there is nothing; return whether it was this call that made it."""
    store_id = secrets.token_hex(16).encode()
    data_key = new_data_key()
    wraps = {kek.field(1): kek.wrap(1, data_key, store_id) for kek in keks}
    state = {"id": store_id, "schema": SCHEMA, "epoch": b"1", "gh_offset": b"0", DATA_KEYS: b"1", **wraps}
    made = await backend.initialise(state)
    if made:
        _log.info("store created", extra={"store_id": store_id.decode()})
    return made


def identity(state: State) -> bytes:
    """Return the store's id.

    Raises:
        StoreLostError: it is not the same in both places.
    """
    store_id = state.fields.get("id")
    if store_id is None or state.keys_id != store_id:
        raise StoreLostError(
            "the store has lost its identity or its keys (flushed, evicted, half restored?); restore it from "
            "a backup, or see what is left with `broker store adopt`"
        )
    check_schema(state)
    return store_id


def check_schema(state: State) -> None:
    """Leave a store alone that a later broker wrote.

    Raises:
        StoreLostError: its schema is not the one known here.
    """
    schema = state.fields.get("schema", SCHEMA)
    if schema != SCHEMA:
        raise StoreLostError(
            f"the store has schema {schema.decode('ascii', 'replace')}; this broker knows {SCHEMA.decode()}"
        )


def _epoch(state: State) -> int:
    try:
        return int(state.fields.get("epoch", b"0"))
    except ValueError:
        raise StoreLostError("the store's epoch is not a number") from None


def open_all(
    state: State, store_id: bytes, keks: Sequence[KeyEncryptionKey], *, least: int = 0
) -> dict[int, bytes]:
    """Return all data keys from number ``least`` on.

    Raises:
        StoreLostError: one that no configured key opens.
    """
    try:
        return open_data_keys((state.fields, state.key_wraps), store_id, keks, least=least)
    except SealError as error:
        raise StoreLostError(f"no configured key opens the store: {error}") from error


def _pin(sealer: Sealer, owner: str, account_id: int) -> bytes:
    return sealer.seal(Kind.NAME, owner, _dump({"account_id": account_id}))


def _account(sealer: Sealer, owner: str, pin: bytes) -> int:
    """Return the account that is pinned to an owner's name.

    Raises:
        StoreLostError: the pin does not open.
    """
    try:
        return int(json.loads(sealer.open(Kind.NAME, owner, pin))["account_id"])
    except SealError as error:
        raise StoreLostError(f"the pinned account of an owner does not open: {error}") from error


def _again(event: AuditEvent) -> AuditEvent:
    """Return the event of a decision that is written a second time."""
    reason = f"written again after the store went back; {event.reason or ''}".rstrip("; ")
    return replace(event, reason=reason[:MAX_TEXT])


@lru_cache(256)
def _owner_names(owner: str) -> tuple[str, str, str, str]:
    """Return what the scopes of an owner share: its mark, block, mark of failures, and picture."""
    return f"m:o:{owner}", f"b:o:{owner}", f"f:o:{owner}", f"O:{owner}"


@lru_cache(256)
def _once(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the first of equal tuples: thousands of tokens have the same few permissions."""
    return names


class _Reach:
    """The fields of the state that can end a token of a scope, and the strings that hold it."""

    __slots__ = (
        "blocks",
        "failure",
        "failure_mark",
        "fields",
        "marks",
        "owner",
        "owner_mark",
        "refresh_failure",
        "scope",
        "strings",
        "token",
    )

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        owner = scope.owner
        self.owner_mark, block, self.failure_mark, picture = _owner_names(owner)
        wide = scope.repositories is None
        names = () if scope.repositories is None else scope.repositories
        self.marks: tuple[str, ...] = (
            "m:all",
            self.owner_mark,
            *((f"m:w:{owner}",) if wide else (f"m:r:{name}" for name in names)),
        )
        self.blocks: tuple[str, ...] = (
            block,
            *((f"b:w:{owner}",) if wide else (f"b:r:{name}" for name in names)),
        )
        self.fields = (*self.marks, *self.blocks, self.failure_mark)
        self.strings = (f"T:{scope.id}", _failure(scope), _refresh_failure(scope), picture)
        self.token, self.failure, self.refresh_failure, self.owner = self.strings

    @staticmethod
    @lru_cache(256)
    def of(scope: Scope) -> "_Reach":
        return _Reach(scope)


@dataclass(frozen=True, slots=True)
class _Trusted:
    """A view that was found to be of our store, what opens it, and what has been asked of it."""

    view: View
    sealer: Sealer
    reads: "dict[tuple[str | None, str | None, int], _Read]" = field(default_factory=dict)


class _Read:
    """``Snapshot`` of one view; what is opened of it is kept for whoever asks the same."""

    __slots__ = (
        "_installation",
        "_key",
        "_opened_installation",
        "_opened_token",
        "_query",
        "_reach",
        "_sealer",
        "_store",
        "_token",
        "_view",
        "epoch",
        "generation",
        "gh_offset",
        "now",
    )

    def __init__(  # noqa: PLR0917 - one a request: names would cost more than the rest
        self,
        store: SealedStore,
        view: View,
        query: ReadQuery,
        reach: _Reach | None,
        sealer: Sealer,
        generation: int,
    ) -> None:
        self._store = store
        self._view = view
        self._query = query
        self._reach = reach
        self._sealer = sealer
        self._key: ApiKeyRecord | None = None
        self._installation: Installation | None = None
        self._opened_installation = False
        self._token: LiveToken | None = None
        self._opened_token = False
        self.now = view.now
        self.gh_offset = view.gh_offset
        self.epoch = view.epoch
        self.generation = generation

    @property
    def fields(self) -> Mapping[str, bytes]:
        """What was read of the state, for looking into by name."""
        return self._view.fields

    @property
    def scope_id(self) -> str | None:
        return self._query.scope.id if self._query.scope else None

    def raw_token(self) -> bytes | None:
        scope = self._query.scope
        return self._view.strings.get(f"T:{scope.id}") if scope else None

    def raw_key(self) -> bytes | None:
        return self._view.keys.get(self._query.key_id or "")

    def key(self) -> ApiKeyRecord | None:
        record = self._key
        if record is None:
            key_id = self._query.key_id
            blob = self._view.keys.get(key_id or "")
            if blob is None or key_id is None:
                return None
            record = self._key = _open_key(self._sealer, key_id, blob)
        self._store.remember_version(record, self._view.sent_at)
        return record

    def _mark(self, *names: str) -> int:
        fields, highest = self._view.fields, 0
        for name in names:
            value = fields.get(name)
            if value is not None:
                highest = max(highest, epoch_of(value))
        return highest

    def blocked(self) -> str | None:
        if self._reach is None:
            return None
        for name in self._reach.blocks:
            value = self._view.fields.get(name)
            if value is not None and value != b"0":
                return name
        return None

    def installation(self) -> Installation | None:
        if not self._opened_installation:
            self._installation = self._open_installation()
            self._opened_installation = True
        return self._installation

    def _open_installation(self) -> Installation | None:
        reach = self._reach
        blob = None if reach is None else self._view.strings.get(reach.owner)
        if reach is None or blob is None:
            return None
        try:
            epoch, installation = self._sealer.opened(Kind.OWNER, reach.scope.owner, blob, _parse_owner)
        except SealError as error:
            _log.critical("stored owner refused", extra={"cause": str(error)})
            return None
        return installation if epoch >= self._mark(reach.owner_mark) else None

    def token(self) -> LiveToken | None:
        if not self._opened_token:
            self._token = self._open_token()
            self._opened_token = True
        return self._token

    def _open_token(self) -> LiveToken | None:
        reach = self._reach
        blob = None if reach is None else self._view.strings.get(reach.token)
        if reach is None or blob is None:
            return None
        try:
            token = self._sealer.opened(Kind.TOKEN, reach.scope.id, blob, _parse_token)
        except SealError as error:
            _log.critical("stored token refused", extra={"cause": str(error)})
            return None
        return token if token.epoch >= self._mark(*reach.marks) else None

    def failure(self) -> Failure | None:
        return None if self._reach is None else self._failure(self._reach, self._reach.failure)

    def refresh_failed(self) -> bool:
        return self._reach is not None and self._failure(self._reach, self._reach.refresh_failure) is not None

    def _failure(self, reach: _Reach, name: str) -> Failure | None:
        value = self._view.strings.get(name)
        if value is None or epoch_of(value) < self._mark(*reach.marks, reach.failure_mark):
            return None
        return _parse_failure(value)


def outbox_note(by: str, reason: str, request_id: str | None) -> bytes:
    """Return what is kept with a token that has to die: who wants it, why, and in which request."""
    return _dump({"by": by, "reason": reason, "request_id": request_id or ""})


def _block_field(target: Target) -> str:
    return f"b:o:{target.name}" if target.kind is TargetKind.OWNER else f"b:r:{target.name}"


def _end_marks(kind: EndKind, target: Target) -> tuple[str, ...]:
    """Return the marks that an ending raises; an unblock raises none, a void only that of failures."""
    if kind is EndKind.UNBLOCK:
        return (f"f:o:{target.owner}",)
    if kind is EndKind.VOID:
        return (f"f:o:{target.name}",)
    match target.kind:
        case TargetKind.ALL:
            return ("m:all",)
        case TargetKind.OWNER:
            return (f"m:o:{target.name}",)
        case TargetKind.REPOSITORY:
            return (f"m:r:{target.name}", f"m:w:{target.owner}")
        case TargetKind.TOKEN:
            return ()


def _end_reach(target: Target) -> str:
    match target.kind:
        case TargetKind.ALL:
            return "all"
        case TargetKind.TOKEN:
            return f"t:{target.name}"
        case _:
            return f"o:{target.owner}"


def _end_only(target: Target, installation_id: int | None) -> str:
    """Return the condition on tokens that an ending stores with them in the outbox."""
    if target.kind is TargetKind.REPOSITORY:
        return target.name
    return f"#{installation_id}|{target.name}" if installation_id else ""


def _matches(entry: OutboxEntry, token: LiveToken) -> bool:
    """Return whether a token meets the condition that it stands in the outbox with."""
    if entry.only.startswith("#"):
        number, _, owner = entry.only[1:].partition("|")
        return entry.owner == owner or str(token.installation_id) == number
    return not entry.only or Target(TargetKind.REPOSITORY, entry.only).reached_by(token)


def _open_hook(sealer: Sealer, stored: bytes) -> HookWork | None:
    identity, _, blob = stored.partition(b"|")
    try:
        found = json.loads(sealer.open(Kind.HOOK, identity.decode("ascii", "replace"), blob))
    except SealError as error:
        _log.critical("queued webhook refused", extra={"cause": str(error)})
        return None
    drops = tuple(Target(TargetKind(one["kind"]), one["name"]) for one in found["drops"])
    return HookWork(**{**found, "drops": drops, "voids": tuple(found["voids"])})


def _failure(scope: Scope) -> str:
    return f"F:{scope.id}"


def _refresh_failure(scope: Scope) -> str:
    return f"F:refresh:{scope.id}"


def _parse_failure(value: bytes) -> Failure | None:
    """Return a kept failure; None if it makes no sense (failures are not sealed)."""
    try:
        return Failure(**json.loads(value.partition(b":")[2]))
    except (ValueError, TypeError):
        return None


def _dump(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _dump_token(token: LiveToken) -> bytes:
    return _dump(
        {
            "token": token.token.reveal(),
            "sha256": token.sha256,
            "epoch": token.epoch,
            "installation_id": token.installation_id,
            "expires_at": token.expires_at,
            "repositories": token.repositories,
            "permissions": token.permissions,
        }
    )


def _parse_token(scope_id: str, plain: bytes) -> LiveToken:
    found = json.loads(plain)
    return LiveToken(
        token=Secret(found["token"]),
        sha256=found["sha256"],
        scope_id=scope_id,
        epoch=found["epoch"],
        installation_id=found["installation_id"],
        expires_at=found["expires_at"],
        repositories=None if found["repositories"] is None else tuple(found["repositories"]),
        permissions=_once(tuple(found["permissions"])),
    )


def _parse_owner(_: str, plain: bytes) -> tuple[int, Installation]:
    """Return the epoch of a picture of an owner's installation, and the picture."""
    found = json.loads(plain)
    return found.pop("epoch"), Installation(**found)


def _open_key(sealer: Sealer, key_id: str, blob: bytes) -> ApiKeyRecord:
    """Return the record of a key.

    Raises:
        StoreLostError: the blob is not that key's record. Not "no such key": clients keep theirs.
    """
    try:
        return sealer.opened(Kind.KEY, key_id, blob, _parse_key)
    except SealError as error:
        _log.critical("stored key record refused", extra={"key_id": key_id, "cause": str(error)})
        raise StoreLostError(f"the record of key {key_id} does not open: {error}") from error


def _parse_key(_: str, plain: bytes) -> ApiKeyRecord:
    found = json.loads(plain)
    return ApiKeyRecord(
        **{
            **found,
            "role": Role(found["role"]),
            "repositories": tuple(found["repositories"]),
            "permissions": tuple(found["permissions"]),
        }
    )


def audit_row(event: AuditEvent) -> Row:
    """Return an audit event as the backend appends it."""
    return Row(
        event=event.event,
        body=json.dumps(audit_body(event), separators=(",", ":")),
        key_id=event.key_id or "",
        owner=(event.owner or "").lower(),
        repositories=tuple(name.lower() for name in event.repositories or ()),
        request_id=event.request_id or "",
    )
