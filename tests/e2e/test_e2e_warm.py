"""Rules 4 and 5 with real processes: warm requests wait for nothing, refreshing waits for nobody."""

import asyncio
import time

from e2e_callers import ask, callers, settled, until
from harness import World

MINT_S = 1.0


async def test_warm_requests_and_refresh_ahead(any_world: World) -> None:
    """1,000 warm requests cause no GitHub call. After refresh-ahead begins, no caller waits."""
    world = any_world
    service = world.service(BROKER_TOKEN_REFRESH_AHEAD="3300", BROKER_LOG_LEVEL="info")
    key = await world.quick_key("acme/*")
    await settled(world)
    async with callers() as http:
        first = await ask(http, service, key)
        world.github.clear_calls()

        async def hundred() -> set[str]:
            return {(await ask(http, service, key)).token for _ in range(100)}

        tokens = set().union(*await asyncio.gather(*(hundred() for _ in range(10))))
        assert tokens == {first.token}
        assert world.github.count() == 0

        # A token that has so little left that its refresh begins two seconds after the mint.
        world.github.token_ttl_s = 3302
        world.github.route_latency_s["mint"] = MINT_S
        old = await ask(http, service, key, "acme/gadgets")
        assert old.took_s >= MINT_S
        world.github.token_ttl_s = 3600
        world.github.clear_calls()
        begin = time.monotonic()
        told = []
        while time.monotonic() - begin < 5:
            told += await asyncio.gather(*(ask(http, service, key, "acme/gadgets") for _ in range(4)))
            if told[-1].token != old.token:
                break
            await asyncio.sleep(0.02)
        assert told[-1].token != old.token
        assert {one.status for one in told} == {200}
        assert max(one.took_s for one in told) < MINT_S / 2
        told = [await ask(http, service, key, "acme/gadgets") for _ in range(20)]
        assert len({one.token for one in told}) == 1
        assert world.github.count("mint") == 1
        assert world.github.count() == 1


async def test_github_down_serves_what_is_cached(world: World) -> None:
    """Rule 8: if GitHub is down, cached tokens are served; a cold scope is refused and says why."""
    service = world.service(BROKER_REQUEST_TIMEOUT="10", BROKER_FAILURE_COOLDOWN="1")
    key = await world.quick_key("acme/*")
    await settled(world)
    async with callers() as http:
        first = await ask(http, service, key)
        world.server.stop()
        try:
            assert (await ask(http, service, key)).token == first.token
            cold = await ask(http, service, key, "acme/gadgets")
            assert (cold.status, cold.body["code"]) == (502, "github_unavailable")
            assert (await http.get(f"{service.url}/readyz")).status_code == 200
        finally:
            world.server.start()
        await asyncio.sleep(1.1)
        assert (await ask(http, service, key, "acme/gadgets")).token != first.token
        assert (await http.get(f"{service.url}/readyz")).json()["status"] == "ok"


async def test_github_enterprise_paths(ghes_world: World) -> None:
    service = ghes_world.service()
    key = await ghes_world.quick_key("acme/*")
    await settled(ghes_world)
    async with callers() as http:
        told = await ask(http, service, key)
        assert told.token in ghes_world.github.tokens
        assert [call.route for call in ghes_world.github.calls] == ["repo_installation", "mint"]
        assert ghes_world.server.api_url.endswith("/api/v3")
        page = await http.get(
            f"{service.url}/v1/github/repositories", headers={"Authorization": f"Bearer {key}"}
        )
        names = {one["full_name"] for one in page.json()["repositories"]}
        assert names == {"acme/widgets", "acme/gadgets"}
        refused = await ask(http, service, key, "acme/nothing")
        assert (refused.status, refused.body["code"]) == (404, "not_installed")
        assert f"{ghes_world.server.url}/github-apps/" in refused.body["detail"]
    await until(lambda: all(call.route != "unknown" for call in ghes_world.github.calls))
