"""The client's wall time and peak memory, over http and https, beside an interpreter that does nothing."""

import asyncio
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bench_report import Table
from bench_stage import Size, middle, service_on, world_on
from harness import SCRIPTS, World, clean_environment
from servers import certificate

CLIENT = str(SCRIPTS / "broker-cli")


@dataclass(frozen=True)
class Call:
    """A command line, its environment, and what it reads."""

    command: list[str]
    environment: dict[str, str]
    stdin: bytes = b""


def client(folder: Path, size: Size) -> Table:
    with world_on("sqlite", folder) as world:
        service = service_on(world)
        key = asyncio.run(world.quick_key("acme/*"))
        plain = clean_environment(BROKER_API_URL=service.url, BROKER_API_KEY=key)
        secure = behind_tls(world, folder, key)
        asked = f"protocol=http\nhost=127.0.0.1:{world.server.port}\npath=acme/widgets.git\n\n".encode()
        token = [CLIENT, "github", "token", "acme/widgets"]
        calls = {
            "python -c pass": Call([sys.executable, "-c", "pass"], plain),
            "python -c 'import click'": Call([sys.executable, "-c", "import click"], plain),
            "python -c 'import http.client'": Call([sys.executable, "-c", "import http.client"], plain),
            "github token (http, loopback)": Call(token, plain),
            "github token (https, CA file)": Call(token, secure),
            "git-credential get (http)": Call([CLIENT, "git-credential", "get"], plain, asked),
            "github token --owner (with click)": Call([CLIENT, "github", "token", "--owner", "acme"], plain),
            "--version (click, no request)": Call([CLIENT, "--version"], plain),
        }
        if prefect := shutil.which("prefect-cloud"):
            calls["prefect-cloud --help"] = Call([prefect, "--help"], plain)
        took: dict[str, list[float]] = {name: [] for name in calls}
        peak: dict[str, float] = {}
        for name, call in calls.items():
            run(call, name)  # compiles what is not compiled, mints the token
            peak[name] = peak_mib(call)
        for _ in range(size.client_runs):
            for name, call in calls.items():
                took[name].append(run(call, name))
    table = Table("Client", ("what", "wall ms", "x python -c pass", "peak MiB"), "x python -c pass")
    for name, runs in took.items():
        ratios = [one / other for one, other in zip(runs, took["python -c pass"], strict=True)]
        table.add(name, middle(runs), middle(ratios), peak[name])
    table.notes.append(f"{size.client_runs} interleaved runs, medians; bytecode compiled; token cached")
    return table


def behind_tls(world: World, folder: Path, key: str) -> dict[str, str]:
    """Start a second service on the same store, with TLS; return a client's environment for it."""
    cert, private = certificate(folder)
    service = world.service(
        start=False, BROKER_TLS_CERT_FILE=str(cert), BROKER_TLS_KEY_FILE=str(private), BROKER_LOG_LEVEL="info"
    ).start(wait=False)
    environment = clean_environment(
        BROKER_API_URL=service.url.replace("http:", "https:"), BROKER_API_KEY=key, BROKER_CA_FILE=str(cert)
    )
    run(Call([CLIENT, "whoami"], environment), "whoami")  # tries again until the service is up
    return environment


def run(call: Call, name: str) -> float:
    """Return wall milliseconds of one process."""
    begin = time.perf_counter()
    done = subprocess.run(
        call.command, env=call.environment, input=call.stdin, stdout=subprocess.DEVNULL, check=False
    )
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


def peak_mib(call: Call) -> float:
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-c", LAUNCHER, *call.command],
        env=call.environment,
        input=call.stdin,
        capture_output=True,
        check=True,
    )
    return int(done.stdout) / 1024
