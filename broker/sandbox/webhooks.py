"""Webhooks of the emulated GitHub: payloads, signed deliveries, and what goes wrong with them; sends HTTP.

Deliveries leave from a thread of their own, in order, unless a test holds, doubles, shuffles or loses
them. GitHub itself never sends one again; ``Hook.redeliver`` is the button in its settings.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import queue
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlencode

import httpx

from broker.sandbox import shapes
from broker.sandbox.exchange import OLDER_VERSION, Urls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from broker.sandbox.state import (
        Change,
        EmulatedAccount,
        EmulatedApp,
        EmulatedInstallation,
        EmulatedRepository,
        State,
    )

ContentType = Literal["json", "form"]

TIMEOUT_S = 10.0
"""GitHub cuts the connection then, and calls the delivery failed."""

PUBLIC_URLS = Urls(
    api="https://api.github.com", web="https://github.com", docs="https://docs.github.com/rest"
)

_SUBSCRIBED = frozenset({"repository", "organization"})
_ABOUT_INSTALLATIONS = frozenset({"installation", "installation_repositories"})
_STOP = object()


@dataclass(slots=True)
class Attempt:
    """One try to deliver: when (epoch seconds of the emulator), the answer's status, how long it took.

    Attributes:
        status: None if there was no answer.
    """

    at: float
    status: int | None
    duration_s: float
    redelivery: bool
    answer: str = ""


@dataclass(slots=True)
class Delivery:
    """What is sent, byte for byte; ``guid`` stays the same when it is sent again."""

    id: int
    guid: str
    event: str
    action: str | None
    body: bytes = field(repr=False)
    headers: dict[str, str] = field(repr=False)
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def status(self) -> int | None:
        """Status of the last answer."""
        return self.attempts[-1].status if self.attempts else None

    @property
    def duration_s(self) -> float | None:
        """How long the last attempt took."""
        return self.attempts[-1].duration_s if self.attempts else None

    @property
    def name(self) -> str:
        """``event.action``, or the event alone."""
        return self.event if self.action is None else f"{self.event}.{self.action}"


class Hook:
    """The webhook of an app.

    Args:
        state: whose changes are told.
        app: to this app.
        url: None: deliveries are only written down.
        secret: None: nothing is signed.
        hook_id: as in ``X-GitHub-Hook-ID``.
        urls: roots of the links in payloads.

    Attributes:
        deliveries: the journal, in order of the changes.
        content_type: of new deliveries.
        times: how installations tell their times: GitHub does both.
        copies: how often each new delivery is sent, with one guid.
        losing: new deliveries are written down and never sent, as if GitHub had lost them.
        holding: new deliveries wait for ``release``.
    """

    def __init__(
        self,
        state: State,
        app: EmulatedApp,
        url: str | None,
        secret: str | None,
        *,
        hook_id: int,
        urls: Urls = PUBLIC_URLS,
    ) -> None:
        self.app = app
        self.url = url
        self.secret = secret
        self.hook_id = hook_id
        self.deliveries: list[Delivery] = []
        self.content_type: ContentType = "json"
        self.times: Literal["iso", "epoch"] = "epoch"
        self.copies = 1
        self.losing = False
        self.holding = False
        self._state = state
        self._urls = urls
        self._held: list[Delivery] = []
        self._waiting: queue.Queue[Any] = queue.Queue()
        self._open = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        state.subscribe(self._hear)

    # -- sending ---------------------------------------------------------------------------------

    def ping(self) -> Delivery:
        """Send what GitHub sends when a hook is made."""
        return self.send(
            "ping",
            {
                "zen": "Half measures are as bad as nothing at all.",
                "hook_id": self.hook_id,
                "hook": {
                    "type": "App",
                    "id": self.hook_id,
                    "name": "web",
                    "active": True,
                    "events": list(self.app.events),
                    "config": {"content_type": self.content_type, "insecure_ssl": "0", "url": self.url or ""},
                    "app_id": self.app.app_id,
                },
            },
        )

    def send(self, event: str, payload: Mapping[str, Any], *, guid: str | None = None) -> Delivery:
        """Send any event."""
        text = json.dumps(payload, separators=(",", ":"))
        if self.content_type == "form":
            body, media = urlencode({"payload": text}).encode(), "application/x-www-form-urlencoded"
        else:
            body, media = text.encode(), "application/json"
        action = payload.get("action")
        return self._enqueue(event, action if isinstance(action, str) else None, body, media, guid)

    def replay(self, delivery: Delivery, *, guid: str | None = None) -> Delivery:
        """Send the same body under another guid: what an eavesdropper could do, the guid is not signed."""
        media = delivery.headers["Content-Type"]
        return self._enqueue(delivery.event, delivery.action, delivery.body, media, guid)

    def redeliver(self, delivery: Delivery) -> None:
        """Send again under the same guid, signed with the secret of now."""
        delivery.headers = self._headers(
            delivery.event, delivery.guid, delivery.body, delivery.headers["Content-Type"]
        )
        self._put(delivery, redelivery=True)

    def release(self, order: Callable[[Sequence[Delivery]], Iterable[Delivery]] = list) -> None:
        """Send what was held, in any order, and hold no more."""
        with self._changed:
            held, self._held, self.holding = self._held, [], False
        for delivery in order(held):
            self._put(delivery)

    def wait(self, *, seconds: float = 15.0) -> None:
        """Return when everything that is to be sent has been sent.

        Raises:
            TimeoutError: it takes longer.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._open == 0, seconds):
                raise TimeoutError("deliveries are still on their way")

    def close(self) -> None:
        """End the thread; what was not sent is lost."""
        if self._thread is not None:
            self._closed = True
            self._waiting.put(_STOP)
            self._thread.join(TIMEOUT_S + 5)
            self._thread = None

    def _enqueue(self, event: str, action: str | None, body: bytes, media: str, guid: str | None) -> Delivery:
        guid = guid or str(uuid.uuid4())
        with self._changed:
            delivery = Delivery(
                id=len(self.deliveries) + 1,
                guid=guid,
                event=event,
                action=action,
                body=body,
                headers=self._headers(event, guid, body, media),
            )
            self.deliveries.append(delivery)
            if self.holding:
                self._held.append(delivery)
                return delivery
        if not self.losing:
            for _ in range(self.copies):
                self._put(delivery)
        return delivery

    def _headers(self, event: str, guid: str, body: bytes, media: str) -> dict[str, str]:
        headers = {
            "Accept": "*/*",
            "Content-Type": media,
            "User-Agent": f"GitHub-Hookshot/{self.hook_id:07x}",
            "X-GitHub-Delivery": guid,
            "X-GitHub-Event": event,
            "X-GitHub-Hook-ID": str(self.hook_id),
            "X-GitHub-Hook-Installation-Target-ID": str(self.app.app_id),
            "X-GitHub-Hook-Installation-Target-Type": "integration",
        }
        if self.secret is not None:
            key = self.secret.encode()
            headers["X-Hub-Signature"] = f"sha1={hmac.new(key, body, hashlib.sha1).hexdigest()}"
            headers["X-Hub-Signature-256"] = f"sha256={hmac.new(key, body, hashlib.sha256).hexdigest()}"
        return headers

    def _put(self, delivery: Delivery, *, redelivery: bool = False) -> None:
        if self.url is None:
            return
        with self._changed:
            self._open += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sandbox-hook", daemon=True)
                self._thread.start()
        self._waiting.put((delivery, redelivery))

    def _run(self) -> None:
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False, verify=False) as http:  # noqa: S501 - loopback
            while (item := self._waiting.get()) is not _STOP and not self._closed:
                delivery, redelivery = item
                attempt = self._try(http, delivery, redelivery=redelivery)
                with self._changed:
                    delivery.attempts.append(attempt)
                    self._open -= 1
                    self._changed.notify_all()

    def _try(self, http: httpx.Client, delivery: Delivery, *, redelivery: bool) -> Attempt:
        begin = time.monotonic()
        status, answer = None, ""
        try:
            reply = http.post(self.url or "", content=delivery.body, headers=delivery.headers)
        except httpx.HTTPError as error:
            answer = type(error).__name__
        else:
            status, answer = reply.status_code, reply.text
        return Attempt(self._state.now(), status, time.monotonic() - begin, redelivery, answer)

    # -- what GitHub tells -----------------------------------------------------------------------

    def _hear(self, change: Change) -> None:
        """Tell a change, on the thread and under the lock of whoever made it."""
        event, installation = change.event, change.installation
        if event in _ABOUT_INSTALLATIONS:
            if installation is None or installation.app is not self.app or self._silent(change):
                return
            self.send(event, self._of_installation(change, installation))
            return
        if event in _SUBSCRIBED and event not in self.app.events:
            return
        account = change.account or (change.repositories[0].owner if change.repositories else None)
        found = self._state.find_installation(self.app, account) if account else None
        if account is None or found is None or self._silent(change, found):
            return
        if event == "repository":
            self._tell_repository(change, found, account)
            return
        payload = self._of_account(change, found, account)
        self.send(event, payload)
        also = account.kind == "Organization" and "organization" in self.app.events
        if event == "installation_target" and also:
            del payload["account"], payload["target_type"]
            self.send("organization", payload)

    def _silent(self, change: Change, installation: EmulatedInstallation | None = None) -> bool:
        """Return whether GitHub says nothing: enterprises, and whoever has suspended the app."""
        known = installation or change.installation
        if known is None or known.account.kind == "Enterprise":
            return True
        told = change.action in {"suspend", "unsuspend", "deleted"} and change.event == "installation"
        return known.suspended_at is not None and not told

    def _tell_repository(
        self, change: Change, installation: EmulatedInstallation, account: EmulatedAccount
    ) -> None:
        repository = change.repositories[0]
        gone = change.action == "deleted"
        if not gone and not installation.covers(repository):
            return
        shown = shapes.repository(repository, self._urls, version=OLDER_VERSION)
        payload: dict[str, Any] = {"action": change.action, "repository": shown}
        if change.action == "renamed":
            payload["changes"] = {"repository": {"name": {"from": change.details["name_from"]}}}
        elif change.action == "transferred":
            before = change.details["owner_from"]
            kind = "organization" if before.kind == "Organization" else "user"
            payload["changes"] = {"owner": {"from": {kind: shapes.account(before, self._urls)}}}
        self.send("repository", payload | self._common(installation, account))
        if change.action == "publicized" and "public" in self.app.events:
            self.send("public", {"repository": shown} | self._common(installation, account))

    def _of_account(
        self, change: Change, installation: EmulatedInstallation, account: EmulatedAccount
    ) -> dict[str, Any]:
        payload: dict[str, Any] = {"action": change.action}
        before = change.details.get("login_from")
        if before is not None:
            payload["changes"] = {"login": {"from": before}}
        if change.event == "installation_target":
            payload["account"] = shapes.account(account, self._urls)
            payload["target_type"] = account.kind
        return payload | self._common(installation, account)

    def _common(self, installation: EmulatedInstallation, account: EmulatedAccount) -> dict[str, Any]:
        """Return what comes with every event that is not about an installation."""
        shown = shapes.account(account, self._urls)
        node = base64.b64encode(f"023:IntegrationInstallation{installation.id}".encode()).decode()
        found: dict[str, Any] = {
            "installation": {"id": installation.id, "node_id": node},
            "sender": shown,
        }
        if account.kind == "Organization":
            found["organization"] = shown
        return found

    def _of_installation(self, change: Change, installation: EmulatedInstallation) -> dict[str, Any]:
        shown = shapes.installation(installation, self._urls)
        if self.times == "epoch":
            shown["created_at"] = int(installation.created_at)
            shown["updated_at"] = int(installation.updated_at)
        payload: dict[str, Any] = {"action": change.action, "installation": shown}
        if change.event == "installation_repositories":
            payload["repository_selection"] = shown["repository_selection"]
            payload["repositories_added"] = _short(change.details["added"])
            payload["repositories_removed"] = _short(change.details["removed"])
            payload["requester"] = None
        elif change.action not in {"suspend", "unsuspend"}:
            payload["repositories"] = _short(change.repositories)
            if change.action == "created":
                payload["requester"] = None
        payload["sender"] = shapes.account(installation.account, self._urls)
        return payload


def _short(repositories: Iterable[EmulatedRepository]) -> list[dict[str, Any]]:
    return [
        {
            "id": one.id,
            "node_id": f"R_{one.id}",
            "name": one.name,
            "full_name": one.full_name,
            "private": one.private,
        }
        for one in repositories
    ]
