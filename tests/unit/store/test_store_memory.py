"""What a process remembers of its own decisions, and how it tells that a store lost some."""

import pytest

from broker.model import Target, TargetKind
from broker.ports import EndKind
from broker.store import memory
from broker.store.backend import MARK_LIFE_S
from broker.store.memory import REMEMBERED_S, EndWritten, Memory


def block(name: str) -> EndWritten:
    return EndWritten(EndKind.BLOCK, Target(TargetKind.REPOSITORY, name), None, "admin", "", None, 0.0)


def test_a_smaller_epoch_went_back_a_read_asked_for_earlier_has_only_seen_less() -> None:
    mind = Memory()
    mind.saw(7, 10.0)
    assert not mind.went_back(7, 0, 11.0)
    assert mind.went_back(6, 0, 11.0)
    assert not mind.went_back(6, 0, 10.0)


def test_a_lost_decision_shows_though_others_have_raised_the_epoch_since() -> None:
    mind = Memory()
    mind.acknowledged(block("acme/a"), 8, 10.0)
    mind.acknowledged(block("acme/b"), 9, 11.0)
    assert not mind.went_back(30, 9, 12.0)
    assert mind.went_back(30, 8, 12.0)
    assert [str(one.what) for one in mind.missing(8, 12.0)] == ["block repository acme/b"]


def test_what_is_lost_stays_due_until_it_is_written_again() -> None:
    mind = Memory()
    for number, name in enumerate(("acme/a", "acme/b")):
        mind.acknowledged(block(name), 8 + number, 10.0)
    first, second = mind.missing(0, 11.0)
    mind.written_again(first, 20, 12.0)
    # The witness is now above the other's old epoch; that does not make it written.
    assert mind.missing(20, 13.0) == [second]
    mind.written_again(second, 21, 13.0)
    assert mind.missing(21, 14.0) == []
    assert not mind.went_back(21, 21, 14.0)
    assert mind.went_back(21, 20, 14.0)


def test_only_what_was_decided_lately_can_be_mended() -> None:
    mind = Memory()
    mind.saw(5, 0.0)
    mind.saw(6, 100.0)
    mind.saw(7, 200.0)
    # A process that is younger than its memory knows nothing of what was before it.
    assert mind.covers(5, 300.0)
    assert not mind.covers(4, 300.0)
    at = 150.0 + REMEMBERED_S
    assert mind.covers(6, at)
    assert not mind.covers(5, at)
    mind.saw(8, 10_000.0)
    assert mind.covers(7, 10_001.0)
    assert not mind.covers(6, 10_001.0)


def test_memory_is_bounded_in_time_and_number(monkeypatch: pytest.MonkeyPatch) -> None:
    mind = Memory()
    mind.acknowledged(block("acme/a"), 8, 10.0)
    assert mind.missing(0, 11.0 + REMEMBERED_S) == []
    assert not mind.went_back(8, 0, 12.0 + REMEMBERED_S)
    monkeypatch.setattr(memory, "MOST", 3)
    for number in range(5):
        mind.acknowledged(block(f"acme/{number}"), 10 + number, 20.0)
    assert len(mind.missing(0, 21.0)) == 3
    # What had to be forgotten too early cannot be mended.
    assert not mind.covers(10, 21.0)
    assert mind.covers(12, 21.0)


def test_a_witness_that_the_sweep_took_away_is_not_missed() -> None:
    """Marks and witnesses of the store are swept after two hours; nobody may have acted since."""
    mind = Memory()
    mind.saw(8, 10.0)
    mind.acknowledged(block("acme/a"), 8, 10.0)
    assert mind.went_back(8, 0, 11.0)
    assert not mind.went_back(8, 0, 10.0 + MARK_LIFE_S)
