"""``/v1/admin/keys``: every field and method, over the real app, on both stores."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from admin_stage import NOTHING, AdminStage, key_id
from harness import World, bearer, unknown_key
from stage import HandClock, wrap_backend

from broker.errors import StoreUnavailableError
from broker.issuing import keys

if TYPE_CHECKING:
    from broker.store.backend import KeyWriteArgs


async def test_create_show_list_and_change(any_world: World) -> None:
    async with any_world.inside() as app:
        stage = await AdminStage.of(any_world, app)
        answer = await stage.call(
            "POST",
            "/keys",
            json={
                "name": " nightly ",
                "repositories": ["Acme/*", "acme/*", "other/x"],
                "permissions": {"issues": "read"},
                "expires_at": "2099-01-02T03:04:05+00:00",
                "rate_limit_per_minute": 60,
            },
        )
        assert answer.status_code == 201
        assert answer.headers["cache-control"] == "no-store"
        made = answer.json()
        key = made.pop("key")
        assert made["id"] == key_id(key)
        assert made | {"id": "", "created_at": ""} == {
            "id": "",
            "name": "nightly",
            "role": "caller",
            "repositories": ["acme/*", "other/x"],
            "permissions": {"issues": "read", "metadata": "read"},
            "created_at": "",
            "created_by": f"key {key_id(stage.admin)} (test)",
            "expires_at": "2099-01-02T03:04:05Z",
            "revoked_at": None,
            "last_used_at": None,
            "rate_limit_per_minute": 60,
        }
        assert (await stage.call("GET", f"/keys/{made['id']}")).json() == made
        listed = (await stage.call("GET", "/keys")).json()
        assert [one["id"] for one in listed["keys"]] == [key_id(stage.admin), made["id"]]
        assert listed["next_cursor"] is None

        changes: list[dict[str, Any]] = [
            {"name": "hourly"},
            {"repositories": ["acme/gadgets"]},
            {"permissions": {"contents": "read"}},
            {"expires_at": None},
            {"expires_at": "2098-01-01T00:00:00Z"},
            {"rate_limit_per_minute": None},
        ]
        for change in changes:
            changed = await stage.call("PATCH", f"/keys/{made['id']}", json=change)
            assert changed.status_code == 200, changed.text
            made |= change
            made["permissions"] |= {"metadata": "read"}
            assert changed.json() == made
        assert (await stage.call("GET", f"/keys/{made['id']}")).json() == made
        events = await stage.events(key_id=made["id"])
        assert [one["event"] for one in events] == ["key.created", *["key.changed"] * len(changes)]
        assert all(one["request_id"] and one["client_ip"] == "192.0.2.7" for one in events)
        assert all(one["reason"] == f"by key {key_id(stage.admin)} (test)" for one in events)
        assert key not in str(events)


async def test_paging_through_keys(any_world: World) -> None:
    async with any_world.inside() as app:
        stage = await AdminStage.of(any_world, app)
        made = [key_id(stage.admin)] + [(await stage.made("acme/*"))["id"] for _ in range(4)]
        seen, cursor = [], None
        while True:
            query = "?limit=2" + (f"&cursor={cursor}" if cursor else "")
            page = (await stage.call("GET", f"/keys{query}")).json()
            assert len(page["keys"]) <= 2
            seen += [one["id"] for one in page["keys"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert seen == made


async def test_an_admin_key_needs_no_repository_a_caller_does(any_world: World) -> None:
    async with any_world.inside() as app:
        stage = await AdminStage.of(any_world, app)
        made = await stage.made(role="admin")
        assert (await stage.call("GET", "/keys", key=made["key"])).status_code == 200
        refused = await stage.call("POST", "/keys", json={"name": "x", "repositories": []})
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
        caller = await stage.made("acme/*")
        refused = await stage.call("PATCH", f"/keys/{caller['id']}", json={"repositories": []})
        assert refused.status_code == 422
        emptied = await stage.call("PATCH", f"/keys/{made['id']}", json={"repositories": []})
        assert emptied.status_code == 200


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "invalid_request"),
        ({"name": "x"}, "invalid_request"),
        ({"name": "", "repositories": ["acme/*"]}, "invalid_request"),
        ({"name": "a\x1b[2J", "repositories": ["acme/*"]}, "invalid_request"),
        ({"name": "a" * 201, "repositories": ["acme/*"]}, "invalid_request"),
        ({"name": "x", "repositories": "acme/*"}, "invalid_request"),
        ({"name": "x", "repositories": ["acme"]}, "invalid_request"),
        ({"name": "x", "repositories": ["*/x"]}, "invalid_request"),
        ({"name": "x", "repositories": ["acme/*/x"]}, "invalid_request"),
        ({"name": "x", "repositories": ["acme/*\n"]}, "invalid_request"),
        ({"name": "x", "repositories": ["acme/*"], "role": "root"}, "invalid_request"),
        ({"name": "x", "repositories": ["acme/*"], "permissions": {}}, "invalid_request"),
        ({"name": "x", "repositories": ["acme/*"], "permissions": {"contents": "write"}}, "not_read_only"),
        ({"name": "x", "repositories": ["acme/*"], "permissions": None}, "invalid_request"),
        ({"name": "x", "repositories": ["acme/*"], "expires_at": "tomorrow"}, "invalid_request"),
        ({"name": "x", "repositories": ["acme/*"], "expires_at": "2020-01-01T00:00:00Z"}, "invalid_request"),
        (
            {"name": "x", "repositories": ["acme/*"], "expires_at": "9999-12-31T23:59:59-23:59"},
            "invalid_request",
        ),
        ({"name": "x", "repositories": ["acme/*"], "expires_at": 4102444800}, "invalid_request"),
        ({"name": "x", "repositories": ["acme/*"], "rate_limit_per_minute": 0}, "invalid_request"),
        ({"name": "x", "repositories": ["acme/*"], "rate_limit_per_minute": True}, "invalid_request"),
        ({"name": "x", "repositories": ["acme/*"], "id": "000000000000"}, "invalid_request"),
        ({"name": "x", "repositories": ["acme/*"], "revoked_at": None}, "invalid_request"),
    ],
)
async def test_a_wrong_body_makes_no_key(world: World, body: dict[str, Any], code: str) -> None:
    async with world.inside() as app:
        stage = await AdminStage.of(world, app)
        before = await stage.state()
        refused = await stage.call("POST", "/keys", json=body)
        assert (refused.status_code, refused.json()["code"]) == (422, code)
        assert await stage.state() == before


async def test_what_is_no_strict_json_is_refused(world: World) -> None:
    async with world.inside() as app:
        stage = await AdminStage.of(world, app)
        before = await stage.state()
        kind = {"content-type": "application/json"}
        twice = b'{"name": "x", "name": "y", "repositories": ["acme/*"]}'
        for content, headers, status in (
            (twice, kind, 400),
            (b"not json", kind, 400),
            (b"[]", kind, 400),
            (b'{"name": "x"}', {"content-type": "text/plain"}, 415),
            (b" " * 65_537, kind, 413),
        ):
            refused = await stage.call("POST", "/keys", content=content, headers=headers)
            assert refused.status_code == status, refused.text
        query = await stage.call("POST", "/keys?x=1", json={"name": "x", "repositories": ["acme/*"]})
        assert query.status_code == 422
        assert await stage.state() == before


async def test_nothing_to_change_and_unknown_fields_are_refused(any_world: World) -> None:
    async with any_world.inside() as app:
        stage = await AdminStage.of(any_world, app)
        made = await stage.made("acme/*")
        before = await stage.state()
        for body in ({}, {"role": "admin"}, {"name": None}, {"nome": "x"}, {"permissions": {}}):
            assert (await stage.call("PATCH", f"/keys/{made['id']}", json=body)).status_code == 422
        assert await stage.state() == before


@pytest.mark.parametrize(
    "unknown", ["000000000000", "x", "0" * 13, "%2e%2e", "00000000000%0a", "\u00e4" * 12]
)
async def test_an_unknown_id_is_not_found(world: World, unknown: str) -> None:
    async with world.inside() as app:
        stage = await AdminStage.of(world, app)
        for method, path, body in (
            ("GET", "", None),
            ("PATCH", "", {"name": "x"}),
            ("POST", "/rotate", {}),
            ("DELETE", "", None),
        ):
            answer = await stage.call(method, f"/keys/{unknown}{path}", json=body)
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_the_key_of_the_settings_cannot_be_changed(any_world: World) -> None:
    bootstrap = unknown_key()
    async with any_world.inside(admin_key=bootstrap) as app:
        stage = AdminStage(any_world, app, bootstrap)
        made = await stage.made("acme/*")
        assert made["created_by"] == f"key {key_id(bootstrap)} (BROKER_ADMIN_KEY)"
        for method, path, body in (
            ("PATCH", "", {"name": "x"}),
            ("POST", "/rotate", {}),
            ("DELETE", "", None),
            ("DELETE", "?tokens=revoke", None),
        ):
            answer = await stage.call(method, f"/keys/{key_id(bootstrap)}{path}", json=body)
            assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
        assert (await stage.call("GET", f"/keys/{key_id(bootstrap)}")).status_code == 404
        assert (await stage.call("GET", "/keys")).status_code == 200


async def test_a_narrower_policy_holds_at_once(any_world: World) -> None:
    """PATCH in one process; the other one, whose caches are warm, refuses the next call."""
    async with any_world.inside() as app, any_world.inside() as other:
        stage = await AdminStage.of(any_world, app)
        made = await stage.made("acme/*", permissions={"contents": "read", "issues": "read"})
        for each in (app, other):
            wide = {"contents": "read", "issues": "read"}
            assert (await each.token(made["key"], "acme/widgets", permissions=wide)).status_code == 200
            assert (await each.token(made["key"], "acme/gadgets")).status_code == 200
        changed = await stage.call(
            "PATCH",
            f"/keys/{made['id']}",
            json={"repositories": ["acme/widgets"], "permissions": {"contents": "read"}},
        )
        assert changed.status_code == 200
        for each in (app, other):
            assert (await each.token(made["key"], "acme/gadgets")).json()["code"] == "forbidden"
            refused = await each.token(made["key"], "acme/widgets", permissions={"issues": "read"})
            assert refused.json()["code"] == "forbidden"
            assert (await each.token(made["key"], "acme/widgets")).status_code == 200
        assert (
            await stage.call("PATCH", f"/keys/{made['id']}", json={"rate_limit_per_minute": 1})
        ).is_success
        codes = [(await app.token(made["key"], "acme/widgets")).status_code for _ in range(3)]
        assert codes[-1] == 429


async def test_a_change_that_crosses_a_revocation_loses(any_world: World) -> None:
    async with any_world.inside() as app:
        stage = await AdminStage.of(any_world, app)
        for _ in range(5):
            made = await stage.made("acme/*")
            path = f"/keys/{made['id']}"
            await asyncio.gather(
                *(stage.call("PATCH", path, json={"name": f"n{number}"}) for number in range(4)),
                stage.call("DELETE", path),
                *(stage.call("PATCH", path, json={"expires_at": None}) for _ in range(4)),
            )
            assert (await app.token(made["key"], "acme/widgets")).status_code == 401
            late = await stage.call("PATCH", path, json={"name": "late"})
            assert (late.status_code, late.json()["code"]) == (409, "conflict")
            record = (await stage.call("GET", path)).json()
            assert record["revoked_at"] is not None
            assert record["name"] != "late"


async def test_rotation_with_an_overlap(any_world: World) -> None:
    async with any_world.inside() as app:
        stage = await AdminStage.of(any_world, app)
        old = await stage.made("acme/*", rate_limit_per_minute=600, expires_at="2099-01-01T00:00:00Z")
        rotated = await stage.call("POST", f"/keys/{old['id']}/rotate", json={"overlap_seconds": 2})
        assert rotated.status_code == 201
        assert rotated.headers["cache-control"] == "no-store"
        new = rotated.json()
        kept = ("name", "role", "repositories", "permissions", "rate_limit_per_minute", "expires_at")
        assert {name: new[name] for name in kept} == {name: old[name] for name in kept}
        assert new["id"] != old["id"]
        assert (await app.token(old["key"], "acme/widgets")).status_code == 200
        assert (await app.token(new["key"], "acme/widgets")).status_code == 200
        await asyncio.sleep(3.1)  # a record holds whole seconds
        assert (await app.token(old["key"], "acme/widgets")).status_code == 401
        assert (await app.token(new["key"], "acme/widgets")).status_code == 200
        again = await stage.call("POST", f"/keys/{old['id']}/rotate", json={})
        assert (again.status_code, again.json()["code"]) == (409, "conflict")
        events = [one["event"] for one in await stage.events(key_id=old["id"])]
        assert [name for name in events if name.startswith("key.")] == ["key.created", "key.rotated"]


async def test_an_overlap_is_not_cut_short(world: World) -> None:
    """Records hold whole seconds: the end is rounded up."""
    clock = HandClock(at=1_800_000_000.9)
    async with world.inside(clock=clock) as app:
        stage = await AdminStage.of(world, app)
        old = await stage.made("acme/*")
        assert (
            await stage.call("POST", f"/keys/{old['id']}/rotate", json={"overlap_seconds": 2})
        ).status_code == 201
        clock.at += 1.9
        assert (await app.token(old["key"], "acme/widgets")).status_code == 200
        clock.at += 1.1
        assert (await app.token(old["key"], "acme/widgets")).status_code == 401


async def test_rotation_without_an_overlap_ends_the_old_key_at_once(any_world: World) -> None:
    async with any_world.inside() as app:
        stage = await AdminStage.of(any_world, app)
        old = await stage.made("acme/*")
        rotated = await stage.call("POST", f"/keys/{old['id']}/rotate")  # no body at all
        assert rotated.status_code == 201
        assert (await app.token(old["key"], "acme/widgets")).status_code == 401
        assert (await app.token(rotated.json()["key"], "acme/widgets")).status_code == 200
        for body in (
            {"overlap_seconds": 604_801},
            {"overlap_seconds": -1},
            {"overlap_seconds": "1"},
            {"x": 1},
        ):
            refused = await stage.call("POST", f"/keys/{rotated.json()['id']}/rotate", json=body)
            assert refused.status_code == 422
        assert (await app.token(rotated.json()["key"], "acme/widgets")).status_code == 200


@pytest.mark.parametrize("overlap_s", [0, 3600])
async def test_a_rotation_with_an_answer_lost_leaves_nobody_without_a_key(
    world: World, overlap_s: int
) -> None:
    """What ends the old key is written again until it is known to stand: the new one is shown then."""
    async with world.inside() as app:
        stage = await AdminStage.of(world, app)
        old = await stage.made("acme/*")
        whole = app.broker.store._backend
        lost = 0

        async def write_key(args: KeyWriteArgs) -> Any:
            nonlocal lost
            if args.key_id != old["id"] or lost == 2:
                return await whole.write_key(args)
            lost += 1
            await whole.write_key(args)
            raise StoreUnavailableError("the answer is lost")

        wrap_backend(app, write_key=write_key)
        rotated = await stage.call("POST", f"/keys/{old['id']}/rotate", json={"overlap_seconds": overlap_s})
        assert (rotated.status_code, lost) == (201, 2)
        assert (await app.token(rotated.json()["key"], "acme/widgets")).status_code == 200
        expected = 200 if overlap_s else 401
        assert (await app.token(old["key"], "acme/widgets")).status_code == expected
        assert rotated.json()["expires_at"] is None
        listed = (await stage.call("GET", "/keys")).json()["keys"]
        assert [one["id"] for one in listed] == [key_id(stage.admin), old["id"], rotated.json()["id"]]


async def test_a_rotation_that_the_store_does_not_take_can_be_repeated(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "_IN_DOUBT_S", 0.3)
    async with world.inside() as app:
        stage = await AdminStage.of(world, app)
        old = await stage.made("acme/*")
        path = f"/keys/{old['id']}/rotate"
        whole = app.broker.store._backend

        async def write_key(args: KeyWriteArgs) -> Any:
            if args.key_id == old["id"]:
                raise StoreUnavailableError("away")
            return await whole.write_key(args)

        tried = wrap_backend(app, write_key=write_key)
        refused = await stage.call("POST", path)
        assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
        assert tried.calls["write_key"] > 3  # of the new key twice
        assert (await app.token(old["key"], "acme/widgets")).status_code == 200
        listed = (await stage.call("GET", "/keys")).json()["keys"]
        unshown = [one for one in listed if one["id"] not in {old["id"], key_id(stage.admin)}]
        assert [one["revoked_at"] is None for one in unshown] == [False]
        app.broker.store._backend = whole
        assert (await stage.call("POST", path)).status_code == 201
        assert (await app.token(old["key"], "acme/widgets")).status_code == 401


async def test_an_admin_rotates_itself(any_world: World) -> None:
    async with any_world.inside() as app:
        stage = await AdminStage.of(any_world, app)
        rotated = await stage.call("POST", f"/keys/{key_id(stage.admin)}/rotate", json={})
        assert (await stage.call("GET", "/keys")).status_code == 401
        assert (await stage.call("GET", "/keys", key=rotated.json()["key"])).status_code == 200


async def test_revoking_a_key_keeps_its_tokens_unless_told(any_world: World) -> None:
    async with any_world.inside() as app:
        stage = await AdminStage.of(any_world, app)
        made = await stage.made("acme/*")
        token = await stage.issued(made["key"], "acme/widgets")
        answer = await stage.call("DELETE", f"/keys/{made['id']}")
        assert (answer.status_code, answer.json()) == (200, NOTHING)
        assert (await app.token(made["key"], "acme/widgets")).status_code == 401
        assert stage.alive(token)
        again = await stage.call("DELETE", f"/keys/{made['id']}?tokens=keep")
        assert (again.status_code, again.json()) == (200, NOTHING)
        for query in ("?tokens=all", "?tokens=", "?token=keep", "?tokens=keep&tokens=revoke"):
            assert (await stage.call("DELETE", f"/keys/{made['id']}{query}")).status_code == 422
        # What is still alive can be killed afterwards.
        late = await stage.call("DELETE", f"/keys/{made['id']}?tokens=revoke")
        assert late.json() == {**NOTHING, "revoked": 1}
        assert not stage.alive(token)


async def test_revoking_a_key_with_its_tokens(any_world: World) -> None:
    """Those replaced by a refresh die too; whoever shares one loses it and gets another at the next call."""
    async with any_world.inside() as app:
        stage = await AdminStage.of(any_world, app)
        made, sharing = await stage.made("acme/*"), await stage.made("acme/*")
        replaced = await stage.issued(made["key"], "acme/widgets")
        shared = await stage.issued(made["key"], "acme/widgets", refresh=True)
        assert shared != replaced
        assert await stage.issued(sharing["key"], "acme/widgets") == shared
        own = await stage.issued(sharing["key"], "acme/gadgets")
        answer = await stage.call("DELETE", f"/keys/{made['id']}?tokens=revoke")
        assert (answer.status_code, answer.json()) == (200, {**NOTHING, "revoked": 2})
        assert [stage.alive(one) for one in (replaced, shared, own)] == [False, False, True]
        assert (await app.token(made["key"], "acme/widgets")).status_code == 401
        fresh = await stage.issued(sharing["key"], "acme/widgets")
        assert fresh not in {replaced, shared}
        assert stage.alive(fresh)
        assert await stage.issued(sharing["key"], "acme/gadgets") == own
        dead = await stage.events(event="token.revoked")
        assert len(dead) == 2
        assert {one["reason"] for one in dead} == {
            f"key {made['id']} revoked, by key {key_id(stage.admin)} (test)"
        }
        request_id = answer.headers["x-request-id"]
        assert {one["request_id"] for one in dead} == {request_id}
        [ended] = await stage.events(event="key.revoked")
        assert (ended["request_id"], ended["key_id"]) == (request_id, made["id"])


async def test_whoami_of_a_key_that_has_just_been_revoked(any_world: World) -> None:
    async with any_world.inside() as app:
        stage = await AdminStage.of(any_world, app)
        made = await stage.made("acme/*")
        assert (await app.http.get("/v1/whoami", headers=bearer(made["key"]))).status_code == 200
        await stage.call("DELETE", f"/keys/{made['id']}")
        assert (await app.http.get("/v1/whoami", headers=bearer(made["key"]))).status_code == 401


async def test_a_revocation_between_read_and_hand_wins(any_world: World) -> None:
    """A caller who was let in a moment ago gets nothing when the key has ended since."""
    async with any_world.inside() as app:
        stage = await AdminStage.of(any_world, app)
        made = await stage.made("acme/*")
        backend = app.broker.store._backend
        reached, go_on = asyncio.Event(), asyncio.Event()

        async def slow(**named: Any) -> str:
            reached.set()
            await go_on.wait()
            return await backend.hand(**named)

        wrap_backend(app, hand=slow)
        waiting = asyncio.create_task(stage.code(made["key"], "acme/widgets"))
        await reached.wait()
        ended = await stage.call("DELETE", f"/keys/{made['id']}?tokens=revoke")
        assert ended.status_code == 200
        go_on.set()
        assert await waiting == (401, "invalid_api_key")


async def test_a_change_to_what_is_already_so_is_a_decision_all_the_same(world: World) -> None:
    """The policy stays, and it is written: what it repeats may have been answered with a 503."""
    async with world.inside() as app:
        stage = await AdminStage.of(world, app)
        made = await stage.made("acme/*")
        made.pop("key")
        before = await app.broker.store.find_key(made["id"])
        answer = await stage.call("PATCH", f"/keys/{made['id']}", json={"name": "made"})
        assert (answer.status_code, answer.json()) == (200, made)
        after = await app.broker.store.find_key(made["id"])
        assert before is not None
        assert after is not None
        assert after.record == replace(before.record, version=before.record.version + 1)
