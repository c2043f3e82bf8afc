"""Warm requests a second and their latency, beside hellos, the raw store read and one call a request."""

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import redis
from bench_report import Table
from bench_stage import HERE, STORES, Size, cpu_s, measure, middle, pin, script, service_on, world_on
from harness import Service, World, bearer, clean_environment
from servers import free_port

SCOPES = 200
Found = dict[tuple[str, int], list[dict[str, Any]]]


@dataclass
class Target:
    """What is asked, and by which arguments of the load generator."""

    port: int
    pid: int
    arguments: tuple[str, ...] = ()
    redis: "redis.Redis | None" = None

    def trips(self) -> int:
        """Return how many transactions Redis has run: each is one round trip."""
        if self.redis is None:
            return 0
        told: dict[str, Any] = self.redis.info("commandstats")  # type: ignore[assignment]
        calls: int = told.get("cmdstat_exec", {}).get("calls", 0)
        return calls

    def loaded(self, connections: int, seconds: float) -> dict[str, Any]:
        cpu, trips = cpu_s([self.pid]), self.trips()
        told = measure("bench_load.py", self.port, connections, seconds, *self.arguments, core=1)
        told["server_us"] = (cpu_s([self.pid]) - cpu) / told["requests"] * 1e6
        told["trips"] = (self.trips() - trips) / told["requests"]
        return told


def warm(folder: Path, size: Size) -> Table:
    """Interleave short rounds: every target once a round, so that a noisy neighbour disturbs all alike."""
    found: Found = defaultdict(list)
    with contextlib.ExitStack() as stack:
        targets = {
            "bare ASGI hello": stack.enter_context(_hello()),
            "Starlette hello": stack.enter_context(_hello("starlette")),
        }
        raw: dict[str, tuple[str, ...]] = {}
        for store in STORES:
            world = stack.enter_context(world_on(store, folder))
            key = asyncio.run(world.quick_key("acme/*"))
            services = {store: service_on(world)}
            if store == "redis":
                services["one redis-py call a request"] = one_call_on(world)
            for name, service in services.items():
                warm_up(service, key)
                assert service.process is not None
                client = redis.Redis.from_url(world.store_url) if name == "redis" else None
                targets[name] = Target(service.port, service.process.pid, (key, "acme/widgets"), client)
            # Many questions at once: hardly any two of one read are the same.
            for number in range(SCOPES):
                world.github.add_repository(f"acme/warm-{number}")
                warm_up(services[store], key, f"acme/warm-{number}")
            targets[f"{store}, {SCOPES} scopes"] = replace(
                targets[store], arguments=(key, "acme/warm-{}", str(SCOPES))
            )
            raw[store] = (world.store_url, urlsplit(world.server.url).netloc, key[5:17])
        for _ in range(size.rounds):
            for connections in size.connections:
                for name, target in targets.items():
                    found[name, connections].append(target.loaded(connections, size.round_s))
            for name, arguments in raw.items():
                told = measure("bench_raw.py", *arguments, size.round_s / 2, core=0)
                found[f"raw {name} read", 0].append(told)
    return _table(found, size)


@contextlib.contextmanager
def _hello(*more: str) -> Iterator[Target]:
    port = free_port()
    command = script("bench_hello.py", port, *more)
    with subprocess.Popen(command, env=clean_environment(), stderr=subprocess.DEVNULL) as process:
        try:
            until_open(port)
            pin(process.pid, 0)
            yield Target(port, process.pid)
        finally:
            process.kill()


class _OneCall(Service):
    command = (sys.executable, str(HERE / "bench_one_call.py"))


def one_call_on(world: World) -> Service:
    """Start the reference that reads by one redis-py call a request."""
    plain = world.service(start=False, BROKER_LOG_LEVEL="info", BROKER_MINT_BUDGET="100000")
    service = _OneCall(plain.environment, plain.folder, plain.port, plain.name)
    world.services[world.services.index(plain)] = service
    service.start()
    assert service.process is not None
    pin(service.process.pid, 0)
    return service


def warm_up(service: Service, key: str, repository: str = "acme/widgets") -> None:
    for _ in range(2):
        answer = httpx.post(
            f"{service.url}/v1/github/token", json={"repositories": [repository]}, headers=bearer(key)
        )
        assert answer.status_code == 200, answer.text


def until_open(port: int) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise TimeoutError


def _table(found: Found, size: Size) -> Table:
    table = Table(
        "Warm requests",
        (
            "what", "connections", "requests/s", "x hello", "CPU us a request", "x hello's CPU", "x one call",
            "x raw read", "Redis round trips a request", "p50 ms", "p99 ms", "p99 x hello",
        ),
        "x hello",
    )  # fmt: skip
    for (name, connections), rounds in sorted(found.items(), key=lambda one: (one[0][1], one[0][0])):
        raw = name.startswith("raw ")
        hello = None if raw else found["bare ASGI hello", connections]
        one_call = found["one redis-py call a request", connections] if name == "redis" else None
        table.add(
            name if raw else f"{name} ({connections})",
            None if raw else connections,
            middle([one["rate"] for one in rounds]),
            _ratio(rounds, hello, "rate"),
            None if raw else middle([one["server_us"] for one in rounds]),
            _ratio(rounds, hello, "server_us"),
            _ratio(rounds, one_call, "rate"),
            _ratio(rounds, found.get((f"raw {name} read", 0)), "rate"),
            middle([one["trips"] for one in rounds]) if name == "redis" else None,
            middle([one["p50_ms"] for one in rounds]),
            middle([one["p99_ms"] for one in rounds]),
            _ratio(rounds, hello, "p99_ms"),
        )
    table.notes.append(
        f"{size.rounds} interleaved rounds of {size.round_s:g} s, medians; server on one core, load on the "
        "other (Redis there too)"
    )
    table.notes.append("a ratio is made within each round, then the middle of those is taken")
    table.notes.append("raw read: one connection, one read after the other, without a server around it")
    return table


def _ratio(rounds: list[dict[str, Any]], others: list[dict[str, Any]] | None, what: str) -> float | None:
    if not others:
        return None
    pairs = [(one[what], other[what]) for one, other in zip(rounds, others, strict=True)]
    known = [one / other for one, other in pairs if other]
    return middle(known) if known else None
