"""Warm requests a second and their latency, beside a bare ASGI hello and the raw store read."""

import asyncio
import contextlib
import socket
import subprocess
import time
from collections import defaultdict
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from bench_report import Table
from bench_stage import STORES, Size, measure, middle, pin, script, service_on, world_on
from harness import bearer, clean_environment
from servers import free_port

Found = dict[tuple[str, int], list[dict[str, float]]]


def warm(folder: Path, size: Size) -> Table:
    """Interleave short rounds: every target once a round, so that a noisy neighbour disturbs all alike."""
    found: Found = defaultdict(list)
    with contextlib.ExitStack() as stack:
        port = free_port()
        hello = stack.enter_context(
            subprocess.Popen(
                script("bench_hello.py", port), env=clean_environment(), stderr=subprocess.DEVNULL
            )
        )
        stack.callback(hello.kill)
        until_open(port)
        pin(hello.pid, 0)
        targets: dict[str, tuple[int, tuple[str, ...]]] = {"hello": (port, ())}
        raw: dict[str, tuple[str, ...]] = {}
        for store in STORES:
            world = stack.enter_context(world_on(store, folder))
            service = service_on(world)
            key = asyncio.run(world.quick_key("acme/*"))
            for _ in range(2):
                answer = httpx.post(
                    f"{service.url}/v1/github/token",
                    json={"repositories": ["acme/widgets"]},
                    headers=bearer(key),
                )
                assert answer.status_code == 200, answer.text
            targets[store] = (service.port, (key, "acme/widgets"))
            raw[store] = (world.store_url, urlsplit(world.server.url).netloc, key[5:17])
        for _ in range(size.rounds):
            for connections in size.connections:
                for name, (where, rest) in targets.items():
                    found[name, connections].append(
                        measure("bench_load.py", where, connections, size.round_s, *rest, core=1)
                    )
            for name, arguments in raw.items():
                found[f"raw {name} read", 1].append(
                    measure("bench_raw.py", *arguments, size.round_s / 2, core=0)
                )
    return _table(found, size)


def until_open(port: int) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise TimeoutError


def _table(found: Found, size: Size) -> Table:
    table = Table(
        "Warm requests",
        ("what", "connections", "requests/s", "x hello", "x raw read", "p50 ms", "p99 ms", "p99 x hello"),
        "x hello",
    )
    for (name, connections), rounds in sorted(found.items(), key=lambda one: (one[0][1], one[0][0])):
        hello = found["hello", connections]
        read = found.get((f"raw {name} read", 1))
        table.add(
            f"{name} ({connections})",
            connections,
            middle([one["rate"] for one in rounds]),
            # A ratio is made within each round, then the middle of those is taken.
            middle([one["rate"] / other["rate"] for one, other in zip(rounds, hello, strict=True)]),
            middle([one["rate"] / other["rate"] for one, other in zip(rounds, read, strict=True)])
            if read
            else None,
            middle([one["p50_ms"] for one in rounds]),
            middle([one["p99_ms"] for one in rounds]),
            middle([one["p99_ms"] / other["p99_ms"] for one, other in zip(rounds, hello, strict=True)]),
        )
    table.notes.append(
        f"{size.rounds} interleaved rounds of {size.round_s:g} s, medians; "
        "server on one core, load on the other"
    )
    table.notes.append("raw read: one connection, one read after the other, without a server around it")
    return table
