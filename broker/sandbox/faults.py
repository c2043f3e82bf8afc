"""What can go wrong on purpose: faults, limited to a route and to a number of times; no I/O."""

from __future__ import annotations

import fnmatch
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal, Self

from broker.sandbox.exchange import Reply

if TYPE_CHECKING:
    from broker.sandbox.journal import Call

Headers = Mapping[str, str] | Callable[[float], Mapping[str, str]]

_UNICORN = (
    "<!DOCTYPE html>\n<html><head><title>Unicorn! &middot; GitHub</title></head><body>{}</body></html>\n"
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Fault:
    """One way to misbehave.

    With ``status``, ``body``, ``html`` or ``reset`` it takes the place of the true reply; else the
    true reply is sent, later (``delay_s``, ``hold``), with more headers, or rewritten.

    Attributes:
        route: name of a route (``mint``), or a pattern (``git_*``); None means every call.
        times: how many calls it spoils; None means until it is removed.
        skip: how many matching calls it lets through first.
        status: of the reply; 500 if only a body is given.
        headers: added to the reply, or a function of the emulator's time in epoch seconds.
        body: text, bytes or what JSON can hold; by default GitHub's envelope for that status.
        html: send a page instead of JSON.
        delay_s: seconds to wait first.
        hold: wait until a test sets this event.
        reset: cut the connection (TCP reset) instead of replying.
        truncate: promise the whole reply, send half of it, cut the connection.
        stall: fall silent in the middle of the reply's ``head`` or ``body``, until ``hold`` is set (then the
            connection is cut) or the client leaves.
        after_effect: do the work first (the mint happens), then misbehave.
        rewrite: function from the true reply's JSON to what is sent instead.
        when: one more condition on the call.
    """

    route: str | None = None
    times: int | None = None
    skip: int = 0
    status: int | None = None
    headers: Headers = field(default_factory=dict)
    body: Any = None
    html: bool = False
    delay_s: float = 0.0
    hold: threading.Event | None = None
    reset: bool = False
    truncate: bool = False
    stall: Literal["head", "body"] | None = None
    after_effect: bool = False
    rewrite: Callable[[Any], Any] | None = None
    when: Callable[[Call], bool] | None = None

    @classmethod
    def primary_limit(
        cls,
        *,
        status: int = 403,
        reset_in_s: int = 60,
        installation_id: int = 1,
        route: str | None = None,
        times: int | None = None,
    ) -> Self:
        """Return the primary rate limit: ``remaining: 0`` and no ``retry-after``."""

        def headers(now: float) -> dict[str, str]:
            return {
                "x-ratelimit-limit": "5000",
                "x-ratelimit-remaining": "0",
                "x-ratelimit-used": "5000",
                "x-ratelimit-reset": str(int(now) + reset_in_s),
                "x-ratelimit-resource": "core",
            }

        message = f"API rate limit exceeded for installation ID {installation_id}."
        return cls(route=route, times=times, status=status, headers=headers, body={"message": message})

    @classmethod
    def secondary_limit(
        cls,
        *,
        status: int = 403,
        retry_after_s: int | None = 60,
        route: str | None = None,
        times: int | None = None,
    ) -> Self:
        """Return a secondary rate limit, with or without ``retry-after``."""
        message = "You have exceeded a secondary rate limit. Please wait a few minutes before you try again."
        headers = {} if retry_after_s is None else {"retry-after": str(retry_after_s)}
        return cls(route=route, times=times, status=status, headers=headers, body={"message": message})

    @classmethod
    def abuse(
        cls, *, retry_after_s: int | None = 60, route: str | None = None, times: int | None = None
    ) -> Self:
        """Return the 422 that is no verdict but a limit: told by ``retry-after`` or ``remaining: 0``."""
        headers = (
            {"x-ratelimit-remaining": "0"} if retry_after_s is None else {"retry-after": str(retry_after_s)}
        )
        message = "Validation failed, or the endpoint has been spammed."
        return cls(route=route, times=times, status=422, headers=headers, body={"message": message})

    @classmethod
    def suspended(cls, *, route: str | None = "mint", times: int | None = None) -> Self:
        """Return the refusal of a suspended installation."""
        body = {"message": "This installation has been suspended"}
        return cls(route=route, times=times, status=403, body=body)

    @classmethod
    def unicorn(cls, *, status: int = 502, route: str | None = None, times: int | None = None) -> Self:
        """Return GitHub's page of trouble: a 5xx in HTML."""
        return cls(route=route, times=times, status=status, html=True)

    @classmethod
    def lost_reply(cls, *, route: str | None = "mint", times: int | None = None) -> Self:
        """Return a connection cut after the work was done."""
        return cls(route=route, times=times, reset=True, after_effect=True)

    @property
    def replaces(self) -> bool:
        """Whether the true reply is not sent."""
        return self.status is not None or self.body is not None or self.html or self.reset

    def matches(self, call: Call) -> bool:
        """Return whether this fault is meant for that call."""
        named = self.route is None or fnmatch.fnmatchcase(call.route, self.route)
        return named and (self.when is None or self.when(call))

    def extra_headers(self, now: float) -> dict[str, str]:
        """Return the headers to add, given the emulator's time in epoch seconds."""
        given = self.headers(now) if callable(self.headers) else self.headers
        return {name.lower(): value for name, value in given.items()}

    def reply(self, *, docs_url: str) -> Reply:
        """Return what is sent instead of the true reply."""
        status = self.status or 500
        phrase = HTTPStatus(status).phrase
        if self.html:
            page = self.body if isinstance(self.body, str) else _UNICORN.format(phrase)
            return Reply(status, page.encode(), {"content-type": "text/html; charset=utf-8"})
        if isinstance(self.body, bytes):
            return Reply(status, self.body, {"content-type": "application/json; charset=utf-8"})
        if isinstance(self.body, str):
            return Reply(status, self.body.encode(), {"content-type": "text/plain; charset=utf-8"})
        body = self.body
        if body is None or (isinstance(body, dict) and set(body) == {"message"}):
            message = phrase if body is None else body["message"]
            body = {"message": message, "documentation_url": docs_url, "status": str(status)}
        return Reply(status, json.dumps(body).encode(), {"content-type": "application/json; charset=utf-8"})


class Faults:
    """The faults in force, first match first; safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[_Entry] = []

    def add(self, fault: Fault) -> Fault:
        """Put ``fault`` in force and return it."""
        with self._lock:
            self._entries.append(_Entry(fault, skip=fault.skip, left=fault.times))
        return fault

    def remove(self, fault: Fault) -> None:
        """Take ``fault`` out; no matter if it has run out already."""
        with self._lock:
            self._entries = [entry for entry in self._entries if entry.fault is not fault]

    def clear(self) -> None:
        """Take all faults out."""
        with self._lock:
            self._entries.clear()

    def take(self, call: Call) -> Fault | None:
        """Return the fault that spoils this call, and count it."""
        with self._lock:
            for entry in self._entries:
                if entry.left == 0 or not entry.fault.matches(call):
                    continue
                if entry.skip:
                    entry.skip -= 1
                    continue
                if entry.left is not None:
                    entry.left -= 1
                return entry.fault
        return None


@dataclass(slots=True)
class _Entry:
    fault: Fault
    skip: int
    left: int | None
