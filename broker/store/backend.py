"""The raw store: atomic steps over sealed blobs, implemented by ``sqlite`` and ``redis``.

Nothing here opens a seal or knows a policy. Names are those of ``STORE`` records: fields of ``S``
(``epoch``, ``m:o:<owner>`` …) and strings ``T:<scope>``, ``F:<scope>``, ``O:<owner>`` ….
Values whose age counts begin with their epoch: marks are ``<epoch>:<unix seconds>``, failures
``<epoch>:<json>``; epochs are decimal integers, an absent mark is epoch 0.
All times that cross this port are Unix seconds (float) of the store's clock unless named ``_ms``.
"""

from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

from broker.ports import Counts
from broker.store.batch import Batcher

LEASE_MS = 5000
END_SLACK_S = 60.0
"""A token is still worth killing so long past its expiry, for clocks that differ."""
MARK_LIFE_S = 7200.0
"""No token lives so long: an older mark ends nothing any more."""
HOOK_LIFE_S = 8 * 86400.0
"""A delivery is known again so long; GitHub redelivers for three days."""
UNREADABLE = 2**62
STATE_FIELDS = ("id", "epoch", "gh_offset")


Identities = tuple[bytes | None, bytes | None]
"""``id`` of ``S`` and ``!`` of ``K``; the same in a store that is whole."""


def epoch_of(value: bytes) -> int:
    """Return the epoch that a mark or failure begins with; an unreadable one counts as the highest."""
    try:
        return int(value.partition(b":")[0])
    except ValueError:
        return UNREADABLE


class Want(NamedTuple):
    """What one reader needs.

    Attributes:
        fields: fields of the state ``S``, beyond ``STATE_FIELDS``.
        keys: key ids.
        strings: names such as ``T:<scope>``.
    """

    fields: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    strings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class View:
    """What one atomic read found, for all whose wants it answers; absent entries are absent from the maps.

    So it is to be looked into by name, and never gone through.

    Attributes:
        sent_at: loop time at which the store was asked: what was written before that is in here.
        now: store time.
        store_id: ``id`` of ``S``, None if there is none.
        keys_id: ``!`` of ``K``, None if there is none.
    """

    sent_at: float
    now: float
    store_id: bytes | None
    keys_id: bytes | None
    epoch: int
    gh_offset: float
    fields: Mapping[str, bytes]
    keys: Mapping[str, bytes]
    strings: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class State:
    """All that decides whether this is our store."""

    fields: Mapping[str, bytes]
    keys_id: bytes | None
    key_wraps: Mapping[str, bytes]
    holds_keys: bool


@dataclass(frozen=True, slots=True)
class AcquireArgs:
    """ACQUIRE of one scope.

    Attributes:
        expected_token: the blob of ``T:<scope>`` that the caller saw, None for absent. Another value
            means ``changed``: somebody has minted since.
        failure: name of the failure entry that forbids (``F:<scope>`` or ``F:refresh:<scope>``).
        floor: fields of S (marks, and ``f:o:``) that a failure's epoch must not be below.
        budget: name of the counter, None to charge nobody.
    """

    store_id: bytes
    scope: str
    nonce: str
    expected_token: bytes | None
    owner: str
    failure: str
    floor: tuple[str, ...]
    budget: str | None
    budget_limit: int


@dataclass(frozen=True, slots=True)
class AcquireReply:
    """``verdict`` is lost, changed, paused, failed, wait, budget or lead.

    ``wait_s`` goes with paused and budget, ``failure`` (the stored bytes) with failed, ``epoch`` with lead.
    """

    verdict: str
    wait_s: float = 0.0
    failure: bytes = b""
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class CommitArgs:
    """COMMIT of one minted token.

    Attributes:
        marks: fields of S that must not be above ``epoch``.
        blocks: fields of S that must be absent (``b:w:<owner>``: absent or ``0``).
        expires_at: token's expiry on the *store's* clock.
    """

    store_id: bytes
    scope: str
    owner: str
    nonce: str
    epoch: int
    marks: tuple[str, ...]
    blocks: tuple[str, ...]
    blob: bytes
    sha: str
    expires_at: float
    gh_offset: float | None
    audit: "Row"


@dataclass(frozen=True, slots=True)
class Row:
    """One audit event to append. ``body`` is JSON without secrets; the store adds id and time."""

    event: str
    body: str
    key_id: str = ""
    owner: str = ""
    repositories: tuple[str, ...] = ()
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class StoredRow:
    """One audit event that was appended."""

    id: str
    time: float
    body: str


@dataclass(frozen=True, slots=True)
class KeyWriteArgs:
    """KEY WRITE. ``expected`` is the whole old blob, None to create. Each raises the epoch.

    Attributes:
        purge_at: when the record may be deleted (30 d after its end), None for never.
        marks: fields of S that become ``<epoch>:<unix seconds>`` with it.
        kill: a note for the outbox (see ``OutboxEntry``): every live token that was handed to the key is
            ended in the same step.
    """

    store_id: bytes
    key_id: str
    expected: bytes | None
    blob: bytes
    purge_at: float | None
    audit: Row
    kill: bytes | None = None
    marks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OwnerArgs:
    """OWNER. ``expected_pin``/``pin`` are compare-and-set on ``N`` (equal: leave as is).

    Attributes:
        epoch: the epoch of the lease; a mark in ``marks`` above it makes the answer ``stale``.
        blob: what to keep, None to forget the owner.
    """

    store_id: bytes
    owner: str
    lease: str
    nonce: str
    epoch: int
    marks: tuple[str, ...]
    installation_id: int
    blob: bytes | None
    expected_pin: bytes | None
    pin: bytes | None


@dataclass(frozen=True, slots=True)
class AuditWant:
    """A page of the audit, filtered as far as the backend can without opening anything.

    Attributes:
        cursor: id of the last row of the page before, None to begin.
        scan: at most so many rows are looked at for one page.
    """

    key_id: str | None = None
    repository: str | None = None
    event: str | None = None
    request_id: str | None = None
    since: float | None = None
    until: float | None = None
    ascending: bool = False
    cursor: str | None = None
    limit: int = 50
    scan: int = 2000


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Rows and the cursor to go on from, None at the end."""

    rows: tuple[StoredRow, ...]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class KeysPage:
    """(id, blob, last used minute or None) in order of creation, and the cursor to go on from."""

    rows: tuple[tuple[str, bytes, int | None], ...] = field(default=())
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class EndArgs:
    """END: something stops being allowed, in one step with its marks, audit and list of tokens to kill.

    Attributes:
        marks: fields of S that become ``<new epoch>:<unix seconds>``.
        blocks: fields of S to set (a value) or to delete (None).
        wide: ``b:w:<owner>``, which counts the ``b:r:`` fields of that owner: one more for each that was
            absent and is set, one less for each that was there and is deleted (deleted itself at 0).
        must_exist: a field of S; if it is absent nothing happens and the verdict is ``absent``.
        reach: whose live tokens go into the outbox: ``all``, ``o:<owner>``, ``t:<sha>``, or empty for none.
            A token named by ``t:`` ends in this step: it leaves the cache and HAND calls it gone.
        only: a repository (lower case) that a token must reach to be killed; empty for no such condition.
            The backend stores it; whoever opens the token decides.
        note: what is stored with each outbox entry, opaque.
    """

    store_id: bytes
    marks: tuple[str, ...]
    blocks: Mapping[str, bytes | None] = field(default_factory=dict)
    wide: str = ""
    must_exist: str = ""
    reach: str = ""
    only: str = ""
    note: bytes = b""
    audit: Row | None = None


@dataclass(frozen=True, slots=True)
class EndReply:
    """What a decision did: ``verdict``, the epoch since then, the tokens that went into the outbox."""

    verdict: str
    epoch: int = 0
    shas: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """A token that has to be revoked at GitHub. Its name in the outbox is (``sha``, ``only``).

    Attributes:
        blob: the sealed token, None if the register does not have it any more.
        expires_at: on the store's clock.
    """

    sha: str
    only: str
    note: bytes
    owner: str
    scope: str
    blob: bytes | None
    expires_at: float


@dataclass(frozen=True, slots=True)
class OwnerRow:
    """An owner as the store knows it, with the number of its live tokens."""

    owner: str
    blob: bytes
    live: int


class Place(StrEnum):
    """Where sealed entries lie; named by key id, owner, token hash, field of S or place in the queue."""

    KEYS = "keys"
    NAMES = "names"
    OWNERS = "owners"
    TOKENS = "tokens"
    BLOCKS = "blocks"
    HOOKS = "hooks"


@dataclass(frozen=True, slots=True)
class Entry:
    """One sealed entry.

    Attributes:
        scope: of a token, else empty.
        blob: as it lies there.
    """

    place: Place
    name: str
    blob: bytes
    scope: str = ""


class Backend(Protocol):
    """Atomic steps. Raises ``StoreUnavailableError`` on anything that keeps an answer away.

    No method outlives its deadline (1 s for hot verbs); a timeout or cancellation in the middle of a
    conversation closes that connection.

    Attributes:
        reads: merges what ``read`` is asked for.
    """

    reads: Batcher[Want, View]

    async def connect(self) -> None:
        """Connect, or raise; may be called again after a failure or loss."""
        ...

    async def close(self) -> None:
        """Close all; idempotent."""
        ...

    async def load(self) -> State:
        """Return the state, whole."""
        ...

    async def initialise(self, fields: Mapping[str, bytes]) -> bool:
        """Create ``S`` with ``fields`` (must hold ``id``) and ``!`` plus the ``dk:`` fields in ``K``.

        One step; only where there is neither ``S`` nor ``K``. Returns whether it was done.
        """
        ...

    async def mend(self, found: Identities, store_id: bytes, fields: Mapping[str, bytes]) -> bool:
        """Write ``store_id`` to both places, and ``fields`` to ``S``, if the identities are ``found``.

        One step. ``epoch`` only ever rises; ``dk:`` fields go to ``K`` too and never replace one; a lost
        counter of keys is made anew from the keys that are there. Returns whether it was done.
        """
        ...

    async def probe(self) -> None:
        """Return if the store takes writes, else raise ``StoreUnavailableError``."""
        ...

    def sealed(self, place: Place) -> AsyncIterator[Sequence[Entry]]:
        """Yield all sealed entries of a place, some at a time; what comes or goes meanwhile may be missed."""
        ...

    async def reseal(self, store_id: bytes, entry: Entry, blob: bytes) -> bool:
        """Put ``blob`` in the place of what ``entry`` holds, if it still does; lives are kept.

        A token is replaced in the register and in the cache in one step.
        """
        ...

    async def add_wraps(self, store_id: bytes, wraps: Mapping[str, bytes]) -> bool:
        """Write ``dk:`` fields to ``S`` and ``K`` if the store is still this one."""
        ...

    async def drop_wraps(self, store_id: bytes, names: Sequence[str]) -> bool:
        """Delete ``dk:`` fields from ``S`` and ``K`` if the store is still this one."""
        ...

    def read(self, want: Want) -> Awaitable[View]:
        """READ, merged with what other tasks want in the same loop turn: they get one view.

        To be awaited at once.
        """
        ...

    async def hand(self, *, store_id: bytes, epoch: int, sha: str, key_id: str, audit: Row) -> str:
        """Return lost, stale, gone, first or again."""
        ...

    async def acquire(self, args: AcquireArgs) -> AcquireReply:
        """ACQUIRE; see ``AcquireReply``."""
        ...

    async def lease(self, store_id: bytes, name: str, nonce: str) -> tuple[bool, int]:
        """Take ``L:<name>`` for ``LEASE_MS`` if free; (taken, epoch). A wrong store id is never taken."""
        ...

    async def renew(self, name: str, nonce: str) -> bool:
        """Lengthen ``L:<name>`` to ``LEASE_MS`` if it holds ``nonce``."""
        ...

    async def release(self, name: str, nonce: str) -> None:
        """Delete ``L:<name>`` if it holds ``nonce``."""
        ...

    async def commit(self, args: CommitArgs) -> str:
        """Return lost, fenced, revoked, blocked or ok. Repeated after a lost reply it is still ok."""
        ...

    async def drop_token(self, scope: str, blob: bytes) -> None:
        """Forget ``T:<scope>`` if it holds ``blob``."""
        ...

    async def fail(self, *, scope: str, nonce: str, failure: str, value: bytes, cooldown_s: float) -> bool:
        """If ``L:<scope>`` holds ``nonce``: keep ``failure`` for the cool-down, delete the lease."""
        ...

    async def pause(self, name: str, seconds: float) -> None:
        """Keep the pause ``P:<name>`` for at least ``seconds`` (never shorter than it is; at most 1 h)."""
        ...

    async def paused(self, names: Sequence[str]) -> float:
        """Return the seconds that the longest of the pauses ``P:<name>`` still lasts, 0 for none."""
        ...

    async def gate(self, name: str, seconds: float) -> bool:
        """Return True if ``G:<name>`` was free; it is then taken for ``seconds``."""
        ...

    async def take(self, name: str, *, chunk: int, limit: int) -> tuple[int, float]:
        """Take up to ``chunk`` from the counter ``B:<name>`` of this minute; (granted, seconds left)."""
        ...

    async def append(self, store_id: bytes, rows: Sequence[Row]) -> bool:
        """Append audit events if the store is still this one."""
        ...

    async def touch(self, used: Mapping[str, int]) -> None:
        """Write last-use seconds of keys; older values never replace newer ones."""
        ...

    async def write_key(self, args: KeyWriteArgs) -> EndReply:
        """KEY WRITE: lost, changed (also: exists already) or ok.

        With ``kill`` every live token handed to the key leaves the cache, HAND calls it gone, and it goes
        into the outbox with ``only`` empty, all in this step.
        """
        ...

    async def list_keys(self, *, cursor: str | None, limit: int) -> KeysPage:
        """Return a page of keys in order of creation."""
        ...

    async def last_used(self, key_id: str) -> int | None:
        """Return the last-use second of a key."""
        ...

    async def pin(self, owner: str) -> bytes | None:
        """Return the pin ``N`` of an owner."""
        ...

    async def put_owner(self, args: OwnerArgs) -> str:
        """Return lost, fenced, stale, changed (the pin) or ok."""
        ...

    async def audit(self, want: AuditWant) -> AuditPage:
        """Return a page of audit events; may be short and still have a cursor."""
        ...

    async def end(self, args: EndArgs) -> EndReply:
        """END: lost, absent or ok. The epoch grows by one whenever the verdict is ok."""
        ...

    async def outbox(self, shas: Sequence[str] | None, *, limit: int) -> tuple[OutboxEntry, ...]:
        """Return entries of the outbox, oldest expiry first: those of some tokens, or of any."""
        ...

    async def settle(self, store_id: bytes, done: Sequence[tuple[str, str, Row | None]]) -> int:
        """Take entries (sha, only) out of the outbox; return how many were there.

        The audit event of an entry is appended only if the entry was there, in the same step.
        """
        ...

    async def hook(self, store_id: bytes, *, body_sha: str, guid: str, blob: bytes) -> str:
        """Keep a delivery to work off: lost, seen (its id or its body is known, kept 8 days) or ok."""
        ...

    async def hooks(self, *, limit: int) -> tuple[tuple[str, bytes], ...]:
        """Return deliveries to work off, oldest first, with their place in the queue."""
        ...

    async def hooks_done(self, places: Sequence[str]) -> None:
        """Take deliveries out of the queue."""
        ...

    async def owner_of(self, installation_id: int) -> str | None:
        """Return the owner whose record has that installation id."""
        ...

    async def owners(self, *, cursor: str | None, limit: int) -> tuple[tuple[OwnerRow, ...], str | None]:
        """Return owners in alphabetical order, and the cursor to go on from."""
        ...

    async def accept(
        self,
        *,
        store_id: bytes,
        owner: str,
        expected_pin: bytes,
        pin: bytes,
        audit: Row,
        marks: tuple[str, ...] = (),
    ) -> EndReply:
        """Replace the pin of an owner and forget its record: lost, changed (the pin) or ok.

        As END: the epoch grows and ``m:o:<owner>``, with all of ``marks``, becomes the new epoch.
        """
        ...

    async def counts(self) -> Counts:
        """Return how much there is, without looking at each entry."""
        ...

    async def sweep(self) -> None:
        """Delete what has expired (audit by age and number, purged keys, index entries)."""
        ...

    async def warnings(self) -> list[str]:
        """Return what an operator should know, such as a Redis that evicts; empty if nothing."""
        ...
