from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest

from broker.sandbox.github import EmulatedGitHub

if TYPE_CHECKING:
    from pathlib import Path

    import httpx
    from sandbox_world import Git, World

    from broker.sandbox.github import EmulatedRepository
    from broker.sandbox.token_text import TokenShape


@pytest.fixture
def repository(world: World) -> EmulatedRepository:
    github = world.github
    repository = github.add_repository("acme/tools", create_git=True)
    github.add_repository("acme/site", private=False, create_git=True)
    return repository


def url(world: World, name: str = "acme/tools") -> str:
    return f"{world.server.url}/{name}.git"


def basic(token: str, user: str = "x-access-token") -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{token}".encode()).decode()}


def refs(
    world: World,
    headers: dict[str, str] | None = None,
    name: str = "acme/tools",
    service: str = "git-upload-pack",
) -> httpx.Response:
    return world.http.get(
        f"{world.server.url}/{name}.git/info/refs", params={"service": service}, headers=headers or {}
    )


@pytest.mark.parametrize("shape", ["legacy", "stateless"])
def test_a_private_repository_is_cloned_with_a_token(
    world: World, repository: EmulatedRepository, git: Git, tmp_path: Path, shape: TokenShape
) -> None:
    world.github.token_shape = shape
    token = world.token({"repositories": ["tools"], "permissions": {"contents": "read"}})
    done = git("clone", "--quiet", url(world), "out", token=token)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "README.md").read_text().startswith("# acme/tools")
    assert (tmp_path / "out" / "src" / "hello.txt").read_text() == "hello\n"
    first = next(c for c in world.github.calls if c.route == "git_refs")
    assert (first.authorization, first.status) == ("none", 401)
    assert world.github.count("git_upload_pack") >= 1
    head = world.github.commit("acme/tools", {"new.txt": "new"})
    assert git("-C", "out", "pull", "--quiet", token=token).returncode == 0
    assert git("-C", "out", "rev-parse", "HEAD").stdout.strip() == head
    shallow = git("clone", "--quiet", "--depth=1", url(world, "ACME/Tools"), "shallow", token=token)
    assert shallow.returncode == 0, shallow.stderr
    assert git("clone", "--quiet", f"{world.server.url}/acme/tools", "bare-name", token=token).returncode == 0


def test_a_public_repository_is_open(world: World, repository: EmulatedRepository, git: Git) -> None:
    assert git("clone", "--quiet", url(world, "acme/site"), "out").returncode == 0
    assert refs(world, basic("ghs_garbage"), "acme/site").status_code == 401
    narrow = world.token({"repositories": ["widgets"], "permissions": {"metadata": "read"}})
    assert git("clone", "--quiet", url(world, "acme/site"), "out2", token=narrow).returncode == 0


def test_nobody_gets_a_challenge(world: World, repository: EmulatedRepository, git: Git) -> None:
    reply = refs(world)
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == 'Basic realm="GitHub"'
    assert refs(world, name="acme/nothing").status_code == 401
    done = git("clone", url(world), "out")
    assert "terminal prompts disabled" in done.stderr


def test_dead_tokens(world: World, repository: EmulatedRepository, git: Git) -> None:
    expired = world.token()
    world.clock.at += 3600
    revoked = world.token()
    world.github.tokens[revoked].revoked = True
    for token in (expired, revoked, "ghs_garbage", "x"):
        done = git("clone", url(world), "out", token=token)
        assert done.returncode == 128
        assert (
            "remote: Invalid username or token. Password authentication is not supported for Git operations."
            in done.stderr
        )
        assert f"fatal: Authentication failed for '{url(world)}/'" in done.stderr
    good = world.token()
    assert refs(world, basic(good)).status_code == 200
    assert refs(world, basic(good, user="git")).status_code == 401
    assert refs(world, {"Authorization": f"Bearer {good}"}).status_code == 401
    assert refs(world, {"Authorization": "Basic !!"}).status_code == 401


def test_out_of_reach_looks_like_nothing(world: World, repository: EmulatedRepository, git: Git) -> None:
    elsewhere = world.token({"repositories": ["widgets"]})
    without = world.token({"repositories": ["tools"], "permissions": {"issues": "read"}})
    for name, token in [("acme/tools", elsewhere), ("acme/tools", without), ("acme/none", without)]:
        done = git("clone", url(world, name), "out", token=token)
        assert "remote: Repository not found." in done.stderr
        assert f"fatal: repository '{url(world, name)}/' not found" in done.stderr
    world.github.git_without_contents_status = 403
    done = git("clone", url(world), "out", token=without)
    assert "remote: Write access to repository not granted." in done.stderr
    assert "The requested URL returned error: 403" in done.stderr


def test_lag_and_suspension(world: World, repository: EmulatedRepository, git: Git) -> None:
    world.github.lag_uses = 1
    token = world.token()
    assert refs(world, basic(token)).text == "Repository not found."
    assert refs(world, basic(token)).status_code == 200
    world.github.suspend(world.installation)
    assert refs(world, basic(token)).status_code == 403


def test_a_renamed_repository_redirects(world: World, repository: EmulatedRepository, git: Git) -> None:
    world.github.rename_repository("acme/tools", "instruments")
    done = git("clone", url(world), "out", token=world.token())
    assert done.returncode == 0, done.stderr
    assert [c.status for c in world.github.calls if c.route == "git_refs"] == [401, 301, 200]
    world.github.rename_repository("acme/site", "www")
    done = git("clone", url(world, "acme/site"), "out2")
    assert done.returncode == 0, done.stderr
    assert f"redirecting to {url(world, 'acme/www')}/" in done.stderr


def test_pushing(world: World, repository: EmulatedRepository, git: Git, tmp_path: Path) -> None:
    token = world.token()
    assert git("clone", "--quiet", url(world), "out", token=token).returncode == 0
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.invalid")
    assert git("-C", "out", *identity, "commit", "--allow-empty", "-m", "x").returncode == 0
    done = git("-C", "out", "push", "origin", "main", token=token)
    assert "remote: Permission to acme/tools.git denied to token-broker[bot]." in done.stderr
    assert "error: 403" in done.stderr
    body = world.http.post(f"{url(world)}/git-receive-pack", headers=basic(token), content=b"0000")
    assert body.status_code == 403
    world.github.set_app_permissions(world.app, {"contents": "write"})
    world.github.set_permissions(world.installation)
    writer = world.token()
    assert git("-C", "out", "push", "--quiet", "origin", "main", token=writer).returncode == 0
    repository.archived = True
    assert (
        "archived so it is read-only" in git("-C", "out", "push", url(world), "main:x", token=writer).stderr
    )
    assert refs(world, service="git-receive-pack", name="acme/site").status_code == 401


def test_only_smart_git(world: World, repository: EmulatedRepository) -> None:
    assert refs(world, basic(world.token()), service="").status_code == 403


def test_an_empty_repository_is_cloned(world: World, git: Git) -> None:
    done = git("clone", url(world, "acme/widgets"), "out", token=world.token())
    assert done.returncode == 0, done.stderr


def test_lfs_asks_for_the_same_credential(world: World, repository: EmulatedRepository) -> None:
    path = f"{url(world)}/info/lfs/objects/batch"
    body = {"operation": "download", "objects": [{"oid": "a" * 64, "size": 1}]}
    assert world.http.post(path, json=body).status_code == 401
    assert world.http.post(path, json=body, headers=basic("ghs_bad")).status_code == 401
    reply = world.http.post(path, json=body, headers=basic(world.token()))
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/vnd.git-lfs+json"
    assert reply.json()["objects"][0]["error"]["code"] == 404
    without = basic(world.token({"permissions": {"issues": "read"}}))
    denied = world.http.post(path, json=body, headers=without)
    assert (denied.status_code, denied.json()["message"]) == (403, "Resource not accessible by integration")
    elsewhere = basic(world.token({"repositories": ["widgets"]}))
    assert world.http.post(path, json=body, headers=elsewhere).status_code == 404
    upload = world.http.post(path, json=body | {"operation": "upload"}, headers=basic(world.token()))
    assert upload.status_code == 403
    assert world.http.post(path, content="x", headers=basic(world.token())).status_code == 422


def test_git_under_an_enterprise_prefix(world: World, repository: EmulatedRepository, git: Git) -> None:
    token = world.token()
    with world.github.serve(api_prefix="/api/v3") as server:
        assert git("clone", "--quiet", f"{server.url}/acme/tools.git", "out", token=token).returncode == 0


def test_closing_deletes_what_was_made() -> None:
    github = EmulatedGitHub()
    path = github.git_path(github.add_repository("a/b", files={"x": b"\x00"}))
    assert path.is_dir()
    github.close()
    assert not path.exists()


def test_an_existing_repository_is_served(world: World, repository: EmulatedRepository, git: Git) -> None:
    github = world.github
    path = github.git_path(repository)
    github.add_repository("acme/mirror", path=path)
    assert git("clone", "--quiet", url(world, "acme/mirror"), "out", token=world.token()).returncode == 0
