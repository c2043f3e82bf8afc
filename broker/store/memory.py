"""What a process remembers so that a store that went back loses nothing; pure, no I/O.

Every decision of an admin (a key's record, an ending, an account accepted) raises the epoch, and sets the
process's own witness field in the same step. So a store that lost decisions shows it: its epoch is
smaller than one seen before, or the witness is older than what this process was told is written. What was
acknowledged in the last ten minutes is kept here, to be written again. If more than that is gone (an old
backup), no process can know what is missing: then an operator has to adopt the store.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from broker.model import ApiKeyRecord, Target
from broker.ports import AuditEvent, EndKind

REMEMBERED_S: Final = 600.0
MOST: Final = 10_000


@dataclass(frozen=True, slots=True)
class KeyWritten:
    """A key's record as it was written, and the note with which its tokens were listed to be killed."""

    record: ApiKeyRecord
    event: AuditEvent
    kill: bytes | None

    def __str__(self) -> str:
        return f"{self.event.event} {self.record.id}"


@dataclass(frozen=True, slots=True)
class EndWritten:
    """A revocation, a block or its lifting. ``at`` is store time."""

    kind: EndKind
    target: Target
    event: AuditEvent | None
    by: str
    reason: str
    installation_id: int | None
    at: float

    def __str__(self) -> str:
        return f"{self.kind} {self.target.kind} {self.target.name}".rstrip()


@dataclass(frozen=True, slots=True)
class OwnerAccepted:
    """Another account that an admin accepted under an owner's name."""

    owner: str
    account_id: int
    event: AuditEvent

    def __str__(self) -> str:
        return f"{self.event.event} {self.owner}"


What = KeyWritten | EndWritten | OwnerAccepted


@dataclass(slots=True)
class Decision:
    """Something acknowledged.

    Attributes:
        epoch: the one it raised.
        known_at: loop time since which it is known to be written.
        made_at: loop time at which it was acknowledged first.
        lost: the store does not have it any more.
    """

    what: What
    epoch: int
    known_at: float
    made_at: float
    lost: bool = False


@dataclass(slots=True)
class Memory:
    """Epochs seen and decisions acknowledged by one process. All times are loop times, seconds."""

    highest: int = 0
    _highest_at: float = 0.0
    _epochs: deque[tuple[int, float]] = field(default_factory=deque)
    _decisions: deque[Decision] = field(default_factory=deque)
    _least: int = 0
    _witness: int = 0
    _witness_at: float = 0.0

    def saw(self, epoch: int, at: float) -> None:
        """Note an epoch that the store had."""
        if epoch > self.highest:
            self.highest, self._highest_at = epoch, at
            self._epochs.append((epoch, at))
            while len(self._epochs) > MOST or (
                len(self._epochs) > 1 and self._epochs[1][1] <= at - REMEMBERED_S
            ):
                self._epochs.popleft()

    def acknowledged(self, what: What, epoch: int, at: float) -> None:
        """Remember a decision that the store has written."""
        self.saw(epoch, at)
        self._decisions.append(Decision(what, epoch, at, at))
        self._witnessed(epoch, at)
        self._forget(at)

    def written_again(self, decision: Decision, epoch: int, at: float) -> None:
        """Note that a lost decision is in the store again; ``epoch`` 0: it did not have to be written."""
        decision.lost = False
        decision.epoch, decision.known_at = epoch, at
        self._witnessed(epoch, at)

    def _witnessed(self, epoch: int, at: float) -> None:
        if epoch > self._witness:
            self._witness, self._witness_at = epoch, at

    def went_back(self, epoch: int, witness: int, asked_at: float) -> bool:
        """Return whether a store that shows these has lost something.

        A read that was asked for before something was known has merely seen less. What is no longer
        remembered is not missed either: the sweep takes old witnesses away.
        """
        self._forget(asked_at)
        if epoch < self.highest and asked_at > self._highest_at:
            return True
        return self._witness > witness and asked_at > self._witness_at

    def covers(self, epoch: int, at: float) -> bool:
        """Return whether all that a store of this epoch has lost was decided in the time remembered."""
        in_force = [seen for seen, since in self._epochs if since <= at - REMEMBERED_S]
        first = self._epochs[0][0] if self._epochs else 0
        return epoch >= max(self._least, in_force[-1] if in_force else first)

    def missing(self, witness: int, asked_at: float) -> list[Decision]:
        """Mark what a store with this witness has lost; return all that has to be written again."""
        self._forget(asked_at)
        for one in self._decisions:
            if one.epoch > witness and asked_at > one.known_at:
                one.lost = True
        return [one for one in self._decisions if one.lost]

    def _forget(self, at: float) -> None:
        """Forget what is old, not what waits to be written again; of too much, the oldest."""
        while self._decisions and (
            len(self._decisions) > MOST
            or (self._decisions[0].made_at <= at - REMEMBERED_S and not self._decisions[0].lost)
        ):
            gone = self._decisions.popleft()
            if gone.made_at > at - REMEMBERED_S:
                self._least = max(self._least, gone.epoch)
        if not self._decisions:
            self._witness = 0
