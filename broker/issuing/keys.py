"""The register of API keys: create, list, revoke; each change is one compare-and-set in the store."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from broker.access.keys import generate
from broker.access.policy import parse_patterns
from broker.errors import InvalidRequestError, NotFoundError, StoreUnavailableError
from broker.model import ApiKeyRecord, Role, Secret, parse_permissions
from broker.ports import AuditEvent, Event, KeyEntry, Page, ReadQuery, Store

MAX_TEXT: Final = 200
_ATTEMPTS: Final = 10
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def parse_text(text: str, *, field: str) -> str:
    """Return a name or reason: 1 to 200 characters without control characters.

    Raises:
        InvalidRequestError: it is anything else.
    """
    text = text.strip()
    if not text or len(text) > MAX_TEXT or _CONTROL.search(text):
        raise InvalidRequestError(public=f"{field}: 1 to {MAX_TEXT} characters, no control characters.")
    return text


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


class KeyRegister:
    """Keys as admins handle them.

    Args:
        store: keeps them.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def create(
        self, policy: KeyPolicy, *, by: str, expires_in_s: float | None
    ) -> tuple[Secret, ApiKeyRecord]:
        """Return a new key, shown this one time, and its record.

        Args:
            policy: what it may do.
            by: who makes it, for the audit.
            expires_in_s: seconds until it ends; None for never.
        """
        await self._store.read(ReadQuery())  # for the store's time
        now = self._store.now()
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
            expires_at=None if expires_in_s is None else int(now + expires_in_s),
            rate_limit_per_minute=policy.rate_limit_per_minute,
        )
        await self._store.create_key(record, _event(Event.KEY_CREATED, record, by))
        return key, record

    async def list(self, *, cursor: str | None, limit: int) -> Page[KeyEntry]:
        """Return keys in order of their creation."""
        return await self._store.list_keys(cursor=cursor, limit=limit)

    async def revoke(self, key_id: str, *, by: str) -> ApiKeyRecord:
        """End a key, at once and on every replica; ending it again changes nothing.

        Raises:
            NotFoundError: there is no such key.
        """
        for _ in range(_ATTEMPTS):
            entry = await self._store.find_key(key_id)
            if entry is None:
                raise NotFoundError(public="There is no key of that id.")
            if entry.record.revoked_at is not None:
                return entry.record
            ended = replace(entry.record, revoked_at=int(self._store.now()))
            if await self._store.write_key(entry, ended, _event(Event.KEY_REVOKED, ended, by), narrows=True):
                return ended
        raise StoreUnavailableError("a key's record kept changing", retry_after_s=1.0)


def _event(kind: Event, record: ApiKeyRecord, by: str) -> AuditEvent:
    return AuditEvent(kind, key_id=record.id, key_name=record.name, reason=f"by {by}"[:MAX_TEXT])
