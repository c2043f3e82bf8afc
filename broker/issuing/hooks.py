"""Webhooks at work: forget what queued deliveries say has changed, one process of all replicas at a time.

A delivery was queued in the step that remembered its id and body, so what is in the queue survives the
process that took it. Forgetting twice does no harm: a batch that was cut short is simply done again.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from broker.audit import Auditor
from broker.errors import StoreError
from broker.issuing.installations import kept
from broker.model import Target, TargetKind
from broker.ports import AuditEvent, EndKind, Event, HookWork, Store
from broker.wording import MAX_TEXT

_log = logging.getLogger(__name__)

LEASE: Final = "job:hooks"
BATCH: Final = 100
MOST_REPOSITORIES: Final = 20
"""With more repositories of one owner in a batch, the owner is dropped instead."""

_POLL_S: Final = 2.0
_AGAIN_S: Final = 0.05
_AGAIN_AT_MOST_S: Final = 1.0
_LISTED: Final = 50


@dataclass(frozen=True, slots=True)
class Forgetting:
    """One step that a batch asks for, and its audit event."""

    kind: EndKind
    target: Target
    event: AuditEvent


class HookReactor:
    """Works off queued webhooks.

    Args:
        store: holds the queue, and what is forgotten.
        auditor: the log.
    """

    def __init__(self, store: Store, auditor: Auditor) -> None:
        self._store = store
        self._auditor = auditor
        self._wake = asyncio.Event()
        self._working: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work off what is queued, by whichever process."""
        self._working = asyncio.create_task(self._work(), name="webhooks")

    async def stop(self) -> None:
        """Stop; what is queued stays there for the next process."""
        while self._working is not None and not self._working.done():
            # Again, should what was awaited take the cancellation for its own.
            self._working.cancel()
            await asyncio.wait([self._working], timeout=_AGAIN_S)

    def wake(self) -> None:
        """Look at the queue now: a delivery has just been put there."""
        self._wake.set()

    async def _work(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):  # wait_for may swallow a cancellation
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._work_off()
            except StoreError as error:
                _log.debug("webhooks wait for the store", extra={"cause": str(error)})

    async def _work_off(self) -> None:
        """Return when nothing is queued.

        Another process that holds the lease may have looked before the last delivery came, so its holding
        it is no reason to wait for the next poll.
        """
        again_s = _AGAIN_S
        while await self._store.hooks(limit=1):
            lead = await self._store.lease(LEASE)
            if lead is None:
                await asyncio.sleep(again_s)
                again_s = min(2 * again_s, _AGAIN_AT_MOST_S)
                continue
            try:
                async with kept(self._store, lead) as ours:
                    while ours() and await self._work_off_batch():
                        pass
            finally:
                with contextlib.suppress(StoreError):
                    await self._store.release(lead)

    async def _work_off_batch(self) -> bool:
        """Forget what the oldest deliveries ask for; return whether there were any."""
        queued = await self._store.hooks(limit=BATCH)
        works = [work for _, work in queued if work is not None]
        owners: dict[int, str] = {}
        for number in {work.installation_id for work in works if _whole_owner(work)}:
            if number is not None and (owner := await self._store.owner_of(number)):
                owners[number] = owner
        for step in forgettings(works, owners):
            reason = step.event.reason or ""
            await self._store.end(step.kind, step.target, step.event, by="webhook", reason=reason)
            self._auditor.log(step.event)
        await self._store.hooks_done([place for place, _ in queued])
        return bool(queued)


@dataclass(slots=True)
class _Gathered:
    works: list[HookWork] = field(default_factory=list)
    repositories: set[str] = field(default_factory=set)

    def add(self, works: Iterable[HookWork], repositories: Iterable[str] = ()) -> None:
        self.works += [work for work in works if work not in self.works]
        self.repositories |= set(repositories)


def forgettings(works: Sequence[HookWork], owners: Mapping[int, str]) -> list[Forgetting]:
    """Return the steps that a batch asks for, each target once.

    Args:
        works: the batch.
        owners: of installations, as the store knows them: a login may have changed since.
    """
    wide: dict[str, _Gathered] = {}
    narrow: dict[str, dict[str, _Gathered]] = {}
    voids: dict[str, _Gathered] = {}
    for work in works:
        names = {target.name for target in work.drops if target.kind is TargetKind.OWNER}
        if _whole_owner(work) and (known := owners.get(work.installation_id or 0)):
            names.add(known)
        for name in names:
            wide.setdefault(name, _Gathered()).add([work])
        for target in work.drops:
            if target.kind is TargetKind.REPOSITORY and target.owner:
                narrow.setdefault(target.owner, {}).setdefault(target.name, _Gathered()).add([work])
        for name in work.voids:
            voids.setdefault(name, _Gathered()).add([work])
    for owner in [one for one, found in narrow.items() if one in wide or len(found) > MOST_REPOSITORIES]:
        for name, gathered in narrow.pop(owner).items():
            wide.setdefault(owner, _Gathered()).add(gathered.works, [name])
    return [
        *(_forgetting(EndKind.DROP, TargetKind.OWNER, name, found) for name, found in wide.items()),
        *(
            _forgetting(EndKind.DROP, TargetKind.REPOSITORY, name, found)
            for repositories in narrow.values()
            for name, found in repositories.items()
        ),
        *(
            _forgetting(EndKind.VOID, TargetKind.OWNER, name, found)
            for name, found in voids.items()
            if name not in wide  # a drop forgets failures too
        ),
    ]


def _whole_owner(work: HookWork) -> bool:
    """Return whether all of an owner is to be dropped: it is named, or only its installation is."""
    named = any(target.kind is TargetKind.OWNER for target in work.drops)
    return named or not (work.drops or work.voids)


def _forgetting(kind: EndKind, what: TargetKind, name: str, found: _Gathered) -> Forgetting:
    target = Target(what, name)
    listed = {name} if what is TargetKind.REPOSITORY else found.repositories
    told = ", ".join(f"{work.event} {work.guid}" for work in found.works)
    ids = (work.installation_id for work in found.works if work.installation_id is not None)
    event = AuditEvent(
        Event.WEBHOOK_RECEIVED,
        owner=target.owner,
        repositories=tuple(sorted(listed)[:_LISTED]) or None,
        installation_id=next(ids, None),
        count=len(found.works) if len(found.works) > 1 else None,
        reason=told[:MAX_TEXT],
    )
    return Forgetting(kind, target, event)
