"""The audit: no record, no token; what repeats is counted; strangers fill nothing."""

import base64
import hashlib
import json
import logging
from typing import Any

import pytest
from harness import World, bearer, unknown_key
from stage import database, events, pair, verdict, wrap_backend

from broker.errors import StoreUnavailableError
from broker.observe import JsonFormatter
from broker.ports import AuditFilter

OK = (200, "ok")


async def test_no_record_no_token(any_world: World) -> None:
    """The record is made in the step that allows the hand-out: if that fails, nothing is given out."""

    async def fails(**_: Any) -> str:
        raise StoreUnavailableError("on purpose")

    async with any_world.inside() as app:
        key = await app.key("acme/*")
        wrapped = wrap_backend(app, hand=fails)
        for _ in range(2):
            answer = await app.token(key, "acme/widgets")
            assert verdict(answer) == (503, "store_unavailable")
            assert not any(token in answer.text for token in any_world.github.tokens)
        assert await events(app, "token.issued") == []
        wrapped._instead.clear()
        answer = await app.token(key, "acme/widgets")
        assert verdict(answer) == OK
        (event,) = await events(app, "token.issued")
        assert event["token_sha256"] == sha(answer.json()["token"])


def sha(token: str) -> str:
    return base64.b64encode(hashlib.sha256(token.encode()).digest()).decode()


async def test_what_an_issue_says(any_world: World) -> None:
    async with any_world.inside() as app:
        key = await app.key("acme/*")
        answer = await app.http.post(
            "/v1/github/token",
            json={"repositories": ["acme/Widgets"]},
            headers={"Authorization": f"Bearer {key}", "X-Request-Id": "ours.1"},
        )
        (event,) = await events(app, "token.issued")
        assert event == {
            "event": "token.issued",
            "request_id": "ours.1",
            "key_id": key[5:17],
            "key_name": "test",
            "owner": "acme",
            "client_ip": "192.0.2.7",
            "repositories": ["acme/widgets"],
            "permissions": {"contents": "read", "metadata": "read"},
            "installation_id": any_world.installation.id,
            "token_sha256": sha(answer.json()["token"]),
            "expires_at": answer.json()["expires_at"],
            "cached": False,
            "count": 1,
        }
        (minted,) = await events(app, "token.minted")
        assert minted["token_sha256"] == event["token_sha256"]
        (created,) = await events(app, "key.created")
        assert (created["key_id"], created["key_name"]) == (key[5:17], "test")


async def test_repeated_hand_outs_are_one_record_and_a_count(
    any_world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "broker.audit")
    async with any_world.inside() as app:
        key, other = await app.key("acme/*"), await app.key("acme/*")
        counted = wrap_backend(app)
        for _ in range(7):
            await app.token(key, "acme/widgets")
        await app.token(other, "acme/widgets")
        assert counted.calls["hand"] == 2  # once a key and token
        found = await events(app, "token.issued")
        assert sorted(event["key_id"] for event in found) == sorted([key[5:17], other[5:17]])
        lines = [record for record in caplog.records if record.message == "token.issued"]
        assert len(lines) == 8  # on the log each
        await app.broker.auditor.flush(everything=True)
        found = await events(app, "token.issued")
        assert sum(event["count"] for event in found) == 8
        assert len(found) == 3
        await app.broker.auditor.flush(everything=True)
        assert len(await events(app, "token.issued")) == 3


async def test_a_line_shows_the_keys_name_of_its_time(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Also where most of the line was rendered when the key had another name."""
    caplog.set_level(logging.INFO, "broker.audit")
    async with world.inside() as app:
        key, admin = await app.key("acme/*"), await app.key(admin=True)
        for _ in range(5):
            await app.token(key, "acme/widgets")
        await app.broker.auditor.flush(everything=True)
        caplog.clear()
        renamed = await app.http.patch(
            f"/v1/admin/keys/{key[5:17]}", json={"name": "renamed"}, headers=bearer(admin)
        )
        assert renamed.status_code == 200
        for _ in range(5):
            await app.token(key, "acme/widgets")
        formatter = JsonFormatter()
        lines = [json.loads(formatter.format(one)) for one in caplog.records if one.message == "token.issued"]
        assert [line["key_name"] for line in lines] == ["renamed"] * 5


async def test_refusals_are_stored_once_with_a_count(any_world: World) -> None:
    async with any_world.inside() as app:
        key = await app.key("acme/widgets")
        for _ in range(5):
            await app.token(key, "acme/gadgets")
        (event,) = await events(app, "token.denied")
        assert (event["code"], event["key_id"], event["count"]) == ("forbidden", key[5:17], 1)
        assert event["repositories"] == ["acme/gadgets"]
        await app.broker.auditor.flush(everything=True)
        assert [event["count"] for event in await events(app, "token.denied")] == [1, 4]


async def test_strangers_fill_the_log_only(any_world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "broker.audit")
    async with any_world.inside() as app:
        known = await app.key("acme/*", expires_in_s=-1)
        for key in (unknown_key(), unknown_key(), known):
            assert (await app.token(key, "acme/widgets")).status_code == 401
        await app.broker.auditor.flush(everything=True)
        assert await events(app, "token.denied") == []
        lines = [record for record in caplog.records if record.message == "token.denied"]
        assert len(lines) == 3
        told = json.loads(JsonFormatter().format(lines[0]))
        assert (told["event"], told["code"], told["client_ip"]) == (
            "token.denied", "invalid_api_key", "192.0.2.7",
        )  # fmt: skip


async def test_what_is_pending_is_written_at_the_end(any_world: World) -> None:
    async with any_world.inside() as app:
        key = await app.key("acme/*")
        for _ in range(4):
            await app.token(key, "acme/widgets")
    async with any_world.inside() as app:
        assert sum(event["count"] for event in await events(app, "token.issued")) == 4


async def test_filters_and_pages(any_world: World) -> None:
    async with pair(any_world) as (app, two):
        key, other = await app.key("acme/*"), await app.key("acme/*")
        await app.token(key, "acme/widgets")
        await two.token(other, "acme/gadgets")
        await two.token(other, "stranger/secrets")
        assert {event["key_id"] for event in await events(two, key_id=key[5:17])} == {key[5:17]}
        touched = await events(app, repository="acme/Gadgets")
        assert {event["event"] for event in touched} == {"token.minted", "token.issued"}
        assert [event["event"] for event in await events(app, "token.denied")] == ["token.denied"]
        store, seen, cursor = app.broker.store, [], None
        while True:
            page = await store.audit(AuditFilter(), cursor=cursor, limit=2)
            seen += [row.id for row in page.items]
            cursor = page.next_cursor
            if cursor is None:
                break
        assert len(seen) == len(set(seen)) == 7
        rows = (await store.audit(AuditFilter(), cursor=None, limit=50)).items
        assert [row.id for row in rows] == seen
        assert [row.time for row in rows] == sorted((row.time for row in rows), reverse=True)


async def test_a_count_that_could_not_be_written_is_kept(world: World) -> None:
    async def fails(*_: Any) -> bool:
        raise StoreUnavailableError("on purpose")

    async with world.inside() as app:
        key = await app.key("acme/widgets")
        wrapped = wrap_backend(app, append=fails, touch=fails)
        await app.token(key, "acme/gadgets")
        await app.token(key, "acme/gadgets")
        with pytest.raises(StoreUnavailableError):
            await app.broker.auditor.flush(everything=True)
        wrapped._instead.clear()
        await app.broker.auditor.flush(everything=True)
        assert sum(event["count"] for event in await events(app, "token.denied")) == 2


async def test_the_audit_table_holds_no_token(world: World) -> None:
    async with world.inside() as app:
        key = await app.key("acme/*")
        token = (await app.token(key, "acme/widgets")).json()["token"]
        db = database(world)
        text = " ".join(row[0] for row in db.execute("SELECT body FROM audit"))
        db.close()
        assert token not in text
        assert key[18:] not in text
