"""What a refusal tells: to one who may not, nothing of what exists; and nothing is built from ``Host``."""

import asyncio

from harness import World, bearer

HOST = "evil.test"


async def test_denials_look_alike(any_world: World) -> None:
    """Installed or not, there or not, blocked or not: one answer, and GitHub is not asked."""
    world = any_world
    async with world.inside() as app:
        admin = await app.key(admin=True)
        await app.http.put("/v1/admin/blocks/stranger", json={"reason": "drill"}, headers=bearer(admin))
        other, key = await app.key("acme/*"), await app.key("acme/widgets")
        assert (await app.token(other, "acme/gadgets")).status_code == 200
        world.github.clear_calls()
        seen = set()
        for name in ("acme/gadgets", "acme/nothing", "stranger/secrets", "stranger/none", "nobody/none"):
            answer = await app.token(key, name)
            body = answer.json()
            assert body.pop("request_id") == answer.headers["x-request-id"]
            seen.add((answer.status_code, str(sorted(body.items())), "retry-after" in answer.headers))
        assert len(seen) == 1, seen
        assert next(iter(seen))[0] == 403
        wide = [
            (await app.token(key, owner=owner)).json()["detail"] for owner in ("acme", "stranger", "nobody")
        ]
        assert len(set(wide)) == 1
        assert world.github.count() == 0


async def test_nothing_is_built_from_the_host(world: World) -> None:
    async with world.inside() as app:
        key = await app.key("acme/*")
        await asyncio.sleep(0.1)
        headers = {
            **bearer(key),
            "Host": HOST,
            "X-Forwarded-Host": HOST,
            "Forwarded": f"host={HOST}",
            "X-Forwarded-Proto": "https",
        }
        for path in ("/", "/livez", "/readyz", "/openapi.json", "/v1/whoami", "/v1/github/repositories"):
            answer = await app.http.get(path, headers=headers)
            assert HOST not in answer.text
            assert HOST not in str(answer.headers)
        for name in ("acme/widgets", "acme/nothing", "stranger/secrets"):
            answer = await app.http.post("/v1/github/token", json={"repositories": [name]}, headers=headers)
            assert HOST not in answer.text
            assert HOST not in str(answer.headers)
        assert not any(HOST in str(call.headers) for call in world.github.calls)
