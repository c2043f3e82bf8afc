"""Mint once: of all callers and replicas that need a token of one scope, one leads and the others wait.

The leader runs detached from its callers, holds the store's lease, renews it, and stores its result
only if the lease is still its own (COMMIT compares the nonce). Anything but a stored result dies:
it is revoked at GitHub, and nobody gets it.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from broker import errors
from broker.errors import (
    BrokerError,
    GitHubError,
    GitHubRateLimitedError,
    GitHubTimeoutError,
    InstallationGoneError,
    NotInstalledError,
    OvertakenError,
    RateLimitedError,
    StoreError,
    StoreUnavailableError,
    UntrustedReplyError,
)
from broker.issuing.following import Following
from broker.issuing.installations import Installations, again, kept, pause_for
from broker.issuing.minted import check_minted
from broker.issuing.turns import Turns
from broker.model import (
    Failure,
    Grant,
    Installation,
    LiveToken,
    MintedToken,
    RepositoryName,
    Scope,
    Secret,
    token_sha256,
)
from broker.ports import (
    AuditEvent,
    Changed,
    CommitResult,
    Event,
    GitHub,
    Lead,
    Meter,
    MintBudget,
    OverBudget,
    Paused,
    ReadQuery,
    Snapshot,
    Store,
    Wait,
)

R = TypeVar("R")
_log = logging.getLogger(__name__)

Hand = Callable[[LiveToken], Awaitable[None]]
"""Stores that the request which causes a mint is handed its token; asked while the token is stored."""

CLOCK_TOLERANCE_S: Final = 2.0
_TOKEN_LIFE_S: Final = 3600.0
_DATE_TRUST_S: Final = 300.0
_FLIGHT_S: Final = 60.0
_REVOKE_FOR_S: Final = 60.0
_REVOKE_TRIES: Final = 3
_ASK_STORE_S: Final = 0.5
_PROBE_FOR_S: Final = 5.0
DRAIN_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class MintSettings:
    """What a mint goes by.

    Attributes:
        cooldown_s: a scope that failed is not asked for again for so long.
        budget_per_minute: fresh mints that one key may cause.
        accept_implicit: read permissions that GitHub may add by itself.
        probe_git: try a new token against git's endpoint before it is kept.
    """

    cooldown_s: float
    budget_per_minute: int
    accept_implicit: frozenset[str] = frozenset()
    probe_git: bool = False


@dataclass(frozen=True, slots=True)
class _Flight:
    task: "asyncio.Task[str | BrokerError]"
    key_id: str
    ahead: bool


class Minter:
    """Mints tokens, one at a time per scope.

    Args:
        store: leases, the cache, the register of live tokens.
        github: mints and revokes.
        installations: finds the installation of an owner.
        turns: bounds concurrent calls to GitHub.
        settings: see ``MintSettings``.
        grant_hint: returns how to install the app or extend it, for people, once that is known.
        meter: told of every mint that this process led.

    Attributes:
        waiting: callers who wait for a mint right now.
    """

    def __init__(
        self,
        store: Store,
        github: GitHub,
        installations: Installations,
        turns: Turns,
        settings: MintSettings,
        *,
        grant_hint: Callable[[], str | None],
        meter: Meter | None = None,
    ) -> None:
        self._store = store
        self._github = github
        self._installations = installations
        self._turns = turns
        self._settings = settings
        self._grant_hint = grant_hint
        self._meter = meter or Meter()
        self.waiting = 0
        self._flights: dict[str, _Flight] = {}
        self._dying: set[asyncio.Task[None]] = set()

    async def stop(self, *, within_s: float = DRAIN_S) -> None:
        """Wait for mints in flight and then for late revocations; what is not done in time is given up."""
        until = asyncio.get_running_loop().time() + within_s
        await _given([flight.task for flight in self._flights.values()], until)
        await _given(self._dying, until)

    async def mint(self, grant: Grant, seen: Snapshot, hand: Hand | None = None) -> str:
        """Return the SHA-256 of a token that is newer than what ``seen`` found.

        Cancelling the caller does not end the mint.

        Args:
            grant: to whom, and of which scope.
            seen: what the caller found, and decided by.
            hand: called if this caller's mint is stored by this process, whether or not it works.

        Raises:
            BrokerError: why there is none.
        """
        while True:
            flight = self._flights.get(grant.scope.id) or self._start(grant, seen, hand, ahead=False)
            self.waiting += 1
            try:
                outcome = await asyncio.shield(flight.task)
            finally:
                self.waiting -= 1
            if not isinstance(outcome, BrokerError):
                return outcome
            others = flight.key_id != grant.key_id and isinstance(outcome, RateLimitedError)
            if not others and not flight.ahead:
                raise again(outcome)
            # Another key's budget, or a refresh that nobody waited for, says nothing about this call.
            if self._flights.get(grant.scope.id) is flight:
                await asyncio.sleep(0)

    def mint_ahead(self, grant: Grant, seen: Snapshot) -> None:
        """Begin to replace a token that is still good; nobody waits for it."""
        if grant.scope.id not in self._flights:
            self._start(grant, seen, None, ahead=True)

    def _start(self, grant: Grant, seen: Snapshot, hand: Hand | None, *, ahead: bool) -> _Flight:
        scope_id = grant.scope.id
        task = asyncio.create_task(self._fly(grant, seen, hand, ahead=ahead), name="mint")
        flight = _Flight(task, grant.key_id, ahead)
        self._flights[scope_id] = flight
        task.add_done_callback(lambda _: self._flights.pop(scope_id, None))
        return flight

    async def _fly(
        self, grant: Grant, seen: Snapshot, hand: Hand | None, *, ahead: bool
    ) -> str | BrokerError:
        """Lead, or wait for who leads; the outcome is returned, not raised, as many may wait for it."""
        try:
            async with asyncio.timeout(_FLIGHT_S):
                return await self._lead_or_follow(grant, seen, hand, ahead=ahead)
        except BrokerError as error:
            return error
        except TimeoutError:
            return GitHubTimeoutError(f"no token for a scope of {grant.scope.owner} within {_FLIGHT_S:g} s")
        except Exception as error:  # noqa: BLE001 - many may wait for the outcome
            _log.exception("a mint failed unexpectedly")
            return BrokerError(f"a mint failed unexpectedly: {type(error).__name__}")

    async def _lead_or_follow(self, grant: Grant, seen: Snapshot, hand: Hand | None, *, ahead: bool) -> str:
        scope = grant.scope
        before = seen.raw_token()
        budget = MintBudget(grant.key_id, self._settings.budget_per_minute)
        following = Following()
        while True:
            try:
                acquired = await self._store.acquire(scope, seen=seen, budget=budget, ahead=ahead)
                if not isinstance(acquired, Wait | Changed):
                    break
                if isinstance(acquired, Wait):
                    await following.pause()
                seen = await self._store.read(ReadQuery(scope=scope))
            except StoreUnavailableError as error:
                await following.bear(error)
                continue
            following.answered()
            if seen.raw_token() != before:
                token = seen.token()
                if token is not None:
                    return token.sha256
                before = seen.raw_token()
        if isinstance(acquired, Lead):
            return await self._measured(self._lead(acquired, grant, seen, hand, ahead=ahead), ahead=ahead)
        raise _refusal(acquired)

    # -- leading ---------------------------------------------------------------------------------

    async def _measured(self, mint: Coroutine[None, None, str], *, ahead: bool) -> str:
        now = asyncio.get_running_loop().time
        began = now()
        result = "unexpected"  # also of one that was given up
        try:
            sha256 = await mint
            result = "ok"
        except BrokerError as error:
            result = "untrusted_reply" if isinstance(error, UntrustedReplyError) else error.code
            raise
        finally:
            self._meter.minted(ahead=ahead, result=result, seconds=now() - began)
        return sha256

    async def _lead(self, lead: Lead, grant: Grant, seen: Snapshot, hand: Hand | None, *, ahead: bool) -> str:
        async with kept(self._store, lead) as ours:
            try:
                token, offset = await self._new_token(lead, grant.scope, seen, ours)
                return await self._keep(lead, grant, token, offset, seen, hand)
            except BrokerError as error:
                error = self._with_hint(error)
                with contextlib.suppress(StoreError):
                    if isinstance(error, GitHubRateLimitedError):
                        await pause_for(self._store, grant.scope.owner, error)
                    if isinstance(error, GitHubError):
                        await self._store.fail(
                            lead,
                            grant.scope,
                            Failure(error.code, error.public, error.retry_after_s),
                            cooldown_s=self._settings.cooldown_s,
                            ahead=ahead,
                        )
                    else:
                        await self._store.release(lead)
                _log.warning("no token could be minted", extra={"code": error.code, "cause": str(error)})
                raise error from None

    def _with_hint(self, error: BrokerError) -> BrokerError:
        if type(error) in {NotInstalledError, InstallationGoneError}:
            hint = self._grant_hint()
            if hint:
                return NotInstalledError(str(error), public=f"{error.public} {hint}")
        return error

    async def _new_token(
        self, lead: Lead, scope: Scope, seen: Snapshot, ours: Callable[[], bool]
    ) -> tuple[LiveToken, float]:
        """Mint and check; a stale installation id is looked up again once, in the same call.

        Returns:
            The token, and GitHub's clock minus the store's, in seconds.
        """
        probe = RepositoryName(*scope.repositories[0].split("/")) if scope.repositories else None
        installation = seen.installation()
        if installation is None:
            installation = await self._installations.find(scope.owner, probe)
        try:
            minted, asked_at = await self._mint(scope, installation, ours)
        except InstallationGoneError:
            installation = await self._installations.find(scope.owner, probe, not_id=installation.id)
            minted, asked_at = await self._mint(scope, installation, ours)
        try:
            token = check_minted(
                minted,
                scope,
                installation_id=installation.id,
                epoch=lead.epoch,
                accept_implicit=self._settings.accept_implicit,
            )
        except UntrustedReplyError as error:
            _log.critical("a token that is not what was asked for is revoked", extra={"cause": str(error)})
            self._let_die(minted.token, scope, reason=str(error))
            raise
        if self._settings.probe_git and token.repositories and "contents" in token.permissions:
            await self._wait_until_accepted(token)
        return token, gh_offset(minted, store_now=asked_at)

    async def _mint(
        self, scope: Scope, installation: Installation, ours: Callable[[], bool]
    ) -> tuple[MintedToken, float]:
        """Return GitHub's reply, and the store's time when it was asked for."""
        if installation.foreign:
            raise errors.BlockedError("the owner's account changed", public=OWNER_CHANGED)
        if installation.suspended:
            raise errors.InstallationSuspendedError
        async with self._turns.turn(scope.owner):
            if not ours():
                raise OvertakenError("the lease was lost before GitHub was asked", retry_after_s=1.0)
            asked_at = self._store.now()
            minted = await self._github.mint(
                installation.id,
                repositories=_bare_names(scope),
                permissions=scope.permissions,
            )
            return minted, asked_at

    async def _wait_until_accepted(self, token: LiveToken) -> None:
        """Try a new token against git's endpoint until it is accepted, or ``_PROBE_FOR_S`` have passed.

        Either way it is kept: GitHub has said that it is good, so what the probe gains is only time. An
        endpoint that gives no answer is not asked again, as it may be out of the broker's reach.
        """
        repository = token.repositories[0] if token.repositories else ""
        delay = 0.1
        try:
            async with asyncio.timeout(_PROBE_FOR_S):
                while not await self._github.probe_git(token.token, repository):
                    await asyncio.sleep(delay)
                    delay = min(1.0, delay * 2)
        except (TimeoutError, GitHubError) as error:
            cause = str(error) or f"refused for {_PROBE_FOR_S:g} s"
            _log.warning("git's endpoint has not accepted a new token", extra={"cause": cause})

    async def _keep(  # noqa: PLR0917 - all of one mint
        self,
        lead: Lead,
        grant: Grant,
        token: LiveToken,
        offset: float,
        seen: Snapshot,
        hand: Hand | None,
    ) -> str:
        scope = grant.scope
        moved = abs(offset - seen.gh_offset) > CLOCK_TOLERANCE_S
        event = AuditEvent(
            Event.TOKEN_MINTED,
            key_id=grant.key_id,
            key_name=grant.key_name,
            owner=scope.owner,
            repositories=token.repositories,
            permissions=token.permissions,
            installation_id=token.installation_id,
            token_sha256=token.sha256,
            expires_at=token.expires_at,
        )
        committing = self._store.commit(
            lead,
            scope,
            token,
            gh_offset=offset if moved else seen.gh_offset,
            moved=moved,
            event=event,
        )
        try:
            result = await (committing if hand is None else _first_of_both(committing, hand(token)))
        except StoreUnavailableError:
            reason = "the store did not keep it"
            self._let_die(token.token, scope, reason=reason, unless=lambda: self._kept(lead, scope, token))
            raise
        except StoreError:
            self._let_die(token.token, scope, reason="it is not the store that was there before")
            raise
        if result is CommitResult.OK:
            return token.sha256
        self._let_die(token.token, scope, reason=f"it came too late: {result}")
        if result is CommitResult.BLOCKED:
            raise errors.BlockedError
        # Something ended the scope, or the lease, while GitHub worked: callers look again and, if they
        # still may, mint anew.
        raise OvertakenError(f"a mint was overtaken: {result}", retry_after_s=1.0)

    async def _kept(self, lead: Lead, scope: Scope, token: LiveToken) -> bool:
        """Return whether a COMMIT whose reply was lost has been done: its token is in use then.

        A store that was frozen may still do it later. The lease is given back first, so that this fails.
        """
        await self._store.release(lead)
        found = (await self._store.read(ReadQuery(scope=scope))).token()
        return found is not None and found.sha256 == token.sha256

    # -- dying -----------------------------------------------------------------------------------

    def _let_die(
        self,
        token: Secret,
        scope: Scope,
        *,
        reason: str,
        unless: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        """Revoke a token that nobody got, detached: for up to a minute, but at least three times.

        Not by time alone: a machine that was suspended wakes up with all of its time gone.

        Args:
            token: the token.
            scope: what it is for.
            reason: for the audit.
            unless: asked first, until the store answers: true if the store has kept the token after all.
        """
        event = AuditEvent(
            Event.TOKEN_REVOKED,
            owner=scope.owner,
            repositories=scope.repositories,
            permissions=scope.permissions,
            token_sha256=token_sha256(token),
            reason=reason,
        )

        async def revoke() -> None:
            if unless is not None and await _answered(unless):
                return
            delay = 0.5
            deadline = asyncio.get_running_loop().time() + _REVOKE_FOR_S
            tries = 0
            while tries < _REVOKE_TRIES or asyncio.get_running_loop().time() < deadline:
                tries += 1
                try:
                    await self._github.revoke(token)
                except GitHubError as error:
                    _log.warning("a late token is not revoked yet", extra={"cause": str(error)})
                    await asyncio.sleep(delay)
                    delay = min(10.0, 2 * delay)
                    continue
                with contextlib.suppress(StoreError):
                    await self._store.record([event])
                return
            given_up()

        def given_up() -> None:
            _log.error(
                "a late token could not be revoked; nobody has it and it expires within the hour",
                extra={"token_sha256": event.token_sha256},
            )

        async def revoke_or_tell() -> None:
            try:
                await revoke()
            except asyncio.CancelledError:
                given_up()
                raise

        task = asyncio.create_task(revoke_or_tell(), name="late-revocation")
        self._dying.add(task)
        task.add_done_callback(self._dying.discard)


def _refusal(acquired: Paused | OverBudget | Failure) -> BrokerError:
    """Return why nobody may mint now."""
    match acquired:
        case Paused(retry_after_s):
            return GitHubRateLimitedError("a pause that GitHub asked for", retry_after_s=retry_after_s)
        case OverBudget(retry_after_s):
            return RateLimitedError(
                "the key's budget of fresh mints is used up",
                public="This key has asked for too many new tokens this minute.",
                retry_after_s=retry_after_s,
            )
        case Failure():
            return error_of(acquired)


async def _first_of_both(first: Awaitable[R], second: Awaitable[None]) -> R:
    """Ask for both, in this order and in one turn of the loop; return or raise what the first comes to.

    What becomes of the second is not told: it is asked for ahead of time, and is asked for again.
    """
    outcome, _ = await asyncio.gather(first, second, return_exceptions=True)
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


async def _answered(question: Callable[[], Awaitable[bool]]) -> bool:
    """Ask the store until it answers."""
    while True:
        try:
            return await question()
        except StoreError:
            await asyncio.sleep(_ASK_STORE_S)


async def _given(tasks: Collection["asyncio.Task[Any]"], until: float) -> None:
    """Give tasks time until ``until`` (of the loop's clock), then cancel them."""
    if not tasks:
        return
    _, late = await asyncio.wait(tasks, timeout=max(0.0, until - asyncio.get_running_loop().time()))
    for task in late:
        task.cancel()
    if late:
        await asyncio.wait(late, timeout=1)


def _bare_names(scope: Scope) -> list[str] | None:
    if scope.repositories is None:
        return None
    return list(scope.spelled or (name.partition("/")[2] for name in scope.repositories))


OWNER_CHANGED: Final = (
    "Another GitHub account now has this owner's name. An admin of the broker has to accept it first."
)


def gh_offset(minted: MintedToken, *, store_now: float) -> float:
    """Return GitHub's clock minus the store's, in seconds, as a mint shows it.

    ``store_now`` is the time before GitHub was asked: so a slow reply makes lives look shorter, never longer.
    ``Date`` is believed if the expiry agrees with it (a token lives one hour). If not, a proxy may have
    made it up, or tokens live shorter here: then the later of both, so that no dead token seems good.
    """
    by_expiry = minted.expires_at - _TOKEN_LIFE_S
    github_now = minted.github_now
    if github_now is None:
        github_now = by_expiry
    elif abs(github_now - by_expiry) > _DATE_TRUST_S:
        github_now = max(github_now, by_expiry)
    return github_now - store_now


_BY_CODE: Final = {
    kind.code: kind
    for kind in (
        errors.NotInstalledError,
        errors.InstallationSuspendedError,
        errors.PermissionNotGrantedError,
        errors.GitHubRateLimitedError,
        errors.GitHubRejectedAppError,
        errors.GitHubUnavailableError,
    )
}


def error_of(failure: Failure) -> BrokerError:
    """Return a kept failure as the error it was."""
    kind = _BY_CODE.get(failure.code, errors.GitHubUnavailableError)
    if failure.public == GitHubTimeoutError.public:
        kind = GitHubTimeoutError  # which shares its code, and not its status
    return kind("failed a moment ago", public=failure.public, retry_after_s=failure.retry_after_s)
