"""``BROKER_PROBE_NEW_TOKENS=git``: a new token goes out when git accepts it, or after a few seconds."""

import asyncio
import base64
import time

import httpx
import pytest
from harness import World

from broker.issuing import minting
from broker.sandbox.github import Fault


async def git_accepts(world: World, token: str, repository: str = "acme/widgets") -> bool:
    """Ask as git does."""
    basic = base64.b64encode(f"x-access-token:{token}".encode()).decode()
    async with httpx.AsyncClient() as http:
        answer = await http.get(
            f"{world.server.url}/{repository}.git/info/refs?service=git-upload-pack",
            headers={"Authorization": f"Basic {basic}"},
        )
    return answer.status_code == 200


@pytest.mark.parametrize("probe", ["git", "off"])
async def test_git_accepts_what_is_handed_out(git_world: World, probe: str) -> None:
    """GitHub's git servers know a new token a moment later than its API: only the probe sees to it."""
    git_world.github.lag_s = 1.0
    async with git_world.inside(probe_new_tokens=probe) as app:
        key = await app.key("acme/*")
        answer = await app.token(key, "acme/widgets")
        assert answer.status_code == 200
        assert await git_accepts(git_world, answer.json()["token"]) is (probe == "git")


async def test_many_callers_cost_one_mint_and_one_row_of_probes(git_world: World) -> None:
    git_world.github.lag_uses = 2
    async with git_world.inside(probe_new_tokens="git") as app:
        key = await app.key("acme/*")
        answers = await asyncio.gather(*(app.token(key, "acme/widgets") for _ in range(20)))
        assert len({answer.json()["token"] for answer in answers}) == 1
        assert git_world.github.count("mint") == 1
        assert git_world.github.count("git_refs") == 3
        assert (await app.token(key, "acme/widgets")).json()["cached"] is True
        assert git_world.github.count("git_refs") == 3, "what is cached is not probed again"


@pytest.mark.parametrize(
    "fault",
    [None, Fault(route="git_refs", delay_s=60), Fault(route="git_refs", stall="head")],
    ids=["refused for long", "silent", "silent in the head"],
)
async def test_the_wait_is_bounded(
    git_world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: Fault | None
) -> None:
    """GitHub has said that the token is good: it goes out all the same, once, and is not minted again."""
    monkeypatch.setattr(minting, "_PROBE_FOR_S", 1.0)
    git_world.github.lag_s = 60.0
    if fault is not None:
        git_world.github.faults.add(fault)
    async with git_world.inside(probe_new_tokens="git") as app:
        key = await app.key("acme/*")
        begun = time.monotonic()
        answer = await app.token(key, "acme/widgets")
        assert answer.status_code == 200
        assert 1.0 <= time.monotonic() - begun < 10
        assert git_world.github.count("mint") == 1
        assert git_world.github.count("git_refs") < 8
    assert "git's endpoint has not accepted a new token" in caplog.text
    assert answer.json()["token"] not in caplog.text


@pytest.mark.parametrize("status", [302, 500, 502])
async def test_an_endpoint_that_gives_no_answer_is_asked_once(git_world: World, status: int) -> None:
    git_world.github.faults.add(Fault(route="git_refs", status=status, html=True))
    async with git_world.inside(probe_new_tokens="git") as app:
        assert (await app.token(await app.key("acme/*"), "acme/widgets")).status_code == 200
        assert git_world.github.count("git_refs") == 1


async def test_what_git_cannot_tell_is_not_probed(git_world: World) -> None:
    """A token without ``contents``, or for a whole owner: no repository of which git could say yes."""
    async with git_world.inside(probe_new_tokens="git") as app:
        key = await app.key("acme/*", permissions={"contents": "read", "issues": "read"})
        assert (await app.token(key, "acme/widgets", permissions={"issues": "read"})).status_code == 200
        assert (await app.token(key, owner="acme")).status_code == 200
        assert git_world.github.count("git_refs") == 0
