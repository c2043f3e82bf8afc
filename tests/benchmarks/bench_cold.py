"""A cold mint with the installation known: what the broker adds to GitHub's own latency."""

import asyncio
import time
from pathlib import Path

import httpx
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
            url = f"{service.url}/v1/github/token"
            direct, through = [], []
            with httpx.Client() as http:
                mint(http, url, key, "widgets")
                for number in range(size.cold_scopes):
                    direct.append(_beside(world, mint_directly(http, world, f"cold-{number}")))
                    through.append(_beside(world, mint(http, url, key, f"cold-{number}")))
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
        f"clock, from the request's arrival to its answer; {size.cold_scopes} scopes, one after the other"
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


def mint(http: httpx.Client, url: str, key: str, name: str) -> float:
    begin = time.perf_counter()
    answer = http.post(url, json={"repositories": [f"acme/{name}"]}, headers=bearer(key))
    took_ms = (time.perf_counter() - begin) * 1000
    assert answer.status_code == 200, answer.text
    assert answer.json()["cached"] is False
    return took_ms


def mint_directly(http: httpx.Client, world: World, name: str) -> float:
    now = int(time.time())
    claims = {"iss": world.app.client_id, "iat": now - 60, "exp": now + 500}
    signed = jwt.encode(claims, world.pem, algorithm="RS256")
    begin = time.perf_counter()
    answer = http.post(
        f"{world.server.api_url}/app/installations/{world.installation.id}/access_tokens",
        json={"repositories": [name], "permissions": {"contents": "read"}},
        headers={**bearer(signed), "Accept": "application/vnd.github+json", "User-Agent": "bench"},
    )
    took_ms = (time.perf_counter() - begin) * 1000
    assert answer.status_code == 201, answer.text
    return took_ms
