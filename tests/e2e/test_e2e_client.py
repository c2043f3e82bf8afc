"""The way of a person: a key from the operator, a token from the client, a clone with the token."""

import os
import subprocess
from pathlib import Path

import pytest
from harness import Service, World, clean_environment
from servers import free_port

GIT_ENVIRONMENT = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "t",
    "GIT_AUTHOR_EMAIL": "t@example.com",
    "GIT_COMMITTER_NAME": "t",
    "GIT_COMMITTER_EMAIL": "t@example.com",
}


def git(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", *arguments],
        env=clean_environment(**GIT_ENVIRONMENT, HOME=str(home), GIT_CONFIG_GLOBAL=os.devnull),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_token_clone_and_refusals(git_world: World, tmp_path: Path) -> None:
    world = git_world
    service = world.service()
    key, narrow = world.key("acme/*"), world.key("acme/gadgets")

    done = world.client(service, key, "github", "token", "acme/widgets")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    token = done.stdout.removesuffix("\n")
    assert done.stdout == f"{token}\n"
    assert token in world.github.tokens

    url = f"http://x-access-token:{token}@127.0.0.1:{world.server.port}/acme/widgets.git"
    cloned = git(tmp_path, "clone", url, str(tmp_path / "clone"))
    assert cloned.returncode == 0, cloned.stderr
    assert (tmp_path / "clone" / "README.md").is_file()
    anonymous = git(tmp_path, "clone", f"{world.server.url}/acme/widgets.git", str(tmp_path / "none"))
    assert anonymous.returncode != 0
    other = git(tmp_path, "clone", url.replace("widgets", "gadgets"), str(tmp_path / "other"))
    assert other.returncode != 0

    (tmp_path / "clone" / "new.txt").write_text("new\n")
    clone = ("-C", str(tmp_path / "clone"))
    assert git(tmp_path, *clone, "add", "new.txt").returncode == 0
    assert git(tmp_path, *clone, "commit", "-m", "new").returncode == 0
    pushed = git(tmp_path, *clone, "push", "origin", "HEAD:main")
    assert pushed.returncode != 0
    assert "denied" in pushed.stderr or "403" in pushed.stderr

    listed = world.client(service, key, "github", "ls")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert sorted(listed.stdout.splitlines()) == ["acme/gadgets", "acme/widgets"]
    listed = world.client(service, narrow, "github", "ls")
    assert listed.stdout == "acme/gadgets\n"

    who = world.client(service, narrow, "whoami")
    assert who.returncode == 0, who.stderr
    assert "acme/gadgets" in who.stdout

    # What the key may not, and what the app can't: 1, with a text that helps, and nothing on stdout.
    for asked_with, name, helps in (
        (narrow, "acme/widgets", "admin"),
        (key, "acme/nothing", "installations/new"),
        (world.key("stranger/*"), "stranger/secrets", "installations/new"),
    ):
        refused = world.client(service, asked_with, "github", "token", name)
        assert (refused.returncode, refused.stdout) == (1, ""), refused.stderr
        assert helps in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
        assert asked_with not in refused.stderr

    _keys_that_are_refused(world, service, key)

    down = Service(service.environment, world.folder, free_port(), "nobody")
    unreachable = world.client(down, key, "github", "token", "acme/widgets", "--timeout", "2")
    assert (unreachable.returncode, unreachable.stdout) == (4, "")
    assert len(unreachable.stderr.splitlines()) == 1


def _keys_that_are_refused(world: World, service: Service, key: str) -> None:
    mints = world.github.count("mint")
    wrong = world.command("keys", "generate").stdout.strip()
    revoked = world.key("acme/*")
    assert world.client(service, revoked, "github", "token", "acme/widgets").returncode == 0
    assert world.command("keys", "revoke", revoked[5:17]).returncode == 0
    for bad in (wrong, revoked):
        refused = world.client(service, bad, "github", "token", "acme/widgets")
        assert (refused.returncode, refused.stdout) == (3, ""), refused.stderr
        assert bad not in refused.stderr
        assert bad[5:17] in refused.stderr
    mistyped = world.client(service, key[:-1] + ("0" if key[-1] != "0" else "1"), "github", "ls")
    assert (mistyped.returncode, mistyped.stdout) == (3, ""), mistyped.stderr
    missing = world.client_of(service.url, None, "github", "token", "acme/widgets")
    assert (missing.returncode, missing.stdout) == (3, ""), missing.stderr
    assert world.github.count("mint") == mints


@pytest.mark.slow
def test_a_service_that_starts_late_is_waited_for(world: World) -> None:
    """The client tries again while its time lasts."""
    service = world.service(start=False)
    key = world.key("acme/*")
    with subprocess.Popen(
        world.client_command("github", "token", "acme/widgets", "--timeout", "25"),
        env=clean_environment(BROKER_API_URL=service.url, BROKER_API_KEY=key),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as client:
        service.start()
        out, errors = client.communicate(timeout=40)
    assert client.returncode == 0, errors
    assert out.strip() in world.github.tokens
