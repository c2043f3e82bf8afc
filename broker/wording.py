"""How values look to the outside: times and audit events; pure."""

from dataclasses import asdict
from datetime import UTC, datetime

from broker.ports import AuditEvent


def rfc3339(unix_s: float) -> str:
    """Return Unix seconds as RFC 3339 UTC, to the second."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def audit_body(event: AuditEvent) -> dict[str, object]:
    """Return an event as the contract shows it, without what is not known."""
    body = {name: value for name, value in asdict(event).items() if value is not None}
    if event.expires_at is not None:
        body["expires_at"] = rfc3339(event.expires_at)
    if event.permissions is not None:
        body["permissions"] = dict.fromkeys(event.permissions, "read")
    return body
