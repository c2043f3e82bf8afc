"""/livez and /readyz: they ask nobody, and stay good while the store or GitHub is away."""

from harness import World
from stage import until, verdict, wrap_backend

from broker.build import build, build_app


async def test_live_and_ready_ask_nobody(any_world: World) -> None:
    async with any_world.inside() as app:
        await until(lambda: any_world.github.count("app") == 1)
        heal = app.broker.store._heal
        assert heal is not None
        heal.cancel()  # it looks after the store by itself, each second
        counted = wrap_backend(app)
        any_world.github.clear_calls()
        for _ in range(20):
            for path in ("/livez", "/readyz"):
                answer = await app.http.get(path)
                assert answer.status_code == 200
                assert answer.headers["cache-control"] == "no-store"
        assert any_world.github.count() == 0
        assert counted.calls == {}
        await until(lambda: app.broker.github.last_ok_at is not None)
        assert (await app.http.get("/readyz")).json() == {
            "status": "ok", "checks": {"store": "ok", "github": "ok", "private_key": "ok"},
        }  # fmt: skip


async def test_not_ready_before_the_store_has_answered_once(world: World) -> None:
    import httpx  # noqa: PLC0415

    app = build_app(build(world.settings()))  # built, not started
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as http:
        assert (await http.get("/livez")).status_code == 200
        answer = await http.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["status"] == "degraded"
        assert verdict(await http.get("/v1/whoami")) == (401, "invalid_api_key")


async def test_github_away_is_told_and_no_reason_to_leave(world: World) -> None:
    async with world.inside() as app:
        key = await app.key("acme/*")
        await until(lambda: app.broker.github.last_ok_at is not None)
        world.server.stop()
        assert (await app.token(key, "acme/widgets")).status_code in {502, 504}
        answer = await app.http.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
        assert answer.json()["checks"]["github"] != "ok"
        world.server.start()


async def test_openapi_is_served(world: World) -> None:
    async with world.inside() as app:
        answer = await app.http.get("/openapi.json")
        assert answer.status_code == 200
        assert answer.json()["openapi"].startswith("3.1")
