"""``POST /webhooks/github``: who is let in, what it costs to be refused, and what a delivery does."""

import asyncio
import hashlib
import hmac
import json
import logging
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from harness import Inside, World
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.routing import Route, Router

from broker.audit import Auditor
from broker.errors import StoreLostError, StoreUnavailableError
from broker.github.webhook import SignatureCheck, parse_delivery
from broker.model import Secret
from broker.ports import AuditFilter, Event, HookWork
from broker.sandbox.github import Delivery, Fault, Hook
from broker.web import webhooks
from broker.web.middleware import Edge
from broker.web.webhooks import LARGE_BODY, MAX_BODY, Webhooks

SECRET = "It's a Secret to Everybody"
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"


def sign(body: bytes, secret: str = SECRET) -> str:
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def headers_of(body: bytes, event: str, *, secret: str = SECRET, **more: str | None) -> dict[str, str]:
    """Return GitHub's headers; ``more`` replaces some, None leaves one out."""
    found = {
        "Content-Type": JSON,
        "X-GitHub-Event": event,
        "X-GitHub-Delivery": str(uuid.uuid4()),
        "X-Hub-Signature-256": sign(body, secret),
    } | {name.replace("_", "-"): value for name, value in more.items()}
    return {name: value for name, value in found.items() if value is not None}


def deleted(login: str = "acme", number: int = 50) -> bytes:
    return json.dumps(
        {"action": "deleted", "installation": {"id": number, "account": {"login": login}}}
    ).encode()


# -- the endpoint alone ----------------------------------------------------------------------------


class RecordingStore:
    """Remembers what it was asked to keep."""

    def __init__(self) -> None:
        self.kept: list[HookWork] = []
        self.seen: set[str] = set()
        self.trouble: Exception | None = None

    async def keep_hook(self, work: HookWork, *, body_sha256: str) -> bool:
        if self.trouble is not None:
            raise self.trouble
        if {work.guid, body_sha256} & self.seen:
            return False
        self.seen |= {work.guid, body_sha256}
        self.kept.append(work)
        return True


@dataclass
class Bare:
    """The endpoint behind the real edge, with a store that only remembers."""

    secrets: tuple[str, ...] = (SECRET,)
    arrives_within_s: float = 5.0
    store: Any = field(default_factory=RecordingStore)
    woken: int = 0
    chunks_read: int = 0

    def __post_init__(self) -> None:
        self.endpoint = Webhooks(
            self.store,
            Auditor(self.store),
            signature=(lambda: SignatureCheck([Secret(one) for one in self.secrets]))
            if self.secrets
            else None,
            parse=parse_delivery,
            queued=self._wake,
            arrives_within_s=self.arrives_within_s,
        )
        self.app = Edge(Router([Route("/webhooks/github", self.endpoint.github, methods=["POST"])]), [])

    def _wake(self) -> None:
        self.woken += 1

    async def post(
        self,
        headers: dict[str, str] | list[tuple[str, str]],
        chunks: Iterable[bytes],
        *,
        delay_s: float = 0.0,
        gate: asyncio.Event | None = None,
    ) -> tuple[int, dict[str, Any]]:
        """Send a body in pieces; ``gate`` is waited for before the last one."""
        pairs = headers if isinstance(headers, list) else list(headers.items())
        waiting = iter([*chunks, None])
        found: dict[str, Any] = {"body": b""}

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(delay_s)
            chunk = next(waiting)
            if chunk is None:
                if gate is not None:
                    await gate.wait()
                return {"type": "http.request", "body": b"", "more_body": False}
            self.chunks_read += 1
            return {"type": "http.request", "body": chunk, "more_body": True}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                found["status"] = message["status"]
            else:
                found["body"] += message.get("body", b"")

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/webhooks/github",
            "raw_path": b"/webhooks/github",
            "query_string": b"",
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in pairs],
            "client": ("192.0.2.9", 1),
            "server": ("broker.test", 80),
            "scheme": "http",
            "http_version": "1.1",
        }
        await self.app(scope, receive, send)
        return found["status"], json.loads(found["body"])

    async def deliver(self, event: str, body: bytes, **more: Any) -> tuple[int, dict[str, Any]]:
        return await self.post(headers_of(body, event, **more), [body])


async def test_a_good_delivery_is_queued_once() -> None:
    bare = Bare()
    body = deleted()
    headers = headers_of(body, "installation")
    assert await bare.post(headers, [body[:9], b"", body[9:]]) == (202, {"status": "accepted"})
    (work,) = bare.store.kept
    assert (work.event, work.guid) == ("installation.deleted", headers["X-GitHub-Delivery"])
    assert bare.woken == 1
    assert await bare.post(headers, [body]) == (200, {"status": "duplicate"})
    assert await bare.deliver("installation", body) == (200, {"status": "duplicate"})
    assert (len(bare.store.kept), bare.woken) == (1, 1)


async def test_an_ignored_event_touches_no_store() -> None:
    bare = Bare()
    bare.store.trouble = AssertionError("the store was asked")
    for event in ("ping", "push", "github_app_authorization", "never_heard_of"):
        assert await bare.deliver(event, b'{"action":"revoked"}') == (202, {"status": "ignored"})
    assert bare.woken == 0


@pytest.mark.parametrize("trouble", [StoreUnavailableError("down"), StoreLostError("lost")])
async def test_what_cannot_be_kept_is_told_so(trouble: Exception) -> None:
    """GitHub then shows the delivery as failed, and it can be sent again."""
    bare = Bare()
    bare.store.trouble = trouble
    body = deleted()
    headers = headers_of(body, "installation")
    status, problem = await bare.post(headers, [body])
    assert (status, problem["code"]) == (503, "store_unavailable")
    bare.store.trouble = None
    assert (await bare.post(headers, [body]))[0] == 202


async def test_without_a_secret_nothing_is_accepted() -> None:
    bare = Bare(secrets=())
    body = deleted()
    for headers in (headers_of(body, "installation"), headers_of(body, "installation", secret="")):
        status, problem = await bare.post(headers, [body])
        assert status == 503
        assert "not configured" in problem["detail"]
    assert (bare.store.kept, bare.chunks_read) == ([], 0)


SPOILT: dict[str, tuple[int, str, dict[str, str | None]]] = {
    "no signature": (401, "invalid_signature", {"X_Hub_Signature_256": None}),
    "sha1 only": (
        401,
        "invalid_signature",
        {"X_Hub_Signature_256": None, "X_Hub_Signature": "sha1=" + "0" * 40},
    ),
    "sha1 in the header of sha256": (401, "invalid_signature", {"X_Hub_Signature_256": "sha1=" + "0" * 40}),
    "upper case": (401, "invalid_signature", {"X_Hub_Signature_256": "SHA256=" + "0" * 64}),
    "short": (401, "invalid_signature", {"X_Hub_Signature_256": "sha256=" + "0" * 63}),
    "not ASCII": (401, "invalid_signature", {"X_Hub_Signature_256": "sha256=" + "é" * 64}),
    "text": (415, "unsupported_media_type", {"Content_Type": "text/plain"}),
    "no type": (415, "unsupported_media_type", {"Content_Type": None}),
    "another charset": (415, "unsupported_media_type", {"Content_Type": f"{JSON}; charset=utf-16"}),
    "multipart": (415, "unsupported_media_type", {"Content_Type": "multipart/form-data; boundary=x"}),
    "gzip": (415, "unsupported_media_type", {"Content_Encoding": "gzip"}),
    "large": (413, "payload_too_large", {"Content_Length": str(MAX_BODY + 1)}),
    "absurdly large": (413, "payload_too_large", {"Content_Length": "9" * 5000}),
}


@pytest.mark.parametrize("name", SPOILT)
async def test_refused_before_the_body_is_read(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    status, code, changes = SPOILT[name]
    bare = Bare()
    body = deleted()
    told, problem = await bare.post(headers_of(body, "installation", **changes), [body])
    assert (told, problem["code"]) == (status, code)
    assert (bare.chunks_read, bare.store.kept, bare.woken) == (0, [], 0)
    (line,) = [record.audit for record in caplog.records if hasattr(record, "audit")]
    assert (line["event"], line["code"], line["client_ip"]) == ("webhook.rejected", code, "192.0.2.9")


async def test_two_signatures_are_none() -> None:
    bare = Bare()
    body = deleted()
    headers = list(headers_of(body, "installation").items())
    for second in (sign(body), sign(body, "other")):
        status, _ = await bare.post([*headers, ("X-Hub-Signature-256", second)], [body])
        assert status == 401
    assert bare.chunks_read == 0


@pytest.mark.parametrize(
    ("event", "body", "changes"),
    [
        ("installation", b"{", {}),
        ("installation", b"", {}),
        ("ping", b"[]", {}),
        ("ping", b"\xff", {}),
        ("ping", b"payload={}", {}),
        ("ping", b"{}", {"Content_Type": FORM}),
        ("ping", b"payload=%7B%7D&payload=%7B%7D", {"Content_Type": FORM}),
        ("ping", b"{}", {"X_GitHub_Event": None}),
        ("ping", b"{}", {"X_GitHub_Event": "a/b"}),
        ("ping", b"{}", {"X_GitHub_Delivery": None}),
        ("ping", b"{}", {"X_GitHub_Delivery": "not one"}),
    ],
)
async def test_signed_but_malformed(event: str, body: bytes, changes: dict[str, str | None]) -> None:
    bare = Bare()
    status, problem = await bare.post(headers_of(body, event, **changes), [body])
    assert (status, problem["code"]) == (400, "invalid_request")
    assert bare.store.kept == []


@pytest.mark.parametrize("content_type", [JSON, FORM, f"{JSON}; charset=UTF-8", "Application/JSON"])
async def test_content_types_of_github(content_type: str) -> None:
    bare = Bare()
    form = content_type == FORM
    body = str(httpx.QueryParams({"payload": deleted().decode()})).encode() if form else deleted()
    assert (await bare.deliver("installation", body, Content_Type=content_type))[0] == 202
    assert len(bare.store.kept) == 1


async def test_each_of_two_secrets_is_good_while_they_rotate() -> None:
    bare = Bare(secrets=("new", "old"))
    for secret, status in (
        ("new", 202),
        ("old", 202),
        ("older", 401),
        ("", 401),
        ("NEW", 401),
        ("new,old", 401),
    ):
        body = deleted(f"acme-{secret[:3].lower()}")
        assert (await bare.deliver("installation", body, secret=secret))[0] == status
    assert len(bare.store.kept) == 2


async def test_a_signature_of_something_else() -> None:
    bare = Bare()
    body = deleted()
    for other in (b"", body + b" ", body[:-1], body.replace(b"acme", b"evil")):
        status, problem = await bare.deliver("installation", body, X_Hub_Signature_256=sign(other))
        assert (status, problem["code"]) == (401, "invalid_signature")
        assert "www-authenticate" not in problem
    assert bare.store.kept == []


async def test_the_size_is_capped_while_reading() -> None:
    """No Content-Length, or one that lies: nothing beyond the cap is kept in memory."""
    bare = Bare()
    part = b" " * (1024 * 1024)
    whole = part * 25 + b"{}"
    for claimed in (None, "2"):
        bare.chunks_read = 0
        headers = headers_of(whole, "ping", Content_Length=claimed)
        status, problem = await bare.post(headers, [part] * 40)
        assert (status, problem["code"]) == (413, "payload_too_large")
        assert bare.chunks_read == 26
    fits = part * 24 + b"{}".rjust(len(part))
    assert len(fits) == MAX_BODY
    begin = time.monotonic()
    assert (await bare.deliver("ping", fits))[0] == 202
    assert time.monotonic() - begin < 1


async def test_a_body_that_trickles_is_not_waited_for() -> None:
    bare = Bare(arrives_within_s=0.2)
    body = deleted()
    begin = time.monotonic()
    status, _ = await bare.post(
        headers_of(body, "installation"), [body[n : n + 1] for n in range(len(body))], delay_s=0.05
    )
    assert status == 400
    assert time.monotonic() - begin < 1
    assert bare.store.kept == []


async def test_few_large_bodies_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strangers who send much take no memory beyond four bodies, and nothing from small deliveries."""
    monkeypatch.setattr(webhooks, "PLACE_WITHIN_S", 0.2)
    bare = Bare()
    large = b" " * (LARGE_BODY + 1) + b"{}"
    gate = asyncio.Event()
    held = [asyncio.create_task(bare.post(headers_of(large, "ping"), [large], gate=gate)) for _ in range(4)]
    while bare.chunks_read < 4:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    status, problem = await bare.deliver("ping", large)
    assert (status, problem["code"]) == (503, "store_unavailable")
    assert (await bare.deliver("installation", deleted()))[0] == 202
    waiting = asyncio.create_task(bare.deliver("ping", large))
    await asyncio.sleep(0.02)
    gate.set()
    assert [status for status, _ in await asyncio.gather(*held, waiting)] == [202] * 5
    # places are given back by the refused ones as well
    for _ in range(5):
        assert (await bare.deliver("ping", large, secret="wrong"))[0] == 401
        assert (await bare.deliver("ping", b"[" * LARGE_BODY * 2))[0] == 400
    assert (await bare.deliver("ping", large))[0] == 202


async def test_a_large_payload_does_not_stop_the_others() -> None:
    """Parsing one of 25 MB leaves the loop room for everybody else."""
    bare = Bare()
    one = b'{"id":1,"full_name":"acme/widgets","private":true},'
    inner = b"[" + one * ((MAX_BODY - 200) // len(one)) + b"0]"
    body = (
        b'{"action":"created","installation":{"id":5,"account":{"login":"acme"}},"repositories":'
        + inner
        + b"}"
    )
    headers = headers_of(body, "installation")
    longest, done = 0.0, False

    async def watch() -> None:
        nonlocal longest
        while not done:
            begin = time.monotonic()
            await asyncio.sleep(0.001)
            longest = max(longest, time.monotonic() - begin)

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0)
    parts = [body[n : n + 65536] for n in range(0, len(body), 65536)]
    status, _ = await bare.post(headers, parts)
    done = True
    await watching
    assert status == 202
    assert longest < 0.3  # parsed in one go it would be half a second


# -- fuzzing ---------------------------------------------------------------------------------------

HEADER_TEXT = st.text(st.characters(codec="latin-1", exclude_characters="\r\n\0"), max_size=30)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["action", "installation", "account", "login", "id", "repository", "full_name", "changes"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)
EVENT_NAMES = st.sampled_from(
    ["installation", "installation_repositories", "repository", "organization", "ping"]
)


def fuzzed(headers: list[tuple[str, str]], body: bytes, pieces: int = 1) -> int:
    """Return the status that ``body`` gets; nothing may be kept of what was refused."""
    bare = Bare()
    size = max(1, len(body) // pieces)
    parts = [body[n : n + size] for n in range(0, len(body), size)]
    status, answer = asyncio.run(bare.post(headers, parts))
    assert status in {200, 202, 400, 401, 413, 415}, answer
    assert "Traceback" not in json.dumps(answer)
    if status != 202:
        assert bare.store.kept == []
        assert set(answer) == {"type", "title", "status", "detail", "code", "request_id"}
    return status


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.text("abcxyz-GHub256", min_size=1, max_size=20), HEADER_TEXT), max_size=6),
    st.binary(),
)
def test_no_headers_and_bytes_get_in(headers: list[tuple[str, str]], body: bytes) -> None:
    assert fuzzed(headers, body) in {401, 413, 415}


@settings(deadline=None)
@given(
    st.one_of(st.just(JSON), st.just(FORM), HEADER_TEXT),
    st.one_of(EVENT_NAMES, HEADER_TEXT),
    st.one_of(st.just("72d3162e-cc78-11e3-81ab-4c9367dc0958"), HEADER_TEXT),
    st.one_of(st.binary(max_size=300), st.binary(max_size=100).map(lambda found: b"payload=" + found)),
    st.integers(1, 5),
)
def test_signed_bytes(content_type: str, event: str, guid: str, body: bytes, pieces: int) -> None:
    headers = headers_of(body, event, Content_Type=content_type, X_GitHub_Delivery=guid)
    fuzzed(list(headers.items()), body, pieces)


@settings(deadline=None)
@given(EVENT_NAMES, st.dictionaries(st.text(max_size=10), JSON_VALUES, max_size=4), JSON_VALUES, JSON_VALUES)
def test_signed_json(event: str, payload: Any, installation: Any, more: Any) -> None:
    for found in (payload, payload | {"installation": installation, "repository": more, "changes": more}):
        body = json.dumps(found).encode()
        assert fuzzed(list(headers_of(body, event).items()), body) == 202


# -- in the product --------------------------------------------------------------------------------


async def deliver(app: Inside, delivery: Delivery) -> httpx.Response:
    """Bring what the emulator wrote down to the app inside the test."""
    return await app.http.post("/webhooks/github", content=delivery.body, headers=delivery.headers)


async def deliver_all(app: Inside, hook: Hook) -> list[int]:
    """Bring all that is new; return when the broker has worked it off."""
    found = [(await deliver(app, one)).status_code for one in hook.deliveries]
    hook.deliveries.clear()
    await worked_off(app)
    return found


async def worked_off(app: Inside, seconds: float = 1.0) -> None:
    async with asyncio.timeout(seconds):
        while await app.broker.store.hooks(limit=1):  # noqa: ASYNC110 - another process may do it
            await asyncio.sleep(0.005)


async def received(app: Inside) -> list[dict[str, Any]]:
    page = await app.broker.store.audit(
        AuditFilter(event=Event.WEBHOOK_RECEIVED, ascending=True), cursor=None, limit=200
    )
    return [dict(row.event) for row in page.items]


@asynccontextmanager
async def hooked(world: World, **more: Any) -> AsyncIterator[tuple[Inside, Hook]]:
    """Run the app, and a webhook of which every delivery is written down, not sent."""
    world.app.events += ["repository", "organization"]
    hook = world.github.add_hook(world.app, None, SECRET)
    async with world.inside(github_webhook_secret=SECRET, **more) as app:
        yield app, hook


async def test_a_removed_installation_is_forgotten(any_world: World) -> None:
    async with hooked(any_world) as (app, hook):
        key = await app.key("acme/*")
        first = (await app.token(key, "acme/widgets")).json()
        any_world.github.uninstall(any_world.installation)
        assert (await app.token(key, "acme/widgets")).json()["token"] == first["token"]  # not told yet
        (told,) = hook.deliveries
        begin = time.monotonic()
        answer = await deliver(app, told)
        assert (answer.status_code, answer.json()) == (202, {"status": "accepted"})
        assert time.monotonic() - begin < 1
        await worked_off(app)
        refused = await app.token(key, "acme/widgets")
        assert (refused.status_code, refused.json()["code"]) == (404, "not_installed")
        (event,) = await received(app)
        assert event["owner"] == "acme"
        assert event["installation_id"] == any_world.installation.id
        assert event["reason"] == f"installation.deleted {told.guid}"

        again = any_world.github.install(any_world.app, "acme")
        assert await deliver_all(app, hook) == [200, 202]
        found = await app.token(key, "acme/widgets")
        assert found.json()["installation_id"] == again.id


async def test_suspended_and_back(any_world: World) -> None:
    async with hooked(any_world) as (app, hook):
        key = await app.key("acme/*")
        assert (await app.token(key, "acme/widgets")).status_code == 200
        any_world.github.suspend(any_world.installation)
        assert await deliver_all(app, hook) == [202]
        refused = await app.token(key, "acme/widgets")
        assert (refused.status_code, refused.json()["code"]) == (403, "installation_suspended")
        any_world.github.unsuspend(any_world.installation)
        assert await deliver_all(app, hook) == [202]
        assert (await app.token(key, "acme/widgets")).status_code == 200


async def test_from_all_to_selected(any_world: World) -> None:
    """GitHub names no repository then."""
    async with hooked(any_world) as (app, hook):
        key = await app.key("acme/*")
        for name in ("acme/widgets", "acme/gadgets"):
            assert (await app.token(key, name)).status_code == 200
        any_world.github.set_selection(any_world.installation, ["widgets"])
        assert json.loads(hook.deliveries[0].body)["repositories_removed"] == []
        assert await deliver_all(app, hook) == [202]
        assert (await app.token(key, "acme/gadgets")).json()["code"] == "not_installed"
        assert (await app.token(key, "acme/widgets")).status_code == 200


async def test_a_repository_that_comes_and_goes(any_world: World) -> None:
    any_world.github.set_selection(any_world.installation, ["widgets"])
    async with hooked(any_world) as (app, hook):
        key = await app.key("acme/*")
        kept = (await app.token(key, "acme/widgets")).json()["token"]
        assert (await app.token(key, "acme/gadgets")).json()["code"] == "not_installed"
        any_world.github.set_selection(any_world.installation, ["widgets", "gadgets"])
        # the failure still cools down
        assert (await app.token(key, "acme/gadgets")).json()["code"] == "not_installed"
        assert await deliver_all(app, hook) == [202]
        assert (await app.token(key, "acme/gadgets")).status_code == 200
        assert (await app.token(key, "acme/widgets")).json()["token"] == kept  # failures only
        any_world.github.set_selection(any_world.installation, ["widgets"])
        assert await deliver_all(app, hook) == [202]
        assert (await app.token(key, "acme/gadgets")).json()["code"] == "not_installed"
        assert (await app.token(key, "acme/widgets")).json()["token"] == kept


async def test_accepted_permissions(any_world: World) -> None:
    """The failure of a moment ago is not repeated for its cool-down."""
    async with hooked(any_world) as (app, hook):
        key = await app.key("acme/*", permissions={"actions": "read", "contents": "read"})
        asked = {"permissions": {"actions": "read"}}
        refused = await app.token(key, "acme/widgets", **asked)
        assert (refused.status_code, refused.json()["code"]) == (403, "permission_not_granted")
        granted = {**any_world.app.permissions, "actions": "read"}
        any_world.github.set_app_permissions(any_world.app, granted)
        any_world.github.set_permissions(any_world.installation)
        assert await deliver_all(app, hook) == [202]
        assert (await app.token(key, "acme/widgets", **asked)).status_code == 200


@pytest.mark.parametrize("form", [False, True])
async def test_a_renamed_repository(any_world: World, form: bool) -> None:
    async with hooked(any_world) as (app, hook):
        hook.content_type = "form" if form else "json"
        key = await app.key("acme/*")
        before = (await app.token(key, "acme/widgets")).json()["token"]
        other = (await app.token(key, "acme/gadgets")).json()["token"]
        any_world.github.rename_repository("acme/widgets", "gizmos")
        assert await deliver_all(app, hook) == [202]
        assert (await app.token(key, "acme/widgets")).json()["code"] == "not_installed"
        assert (await app.token(key, "acme/gizmos")).json()["token"] != before
        assert (await app.token(key, "acme/gadgets")).json()["token"] == other
        (event, *_) = await received(app)
        assert event["repositories"] in (["acme/gizmos"], ["acme/widgets"])


async def test_a_renamed_owner_is_dropped_under_its_old_name(any_world: World) -> None:
    async with hooked(any_world) as (app, hook):
        key = await app.key("*/*")
        assert (await app.token(key, "acme/widgets")).status_code == 200
        any_world.github.rename_account("acme", "acme-inc")
        assert await deliver_all(app, hook) == [202, 202]
        assert (await app.token(key, "acme/widgets")).json()["code"] == "not_installed"
        assert (await app.token(key, "acme-inc/widgets")).status_code == 200


async def test_an_account_without_login_is_found_by_its_installation(any_world: World) -> None:
    async with hooked(any_world) as (app, hook):
        key = await app.key("acme/*")
        first = (await app.token(key, "acme/widgets")).json()["token"]
        account = {"id": 3, "slug": "big-corp", "name": "Big Corp"}
        installation = {"id": any_world.installation.id, "account": account, "created_at": 1525109898}
        hook.send("installation", {"action": "deleted", "installation": installation})
        hook.send("installation", {"action": "deleted", "installation": {"id": 4711, "account": None}})
        assert await deliver_all(app, hook) == [202, 202]
        assert (await app.token(key, "acme/widgets")).json()["token"] != first
        assert len(await received(app)) == 1


async def test_a_replay_under_another_id_does_nothing(any_world: World) -> None:
    """The delivery's id is not signed, so the body counts as well."""
    async with hooked(any_world) as (app, hook):
        key = await app.key("acme/*")
        any_world.github.suspend(any_world.installation)
        any_world.github.unsuspend(any_world.installation)
        first, second = hook.deliveries
        assert [(await deliver(app, one)).status_code for one in (second, first)] == [202, 202]
        await worked_off(app)
        token = (await app.token(key, "acme/widgets")).json()["token"]
        before = (await received(app), any_world.github.count("mint"))
        for old in (first, second):
            assert (await deliver(app, old)).status_code == 200
            assert (await deliver(app, hook.replay(old))).status_code == 200
            assert (await deliver(app, hook.replay(old, guid=second.guid))).status_code == 200
        await asyncio.sleep(0.05)
        assert (await app.token(key, "acme/widgets")).json()["token"] == token
        assert (await received(app), any_world.github.count("mint")) == before


async def test_reordered_and_lost_deliveries_leave_the_truth(any_world: World) -> None:
    """Rule 9: GitHub's API decides, whatever comes when."""
    async with hooked(any_world) as (app, hook):
        key = await app.key("acme/*")
        assert (await app.token(key, "acme/widgets")).status_code == 200
        any_world.github.uninstall(any_world.installation)
        any_world.github.install(any_world.app, "acme")
        any_world.github.set_selection(
            any_world.github.find_installation(any_world.app, any_world.installation.account), ["gadgets"]
        )
        hook.deliveries.reverse()
        assert await deliver_all(app, hook) == [202, 202, 202]
        assert (await app.token(key, "acme/widgets")).json()["code"] == "not_installed"
        assert (await app.token(key, "acme/gadgets")).status_code == 200


async def test_a_delivery_wins_over_a_mint_in_flight(any_world: World) -> None:
    """HARDENING 18: the late result is not stored, not served, and is revoked."""
    async with hooked(any_world) as (app, hook):
        key = await app.key("acme/*")
        held = threading.Event()
        any_world.github.faults.add(Fault(route="mint", times=1, hold=held, after_effect=True))
        asked = asyncio.create_task(app.token(key, "acme/widgets"))
        await minted(any_world, 1)
        any_world.github.set_selection(any_world.installation, ["widgets"])
        assert await deliver_all(app, hook) == [202]
        (late,) = any_world.github.tokens.values()
        assert not late.revoked
        held.set()
        answer = await asked
        assert answer.status_code == 200, answer.text
        assert answer.json()["token"] != late.text
        async with asyncio.timeout(5):
            while not late.revoked:  # noqa: ASYNC110 - revoked from another thread
                await asyncio.sleep(0.005)
        assert (await app.token(key, "acme/widgets")).json()["token"] == answer.json()["token"]


async def minted(world: World, count: int) -> None:
    async with asyncio.timeout(5):
        while len(world.github.tokens) < count:  # noqa: ASYNC110 - minted on another thread
            await asyncio.sleep(0.005)


async def test_ten_deliveries_of_one_owner_are_one_step(any_world: World) -> None:
    async with hooked(any_world) as (app, hook):
        lead = await app.broker.store.lease("job:hooks")
        assert lead is not None
        for n in range(10):
            hook.send(
                "installation",
                {"action": "suspend", "n": n, "installation": {"id": 5, "account": {"login": "acme"}}},
            )
        found = [(await deliver(app, one)).status_code for one in hook.deliveries]
        assert found == [202] * 10
        assert await received(app) == []
        await app.broker.store.release(lead)
        await worked_off(app, 2)
        (event,) = await received(app)
        assert event["count"] == 10


async def test_github_is_down(world: World) -> None:
    """202 well under a second all the same."""
    async with hooked(world) as (app, hook):
        key = await app.key("acme/*")
        assert (await app.token(key, "acme/widgets")).status_code == 200
        world.github.faults.add(Fault(delay_s=20))
        world.github.suspend(world.installation)
        begin = time.monotonic()
        assert await deliver_all(app, hook) == [202]
        assert time.monotonic() - begin < 1
        world.github.faults.clear()


async def test_strangers_fill_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Bad signatures are on the log only."""
    caplog.set_level(logging.INFO)
    async with world.inside(github_webhook_secret=f"new,{SECRET}") as app:
        body = deleted()
        for n in range(5):
            answer = await app.http.post(
                "/webhooks/github",
                content=body,
                headers=headers_of(body, "installation", secret=f"guess-{n}"),
            )
            assert answer.status_code == 401
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["code"] == "invalid_signature"
        page = await app.broker.store.audit(AuditFilter(), cursor=None, limit=100)
        assert [row.event["event"] for row in page.items] == []
        assert (await app.http.get("/webhooks/github")).status_code == 405
    lines = [record.audit for record in caplog.records if hasattr(record, "audit")]
    assert [line["event"] for line in lines] == ["webhook.rejected"] * 5
    assert SECRET not in caplog.text


async def test_not_configured(world: World) -> None:
    async with world.inside() as app:
        body = deleted()
        answer = await app.http.post("/webhooks/github", content=body, headers=headers_of(body, "ping"))
        assert answer.status_code == 503
        assert "not configured" in answer.json()["detail"]


async def test_random_deliveries_in_the_product(any_world: World) -> None:
    """Whatever is signed: never a 5xx, and tokens are issued before and after."""
    import random  # noqa: PLC0415 - the one test that needs it

    dice = random.Random(7)
    names: list[Any] = [
        "acme",
        "ACME",
        "acme/widgets",
        "a b",
        "",
        None,
        7,
        [],
        {},
        "x" * 200,
        "\ud800",
        True,
        -1,
        2**70,
    ]
    keys = ["action", "id", "login", "account", "full_name", "from", "name", "user", "organization", "slug"]
    fields = ["installation", "repository", "changes", "account", "repositories_removed", "organization"]

    def value(depth: int) -> Any:
        if depth == 0 or dice.random() < 0.3:
            return dice.choice(names)
        if dice.random() < 0.2:
            return [value(depth - 1) for _ in range(dice.randrange(3))]
        return {dice.choice(keys): value(depth - 1) for _ in range(dice.randrange(4))}

    pick: Callable[[], str] = lambda: dice.choice(  # noqa: E731
        [
            "installation",
            "installation_repositories",
            "installation_target",
            "repository",
            "public",
            "organization",
        ]
    )
    async with any_world.inside(github_webhook_secret=SECRET) as app:
        key = await app.key("acme/*")
        assert (await app.token(key, "acme/widgets")).status_code == 200
        for n in range(300):
            action = dice.choice(["deleted", "removed", "renamed", "added", "transferred", "suspend", "odd"])
            payload = {"action": action, "n": n} | {name: value(4) for name in fields}
            body = json.dumps(payload).encode()
            answer = await app.http.post("/webhooks/github", content=body, headers=headers_of(body, pick()))
            assert answer.status_code == 202, answer.text
        await worked_off(app, 10)
        assert (await app.token(key, "acme/widgets")).status_code == 200
