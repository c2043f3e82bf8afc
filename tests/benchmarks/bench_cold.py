"""A cold mint with the installation known: what the broker adds to GitHub's own latency."""

import asyncio
import json
import time
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import jwt
from bench_report import Table
from bench_stage import STORES, Size, middle, service_on, world_on
from harness import World, bearer


def cold(folder: Path, size: Size) -> Table:
    table = Table(
        "Cold mint, single caller",
        ("what", "median ms", "p90 ms", "over what GitHub took ms", "over a direct call ms"),
        "over what GitHub took ms",
    )
    for store in STORES:
        with world_on(store, folder) as world:
            service = service_on(world)
            key = asyncio.run(world.quick_key("acme/*"))
            for number in range(size.cold_scopes):
                world.github.add_repository(f"acme/cold-{number}")
            world.github.route_latency_s["mint"] = size.github_s
            github, broker = Caller(world.server.api_url), Caller(service.url)
            direct, through = [], []
            mint(broker, key, "widgets")
            for number in range(size.cold_scopes):
                direct.append(_beside(world, mint_directly(github, world, f"cold-{number}")))
                through.append(_beside(world, mint(broker, key, f"cold-{number}")))
            github.close()
            broker.close()
            whole = {"direct call": direct, "through the broker": through}
            for name, took in whole.items():
                all_ms = sorted(each for each, _ in took)
                table.add(
                    f"{name} ({store})",
                    middle(all_ms),
                    all_ms[len(all_ms) * 9 // 10],
                    middle([each - github_ms for each, github_ms in took]),
                    middle(all_ms) - middle([each for each, _ in direct]) if took is through else None,
                )
    table.notes.append(
        f"GitHub waits {size.github_s * 1000:g} ms before it works on a call; what it took is by its own "
        f"clock, from the request's arrival to its answer; {size.cold_scopes} scopes, one by one, by "
        "http.client on a kept connection"
    )
    return table


def _beside(world: World, took_ms: float) -> tuple[float, float]:
    """Return with a call's time what GitHub took of it, ms."""
    (call,) = [each for each in world.github.calls[-3:] if each.route == "mint"][-1:]
    until = time.monotonic() + 5
    while call.took_s is None and time.monotonic() < until:
        time.sleep(0.001)  # the answer is here before the emulator has noted when it left
    assert call.took_s is not None
    return took_ms, call.took_s * 1000


class Caller:
    """One connection, kept, of the kind that our client makes: a heavier one would be measured along."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._path = parts.path
        self._connection = HTTPConnection(parts.netloc, timeout=30)

    def close(self) -> None:
        self._connection.close()

    def post(self, path: str, body: object, headers: dict[str, str]) -> tuple[float, int, bytes]:
        """Return how long the answer took, ms, its status and its body."""
        sent = json.dumps(body).encode()
        begin = time.perf_counter()
        self._connection.request(
            "POST", self._path + path, sent, {"Content-Type": "application/json", **headers}
        )
        answer = self._connection.getresponse()
        received = answer.read()
        return (time.perf_counter() - begin) * 1000, answer.status, received


def mint(broker: Caller, key: str, name: str) -> float:
    took_ms, status, answer = broker.post("/v1/github/token", {"repositories": [f"acme/{name}"]}, bearer(key))
    assert status == 200, answer
    assert json.loads(answer)["cached"] is False
    return took_ms


def mint_directly(github: Caller, world: World, name: str) -> float:
    now = int(time.time())
    claims = {"iss": world.app.client_id, "iat": now - 60, "exp": now + 500}
    signed = jwt.encode(claims, world.pem, algorithm="RS256")
    took_ms, status, answer = github.post(
        f"/app/installations/{world.installation.id}/access_tokens",
        {"repositories": [name], "permissions": {"contents": "read"}},
        {**bearer(signed), "Accept": "application/vnd.github+json", "User-Agent": "bench"},
    )
    assert status == 201, answer
    return took_ms
