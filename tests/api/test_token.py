"""The whole way of a token request: ASGI in, emulated GitHub at the far end."""

from harness import World, bearer


async def test_a_caller_gets_a_token_for_exactly_one_repository(any_world: World) -> None:
    async with any_world.inside() as app:
        key = await app.key("acme/*")
        answer = await app.token(key, "acme/widgets")
        assert answer.status_code == 200, answer.text
        body = answer.json()
        minted = any_world.github.tokens[body["token"]]
        assert [any_world.github.find_repository("acme/widgets").id] == list(minted.repositories or [])
        assert dict(minted.permissions) == {"contents": "read", "metadata": "read"}
        assert body["repositories"] == ["acme/widgets"]
        assert body["permissions"] == {"contents": "read", "metadata": "read"}
        assert body["installation_id"] == any_world.installation.id
        assert body["cached"] is False
        assert answer.headers["cache-control"] == "no-store"
        again = await app.token(key, "ACME/Widgets")
        assert again.json() == {**body, "cached": True}


async def test_a_warm_cache_does_not_bypass_policy(any_world: World) -> None:
    """A key that may not reach a repository is refused even when another key warmed the cache."""
    async with any_world.inside() as app:
        wide, narrow = await app.key("acme/*"), await app.key("acme/gadgets")
        assert (await app.token(wide, "acme/widgets")).status_code == 200
        any_world.github.clear_calls()
        refused = await app.token(narrow, "acme/widgets")
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
        assert any_world.github.count() == 0


async def test_who_am_i(world: World) -> None:
    async with world.inside() as app:
        key = await app.key("acme/*")
        answer = await app.http.get("/v1/whoami", headers=bearer(key))
        assert answer.status_code == 200
        assert answer.json()["repositories"] == ["acme/*"]
        assert "sha256" not in answer.text
