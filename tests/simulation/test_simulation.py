"""The protocol of issuing and revoking keeps its promises in every order of events that a seed draws."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import clean_environment
from sim_mutants import MUTANTS
from sim_story import Outcome, play

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Thousands of refusals a second are not worth a line each."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def _told(outcome: Outcome) -> str:
    violations = "\n".join(outcome.violations)
    return f"uv run python -m tests.simulation --seeds {outcome.seed} --trace\n{violations}"


def _all_hold(seeds: range) -> None:
    outcomes = [play(seed) for seed in seeds]
    failed = [_told(one) for one in outcomes if one.violations]
    assert not failed, "\n\n".join(failed)
    assert sum(one.given for one in outcomes) > 3 * len(seeds), (
        "stories in which nothing happens show nothing"
    )
    assert len({one.digest for one in outcomes}) == len(seeds)


@pytest.mark.parametrize("first", range(0, 100, 25))
def test_the_promises_hold_in_a_hundred_stories(first: int) -> None:
    _all_hold(range(first, first + 25))


@pytest.mark.parametrize("seed", [1127, 9794, 11271, 11729, 17776, 24756, 52588])
def test_the_promises_hold_in_stories_that_once_broke_them(seed: int) -> None:
    """Of a hundred thousand: a late token that was given up, and a refresh that had been done already."""
    assert not play(seed).violations


@pytest.mark.slow
@pytest.mark.parametrize("first", range(100, 1000, 50))
def test_the_promises_hold_in_a_thousand_stories(first: int) -> None:
    _all_hold(range(first, first + 50))


@pytest.mark.parametrize("name", MUTANTS)
def test_what_is_taken_out_is_missed(name: str) -> None:
    """Each check of the protocol is needed, and the simulation is able to tell."""
    parts, favourite, promise = MUTANTS[name]
    for seed in range(300):
        if any(one.startswith(promise) for one in play(seed, parts, favourite).violations):
            return
    pytest.fail(f"300 stories and nobody misses: {name}")


def test_a_seed_replays_exactly() -> None:
    """Also in another process, whose random numbers, hashes of text and keys are others."""
    seeds = (1, 5, 8)
    code = "from sim_story import play; print(*(play(seed).digest for seed in (1, 5, 8)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=clean_environment(PYTHONPATH=f"{Path(__file__).parent}:{ROOT}", PYTHONHASHSEED="7"),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == [play(seed).digest for seed in seeds]


def test_the_command_tells_the_seed_of_a_story_that_fails() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--seeds", "3:6", "--jobs", "2"],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 stories, 0 failed;")
