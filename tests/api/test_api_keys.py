"""Keys: what they may, when they end, and what a malformed one costs."""

import asyncio
import logging
from importlib.metadata import version

import pytest
from harness import World, bearer, unknown_key
from stage import HandClock, database, pair, verdict, wrap_backend

from broker.access.keys import generate
from broker.issuing.keys import KeyRegister

OK, NO = (200, "ok"), (401, "invalid_api_key")


async def test_a_malformed_key_never_reaches_the_store(any_world: World) -> None:
    async with any_world.inside() as app:
        key = await app.key("acme/*")
        counted = wrap_backend(app)
        mistyped = key[:-1] + ("0" if key[-1] != "0" else "1")
        for text in (mistyped, key[:-1], key + "0", "ghbk_x", "", key.replace("_", "-"), "é"):
            for path in ("/v1/whoami", "/v1/github/repositories"):
                answer = await app.http.get(path, headers=[(b"authorization", f"Bearer {text}".encode())])
                assert verdict(answer) == NO
            answer = await app.http.post(
                "/v1/github/token",
                json={"repositories": ["acme/widgets"]},
                headers=[(b"authorization", f"Bearer {text}".encode())],
            )
            assert verdict(answer) == NO
        assert counted.calls == {}
        assert verdict(await app.token(unknown_key(), "acme/widgets")) == NO
        assert counted.calls == {"read": 1}


async def test_unknown_keys_share_reads_and_write_nothing(any_world: World) -> None:
    async with any_world.inside() as app:
        counted = wrap_backend(app)
        any_world.github.clear_calls()
        answers = await asyncio.gather(*(app.token(unknown_key(), "acme/widgets") for _ in range(50)))
        assert {verdict(answer) for answer in answers} == {NO}
        assert set(counted.calls) - {"counts", "list_keys"} == {"read"}  # the metrics look by themselves
        assert any_world.github.count("mint") == 0


async def test_a_flood_from_one_address_shuts_out_no_good_key(
    any_world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The good one comes from the same address, for the first time, in the middle of the flood."""
    caplog.set_level(logging.INFO)
    async with any_world.inside() as app:
        seen, new = await app.key("acme/*"), await app.key("acme/*")
        assert verdict(await app.token(seen, "acme/widgets")) == OK
        flood = [asyncio.create_task(app.token(unknown_key(), "acme/widgets")) for _ in range(40)]
        await asyncio.wait(flood)
        flood += [asyncio.create_task(app.token(unknown_key(), "acme/widgets")) for _ in range(60)]
        for key in (new, seen):
            assert verdict(await app.token(key, "acme/widgets")) == OK
        told = {verdict(answer) for answer in await asyncio.gather(*flood)}
        assert NO in told
        assert told <= {NO, (429, "rate_limited")}
        lines = sum("token.denied" in record.getMessage() for record in caplog.records)
        assert lines < 60, "one line tells of many"


async def test_only_the_digest_is_stored(world: World) -> None:
    async with world.inside() as app:
        key = await app.key("acme/*")
        entry = await app.broker.store.find_key(key[5:17])
        assert entry is not None
        assert key[18:] not in repr(entry)
        db = database(world)
        assert key[18:].encode() not in b"".join(row[0] for row in db.execute("SELECT blob FROM keys"))
        db.close()


async def test_revoked_at_once_on_every_replica(any_world: World) -> None:
    async with pair(any_world) as (one, two):
        key, other = await one.key("acme/*"), await one.key("acme/*")
        for app in (one, two):
            assert verdict(await app.token(key, "acme/widgets")) == OK
        await KeyRegister(two.broker.store).revoke(key[5:17], by="test")
        for app in (one, two):
            assert verdict(await app.token(key, "acme/widgets")) == NO
            assert verdict(await app.http.get("/v1/whoami", headers=bearer(key))) == NO
            assert verdict(await app.token(other, "acme/widgets")) == OK


async def test_expired_to_the_second(world: World) -> None:
    clock = HandClock()
    world.github.clock = clock
    async with world.inside(clock=clock) as app:
        key = await app.key("acme/*", expires_in_s=100)
        assert verdict(await app.token(key, "acme/widgets")) == OK
        clock.at += 99
        assert verdict(await app.token(key, "acme/widgets")) == OK
        clock.at += 1
        assert verdict(await app.token(key, "acme/widgets")) == NO


async def test_whoami_shows_the_record_and_no_hash(any_world: World) -> None:
    async with any_world.inside() as app:
        key = await app.key("acme/*", "other/svc-*", expires_in_s=3600, limit=1000)
        answer = await app.http.get("/v1/whoami", headers=bearer(key))
        found = answer.json()
        assert set(found) == {
            "id", "name", "role", "repositories", "permissions", "created_at", "created_by", "expires_at",
            "revoked_at", "last_used_at", "rate_limit_per_minute", "broker",
        }  # fmt: skip
        assert found["id"] == key[5:17]
        assert set(found["broker"]) == {"version", "github_url", "install_url"}
        assert found["broker"]["version"] == version("github-token-broker")
        assert found["broker"]["github_url"] == any_world.server.url
        assert found["repositories"] == ["acme/*", "other/svc-*"]
        assert found["permissions"] == {"contents": "read", "metadata": "read"}
        assert found["rate_limit_per_minute"] == 1000
        assert found["created_at"].endswith("Z")
        assert answer.headers["cache-control"] == "no-store"
        await app.broker.auditor.flush(everything=True)
        again = (await app.http.get("/v1/whoami", headers=bearer(key))).json()
        assert again["last_used_at"]


async def test_the_key_from_the_settings(any_world: World) -> None:
    admin = generate()[0].reveal()
    async with any_world.inside(admin_key=admin) as app:
        found = (await app.http.get("/v1/whoami", headers=bearer(admin))).json()
        assert (found["role"], found["name"]) == ("admin", "BROKER_ADMIN_KEY")
        assert verdict(await app.token(admin, "acme/widgets")) == (403, "forbidden")
        assert verdict(await app.token(admin, owner="acme")) == (403, "forbidden")


async def test_only_allowed_owners(world: World) -> None:
    world.github.install(world.app, "stranger")
    async with world.inside(allowed_owners=("Acme",)) as app:
        key = await app.key("*/*")
        assert verdict(await app.token(key, "acme/widgets")) == OK
        assert verdict(await app.token(key, "stranger/secrets")) == (403, "forbidden")
        assert verdict(await app.token(key, owner="stranger")) == (403, "forbidden")
        listed = (await app.http.get("/v1/github/repositories", headers=bearer(key))).json()["repositories"]
        assert {one["full_name"] for one in listed} == {"acme/widgets", "acme/gadgets"}


async def test_lists_page_through_what_the_key_covers(world: World) -> None:
    for number in range(130):
        world.github.add_repository(f"acme/svc-{number:03}")
    async with world.inside() as app:
        key = await app.key("acme/svc-*", "stranger/*")
        found: list[str] = []
        cursor = None
        while True:
            query = {"limit": "50", **({"cursor": cursor} if cursor else {})}
            page = (await app.http.get("/v1/github/repositories", headers=bearer(key), params=query)).json()
            assert len(page["repositories"]) <= 50
            found += [one["full_name"] for one in page["repositories"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert found == [f"acme/svc-{number:03}" for number in range(130)]


async def test_a_list_goes_on_with_the_first_of_githubs_next_page(world: World) -> None:
    for number in range(150):
        world.github.add_repository(f"acme/svc-{number:03}")
    async with world.inside() as app:
        key = await app.key("acme/svc-*")
        found: list[str] = []
        cursor = None
        for _ in range(8):
            query = {"limit": "49", **({"cursor": cursor} if cursor else {})}
            answer = await app.http.get("/v1/github/repositories", headers=bearer(key), params=query)
            assert answer.status_code == 200, answer.text
            page = answer.json()
            found += [one["full_name"] for one in page["repositories"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert found == [f"acme/svc-{number:03}" for number in range(150)]
