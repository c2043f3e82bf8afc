"""The steps of setting up an app, whoever drives them; asks GitHub.

The browser posts the manifest → GitHub sends it back with ``state`` and ``code`` → ``redeem`` keeps what
GitHub shows once, before anything else is tried → ``wait_for_installation`` → ``first_token`` proves that
it all works.
"""

import asyncio
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from broker.clock import SystemClock
from broker.errors import CodeSpentError, GitHubError, GitHubUnavailableError, SetupError
from broker.github import pages
from broker.github.app_jwt import Signer
from broker.github.client import GitHubClient
from broker.github.manifest import PERMISSIONS, manifest
from broker.github.private_key import parse_private_keys
from broker.model import Installation, MintedToken, NewApp, RepositoryName
from broker.settings import GitHubPlace
from broker.setup.keeping import issuer

POLL_S: Final = 3.0
GITHUB_LATE_S: Final = 4.0
"""The install page of an app just made may be 404 for about 3 seconds."""


def connect(place: GitHubPlace, new: NewApp | None) -> GitHubClient:
    """Return a client of that GitHub, which can ask as the app once there is one."""
    clock = SystemClock()
    signer = None
    if new is not None:
        (name,) = issuer(new, place).values()
        signer = Signer(issuer=name, keys=parse_private_keys(new.private_key.reveal()), clock=clock)
    return GitHubClient(
        base_url=place.github_api_url,
        web_url=place.github_url,
        signer=signer,
        clock=clock,
        ca_file=str(place.github_ca_file) if place.github_ca_file else None,
        proxy_url=place.proxy_url.get_secret_value() if place.proxy_url else None,
    )


@dataclass(frozen=True, slots=True)
class Wish:
    """What app is wanted.

    Attributes:
        org: whose it is to be; None for the person at the browser.
        webhook_url: None for an app without webhook.
    """

    place: GitHubPlace
    org: str | None
    name: str
    webhook_url: str | None

    @property
    def action(self) -> str:
        """The page of GitHub that the manifest is posted to."""
        return pages.new_app(self.place.github_url, self.org)

    def manifest(self, redirect_url: str) -> dict[str, object]:
        """Return the manifest to post."""
        home = self.place.github_url if self.org is None else f"{self.place.github_url}/{self.org}"
        return manifest(
            name=self.name, homepage=home, redirect_url=redirect_url, webhook_url=self.webhook_url
        )


class Setup:
    """One app on its way.

    Args:
        wish: what app.
        keep: writes the secrets down; called once, as soon as they are there.
        connect: makes a client of a GitHub, for the app once there is one; the test seam.

    Attributes:
        state: the word that GitHub sends back with the code, so that nobody slips in a code of their own.
        new: the app, once it is made and kept.
        made: set then.
        failed: what went wrong for good; ``made`` is set too.
        ready: set when GitHub knows the app everywhere, its install page included.
        installed: the installation, once there is one.
        done: set when setup has nothing left to do.
    """

    def __init__(
        self,
        wish: Wish,
        keep: Callable[[NewApp], object],
        *,
        connect: Callable[[GitHubPlace, NewApp | None], GitHubClient] = connect,
    ) -> None:
        self.wish = wish
        self.state = secrets.token_urlsafe(32)
        self.new: NewApp | None = None
        self.made = asyncio.Event()
        self.ready = asyncio.Event()
        self.failed: Exception | None = None
        self.installed: Installation | None = None
        self.done = asyncio.Event()
        self._keep = keep
        self._connect = connect
        self._spent = False

    @property
    def install_page(self) -> str:
        """Where the app is installed, once it is made."""
        return "" if self.new is None else pages.install(self.wish.place.github_url, self.new.app.slug)

    def is_ours(self, unverified_state: str) -> bool:
        """Return whether GitHub was sent here by this very setup, and for the first time."""
        same = hmac.compare_digest(self.state.encode(), unverified_state.encode("utf-8", "replace"))
        return same and not self._spent

    async def redeem(self, unverified_state: str, code: str) -> None:
        """Exchange the code, and keep what comes back.

        Raises:
            SetupError: the state is not ours or was used, GitHub refused, or it could not be written.
        """
        if not self.is_ours(unverified_state):
            raise SetupError("this answer does not belong to this setup, or was used already")
        self._spent = True
        try:
            self.new = await self._exchanged(code)
        except Exception as error:
            self.failed = error
            raise
        finally:
            self.made.set()

    async def _exchanged(self, code: str) -> NewApp:
        # GitHub shows it once: it is not to be lost because a browser went away.
        return await asyncio.shield(asyncio.create_task(self._exchange(code)))

    async def _exchange(self, code: str) -> NewApp:
        try:
            async with self._connect(self.wish.place, None) as github:
                new = await github.convert_manifest(code)
        except CodeSpentError:
            raise SetupError(
                "GitHub does not know the code any more (it works once, within the hour). If the app is on "
                f"{self.wish.action.removesuffix('/new')}, delete it there, and begin anew"
            ) from None
        except GitHubError as error:
            raise SetupError(f"GitHub did not hand out the app's key: {error}") from None
        wanted = self.wish.org
        if wanted is not None and new.app.owner.lower() != wanted.lower():
            raise SetupError(
                f"the app that came back is of {new.app.owner}, not of {wanted}: nothing was kept"
            )
        self._keep(new)
        return new

    async def wait_until_known(self) -> None:
        """Return when GitHub knows the app and its key everywhere.

        Raises:
            SetupError: it does not.
        """
        new = self._made_app()
        await asyncio.sleep(GITHUB_LATE_S)
        try:
            async with self._connect(self.wish.place, new) as github:
                await github.app()
        except GitHubError as error:
            raise SetupError(f"GitHub does not know the new app: {error}") from None
        self.ready.set()

    async def wait_for_installation(self) -> Installation:
        """Return the first installation, when there is one."""
        async with self._connect(self.wish.place, self._made_app()) as github:
            while True:
                try:
                    found = await github.installations()
                except GitHubUnavailableError:
                    found = ()
                except GitHubError as error:
                    if error.retry_after_s is None:
                        raise SetupError(f"GitHub refuses the new app: {error}") from None
                    await asyncio.sleep(error.retry_after_s)
                    continue
                if found:
                    self.installed = found[0]
                    return found[0]
                await asyncio.sleep(POLL_S)

    async def first_token(self) -> str | None:
        """Mint a token for one repository, see that it only reads, end it, and return the repository.

        None if the installation reaches no repository yet.

        Raises:
            SetupError: it did not go as it has to.
        """
        installation = self.installed
        if installation is None:
            raise SetupError("the app is not installed yet")
        try:
            async with self._connect(self.wish.place, self._made_app()) as github:
                # Names only: with metadata alone this one can open no repository.
                look = await github.mint(installation.id, repositories=None, permissions=["metadata"])
                try:
                    page = await github.installation_repositories(look.token, page=1)
                finally:
                    await github.revoke(look.token)
                if not page.repositories:
                    return None
                name = RepositoryName.parse(page.repositories[0].full_name)
                token = await github.mint(
                    installation.id, repositories=[name.name], permissions=list(PERMISSIONS)
                )
                await github.revoke(token.token)
        except GitHubError as error:
            raise SetupError(f"a first token was refused: {error}") from None
        if not _as_wanted(token):
            raise SetupError(f"a token came with other permissions than asked for: {dict(token.permissions)}")
        return str(name)

    def _made_app(self) -> NewApp:
        if self.new is None:
            raise SetupError("the app is not made yet")
        return self.new


def _as_wanted(token: MintedToken) -> bool:
    return dict(token.permissions) == PERMISSIONS
