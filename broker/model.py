"""Frozen values that make wrong states impossible; no I/O."""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from broker.errors import InvalidRequestError, NotReadOnlyError

MAX_REPOSITORIES: Final = 500
"""GitHub takes at most 500 repositories per installation token ("Create an installation access token")."""

MAX_PERMISSIONS: Final = 100
DEFAULT_PERMISSIONS: Final = ("contents", "metadata")

# First character alphanumeric, one "_" for enterprise managed users (name_shortcode). Legacy names
# may end in "-" or hold "--", so both are let through: GitHub answers 404 for what does not exist.
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,38}|(?=.{3,39}\Z)[A-Za-z0-9][A-Za-z0-9-]*_[A-Za-z0-9-]+")
_REPOSITORY = re.compile(r"[A-Za-z0-9._-]{1,100}")
_PERMISSION = re.compile(r"[a-z][a-z0-9_]{0,63}")


class Secret:
    """Text that never shows itself: plain text exists for the expression that calls ``reveal``."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the plain text."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(...)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


def parse_owner(text: str) -> str:
    """Return ``text`` if GitHub could allow it as an owner's login.

    Raises:
        InvalidRequestError: it could not.

    Rules: 1 to 39 of ``[A-Za-z0-9-]``, one ``_`` for enterprise managed users.
    """
    if not _OWNER.fullmatch(text):
        raise InvalidRequestError(public=f"{_shown(text)} is not a name that GitHub allows for an owner.")
    return text


@dataclass(frozen=True, slots=True)
class RepositoryName:
    """``owner/name`` as written; ``key`` is what comparisons use (GitHub ignores case)."""

    owner: str
    name: str

    @classmethod
    def parse(cls, text: str) -> "RepositoryName":
        """Return the name in ``owner/name``.

        Raises:
            InvalidRequestError: GitHub would not allow it, or it is ``.``/``..``/``*.git``/``*.wiki``.
        """
        owner, slash, name = text.partition("/")
        if (
            not slash
            or not _OWNER.fullmatch(owner)
            or not _REPOSITORY.fullmatch(name)
            or name in {".", ".."}
            or name.lower().endswith((".git", ".wiki"))
        ):
            raise InvalidRequestError(
                public=f"{_shown(text)} is not a name that GitHub allows: write owner/repository."
            )
        return cls(owner, name)

    @property
    def key(self) -> str:
        """Lower-case ``owner/name``."""
        return f"{self.owner}/{self.name}".lower()

    def __str__(self) -> str:
        return f"{self.owner}/{self.name}"


def _shown(text: str) -> str:
    """Return ``text`` fit for an error message: short, printable ASCII, quoted."""
    return json.dumps(text[:120])


def parse_permissions(wanted: Mapping[str, object] | None) -> tuple[str, ...]:
    """Return the sorted names of the permissions asked for, each at level read.

    ``metadata`` always comes along, as GitHub adds it by itself.

    Raises:
        NotReadOnlyError: a level other than ``read``.
        InvalidRequestError: an empty map (it means *everything* to GitHub), or a malformed name.
    """
    if wanted is None:
        return DEFAULT_PERMISSIONS
    if not wanted:
        raise InvalidRequestError(public="permissions: an empty map is not allowed; leave it out instead.")
    if len(wanted) > MAX_PERMISSIONS:
        raise InvalidRequestError(public=f"permissions: at most {MAX_PERMISSIONS}.")
    for name, level in wanted.items():
        if not _PERMISSION.fullmatch(name):
            raise InvalidRequestError(public=f"permissions: {_shown(name)} is not a permission's name.")
        if level != "read":
            raise NotReadOnlyError(public=f"permissions.{name}: only level read is given.")
    return tuple(sorted({*wanted, "metadata"}))


@dataclass(frozen=True, slots=True)
class Scope:
    """What a token can reach: repositories of one owner (or all), and permissions at level read.

    Attributes:
        host: the GitHub host, lower case.
        owner: login, lower case.
        repositories: sorted lower-case ``owner/name``, or None for all of the installation's.
        permissions: sorted names.
        spelled: names of the repositories (without owner) as the caller wrote them, in the same order:
            whether GitHub compares them without case when it mints is not documented.
    """

    host: str
    owner: str
    repositories: tuple[str, ...] | None
    permissions: tuple[str, ...]
    spelled: tuple[str, ...] | None = field(default=None, compare=False)
    id: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        canonical = json.dumps(
            {
                "host": self.host,
                "owner": self.owner,
                "repositories": None if self.repositories is None else list(self.repositories),
                "permissions": dict.fromkeys(self.permissions, "read"),
            },
            sort_keys=True,
            separators=(",", ":"),
        )
        digest = hashlib.sha256(canonical.encode()).digest()
        object.__setattr__(self, "id", base64.urlsafe_b64encode(digest).rstrip(b"=").decode())

    def __hash__(self) -> int:
        """Hash the id, which is a digest of all that is compared."""
        return hash(self.id)

    @classmethod
    def of_repositories(
        cls, host: str, names: Iterable[RepositoryName], permissions: tuple[str, ...]
    ) -> "Scope":
        """Return the scope of some repositories of one owner.

        Raises:
            InvalidRequestError: none, more than 500, or repositories of two owners.
        """
        by_key = {name.key: name.name for name in names}
        keys = sorted(by_key)
        if not keys:
            raise InvalidRequestError(public="repositories: name at least one.")
        if len(keys) > MAX_REPOSITORIES:
            raise InvalidRequestError(public=f"repositories: at most {MAX_REPOSITORIES} in one token.")
        owners = {key.partition("/")[0] for key in keys}
        if len(owners) > 1:
            raise InvalidRequestError(
                public="repositories: all must have one owner, because a token belongs to one installation."
            )
        spelled = tuple(by_key[key] for key in keys)
        return cls(host.lower(), owners.pop(), tuple(keys), permissions, spelled)

    @classmethod
    def of_owner(cls, host: str, owner: str, permissions: tuple[str, ...]) -> "Scope":
        """Return the scope of all repositories that the owner's installation reaches."""
        return cls(host.lower(), owner.lower(), None, permissions)


class Role(StrEnum):
    """What a key may do: ask for tokens, or administer as well."""

    CALLER = "caller"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class ApiKeyRecord:
    """A caller's key as it is stored. Times are Unix seconds.

    Attributes:
        id: public part of the key.
        sha256: digest of the whole key, hex; the only trace of the secret.
        repositories: patterns (``owner/repo``, ``owner/*``, ``owner/prefix-*``, ``*/*``).
        permissions: names of the permissions that it may ask for, each at level read.
        version: counts the writes of this record.
    """

    id: str
    sha256: str
    name: str
    role: Role
    repositories: tuple[str, ...]
    permissions: tuple[str, ...]
    created_at: int
    created_by: str
    expires_at: int | None = None
    revoked_at: int | None = None
    rate_limit_per_minute: int | None = None
    version: int = 1

    def ended(self, now: float) -> bool:
        """Return whether the key is revoked, or expired at ``now`` (store time, Unix seconds).

        What is revoked is so whenever that was: the store's clock may be behind the one that it had then.
        """
        return self.revoked_at is not None or (self.expires_at is not None and self.expires_at <= now)


class Grant(NamedTuple):
    """What one caller was allowed for one call; proof that policy was asked."""

    key_id: str
    key_name: str
    scope: Scope


@dataclass(frozen=True, slots=True)
class Installation:
    """The app on one account, as GitHub last told. Times are Unix seconds (store time).

    Attributes:
        id: installation id.
        account_id: numeric id of the account; logins change hands, ids do not.
        login: canonical spelling of the owner.
        selection: ``all`` or ``selected``.
        permissions: what the owner granted, name to level.
        checked_at: when GitHub was asked.
        foreign: the account is not the one first seen under this login; nothing is served.
    """

    id: int
    account_id: int
    login: str
    selection: str
    permissions: Mapping[str, str]
    suspended: bool
    checked_at: float = 0.0
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class LiveToken:
    """A token that was minted, checked and kept.

    Attributes:
        token: opaque; neither length nor alphabet is assumed.
        sha256: base64 of the SHA-256 of the token, GitHub's ``hashed_token``.
        scope_id: the scope that it was minted for.
        epoch: the store's epoch when its mint began.
        expires_at: Unix seconds, GitHub's clock.
        repositories: canonical ``owner/name``, or None for all of the installation's.
    """

    token: Secret
    sha256: str
    scope_id: str
    epoch: int
    installation_id: int
    expires_at: float
    repositories: tuple[str, ...] | None
    permissions: tuple[str, ...]


def token_sha256(token: Secret) -> str:
    """Return base64(SHA-256(token)), as ``hashed_token`` in GitHub's audit log."""
    return base64.b64encode(hashlib.sha256(token.reveal().encode()).digest()).decode()


class TargetKind(StrEnum):
    """What an ending is aimed at."""

    ALL = "all"
    OWNER = "owner"
    REPOSITORY = "repository"
    TOKEN = "token"  # noqa: S105 - a kind's name


@dataclass(frozen=True, slots=True)
class Target:
    """What is revoked, blocked or dropped.

    Attributes:
        name: lower-case owner or ``owner/name``, a token's SHA-256 (base64), or empty for all.
    """

    kind: TargetKind
    name: str = ""

    @property
    def owner(self) -> str | None:
        """Return the lower-case owner, where the target has one."""
        if self.kind in {TargetKind.OWNER, TargetKind.REPOSITORY}:
            return self.name.partition("/")[0]
        return None

    def reached_by(self, token: LiveToken) -> bool:
        """Return whether ``token``, one of the owner's, reaches the target."""
        if self.kind is not TargetKind.REPOSITORY or token.repositories is None:
            return True
        return self.name in {name.lower() for name in token.repositories}


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed mint that is not tried again before its cool-down ends."""

    code: str
    public: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class App:
    """Who the app is, from ``GET /app``; ``owner_kind`` is GitHub's word: Organization, User."""

    id: int
    slug: str
    owner: str
    permissions: Mapping[str, str]
    events: tuple[str, ...]
    public: bool | None = None
    owner_kind: str = ""


@dataclass(frozen=True, slots=True)
class NewApp:
    """An app just made from a manifest, with what GitHub shows only once.

    Attributes:
        client_id: empty where GitHub gave none.
        webhook_secret: None for an app without webhook.
    """

    app: App
    client_id: str
    private_key: Secret
    webhook_secret: Secret | None


@dataclass(frozen=True, slots=True)
class HookConfig:
    """Where GitHub sends the app's webhooks; ``url`` is empty if nowhere.

    Attributes:
        signed: there is a secret.
        verified: GitHub checks the certificate.
    """

    url: str
    signed: bool
    verified: bool


@dataclass(frozen=True, slots=True)
class MintedToken:
    """GitHub's reply to a mint, not yet trusted.

    Attributes:
        expires_at: Unix seconds by GitHub's clock.
        repositories: full names if GitHub echoed them.
        github_now: GitHub's clock from ``Date``, Unix seconds.
    """

    token: Secret
    expires_at: float
    permissions: Mapping[str, str]
    repositories: tuple[str, ...] | None
    selection: str | None
    github_now: float | None


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository that the app can reach."""

    full_name: str
    private: bool
    default_branch: str
    archived: bool


@dataclass(frozen=True, slots=True)
class RepositoryPage:
    """One page of an installation's repositories; ``next_page`` is None on the last."""

    repositories: tuple[Repository, ...]
    next_page: int | None
