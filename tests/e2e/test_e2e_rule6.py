"""Rule 6: when an admin call has returned 2xx, no request sent after that is given what it forbids."""

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import Service, World, bearer
from servers import RedisServer

REPOSITORIES = [f"acme/load-{number}" for number in range(6)]
BODIES: list[dict[str, Any]] = [
    *({"repositories": [name]} for name in REPOSITORIES),
    {"repositories": REPOSITORIES[:2]},
    {"owner": "acme"},
]
WORKERS = 8


@dataclass
class Answer:
    """One answer, with when its request was sent."""

    sent: float
    status: int
    code: str
    token: str | None
    body: dict[str, Any]
    key: str


@dataclass
class Load:
    """A steady load on several services with whatever keys are in ``keys``."""

    services: list[Service]
    keys: list[str]
    answers: list[Answer] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    stopping: bool = False
    inflight: int = 0

    async def worker(self, http: httpx.AsyncClient, seed: int) -> None:
        rng = random.Random(seed)
        while not self.stopping:
            key, body = rng.choice(self.keys), rng.choice(BODIES)
            service = rng.choice(self.services)
            sent = time.monotonic()
            self.inflight += 1
            try:
                answer = await http.post(f"{service.url}/v1/github/token", json=body, headers=bearer(key))
            except httpx.TransportError:
                await asyncio.sleep(0.02)  # a service that was killed on purpose
                continue
            finally:
                self.inflight -= 1
            found = answer.json()
            if answer.status_code >= 500 and answer.status_code != 503:
                self.unexpected.append(f"{answer.status_code} {found}")
            self.answers.append(
                Answer(sent, answer.status_code, found.get("code", ""), found.get("token"), body, key)
            )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(timeout=40, limits=limits, trust_env=False) as http:
            tasks = [asyncio.create_task(self.worker(http, number)) for number in range(WORKERS)]
            try:
                yield
            finally:
                self.stopping = True
                await asyncio.gather(*tasks)


def forbidden_by_block(answer: Answer, name: str) -> bool:
    names = answer.body.get("repositories")
    return names is None or name in names


async def check_dead(world: World, answers: list[Answer]) -> None:
    """All tokens in ``answers`` die at the emulated GitHub within seconds."""
    texts = {answer.token for answer in answers if answer.token}
    for _ in range(200):
        if all(world.github.tokens[text].revoked for text in texts):
            return
        await asyncio.sleep(0.05)
    alive = sum(not world.github.tokens[text].revoked for text in texts)
    raise AssertionError(f"{alive} of {len(texts)} tokens still live")


async def rounds(world: World, services: list[Service], *, number: int, kill_at: int | None = None) -> Load:
    """Revoke keys and block repositories in turn, ``number`` times, under load."""
    admin = world.key(admin=True)
    bystander = world.key("acme/*")
    load = Load(list(services), [bystander])
    admins = itertools.cycle(services)
    async with (
        httpx.AsyncClient(timeout=40, trust_env=False, headers=bearer(admin)) as http,
        load.running(),
    ):
        await asyncio.sleep(0.5)
        for turn in range(number):
            if turn == kill_at:
                services[1].kill()
                services[1].start(wait=False)
            while True:
                service = next(admins)
                with contextlib.suppress(httpx.TransportError):
                    if (await http.get(f"{service.url}/readyz")).status_code == 200:
                        break
                await asyncio.sleep(0.05)
            if turn % 2:
                await block_round(world, http, service, load, REPOSITORIES[turn % len(REPOSITORIES)])
            else:
                await key_round(world, http, service, load)
        await asyncio.sleep(0.3)
    assert not load.unexpected, load.unexpected[:5]
    return load


async def used(load: Load, key: str) -> None:
    """Wait until the load was given a token with ``key``; on a slow machine that takes its time."""
    for _ in range(1000):
        if any(answer.key == key and answer.status == 200 for answer in load.answers):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the load never used the key")


async def key_round(world: World, http: httpx.AsyncClient, service: Service, load: Load) -> None:
    made = await http.post(
        f"{service.url}/v1/admin/keys", json={"name": "victim", "repositories": ["acme/*"]}
    )
    assert made.status_code == 201, made.text
    key, key_id = made.json()["key"], made.json()["id"]
    load.keys.append(key)
    await used(load, key)
    ended = await http.delete(f"{service.url}/v1/admin/keys/{key_id}", params={"tokens": "revoke"})
    after = time.monotonic()
    assert ended.status_code == 200, ended.text
    await asyncio.sleep(0.05)
    load.keys.remove(key)
    await asyncio.sleep(0.02)
    mine = [answer for answer in load.answers if answer.key == key]
    late = [answer for answer in mine if answer.sent > after and answer.status not in {401, 503}]
    assert not late, f"{late[0].status} for a request sent {late[0].sent - after:.4f} s after the 2xx"
    await check_dead(world, mine)


async def block_round(world: World, http: httpx.AsyncClient, service: Service, load: Load, name: str) -> None:
    begun = time.monotonic()
    put = await http.put(f"{service.url}/v1/admin/blocks/{name}", json={"reason": "drill"})
    after = time.monotonic()
    assert put.status_code == 200, put.text
    await asyncio.sleep(0.08)
    before_lift = time.monotonic()
    lifted = await http.delete(f"{service.url}/v1/admin/blocks/{name}")
    assert lifted.status_code in {200, 204}, lifted.text
    reaching = [answer for answer in load.answers if forbidden_by_block(answer, name)]
    late = [
        answer for answer in reaching if after < answer.sent < before_lift - 0.03 and answer.status == 200
    ]
    assert not late, f"a token was given {late[0].sent - after:.4f} s after the block"
    given_before = [answer for answer in reaching if answer.sent < begun and answer.status == 200]
    await check_dead(world, given_before)


def prepare(world: World) -> None:
    for name in REPOSITORIES:
        world.github.add_repository(name)
    world.github.rate_limit = None  # hundreds of revocations an hour are not what is tested here


async def test_two_replicas_on_redis_keep_rule_6(world: World, shared_redis: RedisServer) -> None:
    prepare(world)
    world.store_url = f"{shared_redis.url}?prefix=rule6"
    services = [world.service(BROKER_MINT_BUDGET="100000") for _ in range(2)]
    load = await rounds(world, services, number=40)
    assert sum(answer.status == 200 for answer in load.answers) > 200


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_two_replicas_on_redis_200_rounds(world: World, shared_redis: RedisServer) -> None:
    prepare(world)
    world.store_url = f"{shared_redis.url}?prefix=rule6-long"
    services = [world.service(BROKER_MINT_BUDGET="100000") for _ in range(2)]
    await rounds(world, services, number=200)


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_rule_6_holds_over_kill_9(world: World, shared_redis: RedisServer) -> None:
    prepare(world)
    world.store_url = f"{shared_redis.url}?prefix=rule6-kill"
    services = [world.service(BROKER_MINT_BUDGET="100000") for _ in range(2)]
    await rounds(world, services, number=60, kill_at=20)


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_sqlite_with_two_workers_keeps_rule_6(world: World, tmp_path: Path) -> None:
    prepare(world)
    services = [world.service(BROKER_WORKERS="2", BROKER_MINT_BUDGET="100000")]
    await rounds(world, services, number=200)
