"""What admins ask: keys, revocations, blocks, installations, the audit."""

import base64
import binascii
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Final, TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.access.keys import KEY_ID
from broker.access.policy import parse_patterns
from broker.errors import InvalidRequestError, NotFoundError
from broker.issuing.admins import AdminGate, AuditTrail
from broker.issuing.ending import Actor, Ender, Outcome
from broker.issuing.keys import KEEP, KeyChange, KeyPolicy, KeyRegister
from broker.issuing.owners import Owners
from broker.model import (
    ApiKeyRecord,
    App,
    Installation,
    RepositoryName,
    Role,
    Secret,
    Target,
    TargetKind,
    parse_owner,
    parse_permissions,
)
from broker.ports import AuditFilter, AuditRow, BlockEntry, Event
from broker.web.tokens import json_response, key_answer, origin_of
from broker.web.wire import (
    BlockBody,
    KeyBody,
    KeyPatch,
    NoBody,
    RevocationBody,
    RotateBody,
    page_limit,
    parse_body,
    presented_key,
    query_values,
    read_body,
    read_optional_body,
)
from broker.wording import parse_text, parse_time, rfc3339

_NO_STORE: Final = {"cache-control": "no-store"}
_LAST_SECOND: Final = 253_402_300_799
"""9999-12-31T23:59:59Z, the last that RFC 3339 can write."""

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_BLOCK_CURSOR: Final = re.compile(r"[or]:[a-z0-9._/-]{1,140}")
_AUDIT: Final = (
    "key",
    "repository",
    "event",
    "request_id",
    "since",
    "until",
    "order",
    "cursor",
    "limit",
)
_FOREIGN: Final = "the owner's account is not the one first seen under this name"

Model = TypeVar("Model", bound=BaseModel)
Endpoint = Callable[[Request, Actor], Awaitable[Response]]


class Admin:
    """The admins' endpoints. Who asks is settled before anything else is looked at.

    Args:
        gate: lets admins in.
        keys: the register.
        ender: revokes and blocks.
        owners: installations.
        trail: the audit.
        app: tells who the app is, once GitHub has told.
    """

    def __init__(
        self,
        *,
        gate: AdminGate,
        keys: KeyRegister,
        ender: Ender,
        owners: Owners,
        trail: AuditTrail,
        app: Callable[[], App | None],
    ) -> None:
        self._gate = gate
        self._keys = keys
        self._ender = ender
        self._owners = owners
        self._trail = trail
        self._app = app

    def routes(self) -> list[Route]:
        """Return the routes."""
        block = {"PUT": self._set_block, "DELETE": self._lift_block, "GET": self._show_block}
        table: tuple[tuple[str, Mapping[str, Endpoint]], ...] = (
            ("/keys", {"GET": self._list_keys, "POST": self._create_key}),
            (
                "/keys/{key_id}",
                {"GET": self._show_key, "PATCH": self._change_key, "DELETE": self._revoke_key},
            ),
            ("/keys/{key_id}/rotate", {"POST": self._rotate_key}),
            ("/revocations", {"POST": self._revoke}),
            ("/blocks", {"GET": self._list_blocks}),
            ("/blocks/{owner}", block),
            ("/blocks/{owner}/{repository}", block),
            ("/installations", {"GET": self._list_installations}),
            ("/installations/sync", {"POST": self._sync}),
            ("/owners/{owner}/accept", {"POST": self._accept}),
            ("/audit", {"GET": self._audit}),
        )
        return [
            Route(f"/v1/admin{path}", self._guarded(by_method), methods=list(by_method))
            for path, by_method in table
        ]

    def _guarded(self, by_method: Mapping[str, Endpoint]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            presented = presented_key(request.scope)
            call = f"{request.method} {request.scope['path'][:100]}"
            actor = await self._gate.admit(presented, origin_of(request.scope), call=call)
            # HEAD is GET without its body, which the server leaves out.
            return await by_method["GET" if request.method == "HEAD" else request.method](request, actor)

        return endpoint

    # -- keys ------------------------------------------------------------------------------------

    async def _create_key(self, request: Request, actor: Actor) -> Response:
        """``POST /v1/admin/keys``."""
        body = await _body(KeyBody, request)
        policy = KeyPolicy.parse(
            name=body.name,
            role=Role(body.role),
            repositories=body.repositories,
            permissions=body.permissions if "permissions" in body.model_fields_set else None,
            rate_limit_per_minute=body.rate_limit_per_minute,
        )
        key, record = await self._keys.create(
            policy, by=_by(actor), expires_at=_expiry(body.expires_at), actor=actor
        )
        return _new_key(key, record)

    async def _list_keys(self, request: Request, actor: Actor) -> Response:
        """``GET /v1/admin/keys``."""
        del actor
        values = query_values(request, ("cursor", "limit"))
        page = await self._keys.list(cursor=values.get("cursor"), limit=page_limit(values))
        return _answer(
            {
                "keys": [key_answer(entry.record, entry.last_used_at) for entry in page.items],
                "next_cursor": page.next_cursor,
            }
        )

    async def _show_key(self, request: Request, actor: Actor) -> Response:
        """``GET /v1/admin/keys/{id}``."""
        del actor
        query_values(request, ())
        entry = await self._keys.show(_key_id(request))
        return _answer(key_answer(entry.record, entry.last_used_at))

    async def _change_key(self, request: Request, actor: Actor) -> Response:
        """``PATCH /v1/admin/keys/{id}``."""
        key_id = _key_id(request)
        body = await _body(KeyPatch, request)
        given = body.model_fields_set
        if not given:
            raise InvalidRequestError(public="body: name at least one field to change.")
        change = KeyChange(
            name=parse_text(body.name, field="name") if "name" in given else KEEP,
            repositories=_patterns(body.repositories) if "repositories" in given else KEEP,
            permissions=parse_permissions(body.permissions) if "permissions" in given else KEEP,
            expires_at=_expiry(body.expires_at) if "expires_at" in given else KEEP,
            rate_limit_per_minute=body.rate_limit_per_minute if "rate_limit_per_minute" in given else KEEP,
        )
        await self._keys.change(key_id, change, by=_by(actor), actor=actor)
        entry = await self._keys.show(key_id)
        return _answer(key_answer(entry.record, entry.last_used_at))

    async def _rotate_key(self, request: Request, actor: Actor) -> Response:
        """``POST /v1/admin/keys/{id}/rotate``."""
        key_id = _key_id(request)
        body = await _optional_body(RotateBody, request)
        key, record = await self._keys.rotate(
            key_id, overlap_s=body.overlap_seconds, by=_by(actor), actor=actor
        )
        return _new_key(key, record)

    async def _revoke_key(self, request: Request, actor: Actor) -> Response:
        """``DELETE /v1/admin/keys/{id}?tokens=keep|revoke``."""
        key_id = _key_id(request)
        tokens = query_values(request, ("tokens",)).get("tokens", "keep")
        if tokens not in {"keep", "revoke"}:
            raise InvalidRequestError(public="tokens: keep or revoke.")
        killed = await self._keys.revoke(key_id, by=_by(actor), actor=actor, kill=tokens == "revoke")
        return _outcome(await self._ender.kill(killed))

    # -- revocations and blocks ------------------------------------------------------------------

    async def _revoke(self, request: Request, actor: Actor) -> Response:
        """``POST /v1/admin/revocations``."""
        body = await _body(RevocationBody, request)
        reason = parse_text(body.reason, field="reason")
        target = await self._target(body)
        named = body.installation_id or None
        return _outcome(await self._ender.revoke(target, actor, reason=reason, installation_id=named))

    async def _target(self, body: RevocationBody) -> Target:
        given = body.model_fields_set - {"reason"}
        if len(given) != 1:
            raise InvalidRequestError(
                public="body: name exactly one of repository, owner, installation_id, token_sha256 and all."
            )
        match given.pop():
            case "repository":
                return Target(TargetKind.REPOSITORY, RepositoryName.parse(body.repository).key)
            case "owner":
                return Target(TargetKind.OWNER, parse_owner(body.owner).lower())
            case "installation_id":
                return Target(TargetKind.OWNER, await self._owners.of_installation(body.installation_id))
            case "token_sha256":
                return Target(TargetKind.TOKEN, _sha256(body.token_sha256))
        if not body.all:
            raise InvalidRequestError(public="all: true, or leave it out.")
        return Target(TargetKind.ALL)

    async def _set_block(self, request: Request, actor: Actor) -> Response:
        """``PUT /v1/admin/blocks/{owner}[/{repo}]``."""
        target = _block_target(request)
        body = await _body(BlockBody, request)
        reason = parse_text(body.reason, field="reason")
        return _outcome(await self._ender.block(target, actor, reason=reason))

    async def _lift_block(self, request: Request, actor: Actor) -> Response:
        """``DELETE /v1/admin/blocks/{owner}[/{repo}]``."""
        target = _block_target(request)
        query_values(request, ())
        if not await self._ender.unblock(target, actor):
            raise NotFoundError(public="That is not blocked.")
        return Response(status_code=204, headers=_NO_STORE)

    async def _show_block(self, request: Request, actor: Actor) -> Response:
        """``GET /v1/admin/blocks/{owner}[/{repo}]``."""
        del actor
        target = _block_target(request)
        query_values(request, ())
        for entry in await self._ender.blocks():
            if entry.target == target:
                return _answer(_block(entry))
        raise NotFoundError(public="That is not blocked.")

    async def _list_blocks(self, request: Request, actor: Actor) -> Response:
        """``GET /v1/admin/blocks``."""
        del actor
        values = query_values(request, ("cursor", "limit"))
        limit, cursor = page_limit(values), values.get("cursor", "")
        if cursor and not _BLOCK_CURSOR.fullmatch(cursor):
            raise InvalidRequestError(public="cursor: not one that this list gave.")
        found = sorted(await self._ender.blocks(), key=_block_place)
        left = [entry for entry in found if _block_place(entry) > cursor]
        return _answer(
            {
                "blocks": [_block(entry) for entry in left[:limit]],
                "next_cursor": _block_place(left[limit - 1]) if len(left) > limit else None,
            }
        )

    # -- installations ---------------------------------------------------------------------------

    async def _list_installations(self, request: Request, actor: Actor) -> Response:
        """``GET /v1/admin/installations``."""
        del actor
        values = query_values(request, ("cursor", "limit"))
        page = await self._owners.page(cursor=values.get("cursor"), limit=page_limit(values))
        blocks = {
            entry.target.name: entry.reason
            for entry in await self._ender.blocks()
            if entry.target.kind is TargetKind.OWNER
        }
        return _answer(
            {
                "installations": [
                    self._installation(
                        entry.installation,
                        live_tokens=entry.live_tokens,
                        blocked=blocks.get(entry.installation.login.lower()),
                    )
                    for entry in page.items
                ],
                "next_cursor": page.next_cursor,
            }
        )

    async def _sync(self, request: Request, actor: Actor) -> Response:
        """``POST /v1/admin/installations/sync``."""
        await _optional_body(NoBody, request)
        return _answer(asdict(await self._owners.sync(actor)))

    async def _accept(self, request: Request, actor: Actor) -> Response:
        """``POST /v1/admin/owners/{owner}/accept``."""
        owner = parse_owner(request.path_params["owner"]).lower()
        await _optional_body(NoBody, request)
        return _answer(self._installation(await self._owners.accept(owner, actor)))

    def _installation(
        self, one: Installation, *, live_tokens: int | None = None, blocked: str | None = None
    ) -> dict[str, object]:
        app = self._app()
        return {
            "id": one.id,
            "app": None if app is None else {"id": app.id, "slug": app.slug},
            "owner": one.login,
            "account_id": one.account_id,
            "repository_selection": one.selection,
            "suspended": one.suspended,
            "permissions": dict(one.permissions),
            "live_tokens": live_tokens,
            "checked_at": rfc3339(one.checked_at),
            "foreign": one.foreign,
            "blocked_reason": blocked or (_FOREIGN if one.foreign else None),
        }

    # -- the audit -------------------------------------------------------------------------------

    async def _audit(self, request: Request, actor: Actor) -> Response:
        """``GET /v1/admin/audit``."""
        del actor
        values = query_values(request, _AUDIT)
        page = await self._trail.page(_filter(values), cursor=values.get("cursor"), limit=page_limit(values))
        return _answer({"events": [_event(row) for row in page.items], "next_cursor": page.next_cursor})


def _answer(value: object, *, status: int = 200) -> Response:
    return json_response(value, status=status, headers=_NO_STORE)


def _new_key(key: Secret, record: ApiKeyRecord) -> Response:
    return _answer(key_answer(record, None) | {"key": key.reveal()}, status=201)


def _outcome(outcome: Outcome) -> Response:
    return _answer(
        {
            "revoked": outcome.revoked,
            "failed": outcome.failed,
            "pending": outcome.pending,
            "remaining": [
                {"token_sha256": sha256, "expires_at": rfc3339(expires_at)}
                for sha256, expires_at in outcome.remaining
            ],
        }
    )


def _block(entry: BlockEntry) -> dict[str, object]:
    return {
        "owner": entry.target.owner,
        "repository": entry.target.name if entry.target.kind is TargetKind.REPOSITORY else None,
        "by": entry.by,
        "reason": entry.reason,
        "created_at": rfc3339(entry.at),
    }


def _block_place(entry: BlockEntry) -> str:
    """Return where a block stands in the list; also the cursor."""
    return f"{'o' if entry.target.kind is TargetKind.OWNER else 'r'}:{entry.target.name}"


def _event(row: AuditRow) -> dict[str, object]:
    return {"id": row.id, "time": rfc3339(row.time), **row.event}


async def _body(model: type[Model], request: Request) -> Model:
    query_values(request, ())
    return parse_body(model, await read_body(request.scope, request.receive))


async def _optional_body(model: type[Model], request: Request) -> Model:
    query_values(request, ())
    return parse_body(model, await read_optional_body(request))


def _by(actor: Actor) -> str:
    return f"key {actor.key_id} ({actor.key_name})"


def _key_id(request: Request) -> str:
    """Return the key id in the path.

    Raises:
        NotFoundError: no key has such an id.
    """
    key_id = str(request.path_params["key_id"])
    if not KEY_ID.fullmatch(key_id):
        raise NotFoundError(public="There is no key of that id.")
    return key_id


def _block_target(request: Request) -> Target:
    owner, name = request.path_params["owner"], request.path_params.get("repository")
    if name is None:
        return Target(TargetKind.OWNER, parse_owner(owner).lower())
    return Target(TargetKind.REPOSITORY, RepositoryName.parse(f"{owner}/{name}").key)


def _patterns(texts: list[str]) -> tuple[str, ...]:
    return parse_patterns(texts) if texts else ()


def _expiry(text: str | None) -> int | None:
    if text is None:
        return None
    expires_at = parse_time(text, field="expires_at")
    if expires_at > _LAST_SECOND:
        raise InvalidRequestError(public="expires_at: that is too far away.")
    return int(expires_at)


def _sha256(text: str) -> str:
    """Return a digest in standard base64, as GitHub's audit log has it.

    Raises:
        InvalidRequestError: it is none.
    """
    try:
        digest = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if len(digest) != 32 or base64.b64encode(digest).decode() != text:  # noqa: PLR2004 - SHA-256
        raise InvalidRequestError(public="token_sha256: the base64 of a SHA-256, 44 characters.")
    return text


def _filter(values: Mapping[str, str]) -> AuditFilter:
    """Return which events are wanted.

    Raises:
        InvalidRequestError: a value that no event could have.
    """
    key_id, event, request_id = values.get("key"), values.get("event"), values.get("request_id")
    order = values.get("order", "desc")
    if key_id is not None and not KEY_ID.fullmatch(key_id):
        raise InvalidRequestError(public="key: the id of a key, 12 characters.")
    if event is not None and event not in set(Event):
        raise InvalidRequestError(public=f"event: one of {', '.join(Event)}.")
    if request_id is not None and not _REQUEST_ID.fullmatch(request_id):
        raise InvalidRequestError(public="request_id: at most 128 of A-Za-z0-9._-.")
    if order not in {"asc", "desc"}:
        raise InvalidRequestError(public="order: asc or desc.")
    return AuditFilter(
        key_id=key_id,
        repository=RepositoryName.parse(values["repository"]).key if "repository" in values else None,
        event=event,
        request_id=request_id,
        since=_moment(values, "since"),
        until=_moment(values, "until"),
        ascending=order == "asc",
    )


def _moment(values: Mapping[str, str], name: str) -> float | None:
    if name not in values:
        return None
    return min(max(parse_time(values[name], field=name), 0.0), float(_LAST_SECOND))
