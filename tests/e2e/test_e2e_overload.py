"""Too much of everything, against real service processes: each flood costs its author, and little else."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest
import redis
from e2e_callers import ask, callers, settled, start_together, until
from harness import Service, World, bearer, unknown_key
from servers import RedisServer

from broker.access.limits import FREE_FAILURES, LOOK_EVERY_S
from broker.build import CALLS_PER_OWNER
from broker.sandbox.github import Fault
from broker.web.protocol import HEAD_WITHIN_S, MAX_CONNECTIONS

SLOTS = 64


def reads(server: RedisServer) -> int:
    """Return how many round trips with a transaction Redis has served: each read of the broker's is one."""
    with redis.Redis.from_url(server.url) as client:
        return int(client.info("commandstats").get("cmdstat_exec", {"calls": 0})["calls"])


async def flood(count: int, one: Callable[[int], Awaitable[httpx.Response]]) -> list[tuple[int, str]]:
    """Ask ``count`` times, ``SLOTS`` at once; return status and code of each answer."""
    slots = asyncio.Semaphore(SLOTS)

    async def ask_one(number: int) -> tuple[int, str]:
        async with slots:
            answer = await one(number)
            return answer.status_code, answer.json().get("code", "ok")

    return await asyncio.gather(*(ask_one(number) for number in range(count)))


@asynccontextmanager
async def good_callers(http: httpx.AsyncClient, service: Service, *keys: str) -> AsyncIterator[list[float]]:
    """Ask for a warm token again and again while the block runs; yields how long each call took."""
    took: list[float] = []
    stopping = False

    async def go_on(key: str) -> None:
        while not stopping:
            told = await ask(http, service, key)
            assert told.status == 200, told.body
            took.append(told.took_s)
            await asyncio.sleep(0.05)

    tasks = [asyncio.create_task(go_on(key)) for key in keys]
    try:
        yield took
    finally:
        stopping = True
        await asyncio.gather(*tasks)


async def test_floods_of_bad_keys(redis_world: World, shared_redis: RedisServer) -> None:
    """Mistyped: no store access. Unknown: a few reads a second. Good keys of the same address go on."""
    world = redis_world
    service = world.service()
    seen, new = [await world.quick_key("acme/*") for _ in range(2)]
    async with callers() as http:
        assert (await ask(http, service, seen)).status == 200
        await settled(world)

        def with_key(key: str) -> Awaitable[httpx.Response]:
            return http.post(
                f"{service.url}/v1/github/token",
                json={"repositories": ["acme/widgets"]},
                headers=bearer(key),
            )

        before = reads(shared_redis)
        begun = time.monotonic()
        told = await flood(200, lambda n: with_key(f"{seen[:-6]}{n:06}"))
        background = 3 * (time.monotonic() - begun) + 20
        assert set(told) == {(401, "invalid_api_key")}
        assert reads(shared_redis) - before < background

        unknown = [unknown_key() for _ in range(250)]
        before = reads(shared_redis)
        begun = time.monotonic()
        async with good_callers(http, service, seen, new) as took:
            told = await flood(len(unknown), lambda n: with_key(unknown[n]))
        elapsed_s = time.monotonic() - begun
        assert set(told) <= {(401, "invalid_api_key"), (429, "rate_limited")}
        cost = reads(shared_redis) - before - 2 * len(took)
        bound = FREE_FAILURES + SLOTS / 4 + elapsed_s / LOOK_EVERY_S + 3 * elapsed_s
        assert cost < bound
        assert len(took) > 10
        assert sorted(took)[len(took) // 2] < 1, "half of the good callers' calls took a second or more"
        lines = service.log().count("token.denied")
        assert lines < FREE_FAILURES + SLOTS + elapsed_s
        assert world.github.count() == 0
    assert not any(key in service.log() for key in unknown)


async def test_a_flood_of_names_nobody_has_costs_the_asking_key(redis_world: World) -> None:
    """On two replicas together the budget is all that GitHub sees of it; another key mints meanwhile."""
    world = redis_world
    services = start_together(world, 2, BROKER_MINT_BUDGET="20")
    greedy, modest = [await world.quick_key("acme/*") for _ in range(2)]
    async with callers() as http:
        assert (await ask(http, services[0], modest)).status == 200
        await settled(world, 2)
        begun = time.monotonic()
        attack = asyncio.create_task(
            flood(
                120,
                lambda n: http.post(
                    f"{services[n % 2].url}/v1/github/token",
                    json={"repositories": [f"acme/nobody-has-{n}"]},
                    headers=bearer(greedy),
                ),
            )
        )
        other = await ask(http, services[1], modest, "acme/gadgets")
        assert other.status == 200
        told = await attack
        minutes = 1 + int((time.monotonic() - begun) // 60) + 1
        assert set(told) == {(404, "not_installed"), (429, "rate_limited")}
        assert world.github.count() <= 20 * minutes + 1
        assert (await ask(http, services[0], modest)).status == 200


async def test_an_owners_flood_does_not_delay_the_others(world: World) -> None:
    """GitHub falls silent for one owner: sixteen calls wait there, and another owner's mint passes them."""
    for number in range(60):
        world.github.add_repository(f"acme/r{number}")
    world.github.install(world.app, "stranger")
    service = world.service()
    key = await world.quick_key("*/*")
    hold = threading.Event()
    async with callers() as http:
        assert (await ask(http, service, key)).status == 200
        await settled(world)
        silent = f"/app/installations/{world.installation.id}/access_tokens"
        world.github.faults.add(Fault(route="mint", hold=hold, when=lambda call: call.path == silent))
        asked = [asyncio.create_task(ask(http, service, key, f"acme/r{number}")) for number in range(60)]
        try:
            await until(lambda: world.github.count("mint") >= CALLS_PER_OWNER, what="the flood")
            other = await ask(http, service, key, "stranger/secrets")
            assert other.status == 200
            assert world.github.count("mint") == CALLS_PER_OWNER + 1
        finally:
            hold.set()
        assert {one.status for one in await asyncio.gather(*asked)} == {200}
        assert world.github.count("mint") == 61


# -- connections ---------------------------------------------------------------------------------------


@contextmanager
def connections(service: Service, count: int, *, send: bytes = b"") -> Iterator[list[socket.socket]]:
    """Open connections that send something, or nothing, and then wait."""
    found: list[socket.socket] = []
    try:
        for _ in range(count):
            one = socket.create_connection(("127.0.0.1", service.port), timeout=20)
            found.append(one)
            with contextlib.suppress(OSError):
                one.sendall(send)
        yield found
    finally:
        for one in found:
            one.close()


def is_closed(one: socket.socket) -> bool:
    one.settimeout(0.0)
    try:
        return one.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def resident_mb(service: Service) -> float:
    assert service.process is not None
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


async def serves(service: Service, key: str) -> None:
    """Assert that a probe and a caller, each on a new connection, are answered."""
    for _ in range(3):
        async with callers() as http:
            for path in ("/livez", "/readyz"):
                assert (await http.get(service.url + path)).status_code == 200
            assert (await ask(http, service, key)).status == 200


def slow_body(key: str) -> bytes:
    head = f"POST /v1/github/token HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
    return head.encode() + b"Content-Type: application/json\r\nContent-Length: 60000\r\n\r\n" + b" " * 30_000


@pytest.mark.slow
async def test_connections_by_the_thousand(world: World) -> None:
    """Idle, with half a head, with half a body, more of each than the service takes: the next one is
    answered, the slow ones are closed, and memory comes to an end.
    """
    service = world.service()
    key = await world.quick_key("acme/*")
    async with callers() as http:
        assert (await ask(http, service, key)).status == 200
    floods = {
        "idle": b"",
        "half a head": b"GET / HTTP/1.1\r\n" + b"a:b\r\n" * 90,
        "a long half head": b"GET / HTTP/1.1\r\na: " + b"x" * 30_000,
        "half a body": slow_body(unknown_key()),
    }
    base = resident_mb(service)
    peaks = []
    for _ in range(2):
        for name, sent in floods.items():
            with connections(service, MAX_CONNECTIONS + 300, send=sent) as opened:
                await serves(service, key)
                peaks.append(resident_mb(service))
                assert sum(is_closed(one) for one in opened[:400]) > 300, name
        await serves(service, key)
    first, second = max(peaks[: len(floods)]), max(peaks[len(floods) :])
    assert first < 5 * base, (base, peaks)
    assert second < 1.3 * first, (base, peaks)
    assert "Traceback" not in service.log()


HALF_A_HOOK = (
    b"POST /webhooks/github HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"X-Hub-Signature-256: sha256=" + b"0" * 64 + b"\r\nContent-Length: 100\r\n\r\n{"
)


@pytest.mark.slow
async def test_half_requests_of_strangers_keep_nobody_out(world: World) -> None:
    """More of them than requests may be in work, fewer than connections that are taken."""
    service = world.service(BROKER_GITHUB_WEBHOOK_SECRET="made-up-webhook-secret")
    key = await world.quick_key("acme/*")
    async with callers() as http:
        assert (await ask(http, service, key)).status == 200
        for sent in (slow_body(unknown_key()), HALF_A_HOOK):
            with connections(service, 1500, send=sent):
                await asyncio.sleep(1)
                assert {(await ask(http, service, key)).status for _ in range(20)} == {200}


@pytest.mark.slow
async def test_slow_heads_end_and_unread_answers_too(world: World) -> None:
    service = world.service()
    key = await world.quick_key("acme/*")
    with connections(service, 50, send=b"GET /livez HTTP/1.1\r\nHost: ") as opened:
        begun = time.monotonic()
        while not all(is_closed(one) for one in opened):
            assert time.monotonic() - begun < HEAD_WITHIN_S + 20
            for one in opened:
                with contextlib.suppress(OSError):
                    one.settimeout(0.0)
                    one.send(b"x")
            await asyncio.sleep(0.5)
        assert time.monotonic() - begun > HEAD_WITHIN_S - 2
    ask_for = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
    before = resident_mb(service)
    with connections(service, 40, send=ask_for * 500):
        await serves(service, key)
        assert resident_mb(service) < 2 * before + 50
