"""The client's wall time and peak memory, beside an interpreter that does nothing."""

import asyncio
import shutil
import subprocess
import sys
import time
from pathlib import Path

from bench_report import Table
from bench_stage import Size, middle, service_on, world_on
from harness import SCRIPTS, clean_environment


def client(folder: Path, size: Size) -> Table:
    with world_on("sqlite", folder) as world:
        service = service_on(world)
        key = asyncio.run(world.quick_key("acme/*"))
        environment = clean_environment(BROKER_API_URL=service.url, BROKER_API_KEY=key)
        commands: dict[str, list[str]] = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "python -c 'import click'": [sys.executable, "-c", "import click"],
            "broker-cli --version": [str(SCRIPTS / "broker-cli"), "--version"],
            "broker-cli github token (warm)": [
                str(SCRIPTS / "broker-cli"),
                "github",
                "token",
                "acme/widgets",
            ],
        }
        if prefect := shutil.which("prefect-cloud"):
            commands["prefect-cloud --help"] = [prefect, "--help"]
        took: dict[str, list[float]] = {name: [] for name in commands}
        peak: dict[str, float] = {}
        for name, command in commands.items():
            run(command, environment, name)  # compiles what is not compiled, mints the token
            peak[name] = peak_mib(command, environment)
        for _ in range(size.client_runs):
            for name, command in commands.items():
                took[name].append(run(command, environment, name))
    table = Table("Client", ("what", "wall ms", "x python -c pass", "peak MiB"), "x python -c pass")
    for name, runs in took.items():
        ratios = [one / other for one, other in zip(runs, took["python -c pass"], strict=True)]
        table.add(name, middle(runs), middle(ratios), peak[name])
    table.notes.append(f"{size.client_runs} interleaved runs, medians; bytecode compiled; loopback http")
    return table


def run(command: list[str], environment: dict[str, str], name: str) -> float:
    """Return wall milliseconds of one process."""
    begin = time.perf_counter()
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
    took_ms = (time.perf_counter() - begin) * 1000
    assert done.returncode == 0, name
    return took_ms


# A child's peak is at least that of the process it was forked from: the one between is small.
LAUNCHER = """
import os, sys
null = os.open(os.devnull, os.O_WRONLY)
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, null, 1)])
print(os.wait4(child, 0)[2].ru_maxrss)
"""


def peak_mib(command: list[str], environment: dict[str, str]) -> float:
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-c", LAUNCHER, *command],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout) / 1024
