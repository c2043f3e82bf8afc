"""``uv run python -m tests.benchmarks [name …]``: measure, print tables, write plots into ``results/``."""

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "e2e")]

from bench_client import client  # noqa: E402 - found through the line above
from bench_cold import cold  # noqa: E402
from bench_memory import memory  # noqa: E402
from bench_reach import reach  # noqa: E402
from bench_report import Table, write_plot  # noqa: E402
from bench_scale import scale  # noqa: E402
from bench_soak import soak  # noqa: E402
from bench_stage import Size  # noqa: E402
from bench_stampede import stampede  # noqa: E402
from bench_warm import warm  # noqa: E402
from bench_workers import workers  # noqa: E402

BENCHMARKS = {
    "warm": warm,
    "workers": workers,
    "cold": cold,
    "stampede": stampede,
    "client": client,
    "memory": memory,
    "scale": scale,
    "soak": soak,
    "reach": reach,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(BENCHMARKS)}; default all")
    parser.add_argument("--tiny", action="store_true", help="the least that shows that all of it still runs")
    parser.add_argument("--markdown", action="store_true", help="tables as README has them, too")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    chosen = parser.parse_args()
    unknown = set(chosen.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    size = Size.tiny() if chosen.tiny else Size()
    chosen.results.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    print(
        f"{os.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}, {platform.platform()}"
    )
    for name in chosen.names or BENCHMARKS:
        with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as folder:
            table: Table = BENCHMARKS[name](Path(folder), size)
        print(f"\n{table.text()}", flush=True)
        if chosen.markdown:
            print(f"\n{table.markdown()}", flush=True)
        (chosen.results / f"{name}.json").write_text(json.dumps(table.as_json(), indent=1))
        write_plot(table, chosen.results / f"{name}.svg")


if __name__ == "__main__":
    main()
