"""The register of API keys; each change of one is a compare-and-set of its whole record in the store."""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from broker.access.keys import generate
from broker.access.policy import parse_patterns
from broker.errors import (
    BrokerError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    StoreUnavailableError,
)
from broker.issuing.ending import Actor
from broker.model import ApiKeyRecord, Role, Secret, parse_permissions
from broker.ports import AuditEvent, Event, KeyEntry, Page, ReadQuery, Store
from broker.wording import MAX_TEXT, parse_text

_ATTEMPTS: Final = 10
_IN_DOUBT_S: Final = 3.0
_AGAIN_S: Final = 0.25


class Keep(Enum):
    """The value of a field that is not changed."""

    KEEP = 0


KEEP: Final = Keep.KEEP


@dataclass(frozen=True, slots=True)
class KeyPolicy:
    """What a key is for and what it may do; checked."""

    name: str
    role: Role
    repositories: tuple[str, ...]
    permissions: tuple[str, ...]
    rate_limit_per_minute: int | None = None

    @classmethod
    def parse(
        cls,
        *,
        name: str,
        role: Role,
        repositories: Sequence[str],
        permissions: Mapping[str, object] | None,
        rate_limit_per_minute: int | None,
    ) -> "KeyPolicy":
        """Return the policy.

        Raises:
            InvalidRequestError: a malformed part; only an admin may have no repositories.
            NotReadOnlyError: a permission beyond read.
        """
        patterns = parse_patterns(repositories) if repositories or role is Role.CALLER else ()
        return cls(
            parse_text(name, field="name"),
            role,
            patterns,
            parse_permissions(permissions),
            rate_limit_per_minute,
        )


@dataclass(frozen=True, slots=True)
class KeyChange:
    """What an admin changes; what is ``KEEP`` stays. Checked like ``KeyPolicy``.

    Attributes:
        expires_at: Unix seconds, None for never.
        rate_limit_per_minute: None for no limit.
    """

    name: str | Keep = KEEP
    repositories: tuple[str, ...] | Keep = KEEP
    permissions: tuple[str, ...] | Keep = KEEP
    expires_at: int | Keep | None = KEEP
    rate_limit_per_minute: int | Keep | None = KEEP

    def of(self, record: ApiKeyRecord) -> ApiKeyRecord:
        """Return ``record`` as it is afterwards."""
        changed = {
            name: value
            for name in ("name", "repositories", "permissions", "expires_at", "rate_limit_per_minute")
            if not isinstance(value := getattr(self, name), Keep)
        }
        return replace(record, **changed)


class KeyRegister:
    """Keys as admins handle them.

    Args:
        store: keeps them.
        bootstrap_id: id of ``BROKER_ADMIN_KEY``, which has no record.
        log: takes the audit's line of what has been done; the record is the store's.
    """

    def __init__(
        self,
        store: Store,
        *,
        bootstrap_id: str | None = None,
        log: Callable[[AuditEvent], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._bootstrap_id = bootstrap_id
        self._log = log

    def use_bootstrap(self, key_id: str | None) -> None:
        """Let this be the id of ``BROKER_ADMIN_KEY`` from now on."""
        self._bootstrap_id = key_id

    async def create(
        self,
        policy: KeyPolicy,
        *,
        by: str,
        expires_in_s: float | None = None,
        expires_at: int | None = None,
        actor: Actor | None = None,
    ) -> tuple[Secret, ApiKeyRecord]:
        """Return a new key, shown this one time, and its record.

        Args:
            policy: what it may do.
            by: who makes it, for the record.
            expires_in_s: seconds until it ends; or
            expires_at: when it ends, Unix seconds; None for never.
            actor: who makes it, for the audit.

        Raises:
            InvalidRequestError: it would have ended already.
        """
        now = await self._time()
        if expires_in_s is not None:
            expires_at = int(now + expires_in_s)
        _check_expiry(expires_at, now)
        key, presented = generate()
        record = ApiKeyRecord(
            id=presented.id,
            sha256=presented.sha256,
            name=policy.name,
            role=policy.role,
            repositories=policy.repositories,
            permissions=policy.permissions,
            created_at=int(now),
            created_by=by,
            expires_at=expires_at,
            rate_limit_per_minute=policy.rate_limit_per_minute,
        )
        event = _event(Event.KEY_CREATED, record, by, actor)
        await self._store.create_key(record, event)
        self._log(event)
        return key, record

    async def _time(self) -> float:
        """Return the store's time."""
        return (await self._store.read(ReadQuery())).now

    async def list(self, *, cursor: str | None, limit: int) -> Page[KeyEntry]:
        """Return keys in order of their creation."""
        return await self._store.list_keys(cursor=cursor, limit=limit)

    async def show(self, key_id: str) -> KeyEntry:
        """Return one key.

        Raises:
            NotFoundError: there is no such key.
        """
        entry = await self._store.find_key(key_id)
        if entry is None:
            raise NotFoundError(public="There is no key of that id.")
        return entry

    async def change(self, key_id: str, change: KeyChange, *, by: str, actor: Actor) -> ApiKeyRecord:
        """Change what a key may do, at once and on every replica.

        Raises:
            NotFoundError: there is no such key.
            ConflictError: it is revoked, or it is the one from the settings.
            InvalidRequestError: it would have ended already.
        """
        for _ in range(_ATTEMPTS):
            entry = await self._changeable(key_id)
            if isinstance(change.expires_at, int):
                _check_expiry(change.expires_at, self._store.now())
            # Also what changes nothing is written: it may repeat a change that was answered with a 503, and
            # only a confirmed write of this process is on a replica, and is made again if it is lost.
            after = change.of(entry.record)
            if not after.repositories and after.role is Role.CALLER:
                raise InvalidRequestError(public="repositories: at least one pattern is needed.")
            event = _event(Event.KEY_CHANGED, after, by, actor)
            if await self._store.write_key(entry, after, event) is not None:
                self._log(event)
                return after
        raise StoreUnavailableError("a key's record kept changing", retry_after_s=1.0)

    async def _changeable(self, key_id: str) -> KeyEntry:
        self._not_bootstrap(key_id)
        entry = await self.show(key_id)
        if entry.record.revoked_at is not None:
            raise ConflictError(public="That key is revoked. Make a new one.")
        return entry

    def _not_bootstrap(self, key_id: str) -> None:
        if key_id == self._bootstrap_id:
            raise ConflictError(
                public="That key is in the broker's settings (BROKER_ADMIN_KEY). Change it there."
            )

    async def rotate(
        self, key_id: str, *, overlap_s: int, by: str, actor: Actor
    ) -> tuple[Secret, ApiKeyRecord]:
        """Return a new key of the same policy; the old one ends after ``overlap_s``.

        Raises:
            NotFoundError: there is no such key.
            ConflictError: it has ended, or it is the one from the settings.
            StoreUnavailableError: the new key, if there is one, is shown to nobody; the old one holds, or it
                ends as was asked for, which nobody could tell for some seconds.
        """
        for _ in range(_ATTEMPTS):
            entry = await self._changeable(key_id)
            old = entry.record
            if old.ended(self._store.now()):
                raise ConflictError(public="That key has expired. Make a new one.")
            policy = KeyPolicy(
                old.name, old.role, old.repositories, old.permissions, old.rate_limit_per_minute
            )
            key, record = await self.create(policy, by=by, expires_at=old.expires_at, actor=actor)
            try:
                done = await self._end_rotated(entry, overlap_s, _event(Event.KEY_ROTATED, old, by, actor))
            except BrokerError:
                await self.revoke(record.id, by=by, actor=actor, kill=False)  # nobody was shown it
                raise
            if done:
                return key, record
            # The old key's policy changed meanwhile: the copy of the older one must not live on.
            await self.revoke(record.id, by=by, actor=actor, kill=False)
        raise StoreUnavailableError("a key's record kept changing", retry_after_s=1.0)

    async def _end_rotated(self, entry: KeyEntry, overlap_s: int, event: AuditEvent) -> bool:
        """End the old key if it still is what the new one is a copy of."""
        now = self._store.now()
        if overlap_s:
            ends = math.ceil(now + overlap_s)  # records hold whole seconds; all of the overlap is promised
            after = replace(entry.record, expires_at=min(ends, entry.record.expires_at or ends))
        else:
            after = replace(entry.record, revoked_at=int(now))
        # A write without an answer may stand: then this key has ended, and nobody has the new one. So it is
        # made again until it is known; should that take too long, the admin is told to look.
        until = asyncio.get_running_loop().time() + _IN_DOUBT_S
        while True:
            try:
                if await self._store.write_key(entry, after, event) is not None:
                    self._log(event)
                    return True
                found = await self.show(after.id)
            except StoreUnavailableError:
                if asyncio.get_running_loop().time() >= until:
                    raise
                await asyncio.sleep(_AGAIN_S)
                continue
            if replace(found.record, version=after.version) != after:
                return False
            entry = found  # it stood; this time its answer counts

    async def revoke(
        self, key_id: str, *, by: str, actor: Actor | None = None, kill: bool = False
    ) -> tuple[str, ...]:
        """End a key, at once and on every replica.

        Ending it again is written again: the first time may have been answered with a 503, and what stands
        in the store then is not known to be on a replica.

        Args:
            key_id: which.
            by: who does it.
            actor: who does it, for the audit.
            kill: end every live token that it was handed as well; they are returned, and have yet to
                die at GitHub.

        Raises:
            NotFoundError: there is no such key.
            ConflictError: it is the one from the settings.
        """
        self._not_bootstrap(key_id)
        for _ in range(_ATTEMPTS):
            entry = await self.show(key_id)
            ended = entry.record
            if ended.revoked_at is None:
                ended = replace(ended, revoked_at=int(self._store.now()))
            event = _event(Event.KEY_REVOKED, ended, by, actor)
            killed = await self._store.write_key(entry, ended, event, kill=kill)
            if killed is not None:
                self._log(event)
                return killed
        raise StoreUnavailableError("a key's record kept changing", retry_after_s=1.0)


def _check_expiry(expires_at: int | None, now: float) -> None:
    if expires_at is not None and expires_at <= now:
        raise InvalidRequestError(public="expires_at: that is in the past.")


def _event(kind: Event, record: ApiKeyRecord, by: str, actor: Actor | None) -> AuditEvent:
    return AuditEvent(
        kind,
        request_id=actor.request_id if actor else None,
        client_ip=actor.client_ip if actor else None,
        key_id=record.id,
        key_name=record.name,
        reason=f"by {by}"[:MAX_TEXT],
    )
