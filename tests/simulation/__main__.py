"""``uv run python -m tests.simulation --seeds 0:1000``: play stories; one line for each that fails."""

import argparse
import logging
import multiprocessing
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from sim_story import Outcome, play  # noqa: E402 - found through the line above


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", default="0:1000", metavar="FROM:TO", help="default 0:1000")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes; default 1")
    parser.add_argument("--trace", action="store_true", help="print what happens in each story")
    chosen = parser.parse_args()
    first, _, last = chosen.seeds.partition(":")
    seeds = range(int(first), int(last) if last else int(first) + 1)
    began = time.monotonic()
    failed = given = minted = 0
    with multiprocessing.Pool(chosen.jobs, logging.disable) as pool:
        outcomes = pool.imap_unordered(play, seeds, chunksize=50 if len(seeds) > 1000 else 1)
        for outcome in outcomes:
            failed += bool(outcome.violations)
            given += outcome.given
            minted += outcome.minted
            if chosen.trace:
                print("\n".join(outcome.trace))
            if outcome.violations:
                print(_told(outcome), flush=True)
    took = time.monotonic() - began
    print(
        f"{len(seeds)} stories, {failed} failed; {given} tokens given, {minted} minted; "
        f"{took:.1f} s, {1000 * took / max(1, len(seeds)):.1f} ms each"
    )
    return min(1, failed)


def _told(outcome: Outcome) -> str:
    return f"seed {outcome.seed} ({outcome.climate}): " + "; ".join(outcome.violations[:4])


if __name__ == "__main__":
    sys.exit(main())
