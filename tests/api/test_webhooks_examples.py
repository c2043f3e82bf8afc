"""GitHub's own example payloads, all of them, signed: never a 5xx, always fast.

They are Octokit's npm package ``@octokit/webhooks-examples``, fetched by the test and never committed.
"""

import json
import shutil
import subprocess
import tarfile
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from harness import World

from broker.sandbox.github import Hook

SECRET = "It's a Secret to Everybody"
PACKAGE = "@octokit/webhooks-examples"


def examples(folder: Path) -> list[tuple[str, str, dict[str, Any]]]:
    """Return (product, event, payload) of every example in the newest release of the package."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.fail(f"npm is not on PATH: it is needed to fetch GitHub's example payloads ({PACKAGE})")
    done = subprocess.run(
        [npm, "pack", PACKAGE, "--pack-destination", str(folder)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"npm could not fetch {PACKAGE}:\n{done.stderr}")
    (archive,) = folder.glob("*.tgz")
    found = []
    with tarfile.open(archive) as packed:
        for member in packed.getmembers():
            path = Path(member.name)
            opened = packed.extractfile(member) if path.name == "index.json" else None
            if opened is not None:
                found += [
                    (path.parent.name, event["name"], payload)
                    for event in json.load(opened)
                    for payload in event["examples"]
                ]
    return found


@pytest.mark.slow
async def test_every_example_of_github(any_world: World, tmp_path: Path) -> None:
    all_of_them = examples(tmp_path)
    assert len(all_of_them) > 200
    assert {"installation", "installation_repositories", "repository", "organization", "ping", "push"} <= {
        event for _, event, _ in all_of_them
    }
    slowest = 0.0
    hook = Hook(any_world.github, any_world.app, None, SECRET, hook_id=1)
    async with any_world.inside(github_webhook_secret=SECRET) as app:
        key = await app.key("acme/*")
        token = (await app.token(key, "acme/widgets")).json()["token"]
        statuses: list[int] = []
        for content_type in ("json", "form"):
            hook.content_type = "form" if content_type == "form" else "json"
            for product, event, payload in all_of_them:
                delivery = hook.send(event, payload, guid=str(uuid.uuid4()))
                begin = time.monotonic()
                answer = await app.http.post(
                    "/webhooks/github", content=delivery.body, headers=delivery.headers
                )
                slowest = max(slowest, time.monotonic() - begin)
                assert answer.status_code in {200, 202}, f"{product} {delivery.name}: {answer.text}"
                statuses.append(answer.status_code)
        assert statuses.count(202) > 100
        for event, status in (("ping", 202), ("installation", 200)):
            _, _, payload = next(one for one in all_of_them if one[1] == event)
            again = hook.send(event, payload)  # the last content type, another guid
            answer = await app.http.post("/webhooks/github", content=again.body, headers=again.headers)
            assert answer.status_code == status
        assert (await app.token(key, "acme/widgets")).json()["token"] == token  # none of them is about acme
    assert slowest < 1
