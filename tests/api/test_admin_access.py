"""Who may use the admin API: every route, every kind of caller, and no refused call changes a thing."""

from __future__ import annotations

import asyncio

import pytest
from admin_stage import ROUTES, AdminStage, key_id
from harness import World, bearer, unknown_key

from broker.web.openapi import document

ANSWERS = {
    "nobody": (401, "invalid_api_key"),
    "malformed": (401, "invalid_api_key"),
    "unknown": (401, "invalid_api_key"),
    "another's secret": (401, "invalid_api_key"),
    "revoked": (401, "invalid_api_key"),
    "expired": (401, "invalid_api_key"),
    "caller": (403, "forbidden"),
}


async def test_only_admins_and_nothing_changes_for_others(any_world: World) -> None:
    bootstrap = unknown_key()
    async with any_world.inside(admin_key=bootstrap) as app:
        stage = await AdminStage.of(any_world, app)
        target = await stage.made("acme/*")
        await stage.issued(target["key"], "acme/widgets")
        await stage.call("PUT", "/blocks/globex", json={"reason": "x"})
        revoked = await stage.made(role="admin")
        await stage.call("DELETE", f"/keys/{revoked['id']}")
        expired = await app.key(admin=True, expires_in_s=1.1)
        headers = {
            "nobody": {},
            "malformed": bearer(stage.admin[:-1] + "!"),
            "unknown": bearer(unknown_key()),
            "another's secret": bearer(_of_another(stage.admin)),
            "revoked": bearer(revoked["key"]),
            "expired": bearer(expired),
            "caller": bearer(await app.key("*/*")),
        }
        await asyncio.sleep(1.2)
        before = await stage.state()
        for method, route in ROUTES:
            path = route.replace("{id}", target["id"])
            # Neither a good body nor a bad one makes a difference, nor does a query that does not exist.
            # All at once: strangers wait for each other's look into the store.
            tries = [
                (who, more)
                for who in ANSWERS
                for more in (
                    {"json": {"reason": "x", "owner": "acme"}},
                    {"content": b"\x00"},
                    {"params": {"a": "b"}},
                )
            ]
            told = await asyncio.gather(
                *(app.http.request(method, path, headers=headers[who], **more) for who, more in tries)
            )
            for (who, _), answer in zip(tries, told, strict=True):
                found = (answer.status_code, answer.json()["code"])
                assert found == ANSWERS[who], (method, path, who)
        assert await stage.state() == before
        denied = await stage.events(event="token.denied")
        assert {one["code"] for one in denied} == {"forbidden"}
        assert all("admin API" in one["reason"] for one in denied)
        for key in (stage.admin, bootstrap):
            for method, route in ROUTES:
                path = route.replace("{id}", key_id(await app.key("acme/*")))
                answer = await app.http.request(method, path, headers=bearer(key), json={})
                assert answer.status_code not in {401, 403}, (method, path)
                assert answer.status_code < 500
                assert "cache-control" in answer.headers


def _of_another(key: str) -> str:
    """Return a well-formed key with the same id and another secret."""
    from broker.access.keys import checksum  # noqa: PLC0415

    body = f"ghbk_{key_id(key)}_" + unknown_key().split("_")[2][:43]
    return body + checksum(body)


async def test_an_admins_own_limit_counts(any_world: World) -> None:
    async with any_world.inside() as app:
        limited = await app.key(admin=True, limit=3)
        codes = [
            (await app.http.get("/v1/admin/keys", headers=bearer(limited))).status_code for _ in range(5)
        ]
        assert codes[0] == 200
        assert codes[-1] == 429
        refused = await app.http.get("/v1/admin/keys", headers=bearer(limited))
        assert refused.json()["code"] == "rate_limited"
        assert int(refused.headers["retry-after"]) >= 1


@pytest.mark.parametrize("path", sorted({path for _, path in ROUTES}))
async def test_other_methods_are_refused(world: World, path: str) -> None:
    async with world.inside() as app:
        stage = await AdminStage.of(world, app)
        known = {method for method, one in ROUTES if one == path}
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - known:
            answer = await app.http.request(
                method, path.replace("{id}", "0" * 12), headers=bearer(stage.admin)
            )
            assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")


async def test_the_description_has_every_route(world: World) -> None:
    described = document()
    found = {
        (method.upper(), path)
        for path, methods in described["paths"].items()
        for method in methods
        if path.startswith("/v1/admin")
    }
    wanted = {
        (method, path.replace("/acme/widgets", "/{owner}/{repo}").replace("/acme", "/{owner}"))
        for method, path in ROUTES
    }
    assert found == wanted
    async with world.inside() as app:
        assert (await app.http.get("/openapi.json")).json() == described
