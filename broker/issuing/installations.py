"""Installations: which one serves an owner, looked up once and looked at again in the background.

GitHub's API decides; the store remembers. Look-ups of one owner run one at a time across replicas
(lease ``o:<owner>``), so that fifty cold scopes cost one call.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Final

from broker.errors import (
    BrokerError,
    GitHubError,
    GitHubRateLimitedError,
    GitHubTimeoutError,
    InstallationGoneError,
    NotInstalledError,
    RenamedError,
    StoreError,
    StoreUnavailableError,
)
from broker.issuing.following import POLL_S, Following
from broker.issuing.turns import Turns
from broker.model import Installation, RepositoryName, Scope, Target, TargetKind
from broker.ports import AuditEvent, EndKind, Event, GitHub, Lead, ReadQuery, Store

_log = logging.getLogger(__name__)

RENEW_S: Final = 1.5
_WAIT_FOR_OTHERS_S: Final = 30.0
_CHECK_WAIT_S: Final = 5.0
SWEEP_FROM: Final = 100
"""With more owners to look at, one sweep of GitHub's list replaces the single calls."""


@contextlib.asynccontextmanager
async def kept(store: Store, lead: Lead) -> AsyncIterator[Callable[[], bool]]:
    """Renew ``lead`` while the block runs; the value tells whether it is still ours."""
    ours = True
    renewing: asyncio.Task[None] | None = None

    async def renew() -> None:
        nonlocal ours
        while ours:
            with contextlib.suppress(StoreError):
                ours = await store.renew(lead)
            await asyncio.sleep(RENEW_S)

    def begin() -> None:
        nonlocal renewing
        renewing = asyncio.create_task(renew(), name="lease-renewal")

    # Most blocks end before: what they need is a timer, not a task.
    timer = asyncio.get_running_loop().call_later(RENEW_S, begin)
    try:
        yield lambda: ours
    finally:
        timer.cancel()
        if renewing is not None:
            renewing.cancel()
            await asyncio.wait([renewing])  # awaiting it could swallow a cancellation of our own


class Installations:
    """Finds and watches installations.

    Args:
        store: remembers.
        github: decides.
        turns: bounds the calls.
        host: of the scopes.
        ttl_s: a picture older than this is not trusted while GitHub answers.
        cooldown_s: after a failed check nobody asks again for so long.
    """

    def __init__(
        self, store: Store, github: GitHub, turns: Turns, *, host: str, ttl_s: float, cooldown_s: float
    ) -> None:
        self._store = store
        self._github = github
        self._turns = turns
        self._host = host
        self._ttl_s = ttl_s
        self._cooldown_s = cooldown_s
        self._flights: dict[str, asyncio.Task[Installation | BrokerError]] = {}
        self._checks: dict[str, asyncio.Task[None]] = {}
        self._not_before: dict[str, float] = {}
        self._in_use: dict[str, float] = {}
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look at the owners in use."""
        self._watching = asyncio.create_task(self._watch(), name="installations-watch")

    async def stop(self) -> None:
        """Stop watching and wait for what runs."""
        tasks = [*self._checks.values(), *self._flights.values()]
        if self._watching is not None:
            self._watching.cancel()
            tasks.append(self._watching)
        if tasks:
            await asyncio.wait(tasks, timeout=1)

    # -- finding ---------------------------------------------------------------------------------

    async def find(
        self, owner: str, probe: RepositoryName | None, *, not_id: int | None = None
    ) -> Installation:
        """Return the installation on ``owner``, from the store or from GitHub.

        Args:
            owner: lower case.
            probe: a repository to look it up by; None looks it up by the owner.
            not_id: an id that GitHub has just called stale.

        Raises:
            GitHubError: there is none, or GitHub could not be asked.
        """
        name = f"{owner}|{probe.key if probe else ''}|{not_id or ''}"
        flight = self._flights.get(name)
        if flight is None:
            flight = asyncio.create_task(self._find(owner, probe, not_id), name="installation-look-up")
            self._flights[name] = flight
            flight.add_done_callback(lambda _: self._flights.pop(name, None))
        outcome = await asyncio.shield(flight)
        if isinstance(outcome, BrokerError):
            raise again(outcome)
        return outcome

    async def _find(
        self, owner: str, probe: RepositoryName | None, not_id: int | None
    ) -> Installation | BrokerError:
        try:
            async with asyncio.timeout(_WAIT_FOR_OTHERS_S):
                following = Following()
                while True:
                    try:
                        known = await self._known(owner)
                        if known is not None and known.id != not_id:
                            return known
                        lead = await self._store.lease(f"o:{owner}")
                    except StoreUnavailableError as error:
                        await following.bear(error)
                        continue
                    following.answered()
                    if lead is None:
                        await following.pause()
                        continue
                    found = await self._ask(lead, owner, probe, not_id)
                    if found is not None:
                        return found
        except BrokerError as error:
            return error
        except TimeoutError:
            return GitHubTimeoutError(f"looking up the installation of {owner} took too long")

    async def _known(self, owner: str) -> Installation | None:
        scope = Scope.of_owner(self._host, owner, ("metadata",))
        return (await self._store.read(ReadQuery(scope=scope))).installation()

    async def _ask(
        self, lead: Lead, owner: str, probe: RepositoryName | None, not_id: int | None
    ) -> Installation | None:
        """Ask GitHub under the lease; None when the answer was overtaken by a change."""
        try:
            known = await self._known(owner)  # put there between the last look and the lease
            if known is not None and known.id != not_id:
                return known
            async with kept(self._store, lead), self._turns.turn(owner):
                found = await (
                    self._github.owner_installation(owner)
                    if probe is None
                    else self._github.repository_installation(probe)
                )
            if found.login.lower() != owner:
                raise RenamedError(f"GitHub names {found.login} as the owner, not {owner}")
            return await self._keep(lead, owner, found)
        except NotInstalledError:
            if not_id is not None:
                await self._store.drop_owner(lead, owner)  # what the store knows is gone at GitHub
            raise
        finally:
            with contextlib.suppress(StoreError):
                await self._store.release(lead)

    async def _keep(self, lead: Lead, owner: str, found: Installation) -> Installation | None:
        event = AuditEvent(
            Event.OWNER_CHANGED,
            owner=owner,
            installation_id=found.id,
            reason=f"account {found.account_id} appeared under a login pinned to another account",
        )
        stored = await self._store.put_owner(
            lead, owner, replace(found, checked_at=self._store.now()), event=event
        )
        if stored is not None and stored.foreign:
            _log.critical(
                "another account appeared under a pinned login; refused until an admin accepts it",
                extra={"owner": owner, "installation_id": found.id},
            )
        return stored

    # -- watching --------------------------------------------------------------------------------

    def used(self, owner: str) -> None:
        """Note that somebody asks for tokens of ``owner``, so that it is looked at from time to time."""
        self._in_use[owner] = asyncio.get_running_loop().time()

    def is_old(self, installation: Installation, *, now: float) -> bool:
        """Return whether the picture is too old, at ``now`` (store time), while GitHub answers."""
        return now - installation.checked_at > self._ttl_s

    async def renewed(self, owner: str, installation: Installation) -> None:
        """Have an old picture looked at again; returns when that is done, failed, or takes too long.

        After a look that failed or took too long nobody waits for the next ones, until one succeeds.
        """
        troubled = owner in self._not_before
        task = self._check_soon(owner, installation)
        if task is None or troubled:
            return
        _, running = await asyncio.wait([task], timeout=_CHECK_WAIT_S)
        if running:
            self._not_before.setdefault(owner, 0.0)

    def _check_soon(self, owner: str, installation: Installation) -> asyncio.Task[None] | None:
        task = self._checks.get(owner)
        if task is None:
            if asyncio.get_running_loop().time() < self._not_before.get(owner, 0.0):
                return None
            task = asyncio.create_task(self._check(owner, installation), name="installation-check")
            self._checks[owner] = task
            task.add_done_callback(lambda _: self._checks.pop(owner, None))
        return task

    async def _check(self, owner: str, known: Installation) -> None:
        """Look at one installation; of all replicas one does."""
        try:
            lead = await self._store.lease(f"c:{owner}")
            if lead is None:
                await asyncio.sleep(POLL_S)
                return
            try:
                async with kept(self._store, lead):
                    await self._look(owner, known)
            finally:
                with contextlib.suppress(StoreError):
                    await self._store.release(lead)
            self._not_before.pop(owner, None)
        except (GitHubError, StoreError) as error:
            self._not_before[owner] = asyncio.get_running_loop().time() + self._cooldown_s
            if isinstance(error, GitHubRateLimitedError):
                with contextlib.suppress(StoreError):
                    await pause_for(self._store, owner, error)
            _log.warning(
                "an installation could not be looked at; its last picture is served",
                extra={"owner": owner, "code": error.code, "cause": str(error)},
            )

    async def _look(self, owner: str, known: Installation) -> None:
        latest = await self._known(owner)
        if latest is not None and latest.checked_at > known.checked_at:
            return  # another replica has just looked
        if await self._store.paused(owner):
            return
        try:
            async with self._turns.turn(owner):
                found = await self._github.installation(known.id)
        except InstallationGoneError:
            await self._forget(owner, known)
        else:
            await self.learn(owner, known, found)

    async def learn(self, owner: str, known: Installation, found: Installation) -> bool:
        """Take over what GitHub now says of ``known``; True if that is something else than before.

        What is cached under another picture is dropped first, in a step of its own: whatever was
        minted under the old one, or still is, can then not be served.
        """
        if found.login.lower() != owner:
            await self._forget(owner, known)
            return True
        changed = _picture(found) != _picture(known)
        if changed:
            await self._drop(owner, "GitHub shows another installation than the one known")
        lead = await self._store.lease(f"o:{owner}")
        if lead is not None:
            try:
                await self._keep(lead, owner, found)
            finally:
                await self._store.release(lead)
        return changed

    async def _forget(self, owner: str, known: Installation) -> None:
        """Drop what is cached for an owner whose installation is gone or has another name."""
        await self._drop(owner, f"installation {known.id} is gone, or of another name, at GitHub")

    async def _drop(self, owner: str, reason: str) -> None:
        _log.info("an owner's cached tokens are dropped", extra={"owner": owner, "cause": reason})
        await self._store.end(EndKind.DROP, Target(TargetKind.OWNER, owner), None, by="broker", reason=reason)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(max(0.5, self._ttl_s / 20))
            with contextlib.suppress(StoreError):
                await self._watch_once()

    async def _watch_once(self) -> None:
        now = asyncio.get_running_loop().time()
        due: dict[str, Installation] = {}
        for owner, used in list(self._in_use.items()):
            if now - used > 2 * self._ttl_s:
                del self._in_use[owner]
                self._not_before.pop(owner, None)
                continue
            known = await self._known(owner)
            if known is not None and self._store.now() - known.checked_at > self._ttl_s / 2:
                due[owner] = known
        if len(due) <= SWEEP_FROM:
            for owner, known in due.items():
                self._check_soon(owner, known)
        elif lead := await self._store.lease("job:installations"):
            try:
                async with kept(self._store, lead):
                    await self._sweep(due)
            finally:
                await self._store.release(lead)

    async def _sweep(self, due: Mapping[str, Installation]) -> None:
        """Look at many owners with one list (100 a call) instead of a call for each."""
        try:
            found = {one.id: one for one in await self._github.installations()}
        except GitHubError as error:
            _log.warning("installations could not be listed", extra={"cause": str(error)})
            return
        for owner, known in due.items():
            now_there = found.get(known.id)
            if now_there is None:
                await self._forget(owner, known)
            else:
                await self.learn(owner, known, now_there)


def _picture(installation: Installation) -> tuple[object, ...]:
    """Return what decides about tokens."""
    return (
        installation.id,
        installation.account_id,
        installation.selection,
        installation.suspended,
        dict(installation.permissions),
    )


async def pause_for(store: Store, owner: str | None, error: GitHubRateLimitedError) -> None:
    """Keep everyone from calling GitHub for as long as it asked."""
    await store.pause(None if error.whole_app else owner, seconds=error.retry_after_s or 60.0)


def again(error: BrokerError) -> BrokerError:
    """Return an error of the same meaning, for another one who waits.

    One instance raised in many tasks would grow a traceback with each of them.
    """
    twin = type(error).__new__(type(error))
    twin.__dict__.update(error.__dict__)
    twin.args = error.args
    return twin
