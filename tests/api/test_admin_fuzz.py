"""Whatever is sent to the admin API: never a 5xx, and a refused call changes nothing."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from admin_stage import AdminStage, key_id
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from harness import World

FUZZ = settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

TEXTS = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            "",
            "acme",
            "acme/widgets",
            "acme/*",
            "*/*",
            "acme/../x",
            "caller",
            "admin",
            "2099-01-01T00:00:00Z",
            "9999-12-31T23:59:59-23:59",
            "0001-01-01T00:00:00+23:59",
            "2099-13-01T00:00:00Z",
            "A" * 43 + "=",
            "0" * 12,
            "a" * 300,
            "\ud800",
            "\x00",
            "\u2028",
            "x\ny",
        ]
    ),
)
LEAVES = st.one_of(
    TEXTS,
    st.none(),
    st.booleans(),
    st.integers(min_value=-(2**70), max_value=2**70),
    st.floats(allow_nan=False, allow_infinity=False),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)
LIKELY = {
    "name": st.one_of(st.just("n"), VALUES),
    "repositories": st.one_of(st.just(["acme/*"]), st.lists(TEXTS, max_size=3), VALUES),
    "role": st.one_of(st.sampled_from(["caller", "admin"]), VALUES),
    "permissions": st.one_of(
        st.just({"contents": "read"}), st.dictionaries(TEXTS, TEXTS, max_size=3), VALUES
    ),
    "expires_at": st.one_of(st.just("2099-01-01T00:00:00Z"), VALUES),
    "rate_limit_per_minute": st.one_of(st.just(5), VALUES),
    "overlap_seconds": st.one_of(st.just(5), VALUES),
    "repository": st.one_of(st.just("acme/widgets"), VALUES),
    "owner": st.one_of(st.just("acme"), VALUES),
    "installation_id": VALUES,
    "token_sha256": VALUES,
    "all": VALUES,
    "reason": st.one_of(st.just("because"), VALUES),
}
BODIES = st.one_of(
    st.sets(st.sampled_from(sorted(LIKELY)), max_size=5)
    .flatmap(lambda names: st.fixed_dictionaries({name: LIKELY[name] for name in sorted(names)}))
    .map(lambda body: json.dumps(body).encode()),
    st.builds(lambda name, value: json.dumps({name: value}).encode(), TEXTS, VALUES),
    VALUES.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=60),
)
WRITES = st.sampled_from(
    [
        ("POST", "/keys"),
        ("PATCH", "/keys/{id}"),
        ("POST", "/keys/{id}/rotate"),
        ("POST", "/revocations"),
        ("PUT", "/blocks/acme"),
        ("PUT", "/blocks/acme/widgets"),
        ("POST", "/installations/sync"),
        ("POST", "/owners/acme/accept"),
    ]
)
NAMES = [
    "cursor",
    "limit",
    "key",
    "repository",
    "event",
    "request_id",
    "since",
    "until",
    "order",
    "tokens",
    "x",
]
QUERIES = st.lists(
    st.tuples(
        st.sampled_from(NAMES),
        st.one_of(
            TEXTS,
            st.integers(-5, 10**20).map(str),
            st.sampled_from(["asc", "token.issued", "0-0", "1-1", "99999999999999999999-0", "o:acme"]),
        ),
    ),
    max_size=3,
)
READS = st.sampled_from(["/keys", "/keys/{id}", "/blocks", "/blocks/acme", "/installations", "/audit"])


def encoded(text: str) -> str:
    return quote(text.encode("utf-8", "surrogatepass"), safe="")


def _fuzzed(world: World, check: Any) -> None:
    """Run ``check(runner, stage, target)`` with the app running in one loop."""
    with asyncio.Runner() as runner:
        inside = world.inside()
        app = runner.run(inside.__aenter__())
        try:
            stage = runner.run(AdminStage.of(world, app))
            target = runner.run(stage.made("acme/*"))
            runner.run(stage.issued(target["key"], "acme/widgets"))
            check(runner, stage, target["id"])
        finally:
            runner.run(inside.__aexit__(None, None, None))


def test_bodies(any_world: World) -> None:
    def check(runner: asyncio.Runner, stage: AdminStage, target: str) -> None:
        async def one(method: str, path: str, body: bytes) -> None:
            nonlocal target
            before = await stage.state()
            answer = await stage.call(
                method,
                path.replace("{id}", target),
                content=body,
                headers={"content-type": "application/json"},
            )
            assert answer.status_code < 500, (method, path, body, answer.text)
            if answer.status_code >= 400:
                assert answer.headers["content-type"] == "application/problem+json"
                assert await stage.state() == before, (method, path, body)
            elif path.endswith("/rotate"):
                target = answer.json()["id"]

        @FUZZ
        @given(WRITES, BODIES)
        def run(call: tuple[str, str], body: bytes) -> None:
            runner.run(one(*call, body))

        run()

    _fuzzed(any_world, check)


def test_queries(any_world: World) -> None:
    def check(runner: asyncio.Runner, stage: AdminStage, target: str) -> None:
        async def one(method: str, path: str, query: str) -> None:
            before = await stage.state()
            answer = await stage.call(method, f"{path.replace('{id}', target)}?{query}")
            assert answer.status_code < 500, (path, query, answer.text)
            if answer.status_code >= 400 or method == "GET":
                assert await stage.state() == before, (method, path, query)

        @FUZZ
        @given(READS, QUERIES)
        def run(path: str, query: list[tuple[str, str]]) -> None:
            text = "&".join(f"{name}={encoded(value)}" for name, value in query)
            runner.run(one("GET", path, text))
            if path in {"/keys/{id}", "/blocks/acme"} and query:
                runner.run(one("DELETE", path, text))

        run()

    _fuzzed(any_world, check)


def test_paths(any_world: World) -> None:
    segments = st.one_of(TEXTS, st.just(".."), st.just("%2F"))

    def check(runner: asyncio.Runner, stage: AdminStage, target: str) -> None:
        assert target != key_id(stage.admin)

        async def one(method: str, path: str) -> None:
            before = await stage.state()
            answer = await stage.call(method, path, json={})
            assert answer.status_code < 500, (method, path, answer.text)
            assert answer.status_code >= 400 or method == "GET" or path.endswith("/accept")
            assert await stage.state() == before, (method, path)

        @FUZZ
        @given(
            st.sampled_from(["GET", "PUT", "PATCH", "POST"]),
            st.sampled_from(
                ["/keys/{}", "/keys/{}/rotate", "/blocks/{}", "/blocks/{}/{}", "/owners/{}/accept"]
            ),
            segments,
            segments,
        )
        def run(method: str, path: str, first: str, second: str) -> None:
            runner.run(one(method, path.format(encoded(first), encoded(second))))

        run()

    _fuzzed(any_world, check)
