"""Owners as admins see them: what is installed where, read anew from GitHub, an account accepted."""

import asyncio
import contextlib
from dataclasses import dataclass, replace
from typing import Final

from broker.audit import Auditor
from broker.errors import (
    ConflictError,
    GitHubTimeoutError,
    NotFoundError,
    StoreError,
)
from broker.issuing.ending import Actor
from broker.issuing.installations import Installations
from broker.model import Installation, Scope, Target, TargetKind
from broker.ports import AuditEvent, EndKind, Event, GitHub, OwnerEntry, Page, ReadQuery, Store
from broker.wording import MAX_TEXT

_PAGE: Final = 200


@dataclass(slots=True)
class Synced:
    """How many owners were found to be what."""

    unchanged: int = 0
    added: int = 0
    changed: int = 0
    removed: int = 0


class Owners:
    """The owners that the store knows.

    Args:
        store: remembers them.
        github: decides.
        installations: takes over what GitHub tells.
        auditor: the log.
        timeout_s: for a sync.
    """

    def __init__(
        self,
        store: Store,
        github: GitHub,
        installations: Installations,
        auditor: Auditor,
        *,
        timeout_s: float,
    ) -> None:
        self._store = store
        self._github = github
        self._installations = installations
        self._auditor = auditor
        self._timeout_s = timeout_s

    async def page(self, *, cursor: str | None, limit: int) -> Page[OwnerEntry]:
        """Return known owners in alphabetical order.

        Raises:
            InvalidRequestError: the cursor is not one of this list.
        """
        return await self._store.owners(cursor=cursor, limit=limit)

    async def of_installation(self, installation_id: int) -> str:
        """Return the owner that has an installation.

        Raises:
            NotFoundError: none is known to have it.
        """
        owner = await self._store.owner_of(installation_id)
        if owner is None:
            raise NotFoundError(public="No installation of that id is known.")
        return owner

    async def accept(self, owner: str, actor: Actor) -> Installation:
        """Pin the account that has ``owner`` (lower case) as its name now.

        Raises:
            NotFoundError: nothing is known of that owner.
            ConflictError: its account is the one that was first seen.
        """
        known = await self._known(owner)
        if known is None:
            raise NotFoundError(public="Nothing is known of that owner. Sync the installations first.")
        event = _event(owner, known, actor, f"account {known.account_id} accepted by {actor.key_id}")
        accepted = await self._store.accept_owner(owner, event)
        if accepted is None:
            raise ConflictError(public="That owner's account is the one first seen: nothing to accept.")
        self._auditor.log(event)
        return replace(accepted, foreign=False)

    async def _known(self, owner: str) -> Installation | None:
        scope = Scope.of_owner("", owner, ("metadata",))
        return (await self._store.read(ReadQuery(scope=scope))).installation()

    # -- sync ------------------------------------------------------------------------------------

    async def sync(self, actor: Actor) -> Synced:
        """Read all installations from GitHub; what is cached is dropped where something changed.

        Raises:
            GitHubError: GitHub could not be asked in time. What was done by then is done.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._sync(actor)
        except TimeoutError:
            raise GitHubTimeoutError("reading the installations took too long") from None

    async def _sync(self, actor: Actor) -> Synced:
        # In this order: what others put into the store while GitHub answers is not taken for gone.
        known = await self._all_known()
        found = {one.login.lower(): one for one in await self._github.installations()}
        synced = Synced()
        for owner, installation in found.items():
            before = known.get(owner)
            if before is None:
                await self._installations.learn(owner, installation, installation)
                synced.added += 1
            elif await self._installations.learn(owner, before, installation):
                event = _event(owner, installation, actor, f"sync: {_difference(before, installation)}")
                await self._store.record([event])
                self._auditor.log(event)
                synced.changed += 1
            else:
                synced.unchanged += 1
        for owner, installation in known.items():
            if owner not in found:
                await self._forget(owner, installation, actor)
                synced.removed += 1
        return synced

    async def _all_known(self) -> dict[str, Installation]:
        known: dict[str, Installation] = {}
        cursor: str | None = None
        while True:
            page = await self._store.owners(cursor=cursor, limit=_PAGE)
            known |= {entry.installation.login.lower(): entry.installation for entry in page.items}
            cursor = page.next_cursor
            if cursor is None:
                return known

    async def _forget(self, owner: str, installation: Installation, actor: Actor) -> None:
        """Drop what is cached for an owner without the app; the pinned account stays."""
        event = _event(owner, installation, actor, "sync: the app is not installed there any more")
        target = Target(TargetKind.OWNER, owner)
        await self._store.end(EndKind.DROP, target, event, by=actor.key_id, reason="sync")
        self._auditor.log(event)
        lead = await self._store.lease(f"o:{owner}")
        if lead is not None:  # else somebody is looking it up this moment
            try:
                await self._store.drop_owner(lead, owner)
            finally:
                with contextlib.suppress(StoreError):
                    await self._store.release(lead)


def _difference(before: Installation, after: Installation) -> str:
    """Return what changed, in words."""
    changes = (
        ("installation", before.id, after.id),
        ("account", before.account_id, after.account_id),
        ("selection", before.selection, after.selection),
        ("suspended", before.suspended, after.suspended),
    )
    told = [f"{name} {old} is now {new}" for name, old, new in changes if old != new]
    if dict(before.permissions) != dict(after.permissions):
        told.append("other permissions")
    return ", ".join(told)


def _event(owner: str, installation: Installation, actor: Actor, reason: str) -> AuditEvent:
    return AuditEvent(
        Event.OWNER_CHANGED,
        request_id=actor.request_id,
        client_ip=actor.client_ip,
        key_id=actor.key_id,
        key_name=actor.key_name,
        owner=owner,
        installation_id=installation.id,
        reason=reason[:MAX_TEXT],
    )
