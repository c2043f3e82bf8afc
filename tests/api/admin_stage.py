"""An admin's view of the app inside the test, and what a refused call must leave as it was."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness import Inside, World, bearer

from broker.ports import AuditFilter

if TYPE_CHECKING:
    import httpx

    from broker.sandbox.state import EmulatedToken

ROUTES = (
    ("GET", "/v1/admin/keys"),
    ("POST", "/v1/admin/keys"),
    ("GET", "/v1/admin/keys/{id}"),
    ("PATCH", "/v1/admin/keys/{id}"),
    ("DELETE", "/v1/admin/keys/{id}"),
    ("POST", "/v1/admin/keys/{id}/rotate"),
    ("POST", "/v1/admin/revocations"),
    ("GET", "/v1/admin/blocks"),
    ("PUT", "/v1/admin/blocks/acme"),
    ("GET", "/v1/admin/blocks/acme"),
    ("DELETE", "/v1/admin/blocks/acme"),
    ("PUT", "/v1/admin/blocks/acme/widgets"),
    ("GET", "/v1/admin/blocks/acme/widgets"),
    ("DELETE", "/v1/admin/blocks/acme/widgets"),
    ("GET", "/v1/admin/installations"),
    ("POST", "/v1/admin/installations/sync"),
    ("POST", "/v1/admin/owners/acme/accept"),
    ("GET", "/v1/admin/audit"),
)
NOTHING = {"revoked": 0, "failed": 0, "pending": 0, "remaining": []}


def sha256_of(token: str) -> str:
    return base64.b64encode(hashlib.sha256(token.encode()).digest()).decode()


def key_id(key: str) -> str:
    return key.split("_")[1]


@dataclass
class AdminStage:
    """The app, an admin's key, and the emulated GitHub at the far end."""

    world: World
    app: Inside
    admin: str

    @classmethod
    async def of(cls, world: World, app: Inside) -> AdminStage:
        return cls(world, app, await app.key(admin=True))

    async def call(self, method: str, path: str, *, key: str | None = None, **more: Any) -> httpx.Response:
        headers = {**bearer(key or self.admin), **more.pop("headers", {})}
        return await self.app.http.request(method, f"/v1/admin{path}", headers=headers, **more)

    async def made(self, *patterns: str, **body: Any) -> dict[str, Any]:
        """Make a key over the API."""
        answer = await self.call(
            "POST", "/keys", json={"name": "made", "repositories": list(patterns), **body}
        )
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def issued(self, key: str, *repositories: str, **body: Any) -> str:
        answer = await self.app.token(key, *repositories, **body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["token"])

    async def code(self, key: str, *repositories: str, **body: Any) -> tuple[int, str]:
        """Ask for a token and return status and code of the refusal."""
        answer = await self.app.token(key, *repositories, **body)
        return answer.status_code, answer.json().get("code", "")

    def alive(self, token: str) -> bool:
        return token in {one.text for one in self.live()}

    def live(self) -> list[EmulatedToken]:
        return self.world.github.live_tokens()

    async def events(self, **wanted: Any) -> list[dict[str, Any]]:
        """Return audit events of the store, oldest first."""
        page = await self.app.broker.store.audit(
            AuditFilter(**wanted, ascending=True), cursor=None, limit=200
        )
        return [dict(row.event) for row in page.items]

    async def state(self) -> tuple[object, ...]:
        """Return all that an admin can change; refusals are no change."""
        store = self.app.broker.store
        keys = await store.list_keys(cursor=None, limit=1000)
        owners = await store.owners(cursor=None, limit=200)
        audit = await store.audit(AuditFilter(), cursor=None, limit=200)
        changes = [row.id for row in audit.items if row.event["event"] != "token.denied"]
        return (
            [entry.record for entry in keys.items],
            list(await store.blocks()),
            list(owners.items),
            changes,
            sorted(one.text for one in self.live()),
        )
