"""What each audit event says, to the last field: an auditor joins them by these."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from admin_stage import AdminStage, key_id, sha256_of
from stage import until

if TYPE_CHECKING:
    from harness import World

READ = {"contents": "read", "metadata": "read"}
IP = "192.0.2.7"


async def test_what_issuing_and_refusing_say(world: World) -> None:
    async with world.inside() as app:
        stage = await AdminStage.of(world, app)
        key = await app.key("acme/*")
        asked = {"repositories": ["acme/Widgets"]}
        caller = {"key_id": key_id(key), "key_name": "test"}
        answer = await stage.app.http.post(
            "/v1/github/token",
            json=asked,
            headers={"Authorization": f"Bearer {key}", "X-Request-Id": "one"},
        )
        of_token = {
            **caller,
            "owner": "acme",
            "repositories": ["acme/widgets"],
            "permissions": READ,
            "installation_id": world.installation.id,
            "token_sha256": sha256_of(answer.json()["token"]),
            "expires_at": answer.json()["expires_at"],
        }
        assert await stage.events(event="token.minted") == [{"event": "token.minted", **of_token}]
        [issued] = await stage.events(event="token.issued")
        assert issued == {
            "event": "token.issued",
            **of_token,
            "request_id": "one",
            "client_ip": IP,
            "cached": False,
            "count": 1,
        }

        names = [f"stranger/r{number:02}" for number in range(30)]
        refused = await app.token(key, *names, permissions={"contents": "read"})
        [denied] = await stage.events(event="token.denied")
        assert denied == {
            "event": "token.denied",
            "request_id": refused.headers["x-request-id"],
            "client_ip": IP,
            **caller,
            "owner": "stranger",
            "repositories": names[:20],
            "permissions": READ,
            "code": "forbidden",
            "reason": "the key's patterns do not cover stranger/r00",
            "count": 1,
        }


async def test_what_a_refusal_of_an_admin_call_says(world: World) -> None:
    async with world.inside() as app:
        stage = await AdminStage.of(world, app)
        key = await app.key("acme/*")
        refused = await stage.call("GET", "/blocks", key=key)
        assert await stage.events(event="token.denied") == [
            {
                "event": "token.denied",
                "request_id": refused.headers["x-request-id"],
                "client_ip": IP,
                "key_id": key_id(key),
                "key_name": "test",
                "code": "forbidden",
                "reason": "admin API (GET /v1/admin/blocks): not an admin key",
                "count": 1,
            }
        ]


async def test_what_changes_of_keys_say(world: World) -> None:
    async with world.inside() as app:
        stage = await AdminStage.of(world, app)
        made = await stage.made("acme/*")
        answers = [
            await stage.call("PATCH", f"/keys/{made['id']}", json={"name": "renamed"}),
            await stage.call("POST", f"/keys/{made['id']}/rotate", json={}),
        ]
        rotated = answers[-1].json()
        answers += [answers[-1], await stage.call("DELETE", f"/keys/{rotated['id']}")]
        told = [
            one
            for one in await stage.events()
            if one["event"].startswith("key.") and one["key_id"] != key_id(stage.admin)
        ]
        by = {"client_ip": IP, "reason": f"by key {key_id(stage.admin)} (test)"}
        expected = [
            ("key.changed", made["id"]),
            ("key.created", rotated["id"]),
            ("key.rotated", made["id"]),
            ("key.revoked", rotated["id"]),
        ]
        requests = [answer.headers["x-request-id"] for answer in answers]
        assert told[1:] == [
            {"event": event, "request_id": request, "key_id": key, "key_name": "renamed", **by}
            for (event, key), request in zip(expected, requests, strict=True)
        ]
        first = told[0]
        assert first == {
            "event": "key.created",
            "request_id": first["request_id"],
            "key_id": made["id"],
            "key_name": "made",
            **by,
        }


async def test_what_endings_say(world: World) -> None:
    async with world.inside() as app:
        stage = await AdminStage.of(world, app)
        key = await app.key("acme/*")
        issued = await app.token(key, "acme/widgets")
        block = await stage.call("PUT", "/blocks/acme/widgets", json={"reason": "leaked"})
        lifted = await stage.call("DELETE", "/blocks/acme/widgets")
        wide = await stage.call("PUT", "/blocks/acme", json={"reason": "leaked"})

        def call(event: str, answer: Any, **more: Any) -> dict[str, Any]:
            return {
                "event": event,
                "request_id": answer.headers["x-request-id"],
                "client_ip": IP,
                "key_id": key_id(stage.admin),
                "key_name": "test",
                "owner": "acme",
                **more,
            }

        one = {"repositories": ["acme/widgets"]}
        assert await stage.events(event="block.set") == [
            call("block.set", block, reason="leaked", **one),
            call("block.set", wide, reason="leaked"),
        ]
        assert await stage.events(event="block.lifted") == [
            call("block.lifted", lifted, reason="repository", **one)
        ]
        assert await stage.events(event="token.revoked") == [
            {
                "event": "token.revoked",
                "request_id": block.headers["x-request-id"],
                "key_id": key_id(stage.admin),
                "owner": "acme",
                **one,
                "permissions": READ,
                "installation_id": world.installation.id,
                "token_sha256": sha256_of(issued.json()["token"]),
                "expires_at": issued.json()["expires_at"],
                "reason": "leaked",
            }
        ]


async def test_what_a_token_says_that_nobody_got(world: World) -> None:
    world.github.over_grant_permissions = {"issues": "read"}
    async with world.inside() as app:
        stage = await AdminStage.of(world, app)
        await app.token(await app.key("acme/*"), "acme/widgets")

        async def revoked() -> bool:
            return bool(await stage.events(event="token.revoked"))

        await until(revoked)
        [event] = await stage.events(event="token.revoked")
        [token] = world.github.tokens
        assert event.pop("reason").startswith("GitHub granted permissions that were not asked for: issues")
        assert event == {
            "event": "token.revoked",
            "owner": "acme",
            "repositories": ["acme/widgets"],
            "permissions": READ,
            "token_sha256": sha256_of(token),
        }


async def test_what_a_sync_says(world: World) -> None:
    async with world.inside() as app:
        stage = await AdminStage.of(world, app)
        await app.token(await app.key("acme/*"), "acme/widgets")
        world.github.suspend(world.installation)
        changed = await stage.call("POST", "/installations/sync")
        world.github.uninstall(world.installation)
        removed = await stage.call("POST", "/installations/sync")
        reasons = ("sync: suspended False is now True", "sync: the app is not installed there any more")
        assert await stage.events(event="owner.changed") == [
            {
                "event": "owner.changed",
                "request_id": answer.headers["x-request-id"],
                "client_ip": IP,
                "key_id": key_id(stage.admin),
                "key_name": "test",
                "owner": "acme",
                "installation_id": world.installation.id,
                "reason": reason,
            }
            for answer, reason in zip((changed, removed), reasons, strict=True)
        ]


async def test_what_the_end_of_one_token_says(world: World) -> None:
    async with world.inside() as app:
        stage = await AdminStage.of(world, app)
        sha256 = sha256_of(await stage.issued(await app.key("acme/*"), "acme/widgets"))
        body = {"token_sha256": sha256, "reason": "found in a gist"}
        answer = await stage.call("POST", "/revocations", json=body)
        call, each = await stage.events(event="token.revoked")
        assert call == {
            "event": "token.revoked",
            "request_id": answer.headers["x-request-id"],
            "client_ip": IP,
            "key_id": key_id(stage.admin),
            "key_name": "test",
            "token_sha256": sha256,
            "reason": "found in a gist",
        }
        assert (each["token_sha256"], each["reason"]) == (sha256, "found in a gist")
