"""GitHub's bad days, with two service processes on Redis and an emulated GitHub over real sockets.

Each row: what GitHub does, what callers are told and how soon, how many calls GitHub got for it, that
cached tokens are served meanwhile, and that the service recovers by itself.
"""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from e2e_callers import Told, ask, ask_all, callers, settled, start_together, until
from harness import Service, World, bearer, world_in
from servers import RedisServer, certificate, free_port

from broker.github.client import REJECTED_FOR_S
from broker.sandbox.github import Fault, RunningGitHub

COOLDOWN_S = 6
REQUEST_S = 8
SOON_S = 5 * REQUEST_S
"""What is called bounded here: a few times what it takes on an idle machine."""


@dataclass
class Stage:
    """Two replicas, and a new owner for each story, so that none leaves a cool-down to the next."""

    world: World
    services: list[Service]
    key: str
    redis_url: str
    owners: int = 0

    def owner(self) -> str:
        self.owners += 1
        name = f"owner{self.owners}"
        for repository in ("warm", "cold", "other"):
            self.world.github.add_repository(f"{name}/{repository}")
        self.world.github.install(self.world.app, name)
        return name

    def _path(self, owner: str) -> str:
        found = [one.id for one in self.world.github.installations.values() if one.account.login == owner]
        return f"/app/installations/{found[0]}/access_tokens"

    def spoil(self, owner: str, fault: Fault) -> Fault:
        """Put a fault in force for the mints of one owner."""
        path = self._path(owner)
        return self.world.github.faults.add(replace(fault, route="mint", when=lambda call: call.path == path))

    def mints(self, owner: str) -> int:
        """Return how many mints of that owner GitHub has seen."""
        path = self._path(owner)
        return sum(call.path == path for call in self.world.github.calls)

    def the_wait_is_over(self) -> None:
        """Let pauses and cool-downs end now, instead of waiting for a minute or an hour."""
        with redis.Redis.from_url(self.redis_url) as client:
            for name in [*client.keys("*:P:*"), *client.keys("*:F:*")]:
                client.delete(name)


@pytest.fixture(scope="module")
def stage(
    tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer, module_key: Callable[[World], str]
) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("outages")
    with world_in(folder) as world:
        world.store_url = f"{shared_redis.url}?prefix=outages"
        services = start_together(
            world,
            2,
            BROKER_FAILURE_COOLDOWN=str(COOLDOWN_S),
            BROKER_REQUEST_TIMEOUT=str(REQUEST_S),
        )
        key = module_key(world)
        yield Stage(world, services, key, shared_redis.url)
        texts = "".join(one.log() for one in services)
        assert "Traceback" not in texts
        for secret in ("ghs_", "eyJ", key, "PRIVATE KEY"):
            assert secret not in texts, f"{secret[:5]}… is in a log"


@pytest.fixture(scope="module")
def module_key() -> Callable[[World], str]:
    def make(world: World) -> str:
        return asyncio.run(world.quick_key("*/*"))

    return make


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "stage" in request.fixturenames:
        stage: Stage = request.getfixturevalue("stage")
        stage.world.github.faults.clear()
        stage.world.github.clock_skew_s = 0
        stage.world.github.lag_uses = 0
        stage.the_wait_is_over()


def one_verdict(told: list[Told]) -> tuple[int, str]:
    found = {(one.status, str(one.body.get("code", "ok"))) for one in told}
    assert len(found) == 1, found
    return found.pop()


async def recovered(http: httpx.AsyncClient, stage: Stage, *repositories: str, seconds: float = 30) -> None:
    """Wait until both replicas serve; the client's way: try again when the broker says so."""
    end = time.monotonic() + seconds
    for service in stage.services:
        while True:
            told = await ask(http, service, stage.key, *repositories)
            if told.status == 200:
                break
            assert time.monotonic() < end, f"no recovery: {told.body}"
            await asyncio.sleep(0.2)


@dataclass(frozen=True)
class Outage:
    """One row.

    Attributes:
        fault: what every mint meets.
        verdict: what callers are told.
        calls: the most mints that GitHub sees for one scope and eight callers on two replicas.
        retry_after: bounds of the header; None: no such header.
    """

    fault: Fault
    verdict: tuple[int, str]
    calls: int = 4
    retry_after: tuple[int, int] | None = None


def _huge(body: Any) -> Any:
    return body | {"pad": "x" * 9_000_000}


DOWN = (502, "github_unavailable")
LATE = (504, "github_unavailable")
WAIT = (503, "github_rate_limited")

OUTAGES = {
    "500": Outage(Fault(status=500), DOWN),
    "502 page": Outage(Fault.unicorn(), DOWN),
    "503 with Retry-After": Outage(Fault(status=503, headers={"retry-after": "1"}), DOWN, 4, (1, 1)),
    "504 page": Outage(Fault.unicorn(status=504), LATE),
    "reset": Outage(Fault(reset=True), DOWN),
    "truncated": Outage(Fault(truncate=True), DOWN),
    "lost reply": Outage(Fault.lost_reply(), DOWN),
    "malformed JSON": Outage(Fault(status=201, body=b'{"token": '), DOWN, 1),
    "page with 200": Outage(Fault(status=200, html=True), DOWN, 1),
    "oversized": Outage(Fault(rewrite=_huge), DOWN, 1),
    "page with 403": Outage(Fault(status=403, html=True), DOWN, 1),
    "page with 404": Outage(Fault(status=404, html=True), DOWN, 1),
}

LIMITS = {
    "secondary 403": Outage(Fault.secondary_limit(retry_after_s=30), WAIT, 1, (1, 30)),
    "secondary 403 without Retry-After": Outage(Fault.secondary_limit(retry_after_s=None), WAIT, 1, (31, 60)),
    "secondary 429": Outage(Fault.secondary_limit(status=429, retry_after_s=30), WAIT, 1, (1, 30)),
    "429 without anything": Outage(Fault(status=429, body=""), WAIT, 1, (31, 60)),
    "primary 403": Outage(Fault.primary_limit(reset_in_s=40), WAIT, 1, (11, 40)),
    "primary 429": Outage(Fault.primary_limit(status=429, reset_in_s=40), WAIT, 1, (11, 40)),
    "422": Outage(Fault.abuse(retry_after_s=30), WAIT, 1, (1, 30)),
    "422 without Retry-After": Outage(Fault.abuse(retry_after_s=None), WAIT, 1, (31, 60)),
}


def told_right(outage: Outage, told: list[Told]) -> None:
    assert one_verdict(told) == outage.verdict
    assert max(one.took_s for one in told) < SOON_S
    for one in told:
        given = one.headers.get("retry-after")
        if outage.retry_after is None:
            assert given is None
        else:
            low, high = outage.retry_after
            assert low <= int(given or "0") <= high


async def test_outages(stage: Stage) -> None:
    """Every row at once, each with an owner of its own; eight callers on two replicas ask a cold scope."""
    async with callers() as http:

        async def story(name: str, outage: Outage) -> None:
            owner = stage.owner()
            warm = await ask(http, stage.services[0], stage.key, f"{owner}/warm")
            fault = stage.spoil(owner, outage.fault)
            told = await ask_all(http, stage.services, stage.key, 8, f"{owner}/cold")
            told_right(outage, told)
            calls = stage.mints(owner)
            assert 2 <= calls <= 1 + outage.calls, name
            again = await ask_all(http, stage.services, stage.key, 4, f"{owner}/warm")
            assert {one.token for one in again} == {warm.token}, name
            assert stage.mints(owner) == calls
            if name == "oversized":
                (cut,) = [
                    one
                    for text, one in stage.world.github.tokens.items()
                    if one.installation.account.login == owner and text != warm.token
                ]
                assert cut.revoked
            stage.world.github.faults.remove(fault)
            await recovered(http, stage, f"{owner}/cold")

        async with asyncio.TaskGroup() as stories:
            for name, outage in OUTAGES.items():
                stories.create_task(story(name, outage))


async def test_readiness_tells_of_it(stage: Stage) -> None:
    async with callers() as http:
        for fault in (
            Fault(route="mint", status=201, body=b"[]"),
            Fault(route="mint", status=403, html=True),
        ):
            owner = stage.owner()
            await ask(http, stage.services[0], stage.key, f"{owner}/warm")
            stage.world.github.faults.add(fault)
            told = await ask(http, stage.services[0], stage.key, f"{owner}/cold")
            assert (told.status, told.body["code"]) == DOWN
            ready = await http.get(f"{stage.services[0].url}/readyz")
            assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
            assert ready.json()["checks"]["github"] == "github_unavailable"
            stage.world.github.faults.clear()
            stage.the_wait_is_over()
            await recovered(http, stage, f"{owner}/cold")
            ready = await http.get(f"{stage.services[0].url}/readyz")
            assert ready.json()["checks"]["github"] == "ok"


@pytest.mark.parametrize("name", LIMITS)
async def test_github_says_wait(stage: Stage, name: str) -> None:
    """One call is all that GitHub gets, for any scope, from any replica, until the wait is over."""
    outage, owner = LIMITS[name], stage.owner()
    async with callers() as http:
        warm = await ask(http, stage.services[0], stage.key, f"{owner}/warm")
        stage.spoil(owner, outage.fault)
        stage.world.github.clear_calls()
        for repository in ("cold", "other"):
            told_right(outage, await ask_all(http, stage.services, stage.key, 8, f"{owner}/{repository}"))
        again = await ask_all(http, stage.services, stage.key, 4, f"{owner}/warm")
        assert {one.token for one in again} == {warm.token}
        assert stage.world.github.count() == 1
        stage.world.github.faults.clear()
        stage.the_wait_is_over()
        await recovered(http, stage, f"{owner}/cold")


PASSING = {
    "500": Fault(status=500, times=1),
    "502 page": Fault.unicorn(times=1),
    "reset": Fault(reset=True, times=1),
    "truncated": Fault(truncate=True, times=1),
    "key just added": Fault(status=401, body={"message": "Integration must generate a public key"}, times=1),
    "slow token endpoint": Fault(delay_s=1.5),
}


async def test_passing_trouble_reaches_nobody(stage: Stage) -> None:
    async with callers() as http:

        async def story(name: str, fault: Fault) -> None:
            owner = stage.owner()
            await ask(http, stage.services[0], stage.key, f"{owner}/warm")
            stage.spoil(owner, fault)
            told = await ask_all(http, stage.services, stage.key, 8, f"{owner}/cold")
            assert len({one.token for one in told}) == 1, name
            assert max(one.took_s for one in told) < SOON_S
            assert stage.mints(owner) == 1 + (1 if fault.times is None else 2), name

        async with asyncio.TaskGroup() as stories:
            for name, fault in PASSING.items():
                stories.create_task(story(name, fault))


@pytest.mark.parametrize("skew_s", [-420, 420, 3600])
async def test_a_wrong_clock_is_repaired_in_the_same_call(stage: Stage, skew_s: float) -> None:
    """GitHub's clock and ours differ by minutes: signed again once, by GitHub's; nobody notices."""
    owner = stage.owner()
    async with callers() as http:
        stage.world.github.clock_skew_s = skew_s
        stage.world.github.clear_calls()
        for repository in ("warm", "cold"):
            told = await ask_all(http, stage.services, stage.key, 4, f"{owner}/{repository}")
            assert len({one.token for one in told}) == 1
        # a look-up and two mints, and at most one repair on each replica
        assert 3 <= stage.world.github.count() <= 5


async def test_a_deleted_key_is_the_operators_and_github_is_not_pestered(stage: Stage) -> None:
    """The app's only key is gone: told as such, at most one more call per replica in some seconds."""
    world, owner = stage.world, stage.owner()
    async with callers() as http:
        warm = await ask(http, stage.services[0], stage.key, f"{owner}/warm")
        kept = list(world.app.public_keys)
        world.app.new_private_key()
        del world.app.public_keys[: len(kept)]
        world.github.clear_calls()
        try:
            for repository in ("cold", "other", "cold"):
                told = await ask_all(http, stage.services, stage.key, 8, f"{owner}/{repository}")
                assert one_verdict(told) == (502, "github_rejected_app")
            assert 1 <= world.github.count() <= len(stage.services)
            for service in stage.services:
                assert (await ask(http, service, stage.key, f"{owner}/warm")).token == warm.token
            assert "no configured private key is one of this app's" in "".join(
                one.log() for one in stage.services
            )
        finally:
            world.app.public_keys[:] = kept
        stage.the_wait_is_over()
        await recovered(http, stage, f"{owner}/cold", seconds=REJECTED_FOR_S + COOLDOWN_S + 15)


async def test_a_redirect_is_not_followed(stage: Stage) -> None:
    """Not even to a host that would be glad to get an app JWT."""
    owner = stage.owner()
    with socket.socket() as elsewhere:
        elsewhere.bind(("127.0.0.1", 0))
        elsewhere.listen()
        elsewhere.settimeout(0.3)
        there = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/app"
        async with callers() as http:
            await ask(http, stage.services[0], stage.key, f"{owner}/warm")
            stage.world.github.faults.add(Fault(route="mint", status=307, headers={"location": there}))
            stage.world.github.clear_calls()
            told = await ask_all(http, stage.services, stage.key, 4, f"{owner}/cold")
            assert one_verdict(told) == DOWN
            assert stage.world.github.count("mint") == 1
            stage.world.github.faults.clear()
            stage.the_wait_is_over()
            await recovered(http, stage, f"{owner}/cold")
        with pytest.raises(TimeoutError):
            elsewhere.accept()


async def test_a_fresh_token_that_is_refused_for_a_moment(stage: Stage) -> None:
    """The list of repositories is asked for with a token minted for it; GitHub knows it a moment later."""
    owner = stage.owner()
    stage.world.github.lag_uses = 1
    key = await stage.world.quick_key(f"{owner}/*")
    async with callers() as http:
        answer = await http.get(f"{stage.services[0].url}/v1/github/repositories", headers=bearer(key))
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["repositories"]) == 3
        assert stage.world.github.count("installation_repositories") <= 2


@pytest.mark.slow
async def test_github_falls_silent(stage: Stage) -> None:
    """Before the head, within it, within the body: callers are told in time, and the rest goes on.

    All three at once, as each takes its time.
    """
    world = stage.world
    async with callers() as http:
        owners = [stage.owner() for _ in range(3)]
        warm = [await ask(http, stage.services[0], stage.key, f"{owner}/warm") for owner in owners]
        hold = threading.Event()
        world.github.clear_calls()
        for owner, stall in zip(owners, (None, "head", "body"), strict=True):
            stage.spoil(owner, Fault(hold=hold, stall=stall))  # type: ignore[arg-type]
        try:
            asked = [
                asyncio.create_task(ask_all(http, stage.services, stage.key, 4, f"{owner}/cold"))
                for owner in owners
            ]
            await until(lambda: world.github.count("mint") >= 3, what="the mints")
            again = [
                await ask(http, service, stage.key, f"{owner}/warm")
                for owner in owners
                for service in stage.services
            ]
            assert {one.token for one in again} == {one.token for one in warm}
            told = [one for each in await asyncio.gather(*asked) for one in each]
            assert one_verdict(told) == LATE
            assert max(one.took_s for one in told) < SOON_S
            assert world.github.count("mint") <= 6
        finally:
            world.github.faults.clear()
            hold.set()
        stage.the_wait_is_over()
        for owner in owners:
            await recovered(http, stage, f"{owner}/cold")


async def test_nobody_listens(stage: Stage) -> None:
    owner = stage.owner()
    async with callers() as http:
        warm = await ask(http, stage.services[0], stage.key, f"{owner}/warm")
        stage.world.server.stop()
        try:
            told = await ask_all(http, stage.services, stage.key, 8, f"{owner}/cold")
            assert one_verdict(told) == DOWN
            assert max(one.took_s for one in told) < SOON_S
            assert (await ask(http, stage.services[1], stage.key, f"{owner}/warm")).token == warm.token
        finally:
            stage.world.server.start()
        await recovered(http, stage, f"{owner}/cold")


@pytest.mark.slow
async def test_tls_that_breaks_and_is_mended(world: World, tmp_path: Path) -> None:
    """A certificate of another authority is refused; with the right one again all is well."""
    good = certificate(tmp_path)
    (tmp_path / "other").mkdir()
    other = certificate(tmp_path / "other")
    port = free_port()

    def serve(pair: tuple[Path, Path]) -> RunningGitHub:
        return RunningGitHub(world.github, port=port, certfile=pair[0], keyfile=pair[1])

    service = world.service(
        start=False,
        BROKER_GITHUB_API_URL=f"https://127.0.0.1:{port}",
        BROKER_GITHUB_URL=f"https://127.0.0.1:{port}",
        BROKER_GITHUB_CA_FILE=str(good[0]),
        BROKER_FAILURE_COOLDOWN="1",
    )
    key = await world.quick_key("acme/*")
    async with callers() as http:
        with serve(good):
            service.start()
            await settled(world)
            token = (await ask(http, service, key)).token
        world.github.clear_calls()
        with serve(other):
            told = await ask(http, service, key, "acme/gadgets")
            assert (told.status, told.body["code"]) == DOWN
            assert told.took_s < SOON_S
            assert world.github.count() == 0, "something was sent over TLS that cannot be trusted"
            assert (await ask(http, service, key)).token == token
        with serve(good):
            await asyncio.sleep(1.1)
            assert (await ask(http, service, key, "acme/gadgets")).status == 200
    assert "Traceback" not in service.log()


@pytest.mark.slow
async def test_a_host_name_that_is_gone(world: World) -> None:
    service = world.service(
        BROKER_GITHUB_API_URL="https://github.invalid/api/v3",
        BROKER_GITHUB_URL="https://github.invalid",
        BROKER_REQUEST_TIMEOUT="10",
    )
    key = await world.quick_key("acme/*")
    async with callers() as http:
        told = await ask(http, service, key)
        assert (told.status, told.body["code"]) in {DOWN, LATE}
        assert told.took_s < 30
        assert (await http.get(f"{service.url}/readyz")).json()["checks"]["github"] == "github_unavailable"
    assert "Traceback" not in service.log()
