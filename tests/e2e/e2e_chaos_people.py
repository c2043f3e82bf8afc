"""Who lives through a chaos run: callers who ask for tokens, and admins who change, revoke and block."""

import asyncio
import random
import time
from dataclasses import dataclass
from typing import Any

import httpx
from e2e_callers import callers
from e2e_chaos_ledger import MOST_MIN_TTL_S, Ask, End, History, Key, Ledger, sha256_of
from harness import Service, bearer

OWNERS = ("acme", "beta")
STEADY = tuple(f"{owner}/steady" for owner in OWNERS)
"""No admin blocks these."""
BUSY = tuple(f"{owner}/busy-{number}" for owner in OWNERS for number in range(3))
PATTERNS = (("acme/*",), ("beta/*",), ("acme/*", "beta/*"), ("acme/busy-*", "acme/steady"), STEADY)
_PERMISSIONS = (("contents",), ("contents",), ("contents", "issues"))
_HERD = 0.15
"""So many requests go to all replicas at once: where the scope is cold, one of them has to mint for all."""
_MOST_KEYS = 6
_ENDED_KEPT = 4


@dataclass
class People:
    """What callers and admins share."""

    services: list[Service]
    ledger: Ledger
    admin: str
    stopping: bool = False

    # -- callers ---------------------------------------------------------------------------------

    async def call(self, chance: random.Random) -> None:
        """Ask for tokens, one after the other, until the end."""
        async with callers(timeout_s=90) as http:
            while not self.stopping:
                alive = [one for one in self.ledger.keys.values() if one.alive.last]
                ended = [one for one in self.ledger.keys.values() if not one.alive.last][-_ENDED_KEPT:]
                key = chance.choice(ended if ended and chance.random() < 0.15 else alive)
                wish = self._wish(chance)
                if not key.may(wish) and chance.random() < 0.85:
                    continue
                if chance.random() < _HERD:
                    herd = [self.ask(http, one, key, wish) for one in self.services for _ in range(2)]
                    await asyncio.gather(*herd)
                else:
                    await self.ask(http, chance.choice(self.services), key, wish)
                await asyncio.sleep(chance.uniform(0.02, 0.12))

    def _wish(self, chance: random.Random) -> Ask:
        owner = chance.choice(OWNERS)
        names = [name for name in (*STEADY, *BUSY) if name.startswith(f"{owner}/")]
        repositories: tuple[str, ...] | None = tuple(chance.sample(names, 2 if chance.random() < 0.15 else 1))
        if chance.random() < 0.1:
            repositories = None
        return Ask(
            owner,
            repositories,
            chance.choice(_PERMISSIONS),
            min_ttl_s=chance.choice((0, 0, 0, 600, MOST_MIN_TTL_S)),
            refresh=chance.random() < 0.01,
        )

    async def ask(self, http: httpx.AsyncClient, service: Service, key: Key, ask: Ask) -> int:
        """Ask once; return the status, 0 where the process died."""
        sent, asked_at = time.monotonic(), self.ledger.world.github.now()
        if ask.refresh:
            self.ledger.refreshes.setdefault(ask.scope, []).append(sent)
        try:
            answer = await http.post(
                f"{service.url}/v1/github/token", json=ask.body(), headers=bearer(key.text)
            )
        except httpx.TransportError as error:
            self.ledger.answers[type(error).__name__] += 1
            if isinstance(error, httpx.TimeoutException):
                self.ledger.violated(f"no answer within 90 s to {ask}")
            return 0
        self.ledger.judge(key, ask, answer, sent=sent, asked_at=asked_at)
        return answer.status_code

    # -- admins ----------------------------------------------------------------------------------

    async def administer(self, number: int, chance: random.Random) -> None:
        """Do one thing after the other, each until it is acknowledged."""
        blocks = [name for at, name in enumerate(BUSY) if at % 2 == number]
        mine: list[Key] = []
        async with callers(timeout_s=90) as http:
            while not self.stopping:
                alive = [one for one in mine if one.alive.last]
                if len(alive) < 2 or (len(alive) < _MOST_KEYS and chance.random() < 0.3):
                    permissions = chance.choice(_PERMISSIONS)
                    mine.append(await self.create(http, chance, chance.choice(PATTERNS), permissions))
                elif (blocked := [name for name in blocks if self.ledger.blocks[name].last]) and (
                    chance.random() < 0.4
                ):
                    await self._block(http, chance, blocked[0], blocked=False)
                else:
                    await self._something(http, chance, chance.choice(alive), chance.choice(blocks))
                await asyncio.sleep(chance.uniform(0.2, 1.0))
            for name in blocks:
                if self.ledger.blocks[name].last:
                    await self._block(http, chance, name, blocked=False)

    async def _something(self, http: httpx.AsyncClient, chance: random.Random, key: Key, name: str) -> None:
        match chance.choice(("revoke", "kill", "change", "change", "block", "block", "end", "end token")):
            case "revoke":
                await self._revoke(http, chance, key, kill=False)
            case "kill":
                await self._revoke(http, chance, key, kill=True)
            case "change":
                await self._change(http, chance, key)
            case "block":
                await self._block(http, chance, name, blocked=not self.ledger.blocks[name].last)
            case "end":
                await self._end(http, chance, name)
            case "end token":
                await self._end_token(http, chance)

    async def _until_done(
        self,
        http: httpx.AsyncClient,
        chance: random.Random,
        method: str,
        path: str,
        *,
        also: int = 200,
        end: End | None = None,
        **more: Any,
    ) -> httpx.Response | None:
        """Ask again, here or there, until it is acknowledged; None if ``also`` (of a repetition) was said."""
        tried = 0
        while True:
            tried += 1
            if end is not None:
                end.times = tried
            service = chance.choice(self.services)
            try:
                answer = await http.request(
                    method, f"{service.url}{path}", headers=bearer(self.admin), **more
                )
            except httpx.TransportError as error:
                self.ledger.answers[f"admin {type(error).__name__}"] += 1
            else:
                self.ledger.answers[f"admin {answer.status_code}"] += 1
                if answer.is_success:
                    return answer
                if tried > 1 and answer.status_code == also:
                    return None
                waits = int(answer.headers.get("retry-after", "0"))
                if answer.status_code != 503 or waits < 1:
                    self.ledger.violated(f"admin {method} {path}: {answer.status_code} {answer.text}")
                    raise AssertionError(answer.text)
            await asyncio.sleep(0.3)

    async def create(
        self,
        http: httpx.AsyncClient,
        chance: random.Random,
        patterns: tuple[str, ...],
        permissions: tuple[str, ...],
    ) -> Key:
        body = {
            "name": "chaos",
            "repositories": list(patterns),
            "permissions": dict.fromkeys(permissions, "read"),
        }
        answer = await self._until_done(http, chance, "POST", "/v1/admin/keys", json=body)
        assert answer is not None
        made = answer.json()
        key = Key(made["id"], made["key"], permissions, History(patterns), History(value=True))
        self.ledger.events.append(("key.created", key.id))
        self.ledger.keys[key.id] = key
        return key

    async def _revoke(self, http: httpx.AsyncClient, chance: random.Random, key: Key, *, kill: bool) -> None:
        key.alive.begin(value=False)
        end = End(None, None, kills=False, begun=time.monotonic())
        if kill:
            self.ledger.ends.append(end)
        path = f"/v1/admin/keys/{key.id}?tokens={'revoke' if kill else 'keep'}"
        await self._until_done(http, chance, "DELETE", path, end=end)
        key.alive.done()
        key.killing = kill
        self.ledger.events.append(("key.revoked", key.id))

    async def _change(self, http: httpx.AsyncClient, chance: random.Random, key: Key) -> None:
        patterns = chance.choice([one for one in PATTERNS if one != key.patterns.last])
        key.patterns.begin(patterns)
        body = {"repositories": list(patterns)}
        await self._until_done(http, chance, "PATCH", f"/v1/admin/keys/{key.id}", json=body)
        key.patterns.done()
        self.ledger.events.append(("key.changed", key.id))

    async def _block(
        self, http: httpx.AsyncClient, chance: random.Random, name: str, *, blocked: bool
    ) -> None:
        history = self.ledger.blocks[name]
        history.begin(blocked)
        end = End(name.partition("/")[0], name, kills=blocked, begun=time.monotonic())
        self.ledger.ends.append(end)
        path = f"/v1/admin/blocks/{name}"
        if blocked:
            await self._until_done(http, chance, "PUT", path, json={"reason": "chaos"}, end=end)
        else:
            await self._until_done(http, chance, "DELETE", path, also=404, end=end)
        history.done()
        end.acknowledged = time.monotonic()
        self.ledger.events.append(("block.set" if blocked else "block.lifted", name))

    async def _end(self, http: httpx.AsyncClient, chance: random.Random, name: str) -> None:
        owner = name.partition("/")[0]
        repository = name if chance.random() < 0.8 else None
        end = End(owner, repository, kills=True, begun=time.monotonic())
        self.ledger.ends.append(end)
        body = {"repository": repository} if repository else {"owner": owner}
        body["reason"] = "chaos"
        await self._until_done(http, chance, "POST", "/v1/admin/revocations", json=body, end=end)
        end.acknowledged = time.monotonic()

    async def _end_token(self, http: httpx.AsyncClient, chance: random.Random) -> None:
        if not self.ledger.handed:
            return
        text, handed = chance.choice(list(self.ledger.handed.items())[-20:])
        names = handed.ask.repositories
        end = End(
            handed.ask.owner, names[0] if names else None, kills=True, begun=time.monotonic(), text=text
        )
        self.ledger.ends.append(end)
        body = {"token_sha256": sha256_of(text), "reason": "chaos"}
        await self._until_done(http, chance, "POST", "/v1/admin/revocations", json=body, end=end)
        end.acknowledged = time.monotonic()

    # -- when all is over ------------------------------------------------------------------------

    async def recovered(self, steady: Key, *, within_s: float) -> float:
        """Wait until every replica serves everything to a good key; return the seconds."""
        began, took_s = time.monotonic(), 0.0
        asks = [
            Ask(name.partition("/")[0], (name,), permissions)
            for name in STEADY
            for permissions in (("contents",), ("contents", "issues"))
        ]
        async with callers(timeout_s=90) as http:
            left = [(service, ask) for service in self.services for ask in asks]
            while left:
                told = await asyncio.gather(*(self.ask(http, service, steady, ask) for service, ask in left))
                left = [one for one, status in zip(left, told, strict=True) if status != 200]
                took_s = time.monotonic() - began
                if took_s > within_s:
                    self.ledger.violated(f"no recovery within {within_s:g} s of {left[0][1]}")
                    break
                await asyncio.sleep(0.1)
            ready = [(await http.get(f"{one.url}/readyz")).json() for one in self.services]
            if any(one["checks"]["store"] != "ok" for one in ready):
                self.ledger.violated(f"/readyz tells {ready}")
        return took_s

    async def everything(self, kind: str) -> list[dict[str, Any]]:
        """Return all pages of one of the admin's lists."""
        found: list[dict[str, Any]] = []
        url = f"{self.services[0].url}/v1/admin/{kind}"
        query = {"limit": "200"}
        async with callers(timeout_s=90) as http:
            while True:
                answer = await http.get(url, params=query, headers=bearer(self.admin))
                page = answer.raise_for_status().json()
                found += next(value for value in page.values() if isinstance(value, list))
                if not page["next_cursor"]:
                    return found
                query["cursor"] = page["next_cursor"]

    async def check_records(self) -> None:
        """All that was acknowledged is there, and works or is refused, at every replica."""
        records = {str(one["id"]): one for one in await self.everything("keys")}
        blocked = {str(one["repository"]) for one in await self.everything("blocks")}
        for name, history in self.ledger.blocks.items():
            if history.last is not (name in blocked):
                self.ledger.violated(f"block of {name}: {name in blocked}, acknowledged {history.last}")
        async with callers(timeout_s=90) as http:
            for at, key in enumerate(self.ledger.keys.values()):
                record = records.get(key.id)
                if record is None:
                    self.ledger.violated(f"the key {key.id} is lost")
                    continue
                if tuple(record["repositories"]) != key.patterns.last:
                    self.ledger.violated(f"a change of {key.id} is lost: {record}, {key.patterns.last}")
                if (record["revoked_at"] is None) is not key.alive.last:
                    self.ledger.violated(f"the revocation of {key.id} is lost: {record}")
                url = self.services[at % len(self.services)].url
                told = (await http.get(f"{url}/v1/whoami", headers=bearer(key.text))).status_code
                if told != (200 if key.alive.last else 401):
                    self.ledger.violated(f"/v1/whoami says {told} to {key.id}")
