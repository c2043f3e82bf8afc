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
        ("what", "median ms", "p90 ms", "over GitHub's latency ms", "over a direct call ms"),
        "over GitHub's latency ms",
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
                    direct.append(mint_directly(http, world, f"cold-{number}"))
                    through.append(mint(http, url, key, f"cold-{number}"))
            through.sort()
            own_ms = size.github_s * 1000
            table.add(
                f"direct call ({store})",
                middle(direct),
                sorted(direct)[len(direct) * 9 // 10],
                middle(direct) - own_ms,
                None,
            )
            table.add(
                f"through the broker ({store})",
                middle(through),
                through[len(through) * 9 // 10],
                middle(through) - own_ms,
                middle(through) - middle(direct),
            )
    table.notes.append(
        f"GitHub's latency {size.github_s * 1000:g} ms, {size.cold_scopes} scopes, one after the other"
    )
    return table


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
