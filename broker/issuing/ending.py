"""Ending: revocations and blocks; first one step in the store, then GitHub, token by token.

The step in the store (END, or KEY WRITE with its tokens) holds the promise: when it is done nothing that
it forbids is handed out any more, and what has to die at GitHub stands in the outbox, where it survives
the process. The caller waits for GitHub up to ten seconds; the rest is worked off in the background,
by one process of all replicas at a time, until each token is dead or expired.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from broker.access.keys import KEY_ID
from broker.audit import Auditor
from broker.errors import GitHubError, GitHubRateLimitedError, StoreError
from broker.issuing.installations import kept, pause_for
from broker.issuing.turns import Turns
from broker.model import LiveToken, Scope, Target, TargetKind
from broker.ports import AuditEvent, BlockEntry, Doomed, EndKind, Event, GitHub, Meter, ReadQuery, Store
from broker.wording import MAX_TEXT

_log = logging.getLogger(__name__)

ANSWER_WITHIN_S: Final = 9.0
_AT_ONCE: Final = 64
_PER_OWNER: Final = 8
_BATCH: Final = 200
_MOST: Final = 20_000
_POLL_S: Final = 5.0
_LIFE_S: Final = 3600.0  # of a token, at most
_RETRY_S: Final = 2.0
_LISTED: Final = 100
_ASKED_AT_MOST: Final = 1000


class Fate(StrEnum):
    """What became of one token."""

    REVOKED = "revoked"
    FAILED = "failed"
    PENDING = "pending"
    SPARED = "spared"


_TELLING: Final = (Fate.REVOKED, Fate.FAILED, Fate.PENDING, Fate.SPARED)


@dataclass(slots=True)
class Outcome:
    """What became of the tokens in reach when the answer is given.

    Attributes:
        remaining: tokens that still live, at most 100: (SHA-256, expiry by the store's clock).
    """

    revoked: int = 0
    failed: int = 0
    pending: int = 0
    remaining: list[tuple[str, float]] = field(default_factory=list)


class _Told:
    """The fates of some tokens while they are worked off.

    A token stands in the outbox once for each thing that ends it; dead is dead, whichever of them it was.
    """

    def __init__(self, shas: Sequence[str]) -> None:
        self._fates: dict[str, dict[str, Fate]] = {sha: {} for sha in shas}
        self._expiry: dict[str, float] = {}

    def tell(self, one: Doomed, fate: Fate) -> None:
        self._fates.setdefault(one.sha256, {})[one.only] = fate
        self._expiry[one.sha256] = one.expires_at

    def gone(self, shas: Collection[str], fate: Fate) -> None:
        for sha in shas:
            self._fates[sha][""] = fate

    def outcome(self) -> Outcome:
        outcome = Outcome()
        for sha, fates in self._fates.items():
            fate = next((one for one in _TELLING if one in fates.values()), Fate.PENDING)
            if fate is Fate.SPARED:
                continue
            if fate is Fate.REVOKED:
                outcome.revoked += 1
                continue
            if fate is Fate.FAILED:
                outcome.failed += 1
            else:
                outcome.pending += 1
            if len(outcome.remaining) < _LISTED and sha in self._expiry:
                outcome.remaining.append((sha, self._expiry[sha]))
        return outcome


@dataclass(frozen=True, slots=True)
class Actor:
    """Who ends something: a key's id and name, and the request, for the audit."""

    key_id: str
    key_name: str
    request_id: str | None = None
    client_ip: str | None = None


class Ender:
    """Ends what admins want ended.

    Args:
        store: where it ends.
        github: where tokens die.
        auditor: the log.
        meter: told of every try.
    """

    def __init__(self, store: Store, github: GitHub, auditor: Auditor, meter: Meter | None = None) -> None:
        self._store = store
        self._github = github
        self._auditor = auditor
        self._meter = meter or Meter()
        # Who waits here is no caller but a token out of the outbox: none is turned away, and none gives up.
        self._turns = Turns(
            total=_AT_ONCE,
            per_owner=_PER_OWNER,
            within_s=_LIFE_S,
            waiting=2 * _MOST,
            waiting_per_owner=2 * _MOST,
        )
        self._wake = asyncio.Event()
        self._working: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    def start(self) -> None:
        """Begin to work off what is in the outbox."""
        self._working = asyncio.create_task(self._work_off(), name="revocations")

    async def stop(self, *, within_s: float = 3.0) -> None:
        """End the calls that run, begin no other; what is in the outbox stays there for the next process."""
        self._stopping.set()
        self._wake.set()
        if self._working is not None:
            await asyncio.wait([self._working], timeout=within_s)
            self._working.cancel()
            await asyncio.wait([self._working], timeout=1)

    # -- what admins do --------------------------------------------------------------------------

    async def revoke(
        self, target: Target, actor: Actor, *, reason: str, installation_id: int | None = None
    ) -> Outcome:
        """End every live token in reach of ``target``; ``installation_id`` if it was named by that."""
        event = replace(_event(Event.TOKEN_REVOKED, target, actor, reason), installation_id=installation_id)
        return await self._end(EndKind.REVOKE, target, event, actor, reason)

    async def block(self, target: Target, actor: Actor, *, reason: str) -> Outcome:
        """Forbid ``target`` until it is lifted, and end every live token that reaches it."""
        event = _event(Event.BLOCK_SET, target, actor, reason)
        return await self._end(EndKind.BLOCK, target, event, actor, reason)

    async def _end(
        self, kind: EndKind, target: Target, event: AuditEvent, actor: Actor, reason: str
    ) -> Outcome:
        installation_id = await self._installation_of(target)
        ended = await self._store.end(
            kind, target, event, by=actor.key_id, reason=reason, installation_id=installation_id
        )
        self._auditor.log(event)
        conditional = target.kind is TargetKind.REPOSITORY or installation_id is not None
        return await self.kill(ended.shas, conditional=conditional)

    async def _installation_of(self, target: Target) -> int | None:
        """Return the installation of an owner: its tokens may be from before the owner was renamed."""
        if target.kind is not TargetKind.OWNER:
            return None
        scope = Scope.of_owner("", target.name, ("metadata",))
        known = (await self._store.read(ReadQuery(scope=scope))).installation()
        return known.id if known is not None and not known.foreign else None

    async def unblock(self, target: Target, actor: Actor) -> bool:
        """Lift a block; False if there is none."""
        event = _event(Event.BLOCK_LIFTED, target, actor, None)
        ended = await self._store.end(EndKind.UNBLOCK, target, event, by=actor.key_id, reason="")
        if ended.found:
            self._auditor.log(event)
        return ended.found

    async def blocks(self) -> Sequence[BlockEntry]:
        """Return all blocks."""
        return await self._store.blocks()

    async def kill(self, shas: Sequence[str], *, conditional: bool = False) -> Outcome:
        """Revoke tokens of the outbox at GitHub for some seconds; the background does the rest.

        ``conditional``: only those die that meet the condition which they stand there with.
        """
        if not shas:
            return Outcome()
        told = _Told(shas)
        task = asyncio.create_task(self._kill(shas, told, conditional=conditional), name="revocation")
        await asyncio.wait([task], timeout=ANSWER_WITHIN_S)
        if not task.done():
            task.cancel()
        await asyncio.wait([task])
        self._wake.set()
        return told.outcome()

    async def _kill(self, shas: Sequence[str], told: "_Told", *, conditional: bool) -> None:
        for start in range(0, len(shas), _ASKED_AT_MOST):
            part = shas[start : start + _ASKED_AT_MOST]
            with contextlib.suppress(StoreError):
                doomed = await self._store.doomed(part, limit=2 * _ASKED_AT_MOST)
                for one in doomed:
                    told.tell(one, Fate.PENDING if one.matches or one.unreadable else Fate.SPARED)
                if len(doomed) < 2 * _ASKED_AT_MOST:
                    # Not in the outbox any more: another process was faster. Where a condition decided,
                    # nobody can tell now what became of them: not counted, rather than said to be dead.
                    fate = Fate.SPARED if conditional else Fate.REVOKED
                    told.gone(set(part) - {one.sha256 for one in doomed}, fate)
                await self._end_all(doomed, told.tell)

    # -- one by one ------------------------------------------------------------------------------

    async def _end_all(self, doomed: Sequence[Doomed], tell: Callable[[Doomed, Fate], None]) -> float | None:
        """Have tokens die; return in how many seconds those that did not are worth another try, or None."""
        # Not in reach, or expired and gone from the register: nothing to do at GitHub.
        spared = [one for one in doomed if not (one.matches or one.unreadable)]
        for start in range(0, len(spared), _BATCH):
            part = spared[start : start + _BATCH]
            with contextlib.suppress(StoreError):
                await self._store.settle([(one, None) for one in part])
            for one in part:
                tell(one, Fate.SPARED)
        # There, but it does not open: it may live. It is told, and stays in the outbox until it has expired.
        unreadable = [one for one in doomed if one.unreadable]
        for one in unreadable:
            self._meter.revoked(Fate.FAILED)
            tell(one, Fate.FAILED)
        waits: dict[str, float] = {}
        fates = await asyncio.gather(
            *(
                self._end_one(one, one.token, tell, waits)
                for one in doomed
                if one.token is not None and one.matches
            )
        )
        if all(fate is Fate.REVOKED for fate in fates):
            return _POLL_S if unreadable else None
        if Fate.FAILED in fates or not waits:
            return _RETRY_S
        return min(_POLL_S, max(_RETRY_S, min(waits.values())))

    async def _end_one(
        self, one: Doomed, token: LiveToken, tell: Callable[[Doomed, Fate], None], waits: dict[str, float]
    ) -> Fate:
        fate = await self._end_at_github(one, token, waits)
        self._meter.revoked(fate)
        tell(one, fate)
        return fate

    async def _end_at_github(self, one: Doomed, token: LiveToken, waits: dict[str, float]) -> Fate:
        """Have one token die; ``waits`` are owners for whom GitHub asked to wait, and for how many seconds.

        One answer stops all others of that owner at once: ten thousand do not ask the store one by one.
        """
        try:
            async with self._turns.turn(one.owner):
                if self._stopping.is_set() or one.owner in waits:
                    return Fate.PENDING
                if left_s := await self._store.paused(one.owner):
                    waits[one.owner] = left_s
                if one.owner in waits:  # another call had its answer meanwhile
                    return Fate.PENDING
                await self._github.revoke(token.token)
        except GitHubError as error:
            _log.warning(
                "a token is not revoked yet",
                extra={"token_sha256": one.sha256, "code": error.code, "cause": str(error)},
            )
            if isinstance(error, GitHubRateLimitedError):
                waits[one.owner] = error.retry_after_s or _RETRY_S
                with contextlib.suppress(StoreError):
                    await pause_for(self._store, one.owner, error)
                return Fate.PENDING
            return Fate.FAILED
        except StoreError:
            return Fate.PENDING
        by_key = KEY_ID.fullmatch(one.by) is not None  # else words, such as those of `broker keys revoke`
        reason = one.reason if by_key or not one.by else f"{one.reason}, {one.by}"
        event = AuditEvent(
            Event.TOKEN_REVOKED,
            request_id=one.request_id or None,
            key_id=one.by if by_key else None,
            owner=one.owner,
            repositories=token.repositories,
            permissions=token.permissions,
            installation_id=token.installation_id,
            token_sha256=one.sha256,
            expires_at=token.expires_at,
            reason=reason[:MAX_TEXT] or None,
        )
        with contextlib.suppress(StoreError):  # dead is dead; the outbox will be told the next time
            if await self._store.settle([(one, event)]):
                self._auditor.log(event)
        return Fate.REVOKED

    # -- in the background -----------------------------------------------------------------------

    async def _work_off(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._work_off_once()
            except StoreError:
                pass  # told by the store; the next look may find it well
            except Exception:  # noqa: BLE001 - the next look may find it well
                _log.exception("working off revocations failed")

    async def _work_off_once(self) -> None:
        if not await self._store.doomed(None, limit=1):
            return
        lead = await self._store.lease("job:revoke")
        if lead is None:
            return
        try:
            async with kept(self._store, lead) as ours:
                limit = _BATCH
                while ours() and not self._stopping.is_set():
                    doomed = await self._store.doomed(None, limit=limit)
                    if not doomed:
                        return
                    again_in_s = await self._end_all(doomed, lambda _one, _fate: None)
                    if again_in_s is None:
                        limit = _BATCH
                    else:
                        # Those of an owner that has to wait must not stand before all others for ever.
                        limit = min(2 * limit, _MOST)
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(again_in_s):
                                await self._stopping.wait()
        finally:
            with contextlib.suppress(StoreError):
                await self._store.release(lead)


def _event(kind: Event, target: Target, actor: Actor, reason: str | None) -> AuditEvent:
    return AuditEvent(
        kind,
        request_id=actor.request_id,
        client_ip=actor.client_ip,
        key_id=actor.key_id,
        key_name=actor.key_name,
        owner=target.owner,
        repositories=(target.name,) if "/" in target.name and target.owner else None,
        token_sha256=None if target.owner or not target.name else target.name,
        reason=(reason or str(target.kind))[:MAX_TEXT],
    )
