"""``kill -9`` at random moments under load: nothing that was acknowledged is lost."""

import asyncio
import contextlib
import hashlib
import random
from base64 import b64encode
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from e2e_callers import callers
from harness import Service, World, bearer

WRITERS = 3


@dataclass
class Ledger:
    """What was acknowledged, and what was asked for and not answered (either way is right then).

    Attributes:
        keys: key id to key, of those that must work.
        ended: key id to key, of those that must be refused.
        blocked: blocks that must be there.
        free: names that must not be blocked.
        events: (event, what it is about) that must be in the audit.
        doubt: key ids and names of blocks whose last change was not acknowledged.
    """

    keys: dict[str, str] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)
    blocked: set[str] = field(default_factory=set)
    free: set[str] = field(default_factory=set)
    events: set[tuple[str, str]] = field(default_factory=set)
    doubt: set[str] = field(default_factory=set)


class Writer:
    """Makes and revokes keys, sets and lifts blocks, takes tokens, one after the other until the crash."""

    def __init__(self, number: int, url: str, admin: str, ledger: Ledger, chance: random.Random) -> None:
        self._number = number
        self._url = url
        self._admin = admin
        self._ledger = ledger
        self._chance = chance
        self._count = 0

    async def run(self) -> None:
        """Write until the connection breaks."""
        steps = (self._create, self._revoke, self._block, self._unblock, self._token)
        with contextlib.suppress(httpx.TransportError):
            async with callers() as http:
                while True:
                    await self._chance.choice(steps)(http)

    async def _ask(self, http: httpx.AsyncClient, method: str, path: str, **more: Any) -> httpx.Response:
        answer = await http.request(method, self._url + path, headers=bearer(self._admin), **more)
        assert answer.status_code in {200, 201, 204}, answer.text
        return answer

    async def _create(self, http: httpx.AsyncClient) -> None:
        body = {"name": f"w{self._number}", "repositories": ["acme/*"]}
        made = (await self._ask(http, "POST", "/v1/admin/keys", json=body)).json()
        self._ledger.keys[made["id"]] = made["key"]
        self._ledger.events.add(("key.created", made["id"]))

    async def _revoke(self, http: httpx.AsyncClient) -> None:
        if len(self._ledger.keys) < 4:
            return
        key_id = self._chance.choice(list(self._ledger.keys))
        key = self._ledger.keys.pop(key_id)
        self._ledger.doubt.add(key_id)
        await self._ask(http, "DELETE", f"/v1/admin/keys/{key_id}")
        self._ledger.doubt.discard(key_id)
        self._ledger.ended[key_id] = key
        self._ledger.events.add(("key.revoked", key_id))

    async def _block(self, http: httpx.AsyncClient) -> None:
        self._count += 1
        name = f"acme/n{self._number}-{self._count}-{self._chance.randrange(10**9)}"
        self._ledger.doubt.add(name)
        await self._ask(http, "PUT", f"/v1/admin/blocks/{name}", json={"reason": "test"})
        self._ledger.doubt.discard(name)
        self._ledger.blocked.add(name)
        self._ledger.events.add(("block.set", name))

    async def _unblock(self, http: httpx.AsyncClient) -> None:
        mine = sorted(name for name in self._ledger.blocked if name.startswith(f"acme/n{self._number}-"))
        if not mine:
            return
        name = self._chance.choice(mine)
        self._ledger.blocked.discard(name)
        self._ledger.doubt.add(name)
        await self._ask(http, "DELETE", f"/v1/admin/blocks/{name}")
        self._ledger.doubt.discard(name)
        self._ledger.free.add(name)
        self._ledger.events.add(("block.lifted", name))

    async def _token(self, http: httpx.AsyncClient) -> None:
        if not self._ledger.keys:
            return
        key_id, key = self._chance.choice(list(self._ledger.keys.items()))
        answer = await http.post(
            f"{self._url}/v1/github/token", json={"repositories": ["acme/widgets"]}, headers=bearer(key)
        )
        if answer.status_code == 200:  # else another writer has just revoked the key
            sha256 = b64encode(hashlib.sha256(answer.json()["token"].encode()).digest()).decode()
            self._ledger.events.add(("token.issued", f"{key_id} {sha256}"))


async def _everything(http: httpx.AsyncClient, url: str, admin: str, kind: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        path = (
            f"{url}/v1/admin/{kind}?limit=200&cursor={cursor}"
            if cursor
            else f"{url}/v1/admin/{kind}?limit=200"
        )
        page = (await http.get(path, headers=bearer(admin))).json()
        found += next(value for value in page.values() if isinstance(value, list))
        cursor = page["next_cursor"]
        if not cursor:
            return found


async def _verify(service: Service, admin: str, ledger: Ledger) -> None:
    """Compare what was acknowledged with what is there."""
    async with callers() as http:
        records = {str(one["id"]): one for one in await _everything(http, service.url, admin, "keys")}
        for key_id, key in ledger.keys.items():
            assert records[key_id]["revoked_at"] is None, key_id
            answer = await http.get(f"{service.url}/v1/whoami", headers=bearer(key))
            assert answer.status_code == 200, (key_id, answer.text)
        for key_id, key in ledger.ended.items():
            assert records[key_id]["revoked_at"] is not None, key_id
            answer = await http.get(f"{service.url}/v1/whoami", headers=bearer(key))
            assert answer.status_code == 401, (key_id, answer.text)
        rows = await _everything(http, service.url, admin, "blocks")
        blocks = {str(one["repository"]) for one in rows}
        assert ledger.blocked <= blocks | ledger.doubt
        assert not (ledger.free - ledger.doubt) & blocks
        audit = await _everything(http, service.url, admin, "audit")
        held = {_event(one) for one in audit}
        assert ledger.events <= held, sorted(ledger.events - held)


def _event(one: dict[str, Any]) -> tuple[str, str]:
    name = str(one["event"])
    if name == "token.issued":
        return name, f"{one['key_id']} {one['token_sha256']}"
    if name.startswith("block."):
        return name, "".join(one["repositories"])
    return name, str(one["key_id"])


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("store", "crashes"),
    [
        ("sqlite", 2),
        pytest.param("redis", 3, marks=pytest.mark.slow),
    ],
)
async def test_kill_9_loses_nothing_that_was_acknowledged(
    world: World, request: pytest.FixtureRequest, store: str, crashes: int
) -> None:
    """Keys, revocations, blocks and audit records, with two workers on one store."""
    if store == "redis":
        world = request.getfixturevalue("redis_world")
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    admin = world.key(admin=True)
    ledger = Ledger()
    service = world.service(start=False, BROKER_WORKERS="2", BROKER_LOG_LEVEL="error")
    for _ in range(crashes):
        service.start(wait=False).wait_ready(seconds=60)
        writers = [Writer(n, service.url, admin, ledger, chance) for n in range(WRITERS)]
        tasks = [asyncio.create_task(one.run()) for one in writers]
        before = len(ledger.events)
        while len(ledger.events) < before + 15:
            await asyncio.sleep(0.01)
            for task in tasks:
                if task.done():
                    task.result()
        await asyncio.sleep(chance.random())
        await asyncio.to_thread(service.kill)
        await asyncio.gather(*tasks)
    service.start(wait=False).wait_ready(seconds=60)
    await _verify(service, admin, ledger)
    assert len(ledger.ended) > 1
    assert len(ledger.blocked) > 1
    assert {name for name, _ in ledger.events} >= {"key.created", "key.revoked", "block.set", "token.issued"}
