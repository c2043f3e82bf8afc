"""``/v1/admin/installations`` and accepting an owner: the picture follows GitHub when told to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from admin_stage import AdminStage
from stage import until

if TYPE_CHECKING:
    from harness import World

SYNCED = {"unchanged": 0, "added": 0, "changed": 0, "removed": 0}


async def _sync(stage: AdminStage) -> dict[str, Any]:
    answer = await stage.call("POST", "/installations/sync")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def _installations(stage: AdminStage) -> dict[str, dict[str, Any]]:
    answer = await stage.call("GET", "/installations")
    assert answer.status_code == 200
    return {one["owner"]: one for one in answer.json()["installations"]}


async def test_what_is_known_is_listed(any_world: World) -> None:
    async with any_world.inside() as app:
        stage = await AdminStage.of(any_world, app)
        assert (await stage.call("GET", "/installations")).json() == {
            "installations": [],
            "next_cursor": None,
        }
        key = await app.key("acme/*")
        await stage.issued(key, "acme/widgets")
        await stage.issued(key, "acme/widgets", refresh=True)
        await stage.issued(key, "acme/gadgets")
        [one] = (await _installations(stage)).values()
        assert one == {
            "id": any_world.installation.id,
            "app": {"id": any_world.app.app_id, "slug": any_world.app.slug},
            "owner": "acme",
            "account_id": any_world.installation.account.id,
            "repository_selection": "all",
            "suspended": False,
            "permissions": {"contents": "read", "metadata": "read", "issues": "write"},
            "live_tokens": 3,
            "checked_at": one["checked_at"],
            "foreign": False,
            "blocked_reason": None,
        }
        await stage.call("PUT", "/blocks/acme", json={"reason": "incident"})
        [one] = (await _installations(stage)).values()
        assert (one["blocked_reason"], one["live_tokens"]) == ("incident", 0)


async def test_paging_through_installations(any_world: World) -> None:
    for number in range(4):
        any_world.github.add_repository(f"org-{number}/x")
        any_world.github.install(any_world.app, f"org-{number}")
    async with any_world.inside() as app:
        stage = await AdminStage.of(any_world, app)
        assert await _sync(stage) == {**SYNCED, "added": 5}
        seen: list[str] = []
        cursor = None
        while True:
            query = "?limit=2" + (f"&cursor={cursor}" if cursor else "")
            page = (await stage.call("GET", f"/installations{query}")).json()
            seen += [one["owner"] for one in page["installations"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert seen == ["acme", *(f"org-{number}" for number in range(4))]


async def test_a_sync_without_changes_keeps_what_is_cached(any_world: World) -> None:
    async with any_world.inside() as app:
        stage = await AdminStage.of(any_world, app)
        key = await app.key("acme/*")
        token = await stage.issued(key, "acme/widgets")
        assert await _sync(stage) == {**SYNCED, "unchanged": 1}
        assert await stage.issued(key, "acme/widgets") == token


@pytest.mark.parametrize("change", ["suspend", "selection", "permissions", "reinstall", "uninstall"])
async def test_a_sync_notices_what_changed(any_world: World, change: str) -> None:
    github = any_world.github
    async with any_world.inside() as app:
        stage = await AdminStage.of(any_world, app)
        key = await app.key("acme/*")
        token = await stage.issued(key, "acme/widgets")
        match change:
            case "suspend":
                github.suspend(any_world.installation)
            case "selection":
                github.set_selection(any_world.installation, ["acme/gadgets"])
            case "permissions":
                github.set_permissions(any_world.installation, {"metadata": "read"})
            case _:
                github.uninstall(any_world.installation)
        if change == "reinstall":
            any_world.installation = github.install(any_world.app, "acme")
        expected = "removed" if change == "uninstall" else "changed"
        assert await _sync(stage) == {**SYNCED, expected: 1}
        answer = await app.token(key, "acme/widgets")
        if change == "reinstall":
            assert answer.status_code == 200
            assert answer.json()["token"] != token
        else:
            assert answer.status_code in {403, 404}
        listed = await _installations(stage)
        if change == "uninstall":
            assert listed == {}
        else:
            assert listed["acme"]["id"] == any_world.installation.id
            assert listed["acme"]["suspended"] is (change == "suspend")
            assert listed["acme"]["repository_selection"] == ("selected" if change == "selection" else "all")
        [event] = await stage.events(event="owner.changed")
        assert event["reason"].startswith("sync: ")
        assert event["request_id"]
        if expected == "changed":
            assert await _sync(stage) == {**SYNCED, "unchanged": 1}
        else:
            assert await _sync(stage) == SYNCED


async def test_a_sync_while_github_fails_changes_nothing(any_world: World) -> None:
    from broker.sandbox.faults import Fault  # noqa: PLC0415

    async with any_world.inside() as app:
        stage = await AdminStage.of(any_world, app)
        key = await app.key("acme/*")
        token = await stage.issued(key, "acme/widgets")
        before = await stage.state()
        any_world.github.faults.add(Fault(route="installations", status=500))
        answer = await stage.call("POST", "/installations/sync", json={})
        assert (answer.status_code, answer.json()["code"]) == (502, "github_unavailable")
        assert await stage.state() == before
        assert await stage.issued(key, "acme/widgets") == token


async def test_another_account_is_refused_until_it_is_accepted(any_world: World) -> None:
    github = any_world.github
    async with any_world.inside() as app:
        stage = await AdminStage.of(any_world, app)
        key = await app.key("acme/*")
        token = await stage.issued(key, "acme/widgets")
        first = any_world.installation.account.id
        early = await stage.call("POST", "/owners/acme/accept")
        assert (early.status_code, early.json()["code"]) == (409, "conflict")
        nobody = await stage.call("POST", "/owners/nobody/accept")
        assert (nobody.status_code, nobody.json()["code"]) == (404, "not_found")
        github.uninstall(any_world.installation)
        github.delete_account("acme")
        github.add_account("acme")
        github.add_repository("acme/widgets")
        github.install(any_world.app, "acme")
        assert await _sync(stage) == {**SYNCED, "changed": 1}
        assert await stage.code(key, "acme/widgets") == (403, "blocked")
        listed = (await _installations(stage))["acme"]
        assert listed["foreign"] is True
        assert listed["blocked_reason"]
        assert listed["account_id"] != first
        accepted = await stage.call("POST", "/owners/ACME/accept")
        assert accepted.status_code == 200, accepted.text
        assert (accepted.json()["account_id"], accepted.json()["foreign"]) == (listed["account_id"], False)
        assert await stage.issued(key, "acme/widgets") != token
        again = await stage.call("POST", "/owners/acme/accept")
        assert again.status_code == 409
        events = await stage.events(event="owner.changed")
        assert "accepted" in events[-1]["reason"]
        assert events[-1]["request_id"] == accepted.headers["x-request-id"]


async def test_no_body_or_an_empty_one(any_world: World) -> None:
    async with any_world.inside() as app:
        stage = await AdminStage.of(any_world, app)
        assert (await stage.call("POST", "/installations/sync", json={})).status_code == 200
        assert (await stage.call("POST", "/installations/sync", json={"all": True})).status_code == 422
        assert (await stage.call("POST", "/installations/sync", content=b"x")).status_code == 415
        assert (await stage.call("POST", "/installations/sync?force=1")).status_code == 422
        for owner in ("-", "a/b", "a" * 40, "a%00"):
            assert (await stage.call("POST", f"/owners/{owner}/accept")).status_code in {404, 422}


async def test_a_login_is_the_same_in_any_case(world: World) -> None:
    """GitHub spells an owner as its people do; that is no other owner, and no reason to drop anything."""
    world.github.add_repository("Globex/tools")
    world.github.install(world.app, "Globex")
    async with world.inside() as app:
        stage = await AdminStage.of(world, app)
        key = await app.key("*/*")
        token = await stage.issued(key, "globex/tools")
        assert await _sync(stage) == {**SYNCED, "added": 1, "unchanged": 1}
        assert await _sync(stage) == {**SYNCED, "unchanged": 2}
        assert await stage.issued(key, "globex/tools") == token


async def test_owners_in_use_are_looked_at_without_a_request(world: World) -> None:
    async with world.inside(installation_ttl=4) as app:
        await app.token(await app.key("acme/*"), "acme/widgets")
        await app.token(await app.key("acme/*"), "acme/widgets")
        world.github.clear_calls()
        await until(lambda: world.github.count("installation") > 0, seconds=20)
