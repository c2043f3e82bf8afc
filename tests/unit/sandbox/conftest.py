"""The emulator under test: a served GitHub with one app on one organization, and a git that asks nothing."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from sandbox_world import HandClock, World, rsa_key

from broker.sandbox.github import EmulatedGitHub

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandbox_world import Git


@pytest.fixture
def world() -> Iterator[World]:
    clock = HandClock()
    with EmulatedGitHub(clock=clock) as github:
        app = github.add_app(permissions={"contents": "read", "issues": "write"}, events=["push", "meta"])
        pem = app.new_private_key(rsa_key(0))
        for name in ("widgets", "gadgets", "Docs"):
            github.add_repository(f"acme/{name}")
        github.add_repository("acme/open", private=False)
        github.add_repository("stranger/secrets")
        installation = github.install(app, "acme")
        with (
            github.serve() as server,
            # no certificates are loaded for plain http: that takes longer than most tests
            httpx.Client(base_url=server.api_url, timeout=10, trust_env=False, verify=False) as http,  # noqa: S501
        ):
            yield World(github, clock, app, pem, installation, server, http)


@pytest.fixture
def git(tmp_path: Path) -> Git:
    def run(*arguments: str, token: str | None = None, user: str = "x-access-token") -> Any:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_NOSYSTEM": "1",
            "LC_ALL": "C",
        }
        helper = []
        if token is not None:
            script = f"!f() {{ echo username={user}; echo password={token}; }}; f"
            helper = ["-c", f"credential.helper={script}"]
        return subprocess.run(
            ["git", *helper, *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return run
