"""The benchmark suite still runs; nothing about its figures."""

import subprocess
import sys
from pathlib import Path

import pytest
from harness import clean_environment

NAMES = ("warm", "workers", "cold", "stampede", "client", "memory", "scale", "soak", "reach")
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_runs_at_its_smallest(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", name, "--tiny", "--results", str(tmp_path)],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / f"{name}.svg").read_text().startswith("<svg")
    assert (tmp_path / f"{name}.json").is_file()
