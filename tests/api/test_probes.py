"""/livez and /readyz: they ask nobody, and stay good while the store or GitHub is away."""

import contextlib
import threading

import pytest
from harness import World
from stage import database, until, verdict, wrap_backend

from broker.build import build, build_app
from broker.errors import GitHubError, PrivateKeyError
from broker.sandbox.faults import Fault


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


FORMS: dict[str, tuple[Fault, str, str]] = {
    "fails": (Fault.unicorn(route="mint"), "github_unavailable", "ok"),
    "asks to wait": (Fault.secondary_limit(route="mint"), "github_rate_limited", "ok"),
    "refuses the app": (
        Fault(route="mint", status=401, body={"message": "A JSON web token could not be decoded"}),
        "github_rejected_app",
        "refused by GitHub",
    ),
}


@pytest.mark.parametrize("how", FORMS)
async def test_each_trouble_of_github_is_told_by_its_name_and_passes(world: World, how: str) -> None:
    fault, code, key_state = FORMS[how]
    async with world.inside(failure_cooldown=0.1) as app:
        key = await app.key("acme/*")
        await until(lambda: app.broker.github.last_ok_at is not None)
        world.github.faults.add(fault)
        assert (await app.token(key, "acme/widgets")).status_code in {502, 503}
        answer = await app.http.get("/readyz")
        assert (answer.status_code, answer.json()) == (
            200,
            {"status": "degraded", "checks": {"store": "ok", "github": code, "private_key": key_state}},
        )
        world.github.faults.remove(fault)

        async def answers_again() -> bool:
            with contextlib.suppress(GitHubError):
                return bool(await app.broker.github.app())
            return False

        await until(answers_again, seconds=20)  # an app that GitHub refuses asks again each 5 s at most
        assert (await app.http.get("/readyz")).json()["status"] == "ok"


async def test_a_refusal_that_is_a_verdict_is_no_trouble(world: World) -> None:
    async with world.inside() as app:
        key = await app.key("*/*")
        assert (await app.token(key, "stranger/secrets")).status_code == 404
        assert (await app.http.get("/readyz")).json()["status"] == "ok"


async def test_before_github_has_been_asked_its_state_is_unknown(world: World) -> None:
    held = threading.Event()
    world.github.faults.add(Fault(route="app", times=1, hold=held))
    async with world.inside() as app:
        answer = await app.http.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (200, "ok")
        assert answer.json()["checks"]["github"] == "unknown"
        held.set()
        await until(lambda: app.broker.github.last_ok_at is not None)
        assert (await app.http.get("/readyz")).json()["checks"]["github"] == "ok"


async def test_a_store_that_is_another_one_is_told_as_lost(world: World) -> None:
    async with world.inside() as app:
        key = await app.key("acme/*")
        with contextlib.closing(database(world)) as file:
            file.execute("UPDATE state SET value = x'00' WHERE name = 'id'")
        assert (await app.token(key, "acme/widgets")).status_code == 503
        answer = await app.http.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
        assert answer.json()["checks"]["store"] == "lost"


async def test_a_key_that_cannot_sign_is_not_ready(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        raise PrivateKeyError("it cannot sign")

    async with world.inside() as app:
        monkeypatch.setattr(app.broker.signer, "app_jwt", broken)
        answer = await app.http.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["checks"]["private_key"] == "cannot sign"
