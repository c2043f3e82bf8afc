"""The client's wall time and peak memory, over http and https, beside an interpreter that does nothing.

And beside the public ``prefect-cloud`` client, each through ``uv tool run``, where uv can install both.
"""

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
PREFECT_CLOUD = "prefect-cloud==0.1.13"
ANY_ID = "00000000-0000-0000-0000-000000000000"
RUNS_WORTH_INSTALLING_FOR = 2
OURS, THEIRS = "uv tool run broker-cli github token", "uv tool run prefect-cloud github token"


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
        tools = Tools(folder, service.url, key)
        beside = (
            tools.calls() if size.client_runs >= RUNS_WORTH_INSTALLING_FOR else {}
        )  # the smallest run needs no index
        calls |= beside
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
    if beside:
        ratios = [one / other for one, other in zip(took[THEIRS], took[OURS], strict=True)]
        table.notes.append(f"{THEIRS} takes {middle(ratios):.1f} times as long as {OURS}")
        for name in ("broker-cli", "prefect-cloud"):
            distributions, mib = tools.installed(name)
            table.notes.append(f"{name} installs {distributions} distributions, {mib:.1f} MiB")
    return table


@dataclass
class Tools:
    """Tool environments of uv's, in a folder of their own: what ``uv tool run`` would make in its cache."""

    folder: Path
    url: str
    key: str

    def calls(self) -> dict[str, Call]:
        """Return the two commands, installed; none if uv or a package cannot be had."""
        uv = shutil.which("uv")
        if uv is None:
            return {}
        ours = {
            "UV_CACHE_DIR": str(self.folder / "uv-cache"),
            "UV_TOOL_DIR": str(self.folder / "uv-tools"),
            "UV_TOOL_BIN_DIR": str(self.folder / "uv-bin"),
        }
        broker = clean_environment(
            **ours, BROKER_API_URL=self.url, BROKER_API_KEY=self.key, UV_INDEX=f"{self.url}/simple/"
        )
        prefect = clean_environment(
            **ours,
            HOME=str(self.folder),
            PREFECT_HOME=str(self.folder / "prefect"),
            PREFECT_API_URL=f"{self.url}/api/accounts/{ANY_ID}/workspaces/{ANY_ID}",
            PREFECT_API_KEY=self.key,
        )
        for requirement, environment in (("broker-cli", broker), (PREFECT_CLOUD, prefect)):
            install = [uv, "tool", "install", "--quiet", "--python", sys.executable, requirement]
            if subprocess.run(install, env=environment, check=False).returncode != 0:
                return {}
            environment["UV_TOOL_DIR"] = str(self.folder / "no-tools")  # from uv's cache, as on a worker
        run = [uv, "tool", "run", "--python", sys.executable, "--from"]
        asked = ["github", "token", "acme/widgets"]
        return {
            OURS: Call([*run, "broker-cli", "broker-cli", *asked], broker),
            THEIRS: Call([*run, PREFECT_CLOUD, "prefect-cloud", *asked], prefect),
        }

    def installed(self, name: str) -> tuple[int, float]:
        """Return the number of distributions of a tool and their MiB, without bytecode."""
        site = next((self.folder / "uv-tools" / name).rglob("site-packages"))
        size = sum(
            path.stat().st_size
            for path in site.rglob("*")
            if path.is_file() and not path.is_symlink() and "__pycache__" not in path.parts
        )
        return len(list(site.glob("*.dist-info"))), size / 2**20


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
