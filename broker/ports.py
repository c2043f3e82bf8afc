"""What the use cases need from the outside, as Protocols; no I/O here.

The store speaks in verbs of the product. Each verb is one atomic step in the store, so no rule
depends on two calls being near each other. ``broker.store`` implements it twice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, NamedTuple, Protocol, TypeVar

from broker.model import (
    ApiKeyRecord,
    App,
    Failure,
    Installation,
    LiveToken,
    MintedToken,
    RepositoryName,
    RepositoryPage,
    Scope,
    Secret,
    Target,
)

T = TypeVar("T")


class Clock(Protocol):
    """Wall time. Deadlines use the event loop's own monotonic time instead."""

    def now(self) -> float:
        """Return Unix seconds."""
        ...


class GitHub(Protocol):
    """GitHub's REST API as far as the broker calls it.

    Every method raises one of ``GitHubError``'s children and nothing else.
    """

    async def app(self) -> App:
        """Return who the app is."""
        ...

    async def installation(self, installation_id: int) -> Installation:
        """Return an installation by its id.

        Raises:
            InstallationGoneError: there is none of that id.
        """
        ...

    async def repository_installation(self, repository: RepositoryName) -> Installation:
        """Return the installation that reaches a repository (``checked_at`` is 0).

        Raises:
            NotInstalledError: no such repository, the app is not on it, or it was renamed.
        """
        ...

    async def owner_installation(self, owner: str) -> Installation:
        """Return the installation on an organization or user.

        Raises:
            NotInstalledError: there is none.
        """
        ...

    async def installations(self) -> Sequence[Installation]:
        """Return all installations of the app."""
        ...

    async def mint(
        self,
        installation_id: int,
        *,
        repositories: Sequence[str] | None,
        permissions: Sequence[str],
    ) -> MintedToken:
        """Mint a token for bare repository names (None: deliberately all) at level read.

        Raises:
            InstallationGoneError: 404, the installation id is stale.
        """
        ...

    async def revoke(self, token: Secret) -> None:
        """End a token at GitHub; one that is already dead counts as done."""
        ...

    async def installation_repositories(self, token: Secret, *, page: int) -> RepositoryPage:
        """Return one page (100) of what an installation token reaches, ``page`` from 1."""
        ...

    async def probe_git(self, token: Secret, repository: str) -> bool:
        """Return whether git's own endpoint accepts the token for ``owner/name`` already."""
        ...


class Meter:
    """Counts what happens; this one counts nothing, ``broker.metrics`` has the one that does.

    No method may raise, wait, or cost more than some microseconds. None is given the name of a
    repository, an owner or a key: whoever scrapes metrics may not be told those.
    """

    def request(self, *, route: str, status: int, code: str | None, seconds: float) -> None:
        """A request was answered; ``route`` is a template, ``code`` that of a problem."""

    def decided(self, event: "AuditEvent") -> None:
        """A decision went to the audit's log."""

    def issued_again(self) -> None:
        """A cached token was handed out again, as a moment ago."""

    def audit_failed(self, what: str, events: int = 1) -> None:
        """Events did not get into the store: ``late`` (kept for another try) or ``lost``."""

    def minted(self, *, ahead: bool, result: str, seconds: float) -> None:
        """This process led a mint: ``ok`` or an error's code; ``ahead`` if nobody waited for it."""

    def revoked(self, fate: str) -> None:
        """One try to end a token at GitHub: ``revoked``, ``failed`` or ``pending``."""

    def webhook(self, event: str, result: str) -> None:
        """A delivery was answered; of one that is not proven to be GitHub's the event is empty."""

    def store_step(self, step: str, seconds: float, trouble: str | None) -> None:
        """One atomic step of the store, and what kept the answer away, if anything."""


class Event(StrEnum):
    """Names of audit events."""

    TOKEN_ISSUED = "token.issued"  # noqa: S105 - an event's name
    TOKEN_DENIED = "token.denied"  # noqa: S105
    TOKEN_MINTED = "token.minted"  # noqa: S105
    TOKEN_REVOKED = "token.revoked"  # noqa: S105
    KEY_CREATED = "key.created"
    KEY_CHANGED = "key.changed"
    KEY_ROTATED = "key.rotated"
    KEY_REVOKED = "key.revoked"
    BLOCK_SET = "block.set"
    BLOCK_LIFTED = "block.lifted"
    OWNER_CHANGED = "owner.changed"
    WEBHOOK_RECEIVED = "webhook.received"
    WEBHOOK_REJECTED = "webhook.rejected"


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One decision, without secrets. ``time`` and ``id`` are the store's to give."""

    event: Event
    request_id: str | None = None
    key_id: str | None = None
    key_name: str | None = None
    owner: str | None = None
    client_ip: str | None = None
    repositories: tuple[str, ...] | None = None
    permissions: tuple[str, ...] | None = None
    installation_id: int | None = None
    token_sha256: str | None = None
    expires_at: float | None = None
    cached: bool | None = None
    count: int | None = None
    code: str | None = None
    reason: str | None = None


class ReadQuery(NamedTuple):
    """What one request has to know: its key, and (if it wants a token) a scope."""

    key_id: str | None = None
    scope: Scope | None = None


class Snapshot(Protocol):
    """One consistent read of the primary. Secrets in it are opened only when asked for.

    Attributes:
        now: store time, Unix seconds.
        gh_offset: seconds to add to store time for GitHub's clock.
        epoch: grows with everything that narrows what may be handed out.
        generation: changes when the store may have lost what this process saw written: after an outage, a
            failover, an adoption. Of this process alone.
    """

    now: float
    gh_offset: float
    epoch: int
    generation: int

    @property
    def scope_id(self) -> str | None:
        """The scope that was asked for."""
        ...

    def raw_token(self) -> bytes | None:
        """Return the sealed token as it was found; opaque, for comparing."""
        ...

    def raw_key(self) -> bytes | None:
        """Return the sealed key record as it was found; opaque, for comparing."""
        ...

    def key(self) -> ApiKeyRecord | None:
        """Return the caller's record, or None if there is no such key.

        Raises:
            StoreLostError: it does not open as that key's record.
        """
        ...

    def blocked(self) -> str | None:
        """Return the reason if something in the scope's reach is blocked."""
        ...

    def installation(self) -> Installation | None:
        """Return what is known of the owner, or None."""
        ...

    def token(self) -> LiveToken | None:
        """Return the cached token if it opens as this scope's and nothing in its reach has ended it."""
        ...

    def failure(self) -> Failure | None:
        """Return the failure that still cools down, or None."""
        ...

    def refresh_failed(self) -> bool:
        """Return whether a refresh ahead failed a moment ago."""
        ...


class HandResult(StrEnum):
    """HAND's answers."""

    FIRST = "first"
    AGAIN = "again"
    STALE = "stale"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Lead:
    """This process leads: nobody else mints while it holds the lease.

    Attributes:
        lease: name of the lease.
        nonce: what the store compares before it takes the result.
        epoch: the epoch that the result must not be older than.
    """

    lease: str
    nonce: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Another process leads."""


@dataclass(frozen=True, slots=True)
class Changed:
    """The cached token is not the one this reader saw: read again."""


@dataclass(frozen=True, slots=True)
class Paused:
    """GitHub asked to wait."""

    retry_after_s: float


@dataclass(frozen=True, slots=True)
class OverBudget:
    """The key's budget of fresh mints is used up."""

    retry_after_s: float


Acquired = Lead | Wait | Changed | Paused | OverBudget | Failure


class CommitResult(StrEnum):
    """COMMIT's answers; anything but OK means that the token must die."""

    OK = "ok"
    FENCED = "fenced"
    REVOKED = "revoked"
    BLOCKED = "blocked"


class StoreHealth(StrEnum):
    """The store as the background sees it."""

    OK = "ok"
    READ_ONLY = "read only"
    DOWN = "down"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A page of a list; ``next_cursor`` is None on the last."""

    items: tuple[T, ...]
    next_cursor: str | None = None


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """A key record as lists show it.

    Attributes:
        version: opaque; what compare-and-set compares.
        last_used_at: Unix seconds, informational (to the minute).
    """

    record: ApiKeyRecord
    version: bytes = field(repr=False)
    last_used_at: int | None = None


@dataclass(frozen=True, slots=True)
class AuditRow:
    """A stored audit event. ``time`` is store time, Unix seconds."""

    id: str
    time: float
    event: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which audit events are wanted; empty means all."""

    key_id: str | None = None
    repository: str | None = None
    event: str | None = None
    request_id: str | None = None
    since: float | None = None
    until: float | None = None
    ascending: bool = False


class EndKind(StrEnum):
    """How something ends.

    REVOKE drops and kills live tokens; BLOCK does so and forbids; UNBLOCK forbids no more; DROP (a
    webhook) only forgets what is cached; VOID forgets remembered failures of an owner.
    """

    REVOKE = "revoke"
    BLOCK = "block"
    UNBLOCK = "unblock"
    DROP = "drop"
    VOID = "void"


@dataclass(frozen=True, slots=True)
class Ended:
    """What END did.

    Attributes:
        found: False if there was nothing to end (an unblock of what is not blocked).
        shas: tokens that now have to be revoked at GitHub.
    """

    found: bool
    shas: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Doomed:
    """A token that has to be revoked at GitHub, out of the store's outbox.

    Attributes:
        token: None if the register has it no more, or it does not open.
        unreadable: it is there and does not open: it may live, and nobody can end it.
        matches: whether it reaches what was ended; if not, it is only taken out of the outbox.
        expires_at: Unix seconds, the store's clock.
        by: who ended it; ``reason`` why; ``request_id`` in which request.
    """

    sha256: str
    only: str
    token: LiveToken | None
    matches: bool
    owner: str
    expires_at: float
    unreadable: bool = False
    by: str = ""
    reason: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class BlockEntry:
    """A block: what (``owner`` or ``owner/name``), by whom, why, since when (Unix seconds)."""

    target: Target
    by: str
    reason: str
    at: float


@dataclass(frozen=True, slots=True)
class OwnerEntry:
    """An owner as the store knows it, and how many of its tokens live."""

    installation: Installation
    live_tokens: int


@dataclass(frozen=True, slots=True)
class HookWork:
    """What a webhook makes the broker forget; nothing else of a delivery is kept.

    Attributes:
        event: ``installation.deleted`` and the like.
        drops: owners and repositories whose cached tokens and pictures are dropped.
        voids: owners whose remembered failures are dropped.
    """

    event: str
    guid: str
    drops: tuple[Target, ...] = ()
    voids: tuple[str, ...] = ()
    installation_id: int | None = None


@dataclass(frozen=True, slots=True)
class MintBudget:
    """Fresh mints that one key may cause in a minute."""

    key_id: str
    per_minute: int


@dataclass(frozen=True, slots=True)
class Counts:
    """How much the store holds: live tokens, tokens to revoke at GitHub, webhooks to work off."""

    live_tokens: int
    to_revoke: int
    webhooks: int


class Store(Protocol):
    """The store in verbs of the product, each one atomic step.

    Every method may raise ``StoreUnavailableError`` or ``StoreLostError``, and nothing else unless
    its docstring says so.
    """

    health: StoreHealth
    answered_once: bool

    async def open(self) -> None:
        """Connect and begin to heal in the background; does not raise when the store is down."""
        ...

    async def close(self) -> None:
        """Close connections and stop background work."""
        ...

    def now(self) -> float:
        """Return store time (Unix seconds), carried on since the last read."""
        ...

    async def warnings(self) -> list[str]:
        """Return what an operator should know, such as a Redis that evicts."""
        ...

    async def counts(self) -> Counts:
        """Return how much there is, for the metrics."""
        ...

    async def sweep(self) -> None:
        """Delete what has expired."""
        ...

    async def read(self, query: ReadQuery) -> Snapshot:
        """READ: one round trip, shared by the requests of a loop turn."""
        ...

    async def hand(self, token: LiveToken, *, epoch: int, event: AuditEvent) -> HandResult:
        """HAND: record the first hand-out of a token to ``event.key_id``, if nothing narrowed since."""
        ...

    async def acquire(
        self, scope: Scope, *, seen: Snapshot, budget: MintBudget | None, ahead: bool = False
    ) -> Acquired:
        """ACQUIRE: lead the mint of a scope, or learn why not. ``ahead`` for refresh ahead."""
        ...

    async def lease(self, what: str) -> Lead | None:
        """Take the lease ``what``, or None while another holds it. Lives 5 s unless renewed."""
        ...

    async def renew(self, lead: Lead) -> bool:
        """Keep a lease for 5 s more; False means that it is lost."""
        ...

    async def release(self, lead: Lead) -> None:
        """Give a lease back if it is still ours."""
        ...

    async def commit(
        self,
        lead: Lead,
        scope: Scope,
        token: LiveToken,
        *,
        gh_offset: float,
        moved: bool,
        event: AuditEvent,
    ) -> CommitResult:
        """COMMIT: keep a minted token if the lease is ours and nothing in its reach has ended.

        ``gh_offset`` (seconds) is written for everyone if it ``moved``.
        """
        ...

    async def drop_token(self, seen: Snapshot) -> None:
        """Forget the cached token that ``seen`` found, if it is still that one."""
        ...

    async def fail(
        self, lead: Lead, scope: Scope, failure: Failure, *, cooldown_s: float, ahead: bool
    ) -> None:
        """FAIL: keep a failure for its cool-down and end the lease, if it is still ours."""
        ...

    async def pause(self, owner: str | None, *, seconds: float) -> None:
        """PAUSE: nobody calls GitHub for this owner (None: for the whole app) for that long."""
        ...

    async def paused(self, owner: str | None) -> float:
        """Return for how many seconds calls for the owner, or for the app, still have to wait."""
        ...

    async def put_owner(
        self, lead: Lead, owner: str, installation: Installation, *, event: AuditEvent
    ) -> Installation | None:
        """OWNER: keep what GitHub told, pin the account id at first sight.

        Another account than the pinned one is kept as ``foreign`` and ``event`` (``owner.changed``) is
        recorded. None: the lease is lost or something changed meanwhile, look up again.
        """
        ...

    async def drop_owner(self, lead: Lead, owner: str) -> None:
        """OWNER: forget the installation (GitHub says it is gone); the pinned id stays."""
        ...

    async def refresh_gate(self, scope: Scope, *, seconds: float) -> bool:
        """Return True for the first caller in ``seconds`` who wants this scope minted anew."""
        ...

    async def take(self, key_id: str, *, chunk: int, limit: int) -> tuple[int, float]:
        """RATE: take up to ``chunk`` of ``limit`` in this minute; (granted, seconds to its end)."""
        ...

    async def record(self, events: Sequence[AuditEvent]) -> None:
        """Append audit events."""
        ...

    async def touch_keys(self, used: Mapping[str, int]) -> None:
        """LAST USED: key id to Unix second; informational."""
        ...

    async def create_key(self, record: ApiKeyRecord, event: AuditEvent) -> None:
        """KEY WRITE: add a key."""
        ...

    async def write_key(
        self,
        before: KeyEntry,
        after: ApiKeyRecord,
        event: AuditEvent,
        *,
        kill: bool = False,
    ) -> tuple[str, ...] | None:
        """KEY WRITE: compare-and-set on the whole old record; None: it has changed, read again.

        Each raises the epoch: a hand-out under way is decided anew, and a store that lost one is found out.

        With ``kill`` every live token that was handed to the key ends; they are returned.
        """
        ...

    async def end(
        self,
        kind: EndKind,
        target: Target,
        event: AuditEvent | None,
        *,
        by: str,
        reason: str,
        installation_id: int | None = None,
    ) -> Ended:
        """END: from the moment this returns nothing that it forbids is handed out, by any replica.

        With ``installation_id`` (of an owner) also tokens of that installation are killed that were minted
        when its owner had another name.
        """
        ...

    async def doomed(self, shas: Sequence[str] | None, *, limit: int) -> Sequence[Doomed]:
        """Return tokens to revoke at GitHub, soonest expiry first: some, or any."""
        ...

    async def settle(self, done: Sequence[tuple[Doomed, AuditEvent | None]]) -> int:
        """Take tokens out of the outbox, each with its audit event in the same step."""
        ...

    async def blocks(self) -> Sequence[BlockEntry]:
        """Return all blocks, in order of their names."""
        ...

    async def keep_hook(self, work: HookWork, *, body_sha256: str) -> bool:
        """HOOK: queue what a delivery asks for; False if its id or its body has been seen."""
        ...

    async def hooks(self, *, limit: int) -> Sequence[tuple[str, HookWork | None]]:
        """Return queued work, oldest first, by its place; None for what does not open."""
        ...

    async def hooks_done(self, places: Sequence[str]) -> None:
        """Take work out of the queue."""
        ...

    async def owner_of(self, installation_id: int) -> str | None:
        """Return the owner that is known to have an installation."""
        ...

    async def owners(self, *, cursor: str | None, limit: int) -> Page[OwnerEntry]:
        """Return known owners in alphabetical order."""
        ...

    async def accept_owner(self, owner: str, event: AuditEvent) -> Installation | None:
        """Pin the account that now has an owner's name; None if the owner's account did not change."""
        ...

    async def find_key(self, key_id: str) -> KeyEntry | None:
        """Return one key."""
        ...

    async def list_keys(self, *, cursor: str | None, limit: int) -> Page[KeyEntry]:
        """Return keys in order of their creation."""
        ...

    async def audit(self, wanted: AuditFilter, *, cursor: str | None, limit: int) -> Page[AuditRow]:
        """Return audit events, newest first unless ``ascending``; a filtered page may be short."""
        ...
