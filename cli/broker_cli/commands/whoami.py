"""`broker-cli whoami`: tells whose key it is and what it may do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from broker_cli.api import open_broker
from broker_cli.connection import connection_options
from broker_cli.output import plain, write_json, write_result

if TYPE_CHECKING:
    from broker_cli.settings import Flags


@click.command(
    short_help="Whose key this is.",
    help="""Show the record of your API key: its name, role, repositories, permissions and expiry.

    \b
    Examples:
      broker-cli whoami
      broker-cli whoami --json
    """,
)
@click.option("--json", "as_json", is_flag=True, help="Print the record as the broker gives it.")
@connection_options
@click.pass_obj
def whoami(flags: Flags, *, as_json: bool) -> None:
    """Print the caller's own record."""
    with open_broker(flags) as broker:
        record = broker.get("/v1/whoami")
        if not isinstance(record.get("id"), str):
            raise broker.unexpected("it is no key's record")
    if as_json:
        write_json(record)
        return
    lines = [
        ("key", f"{_text(record.get('name'))} ({_text(record.get('id'))})"),
        ("role", _text(record.get("role"))),
        ("repositories", _text(record.get("repositories"))),
        ("permissions", _text(record.get("permissions"))),
        ("created", f"{_text(record.get('created_at'))} by {_text(record.get('created_by'))}"),
        ("expires", _text(record.get("expires_at"), absent="never")),
        ("last used", _text(record.get("last_used_at"), absent="never")),
        ("rate limit", _text(record.get("rate_limit_per_minute"), absent="the broker's own")),
    ]
    write_result("\n".join(f"{name + ':':<14}{value}" for name, value in lines))


def _text(value: object, *, absent: str = "-") -> str:
    """Return a member of the record in words, with nothing in it that could steer a terminal."""
    if value is None or value in ([], {}):
        return absent
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{_text(name)}: {_text(level)}" for name, level in value.items())
    return plain(str(value))
