"""What a hostile reviewer found, each as a test: none of it may work again."""

import asyncio
import contextlib
import json
import logging
import socket
import time

import pytest
from harness import Inside, World, bearer, unknown_key

from broker.issuing import repositories as listing
from broker.issuing.ending import Actor
from broker.issuing.keys import KeyChange, KeyRegister
from broker.ports import AuditFilter
from broker.redaction import redact
from broker.web import wire

ADMIN = Actor("admin", "test")


async def admin_call(
    app: Inside, method: str, path: str, body: dict[str, object] | None = None
) -> dict[str, int]:
    key = await app.key(admin=True)
    answer = await app.http.request(method, f"/v1/admin{path}", json=body, headers=bearer(key))
    assert answer.status_code == 200, answer.text
    found: dict[str, int] = answer.json()
    return found


@pytest.mark.parametrize(
    "text", ["a" * 64_000, "ghs_" * 16_000, "eyJ" * 20_000, "://a:" * 12_000, "a://" * 15_000]
)
async def test_a_long_name_freezes_nobody(world: World, text: str) -> None:
    """One request of a stranger took ten seconds of the loop: the redaction was quadratic."""
    begun = time.monotonic()
    redact(text)
    async with world.inside() as app:
        for body in (
            {"repositories": [text]},
            {"owner": text},
            {"permissions": {text: "read"}, "owner": "a"},
        ):
            answer = await app.http.post("/v1/github/token", json=body, headers=bearer(unknown_key()))
            assert answer.status_code == 401
    assert time.monotonic() - begun < 5, "this took seconds to minutes when it was quadratic"


async def test_a_narrow_key_cannot_list_the_quota_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "CALLS_PER_MINUTE", 3)
    monkeypatch.setattr(listing, "_PAGES_TTL_S", 0.0)
    async with world.inside() as app:
        key, other = await app.key("acme/widgets"), await app.key("acme/gadgets")
        statuses = [
            (await app.http.get("/v1/github/repositories", headers=bearer(key))).status_code for _ in range(6)
        ]
        assert statuses == [200, 200, 200, 429, 429, 429]
        assert world.github.count("installation_repositories") == 3
        assert (await app.http.get("/v1/github/repositories", headers=bearer(other))).status_code == 200


async def test_the_same_page_is_asked_for_once(world: World) -> None:
    async with world.inside() as app:
        key = await app.key("acme/widgets")
        for _ in range(5):
            answer = await app.http.get("/v1/github/repositories", headers=bearer(key))
            assert [one["full_name"] for one in answer.json()["repositories"]] == ["acme/widgets"]
        assert world.github.count("installation_repositories") == 1


@pytest.mark.parametrize("how", ["installation", "owner", "block"])
async def test_tokens_from_before_a_rename_die_with_the_owner(any_world: World, how: str) -> None:
    world = any_world
    world.github.add_repository("bystander/app")
    world.github.install(world.app, "bystander")
    async with world.inside() as app:
        key = await app.key("*/*")
        token = (await app.token(key, "acme/widgets")).json()["token"]
        spared = (await app.token(key, "bystander/app")).json()["token"]
        world.github.rename_account("acme", "acme2")
        await admin_call(app, "POST", "/installations/sync")
        if how == "block":
            done = await admin_call(app, "PUT", "/blocks/acme2", {"reason": "drill"})
        else:
            named = (
                {"installation_id": world.installation.id} if how == "installation" else {"owner": "acme2"}
            )
            done = await admin_call(app, "POST", "/revocations", {**named, "reason": "drill"})
        assert (done["revoked"], done["failed"], done["pending"]) == (1, 0, 0)
        assert world.github.tokens[token].revoked
        assert not world.github.tokens[spared].revoked


async def test_a_rotation_does_not_bring_an_older_policy_back(
    any_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with any_world.inside() as app:
        key = await app.key("acme/*")
        register = KeyRegister(app.broker.store)
        narrowed = False
        create = register.create

        async def create_late(*args: object, **more: object) -> object:
            nonlocal narrowed
            if not narrowed:
                narrowed = True
                change = KeyChange(repositories=("acme/widgets",))
                await register.change(key.split("_")[1], change, by="another admin", actor=ADMIN)
            return await create(*args, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(register, "create", create_late)
        new, record = await register.rotate(key.split("_")[1], overlap_s=0, by="admin", actor=ADMIN)
        assert record.repositories == ("acme/widgets",)
        assert (await app.token(new.reveal(), "acme/widgets")).status_code == 200
        assert (await app.token(new.reveal(), "acme/gadgets")).status_code == 403
        live = [entry.record for entry in (await register.list(cursor=None, limit=50)).items]
        assert [one.id for one in live if one.revoked_at is None] == [record.id]


async def test_changes_under_load_raise_no_false_alarm(
    any_world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async with any_world.inside() as app:
        key = await app.key("acme/*")
        assert (await app.token(key, "acme/widgets")).status_code == 200
        register = KeyRegister(app.broker.store)
        stopping = False
        statuses: set[int] = set()

        async def ask() -> None:
            while not stopping:
                statuses.add((await app.token(key, "acme/widgets")).status_code)

        tasks = [asyncio.create_task(ask()) for _ in range(12)]
        for number in range(40):
            await register.change(
                key.split("_")[1], KeyChange(name=f"name {number}"), by="admin", actor=ADMIN
            )
        stopping = True
        await asyncio.gather(*tasks)
        assert statuses == {200}
        assert not [record for record in caplog.records if record.levelno >= logging.CRITICAL]


async def test_what_is_refused_does_not_fill_the_store(world: World) -> None:
    async with world.inside() as app:
        key = await app.key("acme/widgets")
        names = [f"acme/{number:03}{'x' * 90}" for number in range(500)]
        assert (await app.token(key, *names)).status_code == 403
        rows = (await app.broker.store.audit(AuditFilter(event="token.denied"), cursor=None, limit=5)).items
        assert len(json.dumps(rows[0].event)) < 4000


async def test_a_body_that_trickles_is_not_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "BODY_WITHIN_S", 0.2)

    async def trickle() -> object:
        yield b"{"
        await asyncio.sleep(5)
        yield b"}"

    async with world.inside() as app:
        headers = {**bearer(await app.key("acme/*")), "Content-Type": "application/json"}
        answer = await app.http.post("/v1/github/token", content=trickle(), headers=headers)  # type: ignore[arg-type]
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


def test_a_head_without_end_is_cut_off(world: World) -> None:
    service = world.service()
    sent = 0
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n")
        with contextlib.suppress(OSError):
            for _ in range(400):
                connection.sendall(b"a: b\r\n" * 5000)
                sent += 30_000
                time.sleep(0.002)
    assert sent < 8_000_000, "the connection was not closed"
    assert b"200" in plain_get(service.port)


def plain_get(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return connection.recv(200)
