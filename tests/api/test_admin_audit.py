"""``GET /v1/admin/audit``: filters, pages, following."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from admin_stage import AdminStage, key_id, sha256_of

from broker.wording import rfc3339

if TYPE_CHECKING:
    from harness import Inside, World


async def _story(world: World, app: Inside) -> tuple[AdminStage, dict[str, Any], str]:
    stage = await AdminStage.of(world, app)
    made = await stage.made("acme/*")
    token = await stage.issued(made["key"], "acme/widgets")
    await stage.issued(made["key"], "acme/gadgets")
    await stage.code(made["key"], "other/x")
    await stage.call("PUT", "/blocks/acme/gadgets", json={"reason": "x"})
    return stage, made, token


async def _events(stage: AdminStage, **wanted: str) -> list[dict[str, Any]]:
    """Follow the cursor to the end, as a client does."""
    found: list[dict[str, Any]] = []
    cursor = None
    for _ in range(200):
        query = {**wanted, **({} if cursor is None else {"cursor": cursor})}
        path = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items())
        answer = await stage.call("GET", f"/audit?{path}")
        assert answer.status_code == 200, answer.text
        assert answer.headers["cache-control"] == "no-store"
        page = answer.json()
        assert set(page) == {"events", "next_cursor"}
        found += page["events"]
        if page["next_cursor"] in {None, cursor}:
            return found
        cursor = page["next_cursor"]
    raise AssertionError("no end")


async def test_newest_first_and_all_fields(any_world: World) -> None:
    async with any_world.inside() as app:
        stage, made, token = await _story(any_world, app)
        events = await _events(stage)
        assert [one["event"] for one in reversed(events)] == [
            "key.created",
            "key.created",
            "token.minted",
            "token.issued",
            "token.minted",
            "token.issued",
            "token.denied",
            "block.set",
            "token.revoked",
        ]
        issued = next(one for one in reversed(events) if one["event"] == "token.issued")
        assert issued == {
            "id": issued["id"],
            "time": issued["time"],
            "event": "token.issued",
            "request_id": issued["request_id"],
            "key_id": made["id"],
            "key_name": "made",
            "owner": "acme",
            "client_ip": "192.0.2.7",
            "repositories": ["acme/widgets"],
            "permissions": {"contents": "read", "metadata": "read"},
            "installation_id": any_world.installation.id,
            "token_sha256": sha256_of(token),
            "expires_at": issued["expires_at"],
            "cached": False,
            "count": 1,
        }
        denied = next(one for one in events if one["event"] == "token.denied")
        assert (denied["code"], denied["count"]) == ("forbidden", 1)
        assert len({one["id"] for one in events}) == len(events)
        text = str(events)
        assert token not in text
        assert made["key"] not in text


async def test_filters(any_world: World) -> None:
    async with any_world.inside() as app:
        stage, made, _ = await _story(any_world, app)
        everything = await _events(stage)

        async def same(wanted: dict[str, str], expected: list[dict[str, Any]]) -> None:
            assert expected
            for more in ({}, {"limit": "1"}, {"limit": "200"}):
                assert await _events(stage, **wanted, **more) == expected
                assert await _events(stage, **wanted, **more, order="asc") == expected[::-1]

        await same({}, everything)
        await same({"key": made["id"]}, [one for one in everything if one["key_id"] == made["id"]])
        for name in ("token.issued", "block.set", "token.revoked"):
            await same({"event": name}, [one for one in everything if one["event"] == name])
        await same(
            {"repository": "ACME/Gadgets"},
            [one for one in everything if "acme/gadgets" in (one.get("repositories") or [])],
        )
        request_id = next(one["request_id"] for one in everything if one["event"] == "block.set")
        await same(
            {"request_id": request_id}, [one for one in everything if one.get("request_id") == request_id]
        )
        await same(
            {"key": made["id"], "event": "token.issued", "repository": "acme/widgets"},
            [one for one in everything if one["event"] == "token.issued"][1:],
        )
        for nobody in ({"key": "0" * 12}, {"repository": "acme/none"}, {"event": "webhook.received"}):
            assert await _events(stage, **nobody) == []
            assert await _events(stage, **nobody, order="asc") == []


async def test_since_and_until(any_world: World) -> None:
    async with any_world.inside() as app:
        stage = await AdminStage.of(any_world, app)
        await stage.made("acme/*", name="before")
        await asyncio.sleep(1.1)
        middle = rfc3339(app.broker.store.now())
        await asyncio.sleep(1.1)
        await stage.made("acme/*", name="after")
        names = [one["key_name"] for one in await _events(stage, since=middle)]
        assert names == ["after"]
        assert [one["key_name"] for one in await _events(stage, until=middle)] == ["before", "test"]
        far = {"since": "0001-01-01T00:00:00+23:59", "until": "9999-12-31T23:59:59-23:59"}
        assert len(await _events(stage, **far)) == 3
        assert await _events(stage, since=far["until"]) == []
        assert await _events(stage, since=middle, until=middle) == []
        newest = (await _events(stage))[0]["id"]
        page = (await stage.call("GET", f"/audit?until={middle}&cursor={newest}")).json()
        assert [one["key_name"] for one in page["events"]] == ["before", "test"]


async def test_following(any_world: World) -> None:
    """Ascending there is always a cursor to go on from, and asking again gives what is new, once."""
    async with any_world.inside() as app:
        stage = await AdminStage.of(any_world, app)
        page = (await stage.call("GET", "/audit?order=asc&limit=200")).json()
        assert [one["event"] for one in page["events"]] == ["key.created"]
        seen = [one["id"] for one in page["events"]]
        for number in range(5):
            idle = (await stage.call("GET", f"/audit?order=asc&cursor={page['next_cursor']}")).json()
            assert idle == {"events": [], "next_cursor": page["next_cursor"]}
            for _ in range(number):
                await stage.made("acme/*")
            page = (await stage.call("GET", f"/audit?order=asc&cursor={page['next_cursor']}")).json()
            assert len(page["events"]) == number
            seen += [one["id"] for one in page["events"]]
        assert seen == [one["id"] for one in await _events(stage)][::-1]
        # The id of an event is a cursor too, in either order.
        newest = seen[-1]
        assert (await stage.call("GET", f"/audit?order=asc&cursor={newest}")).json()["events"] == []
        older = (await stage.call("GET", f"/audit?cursor={newest}&limit=200")).json()["events"]
        assert [one["id"] for one in older] == seen[-2::-1]


@pytest.mark.parametrize(
    "query",
    [
        "key=x",
        "key=",
        "key=0000000000000",
        "repository=acme",
        "repository=",
        "event=token",
        "event=",
        "request_id=a%20b",
        "request_id=",
        "since=yesterday",
        "since=2026-11-22",
        "since=1764000000",
        "until=",
        "order=up",
        "order=",
        "cursor=",
        "cursor=x",
        "cursor=-1",
        "cursor=0-0",
        "cursor=99999999999999999999",
        "limit=0",
        "limit=201",
        "limit=1.0",
        "limit=%C2%B2",
        "page=1",
        "key_id=000000000000",
        "order=asc&order=asc",
    ],
)
async def test_a_query_that_makes_no_sense_is_refused(any_world: World, query: str) -> None:
    async with any_world.inside() as app:
        stage = await AdminStage.of(any_world, app)
        answer = await stage.call("GET", f"/audit?{query}")
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


async def test_the_changes_are_on_the_log_as_well(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="broker.audit")
    async with world.inside() as app:
        stage = await AdminStage.of(world, app)
        made = await stage.made("acme/*")
        path = f"/keys/{made['id']}"
        await stage.call("PATCH", path, json={"name": "other"})
        await stage.call("POST", f"{path}/rotate", json={"overlap_seconds": 60})
        await stage.call("DELETE", path)
        await stage.call("PUT", "/blocks/acme", json={"reason": "x"})
        await stage.call("DELETE", "/blocks/acme")
        await stage.call("POST", "/revocations", json={"all": True, "reason": "x"})
    logged = [record.message for record in caplog.records if record.name == "broker.audit"]
    assert logged == [
        "key.created",
        "key.changed",
        "key.created",
        "key.rotated",
        "key.revoked",
        "block.set",
        "block.lifted",
        "token.revoked",
    ]
    assert key_id(made["key"]) in str([getattr(record, "audit", None) for record in caplog.records])
