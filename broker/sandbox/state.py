"""What the emulated GitHub knows, and the verbs that change it; no I/O but making git repositories."""

from __future__ import annotations

import base64
import enum
import hashlib
import itertools
import secrets
import shutil
import tempfile
import threading
import time
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from broker.sandbox import bare, token_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

AccountKind = Literal["Organization", "User", "Enterprise"]
Permissions = dict[str, str]

MOST_KEYS = 25
LEVELS = {"read": 1, "write": 2, "admin": 3}
READ_ONLY_APP: Mapping[str, str] = {"contents": "read", "metadata": "read"}


@dataclass(eq=False)
class EmulatedAccount:
    """A user, an organization or an enterprise; the id stays when the login changes."""

    id: int
    login: str
    kind: AccountKind
    created_at: float


@dataclass(eq=False)
class EmulatedRepository:
    """A repository; the id stays when it is renamed or transferred."""

    id: int
    name: str
    owner: EmulatedAccount
    private: bool
    default_branch: str
    archived: bool
    path: Path | None
    created_at: float

    @property
    def full_name(self) -> str:
        """``owner/name`` in canonical case."""
        return f"{self.owner.login}/{self.name}"


@dataclass(eq=False)
class RegisteredKey:
    """The public half of one of an app's keys; no JWT verifies with it before it has propagated."""

    public_key: rsa.RSAPublicKey
    propagated: bool = True

    @property
    def fingerprint(self) -> str:
        """Base64 of the SHA-256 of the public key's DER, as GitHub shows it."""
        der = self.public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return base64.b64encode(hashlib.sha256(der).digest()).decode()


@dataclass(eq=False)
class EmulatedApp:
    """A registered GitHub App. Its permissions are what installations are asked to grant."""

    app_id: int
    client_id: str
    slug: str
    owner: EmulatedAccount
    permissions: Permissions
    events: list[str]
    public: bool
    created_at: float
    public_keys: list[RegisteredKey] = field(default_factory=list)

    def new_private_key(
        self, key: rsa.RSAPrivateKey | str | None = None, *, propagated: bool = True, bits: int = 2048
    ) -> str:
        """Register a key and return its private half as PKCS#1 PEM.

        Args:
            key: a key (object or PEM) to register instead of a new one.
            propagated: False if GitHub's servers do not know it yet; see ``propagate_keys``.
            bits: of a new key.

        Raises:
            ValueError: the app has 25 keys already, or the PEM is not RSA.
        """
        if len(self.public_keys) >= MOST_KEYS:
            raise ValueError("an app has at most 25 keys")
        private = _load(key) if isinstance(key, str) else key or rsa.generate_private_key(65537, bits)
        self.public_keys.append(RegisteredKey(private.public_key(), propagated))
        return private.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode()

    def propagate_keys(self) -> None:
        """Let every registered key verify from now on."""
        for key in self.public_keys:
            key.propagated = True

    def remove_key(self, pem: str) -> None:
        """Delete a registered key.

        Raises:
            ValueError: it is not registered, or is the last one (GitHub keeps that).
        """
        fingerprint = RegisteredKey(_load(pem).public_key()).fingerprint
        others = [key for key in self.public_keys if key.fingerprint != fingerprint]
        if len(others) == len(self.public_keys):
            raise ValueError("this key is not registered")
        if not others:
            raise ValueError("the last key of an app cannot be deleted")
        self.public_keys[:] = others


@dataclass(eq=False)
class EmulatedInstallation:
    """An app on an account. ``selection`` holds repository ids, or None for all."""

    id: int
    app: EmulatedApp
    account: EmulatedAccount
    selection: set[int] | None
    permissions: Permissions
    created_at: float
    updated_at: float
    suspended_at: float | None = None
    deleted: bool = False

    def covers(self, repository: EmulatedRepository) -> bool:
        """Return whether the installation reaches this repository now."""
        if self.deleted or repository.owner is not self.account:
            return False
        return self.selection is None or repository.id in self.selection


@dataclass(eq=False)
class EmulatedToken:
    """An installation token. Permissions and repositories are those of the moment it was minted.

    Attributes:
        text: the secret.
        installation: that it acts for.
        repositories: ids, or None for whatever the installation reaches.
        permissions: name to level.
        minted_at: epoch seconds by the emulator's clock.
        expires_at: epoch seconds by the emulator's clock.
        revoked: by its holder or by ``revoke_all``.
        uses: how often it was presented, refused presentations included.
        lag_uses: presentations that are refused because it has not reached every server yet.
        usable_at: epoch seconds before which it is refused for the same reason.
    """

    text: str = field(repr=False)
    installation: EmulatedInstallation
    repositories: frozenset[int] | None
    permissions: Permissions
    minted_at: float
    expires_at: float
    revoked: bool = False
    uses: int = 0
    lag_uses: int = 0
    usable_at: float = 0.0

    @property
    def installation_id(self) -> int:
        """Id of the installation it acts for."""
        return self.installation.id

    def covers(self, repository: EmulatedRepository) -> bool:
        """Return whether it reaches this repository now."""
        named = self.repositories is None or repository.id in self.repositories
        return named and self.installation.covers(repository)

    def allows(self, permission: str, level: str = "read") -> bool:
        """Return whether it holds ``permission`` at ``level`` or above."""
        return LEVELS.get(self.permissions.get(permission, ""), 0) >= LEVELS[level]


class Standing(enum.Enum):
    """What becomes of a token that is presented."""

    GOOD = enum.auto()
    BAD = enum.auto()
    LAGGING = enum.auto()
    SUSPENDED = enum.auto()


@dataclass(frozen=True, slots=True)
class Quota:
    """The primary rate limit of an installation after a call: counts, and epoch seconds of the reset."""

    limit: int
    used: int
    reset: int

    @property
    def remaining(self) -> int:
        """Calls left."""
        return max(0, self.limit - self.used)


@dataclass(frozen=True, slots=True)
class Change:
    """Something happened that GitHub would tell by webhook; ``event`` and ``action`` are its words.

    This is the seam for deliveries: ``webhooks`` subscribes with ``State.subscribe``.
    """

    event: str
    action: str
    installation: EmulatedInstallation | None = None
    account: EmulatedAccount | None = None
    repositories: tuple[EmulatedRepository, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


class State:
    """Accounts, repositories, apps, installations and tokens; every verb holds ``lock``.

    Attributes:
        lock: hold it to see or change several things at once.
        apps: by app id.
        tokens: by text, all that were ever minted.
        clock_skew_s: how far GitHub's clock is ahead of ``clock``.
        token_shape: ``mixed`` takes turns, stateless first.
        token_ttl_s: life of a token.
        lag_uses: a token minted from now on is refused this many times first.
        lag_s: a token minted from now on is refused for this many seconds.
        over_grant_permissions: given to every token beyond what was asked.
        over_grant_repositories: full names, given to every narrowed token beyond what was asked.
        rate_limit: calls an hour of an installation's tokens; None: limits are off (GHES).
        client_id_as_issuer: False as on an old GHES, where ``iss`` must be the app id.
        mint_names_case_sensitive: whether ``repositories`` of a mint must be in canonical case.
        git_without_contents_status: 404, or 403 with the other text seen in the wild.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:  # noqa: TID251 - GitHub has a clock of its own
        self.lock = threading.RLock()
        self.clock = clock
        self.apps: dict[int, EmulatedApp] = {}
        self.accounts: dict[int, EmulatedAccount] = {}
        self.repositories: dict[int, EmulatedRepository] = {}
        self.installations: dict[int, EmulatedInstallation] = {}
        self.tokens: dict[str, EmulatedToken] = {}
        self.clock_skew_s = 0.0
        self.token_shape: token_text.TokenShape = "mixed"
        self.token_ttl_s = 3600
        self.lag_uses = 0
        self.lag_s = 0.0
        self.over_grant_permissions: Permissions = {}
        self.over_grant_repositories: list[str] = []
        self.rate_limit: int | None = 5000
        self.client_id_as_issuer = True
        self.mint_names_case_sensitive = False
        self.git_without_contents_status: Literal[403, 404] = 404
        self._names: dict[str, EmulatedRepository] = {}
        self._moved: dict[str, EmulatedRepository] = {}
        self._quotas: dict[int, tuple[int, int]] = {}
        self._listeners: list[Callable[[Change], None]] = []
        self._account_ids = itertools.count(9_001)
        self._repository_ids = itertools.count(700_001)
        self._app_ids = itertools.count(1_234_501)
        self._installation_ids = itertools.count(50_000_001)
        self._mints = 0
        self._directory: Path | None = None
        self._cleanup: weakref.finalize[[str, bool], State] | None = None

    def now(self) -> float:
        """Return GitHub's idea of the time, in epoch seconds."""
        return self.clock() + self.clock_skew_s

    def subscribe(self, listener: Callable[[Change], None]) -> None:
        """Call ``listener`` on every change, under the lock: it must be quick."""
        self._listeners.append(listener)

    def close(self) -> None:
        """Delete the repositories that the emulator made."""
        if self._cleanup is not None:
            self._cleanup()

    # accounts

    def add_account(
        self, login: str, *, kind: AccountKind = "Organization", account_id: int | None = None
    ) -> EmulatedAccount:
        """Register an account under a login that is free.

        Raises:
            ValueError: the login or the id is taken.
        """
        with self.lock:
            if self.find_account(login) is not None:
                raise ValueError(f"the login {login} is taken")
            number = next(self._account_ids) if account_id is None else account_id
            if number in self.accounts:
                raise ValueError(f"the account id {number} is taken")
            account = self.accounts[number] = EmulatedAccount(number, login, kind, self.now())
            return account

    def find_account(self, login: str) -> EmulatedAccount | None:
        """Return the account that has this login now, case aside."""
        with self.lock:
            return next((a for a in self.accounts.values() if a.login.lower() == login.lower()), None)

    def rename_account(self, old: str, new: str) -> EmulatedAccount:
        """Change a login; the old one is free from then on, its repositories' old names redirect."""
        with self.lock:
            account = self._account(old)
            holder = self.find_account(new)
            if holder is not None and holder is not account:
                raise ValueError(f"the login {new} is taken")
            owned = [r for r in self.repositories.values() if r.owner is account]
            for repository in owned:
                self._unname(repository)
            previous, account.login = account.login, new
            for repository in owned:
                self._name(repository)
            details = {"login_from": previous}
            self._tell(Change("installation_target", "renamed", account=account, details=details))
            return account

    def delete_account(self, login: str) -> None:
        """Delete an account with its repositories and installations; the login is free again."""
        with self.lock:
            account = self._account(login)
            if account.kind == "Organization":
                self._tell(Change("organization", "deleted", account=account))
            for installation in [i for i in self.installations.values() if i.account is account]:
                self.uninstall(installation)
            for repository in [r for r in self.repositories.values() if r.owner is account]:
                self.delete_repository(repository)
            self._moved = {
                name: r for name, r in self._moved.items() if not name.startswith(f"{account.login.lower()}/")
            }
            del self.accounts[account.id]

    # repositories

    def add_repository(
        self,
        full_name: str,
        *,
        private: bool = True,
        default_branch: str = "main",
        archived: bool = False,
        path: Path | None = None,
        create_git: bool = False,
        files: Mapping[str, str | bytes] | None = None,
        repository_id: int | None = None,
    ) -> EmulatedRepository:
        """Create a repository; its owner, an organization, is added if it is not there.

        Args:
            full_name: ``owner/name``.
            private: or public.
            default_branch: its HEAD.
            archived: read-only.
            path: an existing bare git repository to serve.
            create_git: make a bare one with one commit, in a folder that ``close`` deletes.
            files: of that commit; by default README.md and src/hello.txt. Implies ``create_git``.
            repository_id: instead of the next one.

        Raises:
            ValueError: the name or the id is taken.
        """
        login, name = _split(full_name)
        with self.lock:
            if self.find_repository(full_name) is not None:
                raise ValueError(f"{full_name} exists already")
            owner = self.find_account(login) or self.add_account(login)
            number = next(self._repository_ids) if repository_id is None else repository_id
            if number in self.repositories:
                raise ValueError(f"the repository id {number} is taken")
            repository = EmulatedRepository(
                number, name, owner, private, default_branch, archived, path, self.now()
            )
            self.repositories[number] = repository
            self._name(repository)
            if create_git or files is not None:
                content = files if files is not None else _first_files(repository)
                self.commit(repository, content, message="Begin")
            return repository

    def find_repository(self, full_name: str) -> EmulatedRepository | None:
        """Return the repository that has this name now, case aside."""
        with self.lock:
            return self._names.get(full_name.lower())

    def find_moved(self, full_name: str) -> EmulatedRepository | None:
        """Return the repository that had this name last, if nobody has it now."""
        with self.lock:
            return None if full_name.lower() in self._names else self._moved.get(full_name.lower())

    def rename_repository(self, old: str | EmulatedRepository, new: str) -> EmulatedRepository:
        """Rename within the owner; ``new`` is a bare or a full name. The old name redirects."""
        with self.lock:
            repository = self._repository(old)
            previous = repository.name
            self._move(repository, repository.owner, new.rpartition("/")[2])
            details = {"name_from": previous}
            self._tell(Change("repository", "renamed", repositories=(repository,), details=details))
            return repository

    def transfer_repository(
        self, repository: str | EmulatedRepository, owner: str | EmulatedAccount
    ) -> EmulatedRepository:
        """Give to another account; it leaves the old owner's installation. The old name redirects."""
        with self.lock:
            moved = self._repository(repository)
            previous = moved.owner
            self._move(moved, self._account(owner), moved.name)
            for installation in self.installations.values():
                if installation.account is previous and installation.selection is not None:
                    installation.selection.discard(moved.id)
            details = {"owner_from": previous}
            self._tell(Change("repository", "transferred", repositories=(moved,), details=details))
            return moved

    def delete_repository(self, repository: str | EmulatedRepository) -> None:
        """Delete; the name is free again and redirects to it end."""
        with self.lock:
            gone = self._repository(repository)
            self._names.pop(gone.full_name.lower(), None)
            self._moved = {name: r for name, r in self._moved.items() if r is not gone}
            del self.repositories[gone.id]
            for installation in self.installations.values():
                if installation.selection is not None:
                    installation.selection.discard(gone.id)
            self._tell(Change("repository", "deleted", repositories=(gone,)))

    def set_private(self, repository: str | EmulatedRepository, private: bool) -> None:  # noqa: FBT001
        """Make a repository private or public."""
        with self.lock:
            found = self._repository(repository)
            found.private = private
            action = "privatized" if private else "publicized"
            self._tell(Change("repository", action, repositories=(found,)))

    def set_archived(self, repository: str | EmulatedRepository, archived: bool) -> None:  # noqa: FBT001
        """Make a repository read-only, or open it again."""
        with self.lock:
            found = self._repository(repository)
            found.archived = archived
            action = "archived" if archived else "unarchived"
            self._tell(Change("repository", action, repositories=(found,)))

    def commit(
        self,
        repository: str | EmulatedRepository,
        files: Mapping[str, str | bytes],
        *,
        message: str = "Change",
        branch: str | None = None,
    ) -> str:
        """Commit to a branch (the default one), making the git repository if needed; return the id."""
        with self.lock:
            target = self._repository(repository)
            path = self.git_path(target)
            return bare.commit(
                path,
                branch=branch or target.default_branch,
                files=files,
                message=message,
                at=int(self.now()),
            )

    def git_path(self, repository: EmulatedRepository) -> Path:
        """Return where the bare git repository is; an empty one is made if there is none."""
        with self.lock:
            if repository.path is None:
                path = self._folder() / f"{repository.id}.git"
                bare.create(path, default_branch=repository.default_branch)
                repository.path = path
            return repository.path

    # apps and installations

    def add_app(
        self,
        *,
        slug: str = "token-broker",
        owner: str = "acme-platform",
        app_id: int | None = None,
        client_id: str | None = None,
        permissions: Mapping[str, str] | None = None,
        events: Iterable[str] | None = None,
        public: bool = False,
    ) -> EmulatedApp:
        """Register an app, without any key; its owner is added if it is not there.

        Args:
            slug: its name in URLs.
            owner: login.
            app_id: instead of the next one.
            client_id: instead of a new one, ``Iv23`` and 16 more.
            permissions: contents and metadata at read by default.
            events: that it subscribes to.
            public: whether strangers may see and install it.

        Raises:
            ValueError: slug, id or client id is taken.
        """
        with self.lock:
            number = next(self._app_ids) if app_id is None else app_id
            client = client_id or f"Iv23li{secrets.token_hex(7)}"
            if any(a.app_id == number or a.slug == slug or a.client_id == client for a in self.apps.values()):
                raise ValueError("an app has this id, client id or slug already")
            app = self.apps[number] = EmulatedApp(
                app_id=number,
                client_id=client,
                slug=slug,
                owner=self.find_account(owner) or self.add_account(owner),
                permissions=_with_metadata(READ_ONLY_APP if permissions is None else permissions),
                events=list(events or ()),
                public=public,
                created_at=self.now(),
            )
            return app

    def set_app_permissions(self, app: EmulatedApp, permissions: Mapping[str, str]) -> None:
        """Change what the app asks for.

        What is taken away is gone at once, from installations and tokens too; what is added is pending
        until an installation accepts it with ``set_permissions``.
        """
        with self.lock:
            app.permissions = _with_metadata(permissions)
            for installation in self.installations.values():
                if installation.app is app:
                    installation.permissions = _lower(installation.permissions, app.permissions)
            for token in self.tokens.values():
                if token.installation.app is app:
                    token.permissions = _lower(token.permissions, app.permissions)

    def install(
        self,
        app: EmulatedApp,
        account: str | EmulatedAccount,
        *,
        repositories: Iterable[str | EmulatedRepository] | None = None,
        permissions: Mapping[str, str] | None = None,
    ) -> EmulatedInstallation:
        """Install ``app``; a second installation after ``uninstall`` has a new id.

        Args:
            app: to install.
            account: on this one, added as an organization if it is not there.
            repositories: bare or full names; None for all.
            permissions: that the account grants; the app's by default.

        Raises:
            ValueError: the app is on that account already, or a repository is not the account's.
        """
        with self.lock:
            if isinstance(account, str):
                account = self.find_account(account) or self.add_account(account)
            if self.find_installation(app, account) is not None:
                raise ValueError(f"{app.slug} is installed on {account.login} already")
            granted = _with_metadata(app.permissions if permissions is None else permissions)
            number, now = next(self._installation_ids), self.now()
            installation = EmulatedInstallation(
                number, app, account, self._select(account, repositories), granted, now, now
            )
            self.installations[number] = installation
            self._tell(Change("installation", "created", installation, account, self.reach(installation)))
            return installation

    def find_installation(self, app: EmulatedApp, account: EmulatedAccount) -> EmulatedInstallation | None:
        """Return the installation of ``app`` on ``account``."""
        with self.lock:
            return next(
                (i for i in self.installations.values() if i.app is app and i.account is account), None
            )

    def reach(self, installation: EmulatedInstallation) -> tuple[EmulatedRepository, ...]:
        """Return the repositories that the installation reaches now, oldest first."""
        with self.lock:
            return tuple(r for _, r in sorted(self.repositories.items()) if installation.covers(r))

    def uninstall(self, installation: EmulatedInstallation) -> None:
        """Remove the installation; its tokens are dead and its id is never used again."""
        with self.lock:
            reached = self.reach(installation)
            self.installations.pop(installation.id, None)
            installation.deleted = True
            self._tell(Change("installation", "deleted", installation, installation.account, reached))

    def suspend(self, installation: EmulatedInstallation) -> None:
        """Block minting and the use of tokens, at once."""
        with self.lock:
            installation.suspended_at = installation.updated_at = self.now()
            self._tell(Change("installation", "suspend", installation, installation.account))

    def unsuspend(self, installation: EmulatedInstallation) -> None:
        """Lift the suspension; tokens minted before live on."""
        with self.lock:
            installation.suspended_at = None
            installation.updated_at = self.now()
            self._tell(Change("installation", "unsuspend", installation, installation.account))

    def set_selection(
        self, installation: EmulatedInstallation, repositories: Iterable[str | EmulatedRepository] | None
    ) -> None:
        """Choose the repositories, or None for all; tokens lose what is taken away at once."""
        with self.lock:
            before, was_all = self.reach(installation), installation.selection is None
            installation.selection = self._select(installation.account, repositories)
            installation.updated_at = self.now()
            after = self.reach(installation)
            narrowed = was_all and installation.selection is not None
            added = tuple(r for r in after if r not in before)
            # from "all" to "selected" GitHub says "removed" and names nothing
            removed = () if narrowed else tuple(r for r in before if r not in after)
            told = {"added": added, "removed": removed}
            for action, moved in told.items():
                if moved or (narrowed and action == "removed"):
                    details = {"added": (), "removed": (), action: moved}
                    account = installation.account
                    self._tell(
                        Change("installation_repositories", action, installation, account, moved, details)
                    )

    def set_permissions(
        self, installation: EmulatedInstallation, permissions: Mapping[str, str] | None = None
    ) -> None:
        """Let the account accept permissions (the app's by default); tokens keep what they had."""
        with self.lock:
            granted = installation.app.permissions if permissions is None else permissions
            installation.permissions = _with_metadata(granted)
            installation.updated_at = self.now()
            reached = self.reach(installation)
            account = installation.account
            self._tell(Change("installation", "new_permissions_accepted", installation, account, reached))

    # tokens

    def mint(
        self,
        installation: EmulatedInstallation,
        *,
        repositories: Iterable[EmulatedRepository] | None = None,
        permissions: Mapping[str, str] | None = None,
    ) -> EmulatedToken:
        """Make a token; None means everything. What may be asked for is checked by the caller."""
        with self.lock:
            now = self.now()
            expires = int(now) + self.token_ttl_s
            granted = dict(installation.permissions if permissions is None else permissions)
            ids: frozenset[int] | None = None
            if repositories is not None:
                extra = [self._repository(name) for name in self.over_grant_repositories]
                ids = frozenset(r.id for r in (*repositories, *extra))
            stateless = self.token_shape == "stateless" or (
                self.token_shape == "mixed" and self._mints % 2 == 0
            )
            self._mints += 1
            text = (
                token_text.stateless(
                    app_id=installation.app.app_id,
                    installation_id=installation.id,
                    issued_at=int(now),
                    expires_at=expires,
                )
                if stateless
                else token_text.legacy()
            )
            token = self.tokens[text] = EmulatedToken(
                text=text,
                installation=installation,
                repositories=ids,
                permissions=_with_metadata({**granted, **self.over_grant_permissions}),
                minted_at=now,
                expires_at=float(expires),
                lag_uses=self.lag_uses,
                usable_at=now + self.lag_s,
            )
            return token

    def present(self, text: str) -> tuple[Standing, EmulatedToken | None]:
        """Count a use of a token and return what becomes of it."""
        with self.lock:
            token = self.tokens.get(text)
            if token is None:
                return Standing.BAD, None
            token.uses += 1
            if not self._lives(token):
                return Standing.BAD, token
            if token.uses <= token.lag_uses or self.now() < token.usable_at:
                return Standing.LAGGING, token
            if token.installation.suspended_at is not None:
                return Standing.SUSPENDED, token
            return Standing.GOOD, token

    def live_tokens(self) -> list[EmulatedToken]:
        """Return the tokens that are neither expired nor revoked, nor of a removed installation."""
        with self.lock:
            return [token for token in self.tokens.values() if self._lives(token)]

    def revoke_all(self) -> None:
        """Revoke every token, behind everybody's back."""
        with self.lock:
            for token in self.tokens.values():
                token.revoked = True

    def quota(self, installation: EmulatedInstallation, *, spend: int) -> Quota | None:
        """Count ``spend`` calls against the installation's hour; None if limits are off."""
        with self.lock:
            if self.rate_limit is None:
                return None
            now = int(self.now())
            reset, used = self._quotas.get(installation.id, (now + 3600, 0))
            if reset <= now:
                reset, used = now + 3600, 0
            used += spend
            self._quotas[installation.id] = (reset, used)
            return Quota(self.rate_limit, used, reset)

    def _lives(self, token: EmulatedToken) -> bool:
        return not token.revoked and not token.installation.deleted and self.now() < token.expires_at

    def _tell(self, change: Change) -> None:
        for listener in self._listeners:
            listener(change)

    def _account(self, login: str | EmulatedAccount) -> EmulatedAccount:
        found = self.find_account(login) if isinstance(login, str) else login
        if found is None:
            raise ValueError(f"no account {login}")
        return found

    def _repository(self, name: str | EmulatedRepository) -> EmulatedRepository:
        found = self.find_repository(name) if isinstance(name, str) else name
        if found is None:
            raise ValueError(f"no repository {name}")
        return found

    def _select(
        self, account: EmulatedAccount, repositories: Iterable[str | EmulatedRepository] | None
    ) -> set[int] | None:
        if repositories is None:
            return None
        if isinstance(repositories, str):
            raise TypeError("repositories is a collection of names, not one name")
        chosen = {
            self._repository(f"{account.login}/{r}" if isinstance(r, str) and "/" not in r else r)
            for r in repositories
        }
        foreign = [r.full_name for r in chosen if r.owner is not account]
        if foreign:
            raise ValueError(f"not of {account.login}: {foreign}")
        return {r.id for r in chosen}

    def _move(self, repository: EmulatedRepository, owner: EmulatedAccount, name: str) -> None:
        holder = self.find_repository(f"{owner.login}/{name}")
        if holder is not None and holder is not repository:
            raise ValueError(f"{owner.login}/{name} exists already")
        self._unname(repository)
        repository.owner, repository.name = owner, name
        self._name(repository)

    def _unname(self, repository: EmulatedRepository) -> None:
        name = repository.full_name.lower()
        del self._names[name]
        self._moved[name] = repository

    def _name(self, repository: EmulatedRepository) -> None:
        name = repository.full_name.lower()
        self._names[name] = repository
        # a name that is taken anew redirects no longer, not even when it is freed again
        self._moved.pop(name, None)

    def _folder(self) -> Path:
        if self._directory is None or self._cleanup is None or not self._cleanup.alive:
            self._directory = Path(tempfile.mkdtemp(prefix="emulated-github-"))
            self._cleanup = weakref.finalize(self, shutil.rmtree, str(self._directory), True)
        return self._directory


def _split(full_name: str) -> tuple[str, str]:
    login, slash, name = full_name.partition("/")
    if not (login and slash and name) or "/" in name:
        raise ValueError(f"a repository is owner/name, not {full_name!r}")
    return login, name


def _with_metadata(permissions: Mapping[str, str]) -> Permissions:
    return {"metadata": "read", **permissions}


def _lower(held: Permissions, most: Permissions) -> Permissions:
    lowered = {
        name: min(level, most[name], key=lambda each: LEVELS.get(each, 0))
        for name, level in held.items()
        if name in most
    }
    return _with_metadata(lowered)


def _load(pem: str) -> rsa.RSAPrivateKey:
    key = load_pem_private_key(pem.encode(), password=None)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ValueError("an app's key is RSA")  # noqa: TRY004 - the content is wrong, not the type
    return key


def _first_files(repository: EmulatedRepository) -> dict[str, str | bytes]:
    return {
        "README.md": f"# {repository.full_name}\n\nServed by the emulated GitHub.\n",
        "src/hello.txt": "hello\n",
    }
