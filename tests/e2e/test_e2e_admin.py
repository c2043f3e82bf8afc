"""An admin's day: the real client against a real service; nothing but the command line."""

from __future__ import annotations

import base64
import hashlib
import json
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
from harness import Service, World, clean_environment

if TYPE_CHECKING:
    from collections.abc import Callable


class Desk:
    """An admin at the command line."""

    def __init__(self, world: World, service: Service, key: str) -> None:
        self.world = world
        self.service = service
        self.key = key

    def run(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = self.world.client(self.service, self.key, "admin", *arguments)
        assert done.returncode == code, (arguments, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)

    def token(self, key: str, *arguments: str, code: int = 0) -> str:
        done = self.world.client(self.service, key, "github", "token", *arguments)
        assert done.returncode == code, (arguments, done.stdout, done.stderr)
        return done.stdout.strip()

    def alive(self, token: str) -> bool:
        return token in {one.text for one in self.world.github.live_tokens()}


@pytest.fixture
def desk(any_world: World) -> Desk:
    bootstrap = any_world.command("keys", "generate").stdout.strip()
    return Desk(any_world, any_world.service(BROKER_ADMIN_KEY=bootstrap), bootstrap)


def until(true: Callable[[], bool], *, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_admins_day(desk: Desk) -> None:
    # The bootstrap key makes a real admin, who does the rest.
    made = desk.run("keys", "create", "--name", "ops", "--admin")
    admin = made.stdout.strip()
    assert made.stdout == f"{admin}\n"
    assert admin not in made.stderr
    assert admin[5:17] in made.stderr
    bootstrap, desk.key = desk.key, admin
    desk.run("keys", "revoke", bootstrap[5:17], code=1)

    # Keys.
    made = desk.run("keys", "create", "--name", "etl", "--repository", "acme/*", "--expires-in", "90d")
    caller = made.stdout.strip()
    record = desk.json("keys", "show", caller[5:17])
    assert (record["name"], record["repositories"]) == ("etl", ["acme/*"])
    assert record["expires_at"] in made.stderr
    assert "sha256" not in record
    table = desk.run("keys", "list").stdout
    assert [line.split()[0] for line in table.splitlines()] == ["ID", admin[5:17], caller[5:17]]
    assert caller not in table
    desk.run("keys", "update", caller[5:17], "--repository", "acme/widgets", "--no-expiry")
    desk.token(caller, "acme/gadgets", code=1)
    first = desk.token(caller, "acme/widgets")
    second = desk.token(caller, "acme/widgets", "--refresh")
    assert first != second
    rotated = desk.run("keys", "rotate", caller[5:17], "--overlap", "1h").stdout.strip()
    assert desk.token(caller, "acme/widgets") == desk.token(rotated, "acme/widgets") == second
    done = desk.run("keys", "revoke", caller[5:17], "--tokens", "revoke")
    assert done.stdout == "revoked 2, failed 0, pending 0\n"
    assert not desk.alive(first)
    assert not desk.alive(second)
    desk.token(caller, "acme/widgets", code=3)
    third = desk.token(rotated, "acme/widgets")

    # Revocations.
    sha256 = base64.b64encode(hashlib.sha256(third.encode()).digest()).decode()
    done = desk.run("revoke", "--token-sha256", sha256, "--reason", "found in a gist")
    assert done.stdout == "revoked 1, failed 0, pending 0\n"
    assert not desk.alive(third)
    fourth = desk.token(rotated, "acme/widgets")
    installation = str(desk.world.installation.id)
    assert desk.json("revoke", "--installation", installation, "--reason", "x")["revoked"] == 1
    assert not desk.alive(fourth)
    desk.run("revoke", "--installation", "4711", "--reason", "x", code=1)
    assert desk.json("revoke", "--all", "--reason", "x") == {
        "revoked": 0,
        "failed": 0,
        "pending": 0,
        "remaining": [],
    }

    # Blocks.
    fifth = desk.token(rotated, "acme/widgets")
    desk.run("block", "acme/widgets", "--reason", "incident 4711")
    assert not desk.alive(fifth)
    desk.token(rotated, "acme/widgets", code=1)
    assert "incident 4711" in desk.run("blocks").stdout
    desk.run("unblock", "acme/widgets")
    desk.run("unblock", "acme/widgets", code=1)
    desk.token(rotated, "acme/widgets")

    # Installations.
    assert desk.run("installations", "sync").stdout == "unchanged 1, added 0, changed 0, removed 0\n"
    [one] = desk.json("installations", "list")["installations"]
    assert (one["owner"], one["live_tokens"], one["app"]["slug"]) == ("acme", 1, desk.world.app.slug)
    desk.run("owners", "accept", "acme", code=1)
    desk.run("owners", "accept", "nobody", code=1)

    # The audit, and what a caller's key may not.
    exported = desk.run("audit", "--order", "asc", "--limit", "0", "--json").stdout.splitlines()
    names = [json.loads(line)["event"] for line in exported]
    assert names[:2] == ["key.created", "key.created"]
    assert {"key.changed", "key.rotated", "key.revoked", "block.set", "block.lifted"} <= set(names)
    assert names.count("token.revoked") == 2 + (1 + 1) + (1 + 1) + 1 + 1
    newest = json.loads(desk.run("audit", "--limit", "1", "--json").stdout)
    assert newest["event"] in {"token.issued", "token.denied"}
    shown = desk.run("audit", "--event", "token.revoked", "--repository", "acme/widgets").stdout
    assert "found in a gist" in shown
    everything = "\n".join(exported)
    assert not any(secret in everything for secret in (caller, rotated, admin, first, fifth))
    desk.key = rotated
    desk.run("keys", "list", code=1)
    desk.run("revoke", "--all", "--reason", "x", code=1)
    log = desk.service.log()
    assert not any(secret in log for secret in (caller, rotated, admin, bootstrap, first, fifth))


def test_following_through_a_restart(desk: Desk) -> None:
    follower = subprocess.Popen(
        desk.world.client_command("admin", "audit", "--follow", "--event", "key.created", "--json"),
        env=clean_environment(BROKER_API_URL=desk.service.url, BROKER_API_KEY=desk.key),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert follower.stdout is not None
        seen = []
        for number in range(4):
            if number == 2:
                desk.service.stop()
                desk.service.start()
            desk.run("keys", "create", "--name", f"n{number}", "--repository", "acme/*")
            desk.token(desk.world.key("acme/*"), "acme/widgets")  # other events are left out
            seen += [json.loads(follower.stdout.readline())["key_name"] for _ in range(2)]
        assert [name for name in seen if name != "test"] == [f"n{number}" for number in range(4)]
        follower.send_signal(signal.SIGINT)
        _, errors = follower.communicate(timeout=20)
        assert follower.returncode == 130
        assert "Traceback" not in errors
    finally:
        follower.kill()
        follower.communicate()
