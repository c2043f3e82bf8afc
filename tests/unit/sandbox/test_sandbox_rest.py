from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING

import httpx
import pytest
from sandbox_world import as_token

if TYPE_CHECKING:
    from sandbox_world import World


def said(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["message"]


def test_every_reply_is_dressed(world: World) -> None:
    reply = world.http.get("/app", headers=world.as_app())
    assert reply.headers["date"] == "Fri, 15 Jan 2027 08:00:00 GMT"
    assert reply.headers.get_list("date") == [reply.headers["date"]]
    assert reply.headers["x-github-request-id"]
    assert reply.headers["x-github-api-version-selected"] == "2022-11-28"
    assert reply.headers["content-type"] == "application/json; charset=utf-8"


def test_without_user_agent(world: World) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", world.server.port, timeout=5)
    connection.putrequest("GET", "/app", skip_accept_encoding=True)
    connection.endheaders()
    reply = connection.getresponse()
    assert reply.status == 403
    assert reply.headers["content-type"] == "text/html"
    assert b"make sure your request has a User-Agent header" in reply.read()
    connection.close()


def test_api_versions(world: World) -> None:
    for version, status in [("2022-11-28", 200), ("2026-03-10", 200), ("2024-01-01", 400), ("", 400)]:
        reply = world.http.get("/app", headers=world.as_app() | {"X-GitHub-Api-Version": version})
        assert reply.status_code == status
    assert world.http.get("/versions").json() == ["2022-11-28", "2026-03-10"]


@pytest.mark.parametrize("path", ["/app/", "/nothing", "/repos/acme/widgets/installation/", "//app", "/App"])
def test_unknown_paths(world: World, path: str) -> None:
    reply = world.http.get(world.server.api_url + path, headers=world.as_app())
    assert said(reply) == (404, "Not Found")
    assert world.github.calls[-1].route == "unknown"


def test_an_encoded_slash_stays_in_its_segment(world: World) -> None:
    reply = world.http.get("/repos/acme%2Fwidgets/installation", headers=world.as_app())
    assert reply.status_code == 404
    assert world.http.get("/repos/acme/%77idgets/installation", headers=world.as_app()).status_code == 200


def test_installations_of_names(world: World) -> None:
    github = world.github
    ada = github.add_account("ada", kind="User")
    big = github.add_account("big-corp", kind="Enterprise", account_id=77)
    of_ada, of_big = github.install(world.app, ada), github.install(world.app, big)
    app = world.as_app()
    found = {
        "/repos/ACME/Widgets/installation": world.installation.id,
        "/orgs/Acme/installation": world.installation.id,
        "/users/ada/installation": of_ada.id,
        "/enterprises/big-corp/installation": of_big.id,
        f"/app/installations/{of_ada.id}": of_ada.id,
    }
    for path, number in found.items():
        reply = world.http.get(path, headers=app)
        assert reply.status_code == 200
        assert reply.json()["id"] == number
        assert reply.json()["app_id"] == world.app.app_id
    assert reply.json()["target_type"] == "User"
    enterprise = world.http.get("/enterprises/big-corp/installation", headers=app).json()["account"]
    assert enterprise["slug"] == "big-corp"
    assert enterprise["id"] == 77
    assert "login" not in enterprise
    for path in (
        "/users/acme/installation",
        "/orgs/ada/installation",
        "/orgs/stranger/installation",
        "/repos/stranger/secrets/installation",
        "/repos/acme/nothing/installation",
        "/repos/acme/widgets.git/installation",
        "/app/installations/x",
        "/app/installations/5",
    ):
        assert said(world.http.get(path, headers=app)) == (404, "Not Found")


def test_lookup_is_by_canonical_names(world: World) -> None:
    reply = world.http.get("/repos/ACME/DOCS", headers=as_token(world.token()))
    assert reply.json()["full_name"] == "acme/Docs"
    assert reply.json()["owner"]["login"] == "acme"


def test_renames_redirect_to_the_id(world: World) -> None:
    github, app = world.github, world.as_app()
    repository = github.rename_repository("acme/widgets", "gizmos")
    reply = world.http.get("/repos/acme/widgets/installation", headers=app)
    target = f"{world.server.api_url}/repositories/{repository.id}/installation"
    assert reply.status_code == 301
    assert reply.headers["location"] == target
    assert reply.json()["message"] == "Moved Permanently"
    assert reply.json()["url"] == target
    assert world.http.get(target, headers=app).json()["id"] == world.installation.id
    token = as_token(world.token())
    assert world.http.get("/repos/acme/widgets", headers=token).status_code == 301
    assert world.http.get(f"/repositories/{repository.id}", headers=token).json()["name"] == "gizmos"
    assert world.mint({"repositories": ["widgets"]}).status_code == 422
    taken = github.add_repository("acme/widgets")
    assert world.http.get("/repos/acme/widgets", headers=token).json()["id"] == taken.id


def test_a_transferred_repository_leaves_the_installation(world: World) -> None:
    moved = world.github.transfer_repository("acme/widgets", "stranger")
    assert moved.full_name == "stranger/widgets"
    assert world.http.get("/repos/acme/widgets/installation", headers=world.as_app()).status_code == 404
    github = world.github
    github.install(world.app, "stranger")
    assert world.http.get("/repos/acme/widgets/installation", headers=world.as_app()).status_code == 301


def test_a_login_that_is_taken_by_a_stranger(world: World) -> None:
    github, app = world.github, world.as_app()
    old = world.installation.account
    github.rename_account("acme", "acme-inc")
    assert said(world.http.get("/orgs/acme/installation", headers=app)) == (404, "Not Found")
    assert world.http.get("/repos/acme/widgets/installation", headers=app).status_code == 301
    found = world.http.get("/orgs/acme-inc/installation", headers=app).json()
    assert (found["id"], found["account"]["id"]) == (world.installation.id, old.id)
    squatter = github.add_account("acme")
    github.add_repository("acme/widgets")
    fresh = github.install(world.app, squatter)
    assert squatter.id != old.id
    found = world.http.get("/repos/acme/widgets/installation", headers=app).json()
    assert (found["id"], found["account"]["id"]) == (fresh.id, squatter.id)


def test_deleted_repositories_and_accounts(world: World) -> None:
    github, app = world.github, world.as_app()
    token = as_token(world.token())
    github.delete_repository("acme/widgets")
    assert world.http.get("/repos/acme/widgets/installation", headers=app).status_code == 404
    assert world.http.get("/repos/acme/widgets", headers=token).status_code == 404
    github.delete_account("acme")
    assert world.installation.deleted
    assert said(world.http.get("/installation/repositories", headers=token)) == (401, "Bad credentials")
    assert github.add_account("acme").id != world.installation.account.id


def test_pages(world: World) -> None:
    for number in range(60):
        world.github.add_repository(f"acme/r{number}")
    token = as_token(world.token())
    seen, url = [], "/installation/repositories"
    pages = 0
    while url:
        reply = world.http.get(url, headers=token)
        assert reply.json()["total_count"] == 64
        assert reply.json()["repository_selection"] == "all"
        seen += [r["full_name"] for r in reply.json()["repositories"]]
        url = reply.links.get("next", {}).get("url")
        pages += 1
    assert (pages, len(set(seen))) == (3, 64)
    assert set(reply.links) == {"prev", "first"}
    first = world.http.get("/installation/repositories", headers=token)
    assert first.links["last"]["url"].endswith("page=3")
    large = world.http.get("/installation/repositories?per_page=1000", headers=token)
    assert len(large.json()["repositories"]) == 64
    assert "link" not in large.headers
    narrow = as_token(world.token({"repositories": ["r1", "r2"]}))
    assert world.http.get("/installation/repositories", headers=narrow).json()["total_count"] == 2


def test_the_list_of_installations(world: World) -> None:
    github = world.github
    for number in range(34):
        github.install(world.app, f"org-{number}")
    github.suspend(world.installation)
    world.clock.at += 100
    github.set_permissions(github.installations[world.installation.id + 1])
    first = world.http.get("/app/installations", headers=world.as_app())
    assert len(first.json()) == 30
    assert first.json()[0]["suspended_at"] == "2027-01-15T08:00:00Z"
    assert first.json()[0]["suspended_by"] is not None
    second = world.http.get(first.links["next"]["url"], headers=world.as_app())
    assert len(second.json()) == 5
    since = world.http.get("/app/installations?since=2027-01-15T08:00:01Z", headers=world.as_app())
    assert [i["account"]["login"] for i in since.json()] == ["org-0"]


def test_suspending_and_deleting_over_the_api(world: World) -> None:
    path = f"/app/installations/{world.installation.id}"
    token = as_token(world.token())
    assert world.http.put(f"{path}/suspended", headers=world.as_app()).status_code == 204
    reply = world.http.get("/installation/repositories", headers=token)
    assert reply.status_code == 403
    assert "owned by acme suspended your access at 2027-01-15T08:00:00Z" in reply.json()["message"]
    assert world.http.delete(f"{path}/suspended", headers=world.as_app()).status_code == 204
    assert world.http.get("/installation/repositories", headers=token).status_code == 200
    assert world.http.delete(path, headers=world.as_app()).status_code == 204
    assert said(world.http.get("/installation/repositories", headers=token)) == (401, "Bad credentials")
    again = world.github.install(world.app, "acme")
    newer = world.as_app() | {"X-GitHub-Api-Version": "2026-03-10"}
    assert world.http.delete(f"/app/installations/{again.id}", headers=newer).status_code == 202
    assert world.http.delete(f"/app/installations/{again.id}", headers=newer).status_code == 404


def test_the_life_of_a_token(world: World) -> None:
    token = world.token({"repositories": ["widgets"], "permissions": {"contents": "read"}})
    for scheme in ("Bearer", "token", "bearer"):
        assert (
            world.http.get("/installation/repositories", headers=as_token(token, scheme)).status_code == 200
        )
    assert world.http.get("/repos/acme/widgets", headers=as_token(token)).status_code == 200
    assert said(world.http.get("/repos/acme/gadgets", headers=as_token(token))) == (404, "Not Found")
    assert world.http.get("/repos/acme/open", headers=as_token(token)).status_code == 200
    denied = world.http.get("/repos/acme/widgets/issues", headers=as_token(token))
    assert said(denied) == (403, "Resource not accessible by integration")
    assert denied.headers["x-accepted-github-permissions"] == "issues=read"
    assert said(world.http.get("/user", headers=as_token(token))) == (
        403,
        "Resource not accessible by integration",
    )
    world.clock.at += 3599
    assert world.http.get("/repos/acme/widgets", headers=as_token(token)).status_code == 200
    world.clock.at += 1
    assert said(world.http.get("/repos/acme/widgets", headers=as_token(token))) == (401, "Bad credentials")
    assert said(world.http.delete("/installation/token", headers=as_token(token))) == (401, "Bad credentials")


def test_revoking(world: World) -> None:
    token = as_token(world.token())
    reply = world.http.delete("/installation/token", headers=token)
    assert (reply.status_code, reply.content) == (204, b"")
    expected = {
        "message": "Bad credentials",
        "documentation_url": "https://docs.github.com/rest",
        "status": "401",
    }
    assert world.http.delete("/installation/token", headers=token).json() == expected
    assert world.http.get("/repos/acme/open", headers=as_token("ghs_garbage")).json() == expected
    assert said(world.http.delete("/installation/token")) == (401, "Requires authentication")
    assert said(world.http.delete("/installation/token", headers=world.as_app())) == (401, "Bad credentials")
    assert said(world.http.get("/repos/acme/widgets", headers=world.as_app())) == (401, "Bad credentials")


def test_a_removed_repository_is_gone_from_old_tokens(world: World) -> None:
    token = as_token(world.token())
    world.github.set_selection(world.installation, ["gadgets"])
    assert world.http.get("/repos/acme/widgets", headers=token).status_code == 404
    assert world.http.get("/repos/acme/gadgets", headers=token).status_code == 200


def test_replication_lag(world: World) -> None:
    world.github.lag_uses = 2
    token = as_token(world.token())
    assert said(world.http.get("/installation/repositories", headers=token)) == (401, "Bad credentials")
    assert said(world.http.get("/repos/acme/widgets", headers=token)) == (404, "Not Found")
    assert world.http.get("/repos/acme/widgets", headers=token).status_code == 200
    world.github.lag_uses, world.github.lag_s = 0, 5
    token = as_token(world.token())
    assert world.http.get("/installation/repositories", headers=token).status_code == 401
    world.clock.at += 5
    assert world.http.get("/installation/repositories", headers=token).status_code == 200


def test_the_primary_limit(world: World) -> None:
    world.github.rate_limit = 2
    token = world.token()
    reply = world.http.get("/installation/repositories", headers=as_token(token))
    assert reply.headers["x-ratelimit-limit"] == "2"
    assert reply.headers["x-ratelimit-remaining"] == "1"
    assert reply.headers["x-ratelimit-resource"] == "core"
    free = world.http.get("/rate_limit", headers=as_token(token)).json()
    assert (
        free["rate"]
        == free["resources"]["core"]
        == {
            "limit": 2,
            "used": 1,
            "remaining": 1,
            "reset": int(world.clock.at) + 3600,
        }
    )
    other = as_token(world.token())
    assert world.http.get("/installation/repositories", headers=other).headers["x-ratelimit-remaining"] == "0"
    reply = world.http.get("/installation/repositories", headers=other)
    assert said(reply) == (403, f"API rate limit exceeded for installation ID {world.installation.id}.")
    assert reply.headers["x-ratelimit-remaining"] == "0"
    assert "retry-after" not in reply.headers
    assert world.mint().status_code == 201
    world.clock.at += 3600
    fresh = as_token(world.token())
    assert world.http.get("/installation/repositories", headers=fresh).status_code == 200


def test_rate_limit_route(world: World) -> None:
    newest = {"X-GitHub-Api-Version": "2026-03-10"}
    assert "rate" not in world.http.get("/rate_limit", headers=newest).json()
    assert world.http.get("/rate_limit").json()["resources"]["core"]["limit"] == 60
    assert world.http.get("/rate_limit", headers=world.as_app()).status_code == 200
    assert world.http.get("/rate_limit", headers=as_token("ghs_bad")).status_code == 401
    world.github.rate_limit = None
    assert world.http.get("/rate_limit").status_code == 404
    reply = world.http.get("/installation/repositories", headers=as_token(world.token()))
    assert "x-ratelimit-limit" not in reply.headers


def test_open_routes(world: World) -> None:
    assert world.http.get("/meta").json()["hooks"]
    assert world.http.get("/apps/token-broker").status_code == 404
    assert world.http.get("/apps/token-broker", headers=world.as_app()).status_code == 200
    assert world.http.get("/apps/token-broker", headers=as_token(world.token())).status_code == 200
    world.app.public = True
    assert world.http.get("/apps/token-broker").json()["id"] == world.app.app_id
    assert world.http.get("/apps/nothing").status_code == 404
    assert world.http.get("/app/installation-requests", headers=world.as_app()).json() == []
    head = world.http.head("/meta")
    assert (head.status_code, head.content) == (200, b"")


def test_a_prefix_as_on_an_enterprise_server(world: World) -> None:
    with world.github.serve(api_prefix="/api/v3") as server, httpx.Client(trust_env=False) as client:
        assert server.api_url == f"{server.url}/api/v3"
        reply = client.get(f"{server.api_url}/app", headers=world.as_app())
        assert reply.status_code == 200
        assert client.get(f"{server.url}/app", headers=world.as_app()).status_code == 404
        world.github.rename_repository("acme/widgets", "gizmos")
        reply = client.get(f"{server.api_url}/repos/acme/widgets/installation", headers=world.as_app())
        assert reply.headers["location"].startswith(f"{server.api_url}/repositories/")
        refused = client.get(f"{server.api_url}/app")
        assert refused.json()["documentation_url"].startswith("https://docs.github.com/enterprise-server@")


def test_the_journal(world: World) -> None:
    world.http.get("/repos/acme/widgets/installation?x=1", headers=world.as_app())
    token = world.token()
    world.http.get("/installation/repositories", headers=as_token(token, "token"))
    world.http.get("/meta")
    assert [c.route for c in world.github.calls] == [
        "repo_installation",
        "mint",
        "installation_repositories",
        "meta",
    ]
    assert [c.authorization for c in world.github.calls] == ["jwt", "jwt", "token", "none"]
    assert world.github.count("mint") == 1
    assert world.github.count() == 4
    first = world.github.calls[0]
    assert (first.path, first.query, first.at) == ("/repos/acme/widgets/installation", "x=1", world.clock.at)
    assert token not in json.dumps([repr(c) for c in world.github.calls])
    world.github.clear_calls()
    assert world.github.count() == 0


def test_changes_are_told_to_subscribers(world: World) -> None:
    told = []
    world.github.subscribe(told.append)
    github = world.github
    github.set_selection(world.installation, ["widgets", "gadgets"])
    github.set_selection(world.installation, ["widgets"])
    github.suspend(world.installation)
    github.unsuspend(world.installation)
    github.set_permissions(world.installation)
    github.rename_repository("acme/widgets", "gizmos")
    github.rename_account("acme", "acme-inc")
    github.uninstall(world.installation)
    assert [(c.event, c.action) for c in told] == [
        ("installation_repositories", "removed"),
        ("installation_repositories", "removed"),
        ("installation", "suspend"),
        ("installation", "unsuspend"),
        ("installation", "new_permissions_accepted"),
        ("repository", "renamed"),
        ("installation_target", "renamed"),
        ("installation", "deleted"),
    ]
    assert told[0].details["removed"] == ()
    assert [r.full_name for r in told[1].details["removed"]] == ["acme-inc/gadgets"]
