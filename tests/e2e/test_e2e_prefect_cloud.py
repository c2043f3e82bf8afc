"""The public `prefect-cloud` client, unchanged, against this service: the package from the index."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Service, World, clean_environment, unknown_key

ANY = "00000000-0000-0000-0000-000000000000"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_token_and_ls(world: World, installed: Callable[[str], Path], tmp_path: Path) -> None:
    command = installed("prefect-cloud==0.1.13") / "prefect-cloud"
    service = world.service()
    wide, narrow = world.key("acme/*"), world.key("acme/gadgets")

    def run(key: str, *arguments: str, of: Service = service) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(command), "github", *arguments],
            env=clean_environment(
                PREFECT_API_URL=f"{of.url}/api/accounts/{ANY}/workspaces/{ANY}",
                PREFECT_API_KEY=key,
                HOME=str(tmp_path),
                PREFECT_HOME=str(tmp_path / "prefect"),
                NO_COLOR="1",
                COLUMNS="200",
            ),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    done = run(wide, "token", "acme/widgets")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in world.github.tokens
    assert done.stdout.count("\n") == 1
    listed = run(wide, "ls")
    assert listed.returncode == 0, listed.stderr
    assert {"- acme/widgets", "- acme/gadgets"} <= {line.strip() for line in listed.stdout.splitlines()}

    for key in (narrow, unknown_key()):
        refused = run(key, "token", "acme/widgets")
        assert refused.returncode != 0
        assert not any(token in refused.stdout + refused.stderr for token in world.github.tokens)
    listed = run(narrow, "ls")
    assert "acme/gadgets" in listed.stdout
    assert "acme/widgets" not in listed.stdout
    assert world.github.count("mint") == 1 + 1  # and the broker's own, for the list
