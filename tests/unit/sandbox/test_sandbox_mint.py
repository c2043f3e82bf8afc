from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from sandbox_world import as_token

from broker.sandbox import rest

if TYPE_CHECKING:
    import httpx
    from sandbox_world import World

DOCS = "https://docs.github.com/rest/reference/apps#create-an-installation-access-token-for-an-app"


def names(reply: httpx.Response) -> list[str]:
    return [r["full_name"] for r in reply.json()["repositories"]]


def test_a_narrowed_token(world: World) -> None:
    reply = world.mint({"repositories": ["widgets"], "permissions": {"contents": "read"}})
    assert reply.status_code == 201
    body = reply.json()
    assert body["permissions"] == {"contents": "read", "metadata": "read"}
    assert body["repository_selection"] == "selected"
    assert names(reply) == ["acme/widgets"]
    assert body["expires_at"] == "2027-01-15T09:00:00Z"
    assert len(reply.content) > 4000
    assert not [name for name in reply.headers if name.startswith("x-ratelimit")]
    token = world.github.tokens[body["token"]]
    assert token.repositories == {r.id for r in [world.github.find_repository("acme/widgets")]}
    assert token.installation_id == world.installation.id
    assert body["token"] not in repr(token)
    call = world.github.calls[-1]
    assert (call.route, call.status, call.authorization) == ("mint", 201, "jwt")
    assert call.body == {"repositories": ["widgets"], "permissions": {"contents": "read"}}
    assert call.installation_id == world.installation.id


@pytest.mark.parametrize("body", [None, {}, {"permissions": {}}])
def test_left_out_or_empty_means_everything(world: World, body: Any) -> None:
    reply = world.mint(body).json()
    assert reply["permissions"] == {"contents": "read", "issues": "write", "metadata": "read"}
    assert reply["repository_selection"] == "all"
    assert "repositories" not in reply


@pytest.mark.parametrize("field", ["repositories", "repository_ids"])
def test_an_empty_list_means_all_repositories_and_is_echoed(world: World, field: str) -> None:
    reply = world.mint({field: []})
    assert names(reply) == ["acme/widgets", "acme/gadgets", "acme/Docs", "acme/open"]
    assert reply.json()["repository_selection"] == "all"


def test_by_id_and_by_name_in_any_case(world: World) -> None:
    number = world.github.find_repository("acme/docs").id
    assert names(world.mint({"repository_ids": [number]})) == ["acme/Docs"]
    assert names(world.mint({"repositories": ["DOCS"]})) == ["acme/Docs"]
    world.github.mint_names_case_sensitive = True
    assert world.mint({"repositories": ["DOCS"]}).status_code == 422


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"permissions": {"contents": "write"}}, rest.NOT_GRANTED),
        ({"permissions": {"contents": "read", "pulls": "read"}}, rest.NOT_GRANTED),
        ({"permissions": {"pull-requests": "read"}}, rest.NOT_GRANTED),
        ({"permissions": {"contents": "none"}}, rest.NOT_GRANTED),
        ({"permissions": {"contents": 1}}, rest.NOT_GRANTED),
        ({"repositories": ["widgets", "nothing"]}, rest.NOT_ACCESSIBLE),
        ({"repositories": ["acme/widgets"]}, rest.NOT_ACCESSIBLE),
        ({"repositories": ["secrets"]}, rest.NOT_ACCESSIBLE),
        ({"repository_ids": [1]}, rest.NOT_ACCESSIBLE),
    ],
)
def test_asking_too_much_gets_nothing(world: World, body: Any, message: str) -> None:
    reply = world.mint(body)
    assert reply.status_code == 422
    assert reply.json() == {"message": message, "documentation_url": DOCS, "status": "422"}
    assert world.github.tokens == {}


@pytest.mark.parametrize(
    "body",
    [
        {"repositories": None},
        {"repositories": "widgets"},
        {"repositories": [1]},
        {"repository_ids": ["1"]},
        {"repository_ids": [True]},
        {"permissions": None},
        {"permissions": ["contents"]},
        {"repositories": ["widgets"], "repository_ids": [1]},
        {"repositories": ["widgets"] * 501},
    ],
)
def test_wrong_shapes_are_invalid(world: World, body: Any) -> None:
    reply = world.mint(body)
    assert reply.status_code == 422
    assert reply.json()["message"].startswith("Invalid request.")


@pytest.mark.parametrize(
    ("content", "message"), [("{", "Problems parsing JSON"), ("[]", "Body should be a JSON object")]
)
def test_bodies_that_are_no_object(world: World, content: str, message: str) -> None:
    path = f"/app/installations/{world.installation.id}/access_tokens"
    reply = world.http.post(path, headers=world.as_app(), content=content)
    assert (reply.status_code, reply.json()["message"]) == (400, message)


def test_suspended_foreign_deleted_and_unknown_installations(world: World) -> None:
    github = world.github
    github.suspend(world.installation)
    reply = world.mint()
    assert (reply.status_code, reply.json()["message"]) == (403, "This installation has been suspended")
    github.unsuspend(world.installation)
    assert world.mint().status_code == 201
    other = github.install(github.add_app(slug="other"), "acme")
    github.uninstall(world.installation)
    for number in (other.id, world.installation.id, 5):
        reply = world.mint(installation=number)
        assert (reply.status_code, reply.json()["message"]) == (404, "Not Found")
    again = github.install(world.app, "acme")
    assert again.id != world.installation.id
    assert world.mint(installation=again.id).status_code == 201


def test_permissions_come_from_the_installation_and_tokens_keep_theirs(world: World) -> None:
    github = world.github
    before = world.token()
    github.set_app_permissions(world.app, {"contents": "read", "issues": "write", "actions": "read"})
    assert world.http.get("/app", headers=world.as_app()).json()["permissions"]["actions"] == "read"
    assert world.mint({"permissions": {"actions": "read"}}).status_code == 422
    github.set_permissions(world.installation)
    assert world.mint({"permissions": {"actions": "read"}}).status_code == 201
    assert not github.tokens[before].allows("actions")
    assert github.tokens[before].allows("issues", "write")
    github.set_app_permissions(world.app, {"contents": "read", "issues": "read"})
    assert not github.tokens[before].allows("issues", "write")
    assert world.installation.permissions == {"contents": "read", "issues": "read", "metadata": "read"}


def test_both_shapes_of_tokens(world: World) -> None:
    kinds = set()
    for _ in range(40):
        text = world.token()
        if len(text) == 40:
            kinds.add("legacy")
            assert re.fullmatch(r"ghs_[0-9A-Za-z]{36}", text)
            alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
            number = 0
            for digit in text[-6:]:
                number = number * 62 + alphabet.index(digit)
            assert number == zlib.crc32(text[4:-6].encode())
        else:
            kinds.add("stateless")
            assert 383 <= len(text) <= 600
            assert text.startswith(f"ghs_{world.app.app_id}_eyJ")
            assert text.count(".") == 2
            assert re.fullmatch(r"ghs_[A-Za-z0-9._-]{36,}", text)
            assert "-" in text
    assert kinds == {"legacy", "stateless"}
    world.github.token_shape = "legacy"
    assert {len(world.token()) for _ in range(4)} == {40}
    world.github.token_shape = "stateless"
    assert min(len(world.token()) for _ in range(4)) > 380


def test_over_granting(world: World) -> None:
    world.github.over_grant_permissions = {"statuses": "read"}
    world.github.over_grant_repositories = ["acme/gadgets", "stranger/secrets"]
    reply = world.mint({"repositories": ["widgets"], "permissions": {"contents": "read"}})
    assert names(reply) == ["acme/widgets", "acme/gadgets", "stranger/secrets"]
    assert reply.json()["permissions"] == {"contents": "read", "metadata": "read", "statuses": "read"}


def test_selected_installations(world: World) -> None:
    world.github.set_selection(world.installation, ["widgets"])
    reply = world.mint().json()
    assert reply["repository_selection"] == "selected"
    assert "repositories" not in reply
    assert names(world.mint({"repositories": []})) == ["acme/widgets"]
    assert world.mint({"repositories": ["gadgets"]}).status_code == 422
    with pytest.raises(ValueError, match="not of acme"):
        world.github.set_selection(world.installation, ["stranger/secrets"])


def test_the_old_api_keeps_its_fields(world: World) -> None:
    body = {"repositories": ["widgets"]}
    old = world.mint(body).json()["repositories"][0]
    new = world.mint(body, **{"X-GitHub-Api-Version": "2026-03-10"}).json()["repositories"][0]
    assert set(old) - set(new) == {"has_downloads", "use_squash_pr_title_as_default"}


def test_live_tokens_and_revoke_all(world: World) -> None:
    first, second = world.token(), world.token()
    assert {t.text for t in world.github.live_tokens()} == {first, second}
    assert world.http.delete("/installation/token", headers=as_token(first)).status_code == 204
    assert [t.text for t in world.github.live_tokens()] == [second]
    world.github.revoke_all()
    assert world.github.live_tokens() == []
