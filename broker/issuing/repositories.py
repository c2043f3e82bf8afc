"""Listing: which repositories the app can reach and a caller may ask for.

GitHub is asked with a token of the broker's own (``metadata: read``), which is never handed out.
"""

import asyncio
import base64
import binascii
import contextlib
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from broker.access.policy import parse_pattern, reaches
from broker.errors import (
    BlockedError,
    GitHubRateLimitedError,
    GitHubTimeoutError,
    InstallationSuspendedError,
    InvalidRequestError,
    NotInstalledError,
    OvertakenError,
    RateLimitedError,
    StoreError,
    StoreUnavailableError,
)
from broker.issuing.installations import Installations, pause_for
from broker.issuing.minting import Minter
from broker.issuing.turns import Turns
from broker.model import ApiKeyRecord, Grant, LiveToken, Repository, RepositoryPage, Scope
from broker.ports import GitHub, Page, ReadQuery, Store

Reply = TypeVar("Reply")

_CALLS_PER_REQUEST: Final = 10
_ATTEMPTS: Final = 4
_OWNERS_TTL_S: Final = 60.0
_PAGES_TTL_S: Final = 30.0
_PAGES_KEPT: Final = 256
CALLS_PER_MINUTE: Final = 60
"""List calls that one key may cause in a minute."""

_MIN_LIFE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Reachable:
    """A repository and the installation that reaches it."""

    repository: Repository
    installation_id: int


@dataclass(frozen=True, slots=True)
class _Position:
    """Where a list goes on: the owner, GitHub's page, the index in it."""

    owner: str = ""
    page: int = 1
    index: int = 0

    def cursor(self) -> str:
        text = json.dumps([self.owner, self.page, self.index], separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()

    @classmethod
    def parse(cls, cursor: str | None) -> "_Position":
        if cursor is None:
            return cls()
        try:
            match json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))):
                case [str(owner), int(page), int(index)] if (
                    page >= 1 and index >= 0 and not isinstance(page, bool) and not isinstance(index, bool)
                ):
                    return cls(owner, page, index)
        except (binascii.Error, ValueError, RecursionError):
            pass
        raise InvalidRequestError(public="cursor: not one that this list gave.")


class RepositoryList:
    """Pages through the repositories that a caller may ask for.

    Args:
        store: the cache.
        github: the list.
        minter: the broker's own tokens.
        installations: finds and watches owners.
        turns: bounds concurrent calls to GitHub.
        host: of the scopes.
        allowed_owners: lower case; None for all.
        timeout_s: for one page.
    """

    def __init__(
        self,
        store: Store,
        github: GitHub,
        minter: Minter,
        installations: Installations,
        turns: Turns,
        *,
        host: str,
        allowed_owners: frozenset[str] | None,
        timeout_s: float,
    ) -> None:
        self._store = store
        self._github = github
        self._minter = minter
        self._installations = installations
        self._turns = turns
        self._host = host
        self._allowed_owners = allowed_owners
        self._timeout_s = timeout_s
        self._owners: tuple[float, tuple[str, ...]] | None = None
        self._pages: OrderedDict[tuple[int, int], tuple[float, RepositoryPage]] = OrderedDict()

    async def page(self, caller: ApiKeyRecord, *, cursor: str | None, limit: int) -> Page[Reachable]:
        """Return at most ``limit`` repositories from ``cursor`` on; a page may be short.

        Raises:
            InvalidRequestError: the cursor is not one of this list.
            BrokerError: GitHub or the store cannot be asked.
        """
        at = _Position.parse(cursor)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._page(caller, at, limit)
        except TimeoutError:
            raise GitHubTimeoutError("the list's time is up while GitHub is asked") from None

    async def _page(self, caller: ApiKeyRecord, at: _Position, limit: int) -> Page[Reachable]:
        found: list[Reachable] = []
        calls = 0
        for owner in await self._owners_of(caller):
            if owner < at.owner:
                continue
            if owner > at.owner:
                at = _Position(owner)
            token = await self._own_token(caller, owner)
            while token is not None:
                if calls == _CALLS_PER_REQUEST:
                    return Page(tuple(found), at.cursor())
                calls += 1
                part = await self._part(caller, owner, token, at.page)
                for index, repository in enumerate(part.repositories[at.index :], at.index):
                    if not reaches(caller.repositories, repository.full_name.lower()):
                        continue
                    if len(found) == limit:
                        return Page(tuple(found), _Position(owner, at.page, index).cursor())
                    found.append(Reachable(repository, token.installation_id))
                if part.next_page is None:
                    break
                at = _Position(owner, part.next_page)
        return Page(tuple(found))

    async def _part(self, caller: ApiKeyRecord, owner: str, token: LiveToken, page: int) -> RepositoryPage:
        """Return one of GitHub's pages, a minute old at most; a key may cause so many calls a minute.

        The calls draw on the installation's hourly quota, which all of its callers share.
        """
        now = asyncio.get_running_loop().time()
        name = (token.installation_id, page)
        kept = self._pages.get(name)
        if kept is not None and kept[0] > now:
            return kept[1]
        granted, left_s = await self._store.take(f"{caller.id}:list", chunk=1, limit=CALLS_PER_MINUTE)
        if not granted:
            raise RateLimitedError(
                "the key's budget of list calls is used up",
                public="This key has listed too much this minute.",
                retry_after_s=left_s,
            )
        async with self._turns.turn(owner):
            part = await self._unless_paused(
                owner, partial(self._github.installation_repositories, token.token, page=page)
            )
        self._pages[name] = now + _PAGES_TTL_S, part
        self._pages.move_to_end(name)
        while len(self._pages) > _PAGES_KEPT:
            self._pages.popitem(last=False)
        return part

    async def _unless_paused(self, owner: str | None, call: Callable[[], Awaitable[Reply]]) -> Reply:
        """Call GitHub unless it asked to wait; should it ask now, everyone pauses."""
        wait_s = await self._store.paused(owner)
        if wait_s:
            raise GitHubRateLimitedError("a pause that GitHub asked for", retry_after_s=wait_s)
        try:
            return await call()
        except GitHubRateLimitedError as error:
            with contextlib.suppress(StoreError):
                await pause_for(self._store, owner, error)
            raise

    async def _owners_of(self, caller: ApiKeyRecord) -> tuple[str, ...]:
        owners = {parse_pattern(pattern)[0] for pattern in caller.repositories}
        if "*" in owners:
            owners = set(await self._all_owners())
        if self._allowed_owners is not None:
            owners &= self._allowed_owners
        return tuple(sorted(owners))

    async def _all_owners(self) -> tuple[str, ...]:
        now = asyncio.get_running_loop().time()
        if self._owners is None or self._owners[0] < now:
            installed = await self._unless_paused(None, self._github.installations)
            logins = tuple(one.login.lower() for one in installed if not one.suspended)
            self._owners = (now + _OWNERS_TTL_S, logins)
        return self._owners[1]

    async def _own_token(self, caller: ApiKeyRecord, owner: str) -> LiveToken | None:
        """Return a token for the broker's own list call; None where nothing may be listed."""
        scope = Scope.of_owner(self._host, owner, ("metadata",))
        grant = Grant(caller.id, caller.name, scope)
        self._installations.used(owner)
        for _ in range(_ATTEMPTS):
            seen = await self._store.read(ReadQuery(scope=scope))
            if seen.blocked() is not None:
                return None
            installation = seen.installation()
            if installation is not None and (installation.foreign or installation.suspended):
                return None
            token = seen.token() if installation is not None else None
            if (
                token is not None
                and installation is not None
                and token.installation_id == installation.id
                and token.expires_at - (seen.now + seen.gh_offset) >= _MIN_LIFE_S
            ):
                return token
            try:
                await self._minter.mint(grant, seen)
            except OvertakenError:
                continue
            except (NotInstalledError, BlockedError, InstallationSuspendedError):
                return None
        raise StoreUnavailableError("an owner's token kept changing", retry_after_s=1.0)
