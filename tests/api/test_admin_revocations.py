"""``/v1/admin/revocations`` and ``/v1/admin/blocks``: what lives in reach dies, here and at GitHub."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from admin_stage import NOTHING, AdminStage, key_id, sha256_of
from stage import until, wrap_backend

from broker.issuing import ending
from broker.model import Target, TargetKind
from broker.ports import EndKind
from broker.sandbox.faults import Fault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness import World

METADATA = {"metadata": "read"}


async def _tokens(stage: AdminStage, key: str) -> dict[str, str]:
    """Return one live token of each reach."""
    return {
        "widgets": await stage.issued(key, "acme/widgets"),
        "gadgets": await stage.issued(key, "acme/gadgets"),
        "both": await stage.issued(key, "acme/widgets", "acme/gadgets"),
        "all": await stage.issued(key, owner="acme"),
        "other": await stage.issued(key, "globex/tools"),
    }


async def _staged(world: World, app: Any) -> tuple[AdminStage, str, dict[str, str]]:
    if world.github.find_repository("globex/tools") is None:
        world.github.add_repository("globex/tools")
        world.github.install(world.app, "globex")
    stage = await AdminStage.of(world, app)
    key = await app.key("*/*")
    return stage, key, await _tokens(stage, key)


@pytest.mark.parametrize(
    ("body", "dead"),
    [
        ({"repository": "ACME/Widgets"}, {"widgets", "both", "all"}),
        ({"owner": "Acme"}, {"widgets", "gadgets", "both", "all"}),
        ({"installation_id": "the one of acme"}, {"widgets", "gadgets", "both", "all"}),
        ({"token_sha256": "that of gadgets"}, {"gadgets"}),
        ({"all": True}, {"widgets", "gadgets", "both", "all", "other"}),
        ({"repository": "acme/nothing"}, {"all"}),
        ({"owner": "nobody"}, set()),
        ({"token_sha256": "A" * 43 + "="}, set()),
    ],
)
async def test_a_revocation_kills_what_is_in_reach(
    any_world: World, body: dict[str, Any], dead: set[str]
) -> None:
    async with any_world.inside() as app:
        stage, key, tokens = await _staged(any_world, app)
        if "installation_id" in body:
            body = {"installation_id": any_world.installation.id}
        if body.get("token_sha256") == "that of gadgets":
            body = {"token_sha256": sha256_of(tokens["gadgets"])}
        answer = await stage.call("POST", "/revocations", json={**body, "reason": " leaked "})
        assert (answer.status_code, answer.json()) == (200, {**NOTHING, "revoked": len(dead)})
        assert {name for name, token in tokens.items() if not stage.alive(token)} == dead
        # No caller gets a dead one again; who may, gets a new one.
        for name, token in (await _tokens(stage, key)).items():
            assert stage.alive(token)
            assert (token == tokens[name]) is (name not in dead)
        events = await stage.events(event="token.revoked")
        [call] = [one for one in events if "expires_at" not in one]
        assert call["key_id"] == key_id(stage.admin)
        assert (call["reason"], call["client_ip"]) == ("leaked", "192.0.2.7")
        if "installation_id" in body:
            assert call["installation_id"] == any_world.installation.id
        each = [one for one in events if "expires_at" in one]
        assert {one["token_sha256"] for one in each} == {sha256_of(tokens[name]) for name in dead}
        assert {one["request_id"] for one in events} == {answer.headers["x-request-id"]}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"reason": "x"},
        {"owner": "acme"},
        {"owner": "acme", "reason": ""},
        {"owner": "acme", "reason": " \t "},
        {"owner": "acme", "reason": "a\nb"},
        {"owner": "acme", "reason": "a" * 201},
        {"owner": "acme", "all": True, "reason": "x"},
        {"owner": "", "reason": "x"},
        {"owner": "a/b", "reason": "x"},
        {"repository": "acme", "reason": "x"},
        {"repository": "acme/..", "reason": "x"},
        {"repository": "acme/*", "reason": "x"},
        {"installation_id": 0, "reason": "x"},
        {"installation_id": "1", "reason": "x"},
        {"installation_id": True, "reason": "x"},
        {"installation_id": 2**64, "reason": "x"},
        {"token_sha256": "x", "reason": "x"},
        {"token_sha256": "A" * 44, "reason": "x"},
        {"token_sha256": "A" * 42 + "B=", "reason": "x"},
        {"token_sha256": "_" * 43 + "=", "reason": "x"},
        {"all": False, "reason": "x"},
        {"all": 1, "reason": "x"},
        {"all": "true", "reason": "x"},
        {"everything": True, "reason": "x"},
    ],
)
async def test_a_wrong_revocation_revokes_nothing(world: World, body: dict[str, Any]) -> None:
    async with world.inside() as app:
        stage = await AdminStage.of(world, app)
        await stage.issued(await app.key("acme/*"), "acme/widgets")
        before = await stage.state()
        refused = await stage.call("POST", "/revocations", json=body)
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
        assert await stage.state() == before


async def test_an_installation_that_nobody_knows(any_world: World) -> None:
    async with any_world.inside() as app:
        stage = await AdminStage.of(any_world, app)
        answer = await stage.call("POST", "/revocations", json={"installation_id": 4711, "reason": "x"})
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("what", "dead"),
    [("acme/Widgets", {"widgets", "both", "all"}), ("Acme", {"widgets", "gadgets", "both", "all"})],
)
async def test_a_block_forbids_and_kills_until_it_is_lifted(
    any_world: World, what: str, dead: set[str]
) -> None:
    async with any_world.inside() as app, any_world.inside() as other:
        stage, key, tokens = await _staged(any_world, app)
        put = await stage.call("PUT", f"/blocks/{what}", json={"reason": "incident"})
        assert (put.status_code, put.json()) == (200, {**NOTHING, "revoked": len(dead)})
        assert {name for name, token in tokens.items() if not stage.alive(token)} == dead
        asked: dict[str, dict[str, Any]] = {
            "widgets": {"repositories": ["acme/widgets"]},
            "gadgets": {"repositories": ["acme/gadgets"]},
            "both": {"repositories": ["acme/gadgets", "acme/widgets"]},
            "all": {"owner": "acme"},
            "other": {"repositories": ["globex/tools"]},
        }
        any_world.github.clear_calls()
        for each in (app, other):
            for name, body in asked.items():
                answer = await each.token(key, **body)
                expected = (403, "blocked") if name in dead else (200, None)
                assert (answer.status_code, answer.json().get("code")) == expected
        assert any_world.github.count("mint") == 0
        shown = (await stage.call("GET", f"/blocks/{what.upper()}")).json()
        assert shown | {"created_at": ""} == {
            "owner": "acme",
            "repository": "acme/widgets" if "/" in what else None,
            "by": key_id(stage.admin),
            "reason": "incident",
            "created_at": "",
        }
        assert (await stage.call("GET", "/blocks")).json() == {"blocks": [shown], "next_cursor": None}
        again = await stage.call("PUT", f"/blocks/{what}", json={"reason": "still"})
        assert (again.status_code, again.json()) == (200, NOTHING)
        lifted = await stage.call("DELETE", f"/blocks/{what}")
        assert (lifted.status_code, lifted.content) == (204, b"")
        for body in asked.values():
            assert (await other.token(key, **body)).status_code == 200
        for method in ("DELETE", "GET"):
            answer = await stage.call(method, f"/blocks/{what}")
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        events = [one for one in await stage.events() if one["event"].startswith("block.")]
        assert [one["event"] for one in events] == ["block.set", "block.set", "block.lifted"]
        assert all(one["request_id"] and one["key_id"] == key_id(stage.admin) for one in events)


async def test_two_blocks_on_one_owner_are_two(any_world: World) -> None:
    async with any_world.inside() as app:
        stage = await AdminStage.of(any_world, app)
        key = await app.key("acme/*")
        for name in ("acme/widgets", "acme/gadgets", "acme"):
            assert (await stage.call("PUT", f"/blocks/{name}", json={"reason": "x"})).status_code == 200
        await stage.call("DELETE", "/blocks/acme")
        await stage.call("DELETE", "/blocks/acme/widgets")
        assert (await app.token(key, "acme/widgets")).status_code == 200
        assert await stage.code(key, "acme/gadgets") == (403, "blocked")
        assert await stage.code(key, owner="acme") == (403, "blocked")
        await stage.call("DELETE", "/blocks/acme/gadgets")
        assert (await app.token(key, owner="acme")).status_code == 200


async def test_paging_through_blocks(any_world: World) -> None:
    async with any_world.inside() as app:
        stage = await AdminStage.of(any_world, app)
        names = ["zeta", "acme/widgets", "acme", "acme-x/y", "acme/gadgets"]
        for name in names:
            await stage.call("PUT", f"/blocks/{name}", json={"reason": name})
        seen: list[str] = []
        cursor = None
        while True:
            query = "?limit=2" + (f"&cursor={cursor}" if cursor else "")
            page = (await stage.call("GET", f"/blocks{query}")).json()
            seen += [one["reason"] for one in page["blocks"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert seen == ["acme", "zeta", "acme-x/y", "acme/gadgets", "acme/widgets"]


@pytest.mark.parametrize("path", ["/blocks/-", "/blocks/acme/..%2f", "/blocks/acme/x.git", "/blocks/a%20b"])
async def test_a_block_of_what_cannot_exist_is_refused(world: World, path: str) -> None:
    async with world.inside() as app:
        stage = await AdminStage.of(world, app)
        for method in ("PUT", "GET", "DELETE"):
            answer = await stage.call(method, path, json={"reason": "x"})
            assert answer.status_code in {404, 422}
        assert not await app.broker.store.blocks()


async def test_a_block_without_a_reason_is_refused(world: World) -> None:
    async with world.inside() as app:
        stage = await AdminStage.of(world, app)
        before = await stage.state()
        for body in ({}, {"reason": ""}, {"reason": "\x00"}, {"reason": "x", "by": "me"}, {"reason": None}):
            assert (await stage.call("PUT", "/blocks/acme", json=body)).status_code == 422
        assert await stage.state() == before


async def test_what_github_refuses_is_told_and_tried_again_until_dead(any_world: World) -> None:
    async with any_world.inside() as app:
        stage = await AdminStage.of(any_world, app)
        key = await app.key("acme/*")
        tokens = [await stage.issued(key, "acme/widgets"), await stage.issued(key, "acme/gadgets")]
        doomed = sha256_of(tokens[0])
        fault = any_world.github.faults.add(
            Fault(route="revoke", status=500, when=lambda call: call.credential == tokens[0])
        )
        answer = await stage.call("POST", "/revocations", json={"owner": "acme", "reason": "x"})
        assert answer.status_code == 200
        body = answer.json()
        assert (body["revoked"], body["failed"] + body["pending"]) in {(1, 1), (0, 2)}
        assert doomed in {one["token_sha256"] for one in body["remaining"]}
        assert all(one["expires_at"].endswith("Z") for one in body["remaining"])
        # It is not served any more, although GitHub still takes it.
        assert stage.alive(tokens[0])
        assert await stage.issued(key, "acme/widgets") not in tokens
        any_world.github.faults.remove(fault)
        for _ in range(200):
            dead = {one.get("token_sha256") for one in await stage.events(event="token.revoked")}
            if doomed in dead and not any(stage.alive(token) for token in tokens):
                return
            await asyncio.sleep(0.1)
        raise AssertionError("the background gave up")


async def test_the_background_goes_on_after_a_surprise(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever goes wrong in it once: revoked tokens must not live on until a restart."""
    monkeypatch.setattr(ending, "_POLL_S", 0.1)
    async with world.inside() as app:
        stage = await AdminStage.of(world, app)
        token = await stage.issued(await app.key("acme/*"), "acme/widgets")
        whole, surprises = app.broker.store._backend, 0

        async def paused(names: Sequence[str]) -> float:
            nonlocal surprises
            if surprises < 2:
                surprises += 1
                raise ZeroDivisionError
            return await whole.paused(names)

        wrap_backend(app, paused=paused)
        answer = await stage.call("POST", "/revocations", json={"owner": "acme", "reason": "x"})
        assert answer.status_code == 200
        assert answer.json()["revoked"] == 0
        await until(lambda: not stage.alive(token), seconds=20)
    assert "working off revocations failed" in caplog.text


@pytest.mark.slow
async def test_a_github_that_hangs_is_answered_within_ten_seconds(any_world: World) -> None:
    async with any_world.inside() as app:
        stage = await AdminStage.of(any_world, app)
        key = await app.key("acme/*")
        token = await stage.issued(key, "acme/widgets")
        any_world.github.faults.add(Fault(route="revoke", delay_s=30))
        loop = asyncio.get_running_loop()
        started = loop.time()
        answer = await stage.call("POST", "/revocations", json={"all": True, "reason": "x"})
        assert loop.time() - started < 10
        body = answer.json()
        assert (answer.status_code, body["revoked"], body["failed"] + body["pending"]) == (200, 0, 1)
        assert [one["token_sha256"] for one in body["remaining"]] == [sha256_of(token)]


async def test_a_token_that_is_dead_already_counts_as_revoked(any_world: World) -> None:
    async with any_world.inside() as app:
        stage = await AdminStage.of(any_world, app)
        await stage.issued(await app.key("acme/*"), "acme/widgets")
        any_world.github.revoke_all()
        answer = await stage.call("POST", "/revocations", json={"all": True, "reason": "x"})
        assert answer.json() == {**NOTHING, "revoked": 1}


async def test_what_another_process_was_faster_with_is_not_pending(any_world: World) -> None:
    async with any_world.inside() as app, any_world.inside() as other:
        stage = await AdminStage.of(any_world, app)
        token = await stage.issued(await app.key("acme/*"), "acme/widgets")
        ended = await app.broker.store.end(EndKind.REVOKE, Target(TargetKind.ALL), None, by="x", reason="y")
        assert (await other.broker.ender.kill(ended.shas)).revoked == 1
        assert not stage.alive(token)
        outcome = await app.broker.ender.kill(ended.shas)
        assert (outcome.revoked, outcome.failed, outcome.pending, outcome.remaining) == (1, 0, 0, [])


async def test_a_token_that_two_endings_reach_is_told_once(any_world: World) -> None:
    """It stands in the outbox for a repository that it does not reach, and for its owner: it is dead."""
    async with any_world.inside() as app:
        stage = await AdminStage.of(any_world, app)
        token = await stage.issued(await app.key("acme/*"), "acme/widgets")
        target = Target(TargetKind.REPOSITORY, "acme/gadgets")
        await app.broker.store.end(EndKind.REVOKE, target, None, by="x", reason="y")
        answer = await stage.call("POST", "/revocations", json={"owner": "acme", "reason": "x"})
        assert answer.json() == {**NOTHING, "revoked": 1}
        assert not stage.alive(token)


@pytest.mark.parametrize("spoilt", [b"\x01\x00\x01 not a token of this broker", None])
async def test_a_token_that_does_not_open_is_told_and_kept(
    any_world: World, caplog: pytest.LogCaptureFixture, spoilt: bytes | None
) -> None:
    """What is in the outbox and cannot be read may live; what the register has no more has expired."""
    async with any_world.inside() as app:
        stage, _, tokens = await _staged(any_world, app)
        backend = app.broker.store._backend
        sha = sha256_of(tokens["gadgets"])

        async def outbox(shas: Any, *, limit: int) -> Any:
            found = await backend.outbox(shas, limit=limit)
            return tuple(replace(one, blob=spoilt) if one.sha == sha else one for one in found)

        wrap_backend(app, outbox=outbox)
        answer = await stage.call("POST", "/revocations", json={"owner": "acme", "reason": "leaked"})
        told = answer.json()
        assert (told["revoked"], told["failed"]) == (3, 0 if spoilt is None else 1)
        assert stage.alive(tokens["gadgets"])
        assert [one["token_sha256"] for one in told["remaining"]] == ([] if spoilt is None else [sha])
        assert ("registered token was refused" in caplog.text) is (spoilt is not None)
        app.broker.store._backend = backend
        assert [one.sha for one in await backend.outbox(None, limit=9)] == ([] if spoilt is None else [sha])
        if spoilt is not None:  # readable again: it dies
            app.broker.ender._wake.set()
            await until(lambda: not stage.alive(tokens["gadgets"]), seconds=30)
