"""What the outside saw, and whether the promises were kept. Times are the loop's seconds."""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from sim_github import Minted, SimulatedGitHub
from sim_replica import MIN_TTL_S, REFRESH_AHEAD_S
from sim_store import EPOCH, Database

from broker.access.policy import reaches, reaches_all_of
from broker.model import Scope, Target, TargetKind

V = TypeVar("V")
STILL_TRAVELS_S = 6.0
"""A write that failed for its sender may still take effect so long after."""
RECORD_S = 1.0
"""Records of keys hold whole seconds."""
SLOW_S = 13.0
QUICK_S = 0.3
"""From ACQUIRE to the mint (there may be a look-up), and from the mint to COMMIT: the time limits of GitHub
and the store; the quick one where nothing is ever slow."""
LEASE_S = 15.0
"""So long after a fault a lease may still be lost by it: GitHub's time limit and the lease's life."""
CLOCK_LATE_S = 3.0
"""By so much lives may look longer: ``CLOCK_TOLERANCE_S``, and a ``Date`` is in whole seconds."""
CLOCK_EARLY_S = 13.0
"""By so much they may look shorter: that, and the slowest answer of GitHub."""
RELEASE_S = 4.0
QUICK_RELEASE_S = 0.2
"""From the READ that finds a token good to its release: the time limits of READ and HAND."""


@dataclass(eq=False)
class Write(Generic[V]):
    """A change that somebody made, or tried to."""

    value: V
    began: float
    returned: float | None = None
    acknowledged: bool = False

    @property
    def in_effect_by(self) -> float:
        if self.returned is None:
            return float("inf")
        return self.returned if self.acknowledged else self.returned + STILL_TRAVELS_S


class History(Generic[V]):
    """One thing that changes: which of its values could have been in force when."""

    def __init__(self, first: V) -> None:
        self._writes = [Write(first, -1.0, -1.0, acknowledged=True)]

    def begin(self, value: V, at: float) -> Write[V]:
        write = Write(value, at)
        self._writes.append(write)
        return write

    def remove(self, write: Write[V]) -> None:
        """It was refused: it changed nothing."""
        self._writes.remove(write)

    def possible(self, since: float, until: float) -> list[V]:
        """Return the values that could be in force at some moment between two times."""
        found = []
        for write in self._writes:
            over = min(
                (
                    other.returned
                    for other in self._writes
                    if other is not write and other.acknowledged and other.began >= write.in_effect_by
                ),
                default=float("inf"),
            )
            if write.began <= until and since <= over:
                found.append(write.value)
        return found


@dataclass
class Key:
    """A caller's key as the outside knows it."""

    label: str
    id: str
    patterns: History[tuple[str, ...]]
    limit: int | None = None
    """Requests a minute."""
    born_ending: bool = False
    """Made by a rotation of a key that had an end already."""
    ends: list[Write[float]] = field(default_factory=list)
    """Each with the earliest time that it can mean as the end; none of them brings a later end."""

    def ended(self, at: float) -> bool:
        """Return whether it certainly had ended."""
        return any(
            one.acknowledged and max(one.value + _took(one) + RECORD_S, one.in_effect_by) <= at
            for one in self.ends
        )

    def may_have_ended(self, at: float) -> bool:
        return any(one.began <= at and one.value <= at for one in self.ends)

    def certain(self, at: float) -> bool:
        """Return whether it is known what it may do."""
        return all(one.acknowledged for one in self.ends) and len(self.patterns.possible(at, at)) == 1

    def may(self, scope: Scope, since: float, until: float) -> bool:
        return not self.ended(since) and any(
            _covers(patterns, scope) for patterns in self.patterns.possible(since, until)
        )


def _took(write: Write[float]) -> float:
    return (write.began if write.returned is None else write.returned) - write.began


def _covers(patterns: Sequence[str], scope: Scope) -> bool:
    if scope.repositories is None:
        return reaches_all_of(patterns, scope.owner)
    return all(reaches(patterns, name) for name in scope.repositories)


@dataclass(frozen=True)
class Given:
    """A token that a caller got."""

    key: Key
    scope: Scope
    sha: str
    asked_at: float
    given_at: float
    min_ttl_s: float
    cached: bool
    request_id: str


@dataclass
class Ending:
    """A revocation, a block or a key's end with its tokens."""

    request_id: str
    reaches: Callable[[Minted], bool] | None
    key: Key | None
    began: float
    acknowledged_at: float | None = None


@dataclass(frozen=True)
class _Row:
    at: float
    event: str
    body: dict[str, object]


@dataclass
class Ledger:
    """All of one story."""

    keys: list[Key] = field(default_factory=list)
    given: list[Given] = field(default_factory=list)
    blocks: dict[Target, History[bool]] = field(default_factory=dict)
    endings: list[Ending] = field(default_factory=list)
    disturbances: list[tuple[float, float]] = field(default_factory=list)
    """Times in which tokens may have been forgotten before their age: endings, webhooks, reinstallations."""
    asked: list[tuple[float, Scope, float, bool]] = field(default_factory=list)
    """When, for what, with which ``min_ttl``, whether to refresh."""
    acknowledged: list[tuple[str, str]] = field(default_factory=list)
    """(event, request id) of every change that was acknowledged."""
    troubles: list[tuple[float, float]] = field(default_factory=list)
    """When a replica, the store or GitHub was away."""
    slow: bool = False
    """Whether messages may take seconds."""
    violations: list[str] = field(default_factory=list)

    def judge(self, github: SimulatedGitHub, database: Database, faults: Sequence[float]) -> list[str]:
        """Return every broken promise of a story that has come to rest."""
        rows = list(_rows(database))
        # When a webhook is worked off is not known from outside: the record of it is of the same step.
        self.disturbances += [(row.at, row.at) for row in rows if row.event == "webhook.received"]
        kept = {str(row.body["token_sha256"]): row.at for row in rows if row.event == "token.minted"}
        return [
            *self.violations,
            *github.violations,
            *self._grants(github),
            *self._life(github),
            *self._limits(),
            *self._one_mint(github, kept, faults),
            *self._ended(github, rows, kept),
            *self._records(rows),
        ]

    # -- rules 1 and 6: what was given -----------------------------------------------------------

    def _grants(self, github: SimulatedGitHub) -> Iterator[str]:
        for one in self.given:
            what = f"rule 1: {one.request_id} of {one.key.label}"
            minted = github.minted.get(one.sha)
            if minted is None:
                yield f"{what} was given what GitHub never made"
                continue
            if minted.lies:
                yield f"{what} was given another token than was asked for at GitHub"
            if (minted.owner, minted.repositories) != (one.scope.owner, one.scope.repositories):
                yield f"{what} was given a token of {minted.repositories}, not {one.scope.repositories}"
            if set(minted.permissions) - set(one.scope.permissions):
                yield f"{what} was given {minted.permissions}"
            if not one.key.may(one.scope, one.asked_at, one.given_at):
                yield f"rule 6: {one.request_id}: {one.key.label} was given what it may not have any more"
            for target, history in self.blocks.items():
                if _target_reaches(target, minted) and all(history.possible(one.asked_at, one.given_at)):
                    yield f"rule 6: {one.request_id} was given a token that reaches blocked {target.name}"
            for ending in self.endings:
                over = ending.acknowledged_at
                if (
                    over is not None
                    and one.asked_at > over
                    and ending.reaches is not None
                    and ending.reaches(minted)
                    and minted.minted_at < ending.began
                ):
                    yield f"rule 6: {one.request_id} was given a token that {ending.request_id} had ended"

    # -- rule 2 ----------------------------------------------------------------------------------

    def _life(self, github: SimulatedGitHub) -> Iterator[str]:
        for one in self.given:
            minted = github.minted.get(one.sha)
            if minted is None or not one.cached:
                continue
            left = minted.expires_at - (EPOCH + self._read_at(one) + github.clock_off_s)
            if left < max(one.min_ttl_s, MIN_TTL_S) - CLOCK_LATE_S:
                yield f"rule 2: {one.request_id} was given a token with {left:.1f} s left"

    def _limits(self) -> Iterator[str]:
        """Count what was asked for and given within one minute of the store's clock."""
        assert EPOCH % 60 == 0
        used: dict[tuple[str, int], int] = {}
        for one in self.given:
            if one.key.limit is not None and one.asked_at // 60 == one.given_at // 60:
                name = one.key.label, int(one.asked_at // 60)
                used[name] = used.get(name, 0) + 1
                if used[name] == one.key.limit + 1:
                    yield f"limits: {one.key.label} was served more than {one.key.limit} times in a minute"

    def _read_at(self, one: Given) -> float:
        """Return the earliest time of the READ by which a token was given."""
        if any(began <= one.given_at and one.asked_at <= ended for began, ended in self.troubles):
            return one.asked_at  # its replica may have been stopped in between
        return max(one.asked_at, one.given_at - (RELEASE_S if self.slow else QUICK_RELEASE_S))

    # -- rule 3 ----------------------------------------------------------------------------------

    def _one_mint(
        self, github: SimulatedGitHub, kept: dict[str, float], faults: Sequence[float]
    ) -> Iterator[str]:
        by_scope: dict[object, list[Minted]] = {}
        for one in github.minted.values():
            by_scope.setdefault(one.scope, []).append(one)
        for scope, tokens in by_scope.items():
            stored = sorted(
                ((kept[one.sha], one) for one in tokens if one.sha in kept), key=lambda pair: pair[0]
            )
            for (committed, before), (_, after) in itertools.pairwise(stored):
                if after.asked_at < committed:
                    yield (
                        f"rule 3: two mints of {scope} were kept that ran at once "
                        f"({before.asked_at:.3f}-{committed:.3f}, {after.asked_at:.3f})"
                    )
                if not faults and not self.troubles and self._needless(github, before, after):
                    yield f"rule 3: {scope} was minted again at {after.asked_at:.3f} without need"
            for one in tokens:
                if one.sha not in kept and not one.lies and not self._excused(one, faults):
                    yield f"rule 3: a mint of {scope} at {one.asked_at:.3f} was for nothing, without a reason"

    def _excused(self, one: Minted, faults: Sequence[float]) -> bool:
        """Return whether an ending came in its way, or a fault that can cost a lease."""
        way_s = SLOW_S if self.slow else QUICK_S
        since, until = one.asked_at - way_s, one.minted_at + way_s
        if any(began <= until and since <= ended for began, ended in self.disturbances):
            return True
        since, until = since - LEASE_S, until + LEASE_S
        return any(since <= at <= until for at in faults) or any(
            began <= until and since <= ended for began, ended in self.troubles
        )

    def _needless(self, github: SimulatedGitHub, before: Minted, after: Minted) -> bool:
        since, until = before.asked_at - 0.5, after.asked_at
        left = before.expires_at - (EPOCH + until + github.clock_off_s)
        if left < REFRESH_AHEAD_S + CLOCK_EARLY_S:
            return False
        if any(began <= until and since <= ended for began, ended in self.disturbances):
            return False
        return not any(
            since <= at <= until and (refresh or min_ttl_s > left - CLOCK_EARLY_S)
            for at, _, min_ttl_s, refresh in self.asked
        )

    # -- rule 6: what was ended is dead ----------------------------------------------------------

    def _ended(self, github: SimulatedGitHub, rows: Sequence[_Row], kept: dict[str, float]) -> Iterator[str]:
        in_force: dict[object, float] = {}
        for row in rows:
            in_force.setdefault(row.body.get("request_id"), row.at)
        for ending in self.endings:
            at = in_force.get(ending.request_id)
            if at is None:
                continue
            doomed: set[str] = set()
            if ending.reaches is not None:
                doomed = {
                    sha for sha in kept if (one := github.minted[sha]).minted_at < at and ending.reaches(one)
                }
            if ending.key is not None:
                doomed |= {one.sha for one in self.given if one.key is ending.key}
                doomed |= {
                    str(row.body["token_sha256"])
                    for row in rows
                    if row.event == "token.issued" and row.body.get("key_id") == ending.key.id
                }
            for sha in sorted(doomed):
                if github.alive(github.minted[sha]):
                    yield f"rule 6: {ending.request_id} left a live token ({sha[:8]})"
        for sha, one in github.minted.items():
            if one.lies and one.heard and github.alive(one) and not self.troubles:
                yield f"rule 1: a token with more than was asked for lives on ({sha[:8]})"

    # -- nothing acknowledged is lost ------------------------------------------------------------

    def _records(self, rows: Sequence[_Row]) -> Iterator[str]:
        there = {(row.event, row.body.get("request_id")) for row in rows}
        for event, request_id in self.acknowledged:
            if (event, request_id) not in there:
                yield f"audit: {event} of {request_id} was acknowledged and is not on record"
        ended = {row.body.get("key_id") for row in rows if row.event in {"key.revoked", "key.rotated"}}
        for key in self.keys:
            if any(one.acknowledged for one in key.ends) and not key.born_ending and key.id not in ended:
                yield f"audit: the end of {key.label} was acknowledged and is not on record"
        first: dict[tuple[object, object], float] = {}
        for row in rows:
            if row.event == "token.issued":
                first.setdefault((row.body.get("token_sha256"), row.body.get("key_id")), row.at)
        for one in self.given:
            at = first.get((one.sha, one.key.id))
            if at is None or at >= one.given_at:  # the answer of the store takes time, if only a tick
                yield f"audit: {one.request_id} was given a token before that was on record"


def reach_of(target: Target, installation_id: int | None = None) -> Callable[[Minted], bool]:
    """Return whether a token is in reach of a revocation or block."""
    return lambda one: _target_reaches(target, one) or one.installation_id == installation_id


def _target_reaches(target: Target, one: Minted) -> bool:
    match target.kind:
        case TargetKind.ALL:
            return True
        case TargetKind.OWNER:
            return one.owner == target.name
        case TargetKind.REPOSITORY:
            return one.reaches(target.name)
        case TargetKind.TOKEN:
            return one.sha == target.name


def _rows(database: Database) -> Iterator[_Row]:
    for time, event, body in database.connection.execute("SELECT time, event, body FROM audit ORDER BY seq"):
        yield _Row(time - EPOCH, event, json.loads(body))
