"""Issuing: authorize, obtain, audit, release; one place, one order, on every call, warm or cold.

A request's way: READ one snapshot → the key is that key and has not ended → policy → block → the
owner's installation → the cached token, if it is good → HAND → answer. Whoever had to wait for a
mint comes back to READ, so no token leaves on a decision that is older than the token.
"""

import asyncio
import contextlib
from base64 import b64decode
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, NamedTuple

from broker.access.keys import PresentedKey
from broker.access.limits import RateLimiter, Strangers
from broker.access.policy import authenticate, authorize
from broker.audit import Auditor
from broker.errors import (
    BlockedError,
    BrokerError,
    GitHubTimeoutError,
    InstallationSuspendedError,
    InvalidApiKeyError,
    OvertakenError,
    RateLimitedError,
    RequestError,
    StoreUnavailableError,
)
from broker.issuing.installations import Installations
from broker.issuing.minting import OWNER_CHANGED, Minter, error_of
from broker.model import ApiKeyRecord, Grant, Installation, LiveToken, Scope
from broker.ports import AuditEvent, Event, HandResult, ReadQuery, Snapshot, Store

_ATTEMPTS: Final = 5
_HANDED_REMEMBERED: Final = 50_000
REFRESH_GATE_S: Final = 30.0
_DENIED_NAMES: Final = 20
"""So many names of a refused request are kept: what is refused must not fill the store."""


class Origin(NamedTuple):
    """Where a request comes from, for the audit."""

    request_id: str
    client_ip: str | None


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """What a caller asks for.

    Attributes:
        min_ttl_s: least remaining life that the caller accepts, seconds.
        refresh: the caller says that the cached token is bad.
    """

    scope: Scope
    min_ttl_s: int = 0
    refresh: bool = False


class Issued(NamedTuple):
    """A token on its way to a caller."""

    token: LiveToken
    cached: bool


@dataclass(frozen=True, slots=True)
class IssueSettings:
    """What issuing goes by; all in seconds.

    Attributes:
        min_ttl_s: no cached token with less life is handed out.
        refresh_ahead_s: from so long before expiry one refresh runs in the background.
        timeout_s: for a whole request.
        allowed_owners: lower case; None serves all.
    """

    min_ttl_s: float
    refresh_ahead_s: float
    timeout_s: float
    allowed_owners: frozenset[str] | None


@dataclass(slots=True)
class _Way:
    """How far one request has come.

    Attributes:
        refresh: the cached token is to be replaced.
        bad: SHA-256 of that token, as the first READ found it; "" if there was none. Any other is newer
            than the request, whoever minted it.
        through_gate: the one refresh in 30 s is this request's.
        fresh: SHA-256 of a token that was minted while this request waited.
        handed: SHA-256 of a token whose first hand-out to the key was stored for this request while the
            token itself was stored; nothing has left yet.
        waits: for a mint.
    """

    refresh: bool
    bad: str | None = None
    through_gate: bool = False
    fresh: str | None = None
    handed: str | None = None
    waits: bool = False

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Wait for a mint: it goes on if the request ends."""
        self.waits = True
        try:
            yield
        finally:
            self.waits = False


class _Decided(NamedTuple):
    """The last decision on a cached token, and all that it went by.

    One snapshot answers all who asked in one turn, as if each had read alone: who asks the same of it, with
    the same key, gets the same answer. Nothing is kept from one snapshot to the next.
    """

    issued: Issued
    grant: Grant
    seen: Snapshot
    presented: PresentedKey
    request: TokenRequest


class HandOuts:
    """First hand-outs that are known to be stored, the last ``_HANDED_REMEMBERED`` or up to twice as many.

    A store that may have gone back may have lost them: what is known of another generation does not count.
    """

    def __init__(self) -> None:
        self._known: set[bytes] = set()
        self._before: set[bytes] = set()

    def holds(self, token: LiveToken, grant: Grant, seen: Snapshot) -> bool:
        """Return whether a hand-out is known to be stored."""
        name = _hand_out_name(token, grant, seen)
        return name in self._known or name in self._before

    def add(self, token: LiveToken, grant: Grant, seen: Snapshot) -> None:
        """Note that a hand-out is stored."""
        if len(self._known) >= _HANDED_REMEMBERED:
            self._before, self._known = self._known, set()
        self._known.add(_hand_out_name(token, grant, seen))


def _hand_out_name(token: LiveToken, grant: Grant, seen: Snapshot) -> bytes:
    # As short as can be: there are as many as live tokens.
    return b"%b %b %d" % (b64decode(token.sha256), grant.key_id.encode(), seen.generation)


class Issuer:
    """The use case of the product.

    Args:
        store: one READ decides, one HAND releases.
        admin: the record that stands for ``BROKER_ADMIN_KEY``, if one is configured.
        minter: makes tokens when the cache has none that is good.
        installations: watches owners.
        limits: per-key limits.
        auditor: records.
        settings: see ``IssueSettings``.

    Attributes:
        admin: may be replaced while requests run.
    """

    def __init__(
        self,
        store: Store,
        *,
        admin: ApiKeyRecord | None,
        minter: Minter,
        installations: Installations,
        limits: RateLimiter,
        auditor: Auditor,
        settings: IssueSettings,
    ) -> None:
        self._store = store
        self.admin = admin
        self._minter = minter
        self._installations = installations
        self._limits = limits
        self._auditor = auditor
        self._settings = settings
        self._handed = HandOuts()
        self._decided: _Decided | None = None
        self._strangers = Strangers()

    # -- who asks --------------------------------------------------------------------------------

    async def identify(self, presented: PresentedKey, origin: Origin) -> ApiKeyRecord:
        """Return the caller's record.

        Raises:
            InvalidApiKeyError: unknown, wrong, expired or revoked.
            RateLimitedError: too many such keys come from that address.
            StoreError: the store cannot tell; also for the key from the settings.
        """
        query = ReadQuery(presented.id)
        seen = await self._read(presented, query, origin)
        caller, _ = await self._identified(presented, query, seen, origin)
        return caller

    def _read(self, presented: PresentedKey, query: ReadQuery, origin: Origin) -> Awaitable[Snapshot]:
        """READ; strangers wait for it."""
        if self._strangers.known:
            return self._read_in_turn(presented, query, origin)
        return self._store.read(query)

    async def _read_in_turn(self, presented: PresentedKey, query: ReadQuery, origin: Origin) -> Snapshot:
        await self._strangers.wait(presented, origin.client_ip)
        return await self._store.read(query)

    async def _identified(
        self, presented: PresentedKey, query: ReadQuery, seen: Snapshot, origin: Origin
    ) -> tuple[ApiKeyRecord, Snapshot]:
        """Return who it is; READ again if the key's record changed in that very moment."""
        try:
            try:
                caller = self._authenticated(presented, seen)
            except OvertakenError:
                seen = await self._store.read(query)
                caller = self._authenticated(presented, seen)
        except InvalidApiKeyError:
            self._strangers.failed(presented, origin.client_ip)
            raise
        self._strangers.succeeded(presented)
        return caller, seen

    async def admitted(self, presented: PresentedKey, origin: Origin) -> ApiKeyRecord:
        """Return the caller's record and count the request against the key's own limit.

        Raises:
            BrokerError: as ``identify``; ``RateLimitedError``, which is audited.
        """
        caller = await self.identify(presented, origin)
        try:
            await self._limits.take(caller)
        except RateLimitedError as error:
            await self._denied(error, [caller], None, origin)
            raise
        return caller

    async def refuse(self, presented: PresentedKey, error: RequestError, origin: Origin) -> None:
        """Audit a request that makes no sense, once it is known whose it is; it counts like any other.

        Raises:
            BrokerError: as ``admitted``: whoever has no key learns nothing, not even what a good request
                looks like.
        """
        caller = await self.admitted(presented, origin)
        await self._denied(error, [caller], None, origin)

    async def who(self, presented: PresentedKey, origin: Origin) -> tuple[ApiKeyRecord, int | None]:
        """Return the caller's record and when it was last used (Unix seconds, to the minute).

        Raises:
            BrokerError: as ``admitted``.
        """
        caller = await self.admitted(presented, origin)
        entry = await self._store.find_key(caller.id)
        return caller, entry.last_used_at if entry else None

    def _authenticated(self, presented: PresentedKey, snapshot: Snapshot) -> ApiKeyRecord:
        record = snapshot.key()
        if self.admin is not None and presented.id == self.admin.id:
            record = self.admin
        caller = authenticate(presented, record, now=snapshot.now)
        self._auditor.used(caller.id, snapshot.now)
        return caller

    # -- issuing ---------------------------------------------------------------------------------

    async def issue(self, presented: PresentedKey, request: TokenRequest, origin: Origin) -> Issued:
        """Return a token for ``request``, or raise why there is none; either is audited.

        Raises:
            BrokerError: one of the contract's refusals.
        """
        caller: list[ApiKeyRecord] = []
        until = asyncio.get_running_loop().time() + self._settings.timeout_s
        query = ReadQuery(presented.id, request.scope)
        try:
            seen = await self._read(presented, query, origin)
            if (known := self._decided_already(seen, presented, request, origin)) is not None:
                return known
            return await self._issue(presented, request, origin, caller, until, query, seen)
        except TimeoutError:
            error: BrokerError = GitHubTimeoutError("the request's time is up while GitHub is asked")
            await self._denied(error, caller, request.scope, origin)
            raise error from None
        except BrokerError as error:
            await self._denied(error, caller, request.scope, origin)
            raise

    async def _issue(  # noqa: PLR0917 - all of one request
        self,
        presented: PresentedKey,
        request: TokenRequest,
        origin: Origin,
        who: list[ApiKeyRecord],
        until: float,
        query: ReadQuery,
        seen: Snapshot,
    ) -> Issued:
        # Only what waits for GitHub needs the request's own deadline: each verb of the store has one, and
        # a timer costs a good part of a warm request.
        way = _Way(refresh=request.refresh)
        for attempt in range(_ATTEMPTS):
            if attempt:
                seen = await self._read(presented, query, origin)
            caller, seen = await self._identified(presented, query, seen, origin)
            who[:] = [caller]
            if attempt == 0 and caller.rate_limit_per_minute is not None:
                await self._limits.take(caller)
            grant = self._granted(caller, request.scope, seen)
            if way.refresh and way.bad is None:
                way.bad = found.sha256 if (found := seen.token()) is not None else ""
            if attempt == 0 and (old := self._old_picture(request.scope, seen)) is not None:
                async with asyncio.timeout_at(until):
                    await self._installations.renewed(request.scope.owner, old)
                continue
            token = self._cached(seen, request, way)
            if token is not None and way.refresh and token.sha256 == way.bad:
                token = await self._unless_refreshed(token, request.scope, way)
            if token is None:
                hand = partial(self._hand_early, grant, seen, origin, way)
                with contextlib.suppress(OvertakenError), way.waiting():
                    async with asyncio.timeout_at(until):
                        way.fresh = await self._minter.mint(grant, seen, hand)
                continue
            issued = await self._released(grant, token, seen, origin, way)
            if issued is not None:
                if attempt == 0 and caller.rate_limit_per_minute is None:
                    self._decided = _Decided(issued, grant, seen, presented, request)
                return issued
        raise StoreUnavailableError("what this request rests on kept changing", retry_after_s=1.0)

    def _decided_already(
        self, seen: Snapshot, presented: PresentedKey, request: TokenRequest, origin: Origin
    ) -> Issued | None:
        """Return what another request was just given that asked the same of this very snapshot."""
        same = self._decided
        if (
            same is None
            or same.seen is not seen
            or same.presented is not presented
            or same.request is not request
            or not self._auditor.issued_again(
                same.issued.token, same.grant, *origin, generation=seen.generation
            )
        ):
            return None
        return same.issued

    def _granted(self, caller: ApiKeyRecord, scope: Scope, seen: Snapshot) -> Grant:
        """Return the grant: policy first, then blocks."""
        grant = authorize(caller, scope, allowed_owners=self._settings.allowed_owners)
        if seen.blocked() is not None:
            raise BlockedError
        return grant

    def _old_picture(self, scope: Scope, seen: Snapshot) -> Installation | None:
        """Return what is known of the owner's installation if that is too old to go by."""
        installation = seen.installation()
        if installation is None:
            return None
        self._installations.used(scope.owner)
        return installation if self._installations.is_old(installation, now=seen.now) else None

    def _cached(self, seen: Snapshot, request: TokenRequest, way: "_Way") -> LiveToken | None:
        """Return the cached token; None where one has to be minted.

        Raises:
            BlockedError: the account is not the one first seen under this login.
            InstallationSuspendedError: the owner suspended the app.
            BrokerError: the scope has just failed and cools down.
        """
        token = None
        if (installation := seen.installation()) is not None:
            _serves(installation)
            token = self._good(seen, installation, request, way.fresh)
        if token is None:
            failure = seen.failure()
            if failure is not None and way.fresh is None and not way.refresh:
                raise error_of(failure)
        return token

    async def _unless_refreshed(self, token: LiveToken, scope: Scope, way: "_Way") -> LiveToken | None:
        """Return the cached token again if it was refreshed a moment ago; None where one has to be minted."""
        way.refresh = way.through_gate or await self._store.refresh_gate(scope, seconds=REFRESH_GATE_S)
        way.through_gate = way.refresh
        return None if way.refresh else token

    def _good(
        self, seen: Snapshot, installation: Installation, request: TokenRequest, fresh: str | None
    ) -> LiveToken | None:
        """Return the cached token if it is the installation's and lives long enough by GitHub's clock."""
        token = seen.token()
        if token is None or token.installation_id != installation.id:
            return None
        if token.sha256 == fresh:
            return token  # a token just minted satisfies any min_ttl, else a wrong clock mints for ever
        left = token.expires_at - (seen.now + seen.gh_offset)
        return token if left >= max(request.min_ttl_s, self._settings.min_ttl_s) else None

    def _refresh_ahead(self, grant: Grant, token: LiveToken, seen: Snapshot) -> None:
        left = token.expires_at - (seen.now + seen.gh_offset)
        if left < self._settings.refresh_ahead_s and not seen.refresh_failed():
            self._minter.mint_ahead(grant, seen)

    async def _released(
        self, grant: Grant, token: LiveToken, seen: Snapshot, origin: Origin, way: _Way
    ) -> Issued | None:
        """Return what is given out, recorded; None if something has changed meanwhile."""
        cached = token.sha256 != way.fresh
        if not cached or not self._auditor.issued_again(token, grant, *origin, generation=seen.generation):
            match await self._hand(grant, token, seen, origin, way, cached=cached):
                case HandResult.STALE:
                    return None
                case HandResult.GONE:
                    await self._store.drop_token(seen)
                    return None
        self._refresh_ahead(grant, token, seen)
        return Issued(token, cached)

    async def _hand(
        self, grant: Grant, token: LiveToken, seen: Snapshot, origin: Origin, way: _Way, *, cached: bool
    ) -> HandResult:
        event = _hand_out(grant, token, origin, cached=cached)
        if not self._handed.holds(token, grant, seen):
            result = await self._hand_over(grant, token, seen, event)
            if result in {HandResult.STALE, HandResult.GONE}:
                return result
        else:
            result = HandResult.FIRST if way.handed == token.sha256 else HandResult.AGAIN
        self._auditor.issued(event, first=result is HandResult.FIRST, generation=seen.generation)
        return result

    async def _hand_early(
        self, grant: Grant, seen: Snapshot, origin: Origin, way: _Way, token: LiveToken
    ) -> None:
        """HAND a token that is about to be stored, for the request that had it minted: one turn for both.

        It goes by the decision before the mint, and so is refused if anything has narrowed since. The token
        leaves after another READ only, like any other; not at all if the request has ended meanwhile.
        """
        if not way.waits:
            return
        event = _hand_out(grant, token, origin, cached=False)
        if await self._hand_over(grant, token, seen, event) is HandResult.FIRST:
            way.handed = token.sha256

    async def _hand_over(
        self, grant: Grant, token: LiveToken, seen: Snapshot, event: AuditEvent
    ) -> HandResult:
        result = await self._store.hand(token, epoch=seen.epoch, event=replace(event, count=1))
        if result in {HandResult.FIRST, HandResult.AGAIN}:
            self._handed.add(token, grant, seen)
        return result

    async def _denied(
        self, error: BrokerError, caller: list[ApiKeyRecord], scope: Scope | None, origin: Origin
    ) -> None:
        who = caller[0] if caller else None
        event = AuditEvent(
            Event.TOKEN_DENIED,
            request_id=origin.request_id,
            client_ip=origin.client_ip,
            key_id=who.id if who else None,
            key_name=who.name if who else None,
            owner=scope.owner if scope else None,
            repositories=scope.repositories[:_DENIED_NAMES] if scope and scope.repositories else None,
            permissions=scope.permissions if scope else None,
            code=error.code,
            reason=str(error),
        )
        if who is None or isinstance(error, InvalidApiKeyError):
            # Before authentication: strangers can't fill the store, nor, from one address, the log.
            if count := self._strangers.lines(origin.client_ip):
                self._auditor.log(event if count == 1 else replace(event, count=count))
        else:
            await self._auditor.denied(event)


def _hand_out(grant: Grant, token: LiveToken, origin: Origin, *, cached: bool) -> AuditEvent:
    return AuditEvent(
        Event.TOKEN_ISSUED,
        request_id=origin.request_id,
        client_ip=origin.client_ip,
        key_id=grant.key_id,
        key_name=grant.key_name,
        owner=grant.scope.owner,
        repositories=token.repositories,
        permissions=token.permissions,
        installation_id=token.installation_id,
        token_sha256=token.sha256,
        expires_at=token.expires_at,
        cached=cached,
    )


def _serves(installation: Installation) -> None:
    """Let an installation through that serves.

    Raises:
        BlockedError: the account is not the one first seen under this login.
        InstallationSuspendedError: the owner suspended the app.
    """
    if installation.foreign:
        raise BlockedError("the owner's account changed", public=OWNER_CHANGED)
    if installation.suspended:
        raise InstallationSuspendedError
