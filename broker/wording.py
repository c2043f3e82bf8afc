"""How values look to the outside: times and audit events; pure."""

import contextlib
import re
from dataclasses import fields
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

from broker.errors import InvalidRequestError
from broker.ports import AuditEvent
from broker.redaction import redact

MAX_TEXT: Final = 200
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_FIELDS: Final = tuple(field.name for field in fields(AuditEvent))

_RFC3339: Final = re.compile(
    r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII
)


def parse_text(text: str, *, field: str) -> str:
    """Return a name or reason: 1 to 200 characters without control characters.

    Raises:
        InvalidRequestError: it is anything else.
    """
    text = text.strip()
    if not text or len(text) > MAX_TEXT or _CONTROL.search(text):
        raise InvalidRequestError(public=f"{field}: 1 to {MAX_TEXT} characters, no control characters.")
    return text


def parse_time(text: str, *, field: str) -> float:
    """Return Unix seconds of an RFC 3339 time.

    Raises:
        InvalidRequestError: it is none.
    """
    if _RFC3339.fullmatch(text):
        with contextlib.suppress(ValueError, OverflowError):
            return datetime.fromisoformat(text.upper()).timestamp()
    raise InvalidRequestError(public=f"{field}: write a time such as 2026-11-22T10:00:00Z.")


@lru_cache(256)
def rfc3339(unix_s: float) -> str:
    """Return Unix seconds as RFC 3339 UTC, to the second."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def audit_body(event: AuditEvent) -> dict[str, object]:
    """Return an event as the contract shows it, without what is not known."""
    body: dict[str, object] = {name: value for name in _FIELDS if (value := getattr(event, name)) is not None}
    if event.reason is not None:
        # It may repeat what GitHub said, and GitHub what it was sent.
        body["reason"] = _CONTROL.sub(" ", redact(event.reason))[:MAX_TEXT]
    if event.expires_at is not None:
        body["expires_at"] = rfc3339(event.expires_at)
    if event.permissions is not None:
        body["permissions"] = dict.fromkeys(event.permissions, "read")
    return body
