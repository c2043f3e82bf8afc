"""The emulated manifest flow refuses what GitHub refuses."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import httpx
    from sandbox_world import World

GOOD = {"name": "ours", "url": "https://example.com", "redirect_url": "http://127.0.0.1:1/made"}


def post(world: World, manifest: Any, *, org: str = "acme", state: str = "s") -> httpx.Response:
    page = f"{world.server.url}/organizations/{org}/settings/apps/new"
    return world.http.post(page, params={"state": state}, data={"manifest": json.dumps(manifest)})


def created(world: World, manifest: Any) -> dict[str, str]:
    action = re.search(r'action="([^"]+)"', post(world, manifest).text)
    assert action is not None
    answer = world.http.post(world.server.url + action[1], data={"name": manifest["name"]})
    assert answer.status_code == 302
    query = answer.headers["location"].partition("?")[2]
    return dict(part.split("=") for part in query.split("&"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"url": ""}, "wasn't supplied"),
        ({"hook_attributes": {"active": False}}, "wasn't supplied"),
        ({"hook_attributes": {"url": "http://localhost:8080/x"}}, "public Internet"),
        ({"hook_attributes": {"url": "https://192.168.1.2/x"}}, "public Internet"),
        ({"name": "x" * 35}, "too long"),
        ({"default_events": ["installation"]}, "unsupported"),
        ({"default_events": ["push"]}, "not supported by permissions"),
        ({"default_permissions": {"contents": "none"}}, "resource"),
        ({"redirect_url": "made"}, "Redirect url"),
        ({"webhook": True}, "not a permitted key"),
        ({"public": "no"}, "wrong type"),
    ],
)
def test_manifests_that_github_refuses(world: World, more: dict[str, Any], said: str) -> None:
    refused = post(world, GOOD | more)
    assert (refused.status_code, said in refused.text) == (422, True), refused.text


def test_a_name_is_taken_once(world: World) -> None:
    created(world, GOOD)
    assert "already taken" in post(world, GOOD).text
    assert post(world, GOOD | {"name": "other"}, org="nobody").status_code == 404


def test_a_code_works_once_and_for_an_hour(world: World) -> None:
    hook = {"hook_attributes": {"url": "https://broker.example.com/x"}, "default_events": ["repository"]}
    sent = created(world, GOOD | hook)
    assert sent["state"] == "s"
    answer = world.http.post(f"/app-manifests/{sent['code']}/conversions")
    assert answer.status_code == 201
    assert answer.json()["webhook_secret"]
    assert answer.json()["pem"].startswith("-----BEGIN RSA PRIVATE KEY-----")
    assert world.http.post(f"/app-manifests/{sent['code']}/conversions").status_code == 404
    late = created(world, GOOD | {"name": "late"})
    world.clock.at += 3600
    assert world.http.post(f"/app-manifests/{late['code']}/conversions").status_code == 404


def test_without_a_webhook_its_secret_is_null(world: World) -> None:
    sent = created(world, GOOD)
    assert world.http.post(f"/app-manifests/{sent['code']}/conversions").json()["webhook_secret"] is None


def test_the_install_page_is_late(world: World) -> None:
    created(world, GOOD)
    page = f"{world.server.url}/apps/ours/installations/new"
    world.github.manifests.install_page_lag_s = 3
    assert world.http.get(page).status_code == 404
    world.clock.at += 3
    assert world.http.get(page).status_code == 200
    assert world.http.get(f"{world.server.url}/github-apps/ours/installations/new").status_code == 404
    assert world.http.post(page, data={"repository": "widgets"}).status_code == 302
