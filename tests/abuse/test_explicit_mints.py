"""Whatever is asked for: what leaves for GitHub names repositories and read permissions, within policy."""

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from harness import Inside, World, bearer, world_in
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PATTERNS = {
    "owner": ("acme/*",),
    "prefix": ("acme/w*", "stranger/secrets"),
    "one": ("acme/gadgets",),
    "all": ("*/*",),
}
REPOSITORIES = st.sampled_from(
    [
        "acme/widgets", "ACME/Widgets", "acme/gadgets", "acme/nothing", "stranger/secrets", "acme/*", "*/*",
        "acme/..", "acme/widgets.git", "widgets", "", "acme/widgets\n", "acme/w\u0131dgets",
    ]
)  # fmt: skip
SCRAPS = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 4000) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
LEVELS = st.sampled_from(["read", "read", "read", "write", "admin", "", "none"])
NAMES = st.sampled_from(["contents", "metadata", "issues", "administration", "", "x"])
NEAR_VALID = st.fixed_dictionaries(
    {},
    optional={
        "repositories": st.lists(REPOSITORIES, max_size=3) | st.none() | SCRAPS,
        "owner": st.sampled_from(["acme", "ACME", "stranger", "nobody", "*", ""]) | SCRAPS,
        "permissions": st.dictionaries(NAMES, LEVELS, max_size=3) | st.none() | SCRAPS,
        "min_ttl": st.sampled_from([0, 300, 3300, -1, 3301, True]),
        "refresh": st.booleans(),
        "repository_ids": st.just([700001]),
        "host": st.just("github.com"),
    },
)
VALID = st.fixed_dictionaries(
    {"repositories": st.lists(st.sampled_from(["acme/widgets", "acme/gadgets"]), min_size=1, max_size=3)},
    optional={
        "permissions": st.dictionaries(NAMES, st.just("read"), min_size=1, max_size=3),
        "refresh": st.booleans(),
    },
)
OWNER_WIDE = st.fixed_dictionaries(
    {"owner": st.sampled_from(["acme", "Acme", "stranger"])}, optional={"refresh": st.booleans()}
)


def judge(world: World, key_name: str, body: Any, status: int) -> None:
    """Compare what left for GitHub with what the contract lets leave."""
    for call in [call for call in world.github.calls if call.route == "mint"]:
        sent = call.body
        assert isinstance(sent, dict)
        assert set(sent) <= {"repositories", "permissions"}
        permissions = sent["permissions"]
        assert permissions
        assert set(permissions.values()) == {"read"}
        assert permissions["metadata"] == "read"
        assert set(permissions) <= {"contents", "metadata", "issues"}
        owner = world.github.installations[call.installation_id or 0].account.login.lower()
        patterns = [tuple(pattern.split("/")) for pattern in PATTERNS[key_name]]
        if "repositories" in sent:
            assert sent["repositories"]
            for name in sent["repositories"]:
                assert "/" not in name
                assert any(
                    fnmatchcase(owner, left) and fnmatchcase(name.lower(), right) for left, right in patterns
                )
        else:
            assert isinstance(body, dict)
            assert body["owner"].lower() == owner
            assert "repositories" not in body
            assert (owner, "*") in patterns or ("*", "*") in patterns
    for token in world.github.tokens.values():
        assert set(token.permissions.values()) == {"read"}
    if status == 200 and isinstance(body, dict) and "repositories" in body:
        assert body["repositories"]


async def send(app: Inside, key: str, body: Any) -> tuple[int, Any]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = await app.http.post(
        "/v1/github/token", content=content, headers={**bearer(key), "content-type": "application/json"}
    )
    return answer.status_code, answer.json()


@pytest.mark.parametrize("kind", ["near", "valid", "wide", "scraps"])
async def test_every_mint_is_explicit(tmp_path: Path, kind: str) -> None:
    """One app for many bodies: the store is warm for some, cold for others."""
    strategy = {
        "near": NEAR_VALID,
        "valid": VALID,
        "wide": OWNER_WIDE,
        "scraps": SCRAPS | st.binary(max_size=40),
    }[kind]
    drawn: list[tuple[str, Any]] = []

    @settings(
        max_examples=80,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=False,
    )
    @given(st.sampled_from(sorted(PATTERNS)), strategy)
    def collect(name: str, body: Any) -> None:
        drawn.append((name, body))

    collect()
    statuses = set()
    with world_in(tmp_path) as world:
        async with world.inside(mint_budget=100_000, failure_cooldown=0.1) as app:
            everything: dict[str, object] = {"contents": "read", "issues": "read"}
            keys = {name: await app.key(*found, permissions=everything) for name, found in PATTERNS.items()}
            for name, body in drawn:
                world.github.clear_calls()
                status, answer = await send(app, keys[name], body)
                assert status in {200, 400, 403, 404, 422}, (status, answer, body)
                judge(world, name, body, status)
                statuses.add(status)
                if status == 200:
                    assert set(answer["permissions"].values()) == {"read"}
                    reached = world.github.tokens[answer["token"]].repositories
                    if answer["repositories"] is None:
                        assert reached is None
                    else:
                        assert {
                            world.github.repositories[number].full_name for number in reached or ()
                        } == set(answer["repositories"])
    if kind in {"valid", "wide"}:
        assert 200 in statuses


async def test_the_brokers_own_list_asks_for_metadata_only(world: World) -> None:
    async with world.inside() as app:
        key = await app.key("acme/widgets")
        answer = await app.http.get("/v1/github/repositories", headers=bearer(key))
        assert [one["full_name"] for one in answer.json()["repositories"]] == ["acme/widgets"]
        (call,) = [call for call in world.github.calls if call.route == "mint"]
        assert call.body == {"permissions": {"metadata": "read"}}
        assert not any(token in answer.text for token in world.github.tokens)
