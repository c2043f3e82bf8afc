"""Where GitHub delivers webhooks: judged in the order of what it costs, queued in the store, answered."""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, Self

from starlette.requests import Request
from starlette.responses import Response

from broker.audit import Auditor
from broker.errors import (
    BrokerError,
    InvalidSignatureError,
    MalformedRequestError,
    PayloadTooLargeError,
    StoreError,
    StoreUnavailableError,
    UnsupportedMediaTypeError,
)
from broker.ports import AuditEvent, Event, HookWork, Meter, Store
from broker.threads import in_thread
from broker.web.tokens import json_response, origin_of

_log = logging.getLogger(__name__)

MAX_BODY: Final = 25 * 1024 * 1024
"""GitHub does not deliver more ("Webhook events and payloads")."""

LARGE_BODY: Final = 64 * 1024
LARGE_AT_ONCE: Final = 4
PLACE_WITHIN_S: Final = 5.0
ARRIVES_WITHIN_S: Final = 10.0
"""GitHub gives a delivery up after so long."""

_TYPES: Final = frozenset({"application/json", "application/x-www-form-urlencoded"})
_CHARSETS: Final = frozenset({"", "charset=utf-8", 'charset="utf-8"'})
_DIGITS_OF_A_SIZE: Final = 12


class Signature(Protocol):
    """Checks the signature of one delivery while it arrives."""

    def well_formed(self, header: bytes | None) -> bool:
        """Return whether the header could be good."""
        ...

    def update(self, chunk: bytes) -> None:
        """Take the next bytes."""
        ...

    def verify(self, header: bytes | None) -> bool:
        """Return whether the header is right for what came."""
        ...


class Parse(Protocol):
    """Reads what a delivery makes the broker forget."""

    def __call__(self, *, event: str, guid: str, content_type: str, body: bytes) -> HookWork | None:
        """Return it, or None if that is nothing."""
        ...


@dataclass(frozen=True, slots=True)
class _Delivery:
    body: bytes
    sha256: str


class Webhooks:
    """``POST /webhooks/github``.

    Args:
        store: queues what is to be forgotten.
        auditor: the log of what was refused; strangers never reach the store.
        signature: makes a check for one delivery; None: no secret is configured, all is refused.
        parse: reads a delivery whose signature is good.
        queued: called when something was queued.
        meter: counts deliveries.
        arrives_within_s: how long a body may take.
    """

    def __init__(
        self,
        store: Store,
        auditor: Auditor,
        *,
        signature: Callable[[], Signature] | None,
        parse: Parse,
        queued: Callable[[], None],
        meter: Meter | None = None,
        arrives_within_s: float = ARRIVES_WITHIN_S,
    ) -> None:
        self._store = store
        self._auditor = auditor
        self._signature = signature
        self._parse = parse
        self._queued = queued
        self._meter = meter or Meter()
        self._arrives_within_s = arrives_within_s
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)
        self._parsing = asyncio.Lock()

    async def github(self, request: Request) -> Response:
        """Take a delivery: 202 queued or nothing to do, 200 seen before, else refused."""
        if self._signature is None:
            raise StoreUnavailableError(
                "a webhook came, but BROKER_GITHUB_WEBHOOK_SECRET is not set",
                public="Webhooks are not configured: the broker has no webhook secret.",
                retry_after_s=None,
            )
        try:
            return await self._take(request, self._signature())
        except StoreError:
            self._meter.webhook("", "not_kept")
            raise
        except BrokerError as error:
            self._meter.webhook("", error.code)
            origin = origin_of(request.scope)
            self._auditor.log(
                AuditEvent(
                    Event.WEBHOOK_REJECTED,
                    request_id=origin.request_id,
                    client_ip=origin.client_ip,
                    code=error.code,
                    reason=str(error),
                )
            )
            raise

    async def _take(self, request: Request, check: Signature) -> Response:
        signature = _single(request, b"x-hub-signature-256")
        if not check.well_formed(signature):
            raise InvalidSignatureError("no single well-formed X-Hub-Signature-256")
        content_type = _content_type(request)
        _check_size(request)
        with _Room(self._large) as room:
            found = await self._receive(request, check, room)
            if not check.verify(signature):
                raise InvalidSignatureError("no configured secret makes this signature")
            work = await self._read(request, content_type, found.body)
        event = (_single(request, b"x-github-event") or b"").decode("latin-1")
        if work is None:
            self._meter.webhook(event, "ignored")
            return json_response({"status": "ignored"}, status=202)
        if not await self._store.keep_hook(work, body_sha256=found.sha256):
            self._meter.webhook(event, "duplicate")
            return json_response({"status": "duplicate"}, status=200)
        self._meter.webhook(event, "accepted")
        self._queued()
        _log.info("webhook queued", extra={"hook_event": work.event, "guid": work.guid})
        return json_response({"status": "accepted"}, status=202)

    async def _receive(self, request: Request, check: Signature, room: "_Room") -> _Delivery:
        digest = hashlib.sha256()
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._arrives_within_s):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > MAX_BODY:
                        raise PayloadTooLargeError
                    if size > LARGE_BODY:
                        await room.take()
                    digest.update(chunk)
                    check.update(chunk)
                    chunks.append(chunk)
        except TimeoutError:
            raise MalformedRequestError(public="The body did not arrive in time.") from None
        return _Delivery(b"".join(chunks), digest.hexdigest())

    async def _read(self, request: Request, content_type: str, body: bytes) -> HookWork | None:
        event = _single(request, b"x-github-event") or b""
        guid = _single(request, b"x-github-delivery") or b""

        def parse() -> HookWork | None:
            return self._parse(
                event=event.decode("latin-1"),
                guid=guid.decode("latin-1"),
                content_type=content_type,
                body=body,
            )

        if len(body) <= LARGE_BODY:
            return parse()
        async with self._parsing:  # what is parsed takes several times the room of its text
            return await in_thread(parse)


class _Room:
    """A place for one large body, from when it has become large until it has been read."""

    def __init__(self, places: asyncio.Semaphore) -> None:
        self._places = places
        self._taken = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._taken:
            self._places.release()

    async def take(self) -> None:
        """Take a place; no matter if it is taken already.

        Raises:
            StoreUnavailableError: none became free in time.
        """
        if self._taken:
            return
        try:
            async with asyncio.timeout(PLACE_WITHIN_S):
                await self._places.acquire()
        except TimeoutError:
            raise StoreUnavailableError(
                "too many large webhooks at once", public="Too many large deliveries at once; send it again."
            ) from None
        self._taken = True


def _single(request: Request, name: bytes) -> bytes | None:
    """Return the header's value, None if it is not there exactly once."""
    values = [value for known, value in request.scope["headers"] if known == name]
    return bytes(values[0]) if len(values) == 1 else None


def _content_type(request: Request) -> str:
    """Return the content type.

    Raises:
        UnsupportedMediaTypeError: neither JSON nor a form, not UTF-8, or the body is encoded.
    """
    public = "Send application/json or application/x-www-form-urlencoded, without Content-Encoding."
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaTypeError("a Content-Encoding", public=public)
    kind, _, parameters = (_single(request, b"content-type") or b"").decode("latin-1").partition(";")
    if kind.strip().lower() not in _TYPES or parameters.strip().lower() not in _CHARSETS:
        raise UnsupportedMediaTypeError("a content type that GitHub does not send", public=public)
    return kind.strip().lower()


def _check_size(request: Request) -> None:
    """Look at ``Content-Length`` before anything is read.

    Raises:
        PayloadTooLargeError: it is more than is taken.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > _DIGITS_OF_A_SIZE or int(declared) > MAX_BODY):
        raise PayloadTooLargeError
