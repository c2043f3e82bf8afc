"""A GitHub in memory behind the broker's port: strict about installations, repositories and expiry."""

import asyncio
from collections.abc import Callable, Sequence
from contextvars import Context
from dataclasses import dataclass, field, replace
from typing import Any

from sim_loop import Machine, State, VirtualLoop
from sim_store import EPOCH
from sim_weather import NEVER, Weather

from broker.errors import (
    GitHubRateLimitedError,
    GitHubTimeoutError,
    GitHubUnavailableError,
    InstallationGoneError,
    NotInstalledError,
)
from broker.model import (
    App,
    Installation,
    MintedToken,
    RepositoryName,
    RepositoryPage,
    Scope,
    Secret,
    token_sha256,
)

ATTEMPT_S = 10.0
TOKEN_LIFE_S = 3600.0


@dataclass
class Minted:
    """One token that GitHub made. Times are the loop's."""

    text: str
    sha: str
    installation_id: int
    owner: str
    asked_repositories: tuple[str, ...] | None
    asked_permissions: tuple[str, ...]
    repositories: tuple[str, ...] | None
    permissions: dict[str, str]
    asked_at: float
    minted_at: float
    expires_at: float
    heard: bool = False
    """Whether the answer reached who asked."""
    dead_at: float | None = None

    def of(self, scope: Scope) -> bool:
        return self.scope == (scope.owner, scope.repositories, scope.permissions)

    @property
    def scope(self) -> tuple[str, tuple[str, ...] | None, tuple[str, ...]]:
        return self.owner, self.asked_repositories, self.asked_permissions

    def reaches(self, repository: str) -> bool:
        return repository.startswith(f"{self.owner}/") and (
            self.repositories is None or repository in self.repositories
        )

    @property
    def lies(self) -> bool:
        """Whether it is more than was asked for."""
        return (
            self.repositories != self.asked_repositories
            or set(self.permissions) != set(self.asked_permissions)
            or set(self.permissions.values()) != {"read"}
        )


@dataclass
class SimulatedGitHub:
    """The far end, one for all replicas."""

    loop: VirtualLoop
    weather: Weather
    clock_off_s: float = 0.0
    repositories: dict[str, tuple[str, ...]] = field(default_factory=dict)
    installed: dict[str, Installation] = field(default_factory=dict)
    minted: dict[str, Minted] = field(default_factory=dict)
    down_until: float = 0.0
    violations: list[str] = field(default_factory=list)
    ambush: Callable[[Machine], None] | None = None
    """Called once with the replica whose mint has just been done, before the answer is on its way."""
    _next_id: int = 1000

    def now(self) -> float:
        """Return Unix seconds by GitHub's clock."""
        return EPOCH + self.loop.time() + self.clock_off_s

    def install(self, owner: str, repositories: Sequence[str]) -> None:
        """Install the app on an owner; what was there before is gone, and its tokens are dead."""
        before = self.installed.get(owner)
        self._next_id += 1
        self.repositories[owner] = tuple(f"{owner}/{name}" for name in repositories)
        self.installed[owner] = Installation(
            id=self._next_id,
            account_id=len(owner),
            login=owner.capitalize(),
            selection="all",
            permissions={"contents": "read", "metadata": "read", "issues": "write"},
            suspended=False,
        )
        for one in self.minted.values():
            if before is not None and one.installation_id == before.id and one.dead_at is None:
                one.dead_at = self.loop.time()

    def alive(self, one: Minted) -> bool:
        return one.dead_at is None and one.expires_at > self.now()

    # -- what calls do ---------------------------------------------------------------------------

    def mint(
        self,
        installation_id: int,
        names: Sequence[str] | None,
        permissions: Sequence[str],
        *,
        by: Machine,
        asked_at: float,
    ) -> MintedToken:
        found = next((one for one in self.installed.values() if one.id == installation_id), None)
        if found is None:
            raise InstallationGoneError("404")
        if not permissions or (names is not None and not names):
            self.violations.append("an empty list was sent to GitHub")
        owner = found.login.lower()
        asked = None if names is None else tuple(f"{owner}/{name}" for name in names)
        if asked is not None and not set(asked) <= set(self.repositories[owner]):
            raise NotInstalledError("422")
        given, levels = asked, dict.fromkeys(permissions, "read")
        lie = self.weather.chance.randrange(3) if self.weather.github_lies() else None
        if lie == 0:
            levels["contents"] = "write"
        elif lie == 1:
            levels["issues"] = "read"
        elif lie == 2 and asked is not None:
            given = self.repositories[owner] if len(asked) == 1 else asked[:1]
        text = f"ghs_{len(self.minted):06d}{self.weather.chance.getrandbits(160):040x}"
        now = self.loop.time()
        one = Minted(
            text=text,
            sha=token_sha256(Secret(text)),
            installation_id=installation_id,
            owner=owner,
            asked_repositories=asked,
            asked_permissions=tuple(permissions),
            repositories=given,
            permissions=levels,
            asked_at=asked_at,
            minted_at=now,
            expires_at=float(int(self.now()) + TOKEN_LIFE_S),
        )
        self.minted[one.sha] = one
        if self.ambush is not None:
            ambush, self.ambush = self.ambush, None
            ambush(by)
        return MintedToken(
            token=Secret(text),
            expires_at=one.expires_at,
            permissions=levels,
            repositories=given,
            selection="all" if given is None else "selected",
            github_now=float(int(self.now())),
        )

    def revoke(self, token: Secret) -> None:
        one = self.minted.get(token_sha256(token))
        if one is not None and self.alive(one):
            one.dead_at = self.loop.time()

    def by_id(self, installation_id: int) -> Installation:
        for one in self.installed.values():
            if one.id == installation_id:
                return one
        raise InstallationGoneError("404")

    def by_owner(self, owner: str) -> Installation:
        found = self.installed.get(owner.lower())
        if found is None:
            raise NotInstalledError("404")
        return replace(found)


class GitHubLine:
    """One replica's way to GitHub: the broker's ``GitHub`` port."""

    def __init__(self, github: SimulatedGitHub, machine: Machine) -> None:
        self._github = github
        self._loop = github.loop
        self._machine = machine
        self._outside = Context()

    async def _call(self, effect: Callable[[], Any], *, whole_app: bool = False) -> Any:
        github, loop = self._github, self._loop
        future: asyncio.Future[Any] = loop.create_future()
        if not self._machine.talks:
            raise GitHubUnavailableError("this process is dead")
        fate = github.weather.github()

        def deliver(result: Any, error: Exception | None) -> None:
            if future.done() or self._machine.state is State.DEAD:
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        def arrive() -> None:
            if loop.time() < github.down_until or github.weather.github_fails():
                deliver(None, GitHubUnavailableError("500"))
                return
            if github.weather.github_limits():
                deliver(None, GitHubRateLimitedError("429", retry_after_s=3.0, whole_app=whole_app))
                return
            result, error = None, None
            try:
                result = effect()
            except Exception as raised:  # noqa: BLE001 - the caller's to have
                error = raised
            if fate.back_s != NEVER:
                loop.call_at(loop.time() + fate.back_s, deliver, result, error, context=self._outside)

        if fate.there_s != NEVER:
            loop.call_at(loop.time() + fate.there_s, arrive, context=self._outside)
        try:
            async with asyncio.timeout(ATTEMPT_S):
                return await future
        except TimeoutError:
            raise GitHubTimeoutError("no answer") from None

    async def app(self) -> App:
        return App(1, "app", "us", {}, ())

    async def installation(self, installation_id: int) -> Installation:
        found: Installation = await self._call(lambda: self._github.by_id(installation_id), whole_app=True)
        return found

    async def repository_installation(self, repository: RepositoryName) -> Installation:
        return await self.owner_installation(repository.owner)

    async def owner_installation(self, owner: str) -> Installation:
        found: Installation = await self._call(lambda: self._github.by_owner(owner), whole_app=True)
        return found

    async def installations(self) -> Sequence[Installation]:
        found: Sequence[Installation] = await self._call(
            lambda: list(self._github.installed.values()), whole_app=True
        )
        return found

    async def mint(
        self, installation_id: int, *, repositories: Sequence[str] | None, permissions: Sequence[str]
    ) -> MintedToken:
        asked_at = self._loop.time()
        minted: MintedToken = await self._call(
            lambda: self._github.mint(
                installation_id, repositories, permissions, by=self._machine, asked_at=asked_at
            )
        )
        self._github.minted[token_sha256(minted.token)].heard = True
        return minted

    async def revoke(self, token: Secret) -> None:
        await self._call(lambda: self._github.revoke(token))

    async def installation_repositories(self, token: Secret, *, page: int) -> RepositoryPage:
        raise AssertionError("no story lists repositories")

    async def probe_git(self, token: Secret, repository: str) -> bool:
        return True
