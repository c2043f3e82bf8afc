"""Administering: who may, and what they read back from the audit."""

from dataclasses import replace

from broker.access.keys import PresentedKey
from broker.access.limits import RateLimiter
from broker.access.policy import require_admin
from broker.audit import Auditor
from broker.errors import RefusedError
from broker.issuing.ending import Actor
from broker.issuing.tokens import Issuer, Origin
from broker.ports import AuditEvent, AuditFilter, AuditRow, Event, Page, Store


class AdminGate:
    """Stands before every admin call; whom it turns away is audited like one who asked for a token.

    Args:
        issuer: knows who a key is.
        limits: of each key, counted here as everywhere.
        auditor: records refusals.
    """

    def __init__(self, issuer: Issuer, limits: RateLimiter, auditor: Auditor) -> None:
        self._issuer = issuer
        self._limits = limits
        self._auditor = auditor

    async def admit(self, presented: PresentedKey, origin: Origin, *, call: str) -> Actor:
        """Return who asks, if that is an admin.

        Args:
            presented: the key shown.
            origin: where the request comes from.
            call: what is asked for, for the audit.

        Raises:
            InvalidApiKeyError: unknown, wrong, expired or revoked.
            ForbiddenError: no admin.
            RateLimitedError: the key's own limit is used up, or too many unknown keys come from its address.
            StoreError: the store cannot tell.
        """
        caller = await self._issuer.identify(presented, origin)
        actor = Actor(caller.id, caller.name, origin.request_id, origin.client_ip)
        try:
            await self._limits.take(caller)
            require_admin(caller)
        except RefusedError as error:
            event = AuditEvent(
                Event.TOKEN_DENIED,
                request_id=origin.request_id,
                client_ip=origin.client_ip,
                key_id=caller.id,
                key_name=caller.name,
                code=error.code,
                reason=f"admin API ({call}): {error}"[:200],
            )
            await self._auditor.denied(event)
            raise
        return actor


class AuditTrail:
    """The stored audit events.

    Args:
        store: keeps them.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def page(self, wanted: AuditFilter, *, cursor: str | None, limit: int) -> Page[AuditRow]:
        """Return a page of events.

        Ascending, there is always a cursor to go on from once anything was there (an event's id, or the
        one that was given), so that whoever follows asks again with it: no events and the same cursor
        mean that nothing is new.

        Raises:
            InvalidRequestError: the cursor is not one of this list.
        """
        page = await self._store.audit(wanted, cursor=cursor, limit=limit)
        if not wanted.ascending or page.next_cursor is not None:
            return page
        return replace(page, next_cursor=page.items[-1].id if page.items else cursor)
