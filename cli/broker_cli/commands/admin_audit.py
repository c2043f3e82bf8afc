"""`broker-cli admin audit`: shows, exports and follows the audit."""

from __future__ import annotations

import json
import re
import select
import sys
import time
from typing import TYPE_CHECKING

import click

from broker_cli.api import open_broker
from broker_cli.connection import connection_options
from broker_cli.errors import UnreachableError, UsageError
from broker_cli.names import parse_repository
from broker_cli.output import say, write_result
from broker_cli.tables import text_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from broker_cli.api import Broker
    from broker_cli.settings import Flags

PATH = "/v1/admin/audit"
PAGE = 200
POLL_S = 1.0
TAIL = 10
COLUMNS = (("time", 20), ("event", 16), ("key_id", 12))
# What has a column of its own, or is told in other words.
SHOWN = frozenset({"id", "time", "event", "key_id", "owner", "repositories", "expires_at"})

Event = dict[str, object]


@click.command(
    help="""Show audit events, newest first.

    With --follow the last few, oldest first, and then each as it comes, until Ctrl-C.

    \b
    Examples:
      broker-cli admin audit --repository acme/etl --since 2026-11-22T00:00:00Z
      broker-cli admin audit --event token.denied --follow
      broker-cli admin audit --order asc --limit 0 --json > audit.jsonl
    """
)
@click.option("--key", "key_id", metavar="ID", help="Of this key.")
@click.option("--repository", metavar="OWNER/REPO", help="That name this repository.")
@click.option("--event", metavar="NAME", help="Of this kind, like token.issued.")
@click.option("--request-id", metavar="ID", help="Of this request.")
@click.option("--since", metavar="TIME", help="From then on, like 2026-11-22T10:00:00Z.")
@click.option("--until", metavar="TIME", help="Before then.")
@click.option(
    "--order", type=click.Choice(["asc", "desc"]), default=None, help="Oldest or newest first. [desc]"
)
@click.option("--limit", type=click.IntRange(min=0), metavar="N", help="At most so many, 0 for all. [50]")
@click.option("-f", "--follow", is_flag=True, help="Keep on showing events as they come.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@connection_options
@click.pass_obj
def audit(
    flags: Flags,
    *,
    key_id: str | None,
    repository: str | None,
    event: str | None,
    request_id: str | None,
    since: str | None,
    until: str | None,
    order: str | None,
    limit: int | None,
    follow: bool,
    as_json: bool,
) -> None:
    """Print events, each as soon as it is there."""
    if key_id is not None and re.fullmatch(r"[0-9A-Za-z]{12}", key_id) is None:
        raise UsageError("--key takes a key's ID, the 12 characters after ghbk_, never the key itself")
    if follow and (until is not None or order is not None):
        raise UsageError("--follow goes on for ever, oldest first: leave out --until and --order")
    wanted = {
        "key": key_id,
        "repository": None if repository is None else parse_repository(repository)[1],
        "event": event,
        "request_id": request_id,
        "since": since,
        "until": until,
    }
    query = {name: value for name, value in wanted.items() if value is not None}
    with open_broker(flags) as broker:
        if follow:
            events = _follow(broker, query, TAIL if limit is None else limit)
        else:
            events = _some(broker, {**query, "order": order or "desc"}, 50 if limit is None else limit)
        for one in events:
            write_result(json.dumps(one) if as_json else _line(one))


def _some(broker: Broker, query: Mapping[str, str], limit: int) -> Iterator[Event]:
    """Yield at most `limit` events, all if that is 0."""
    cursor: str | None = None
    left = limit
    while True:
        size = min(PAGE, left) if limit else PAGE
        broker.renew()  # an export of a million events takes longer than one command has
        events, following = broker.page(PATH, "events", {**query, "limit": str(size)}, cursor)
        yield from events
        left -= len(events)
        # Oldest first there is always a cursor; the one that was given means that nothing is new.
        if following is None or following == cursor or (limit and left <= 0):
            return
        cursor = following


def _follow(broker: Broker, query: Mapping[str, str], tail: int) -> Iterator[Event]:
    """Yield the last events, or those since the time that is asked for, and then each as it comes."""
    cursor: str | None = None
    if "since" not in query:
        # In this order: what comes in between is either among the last or after the newest.
        newest = list(_some(broker, {"order": "desc"}, 1))
        last = list(_some(broker, {**query, "order": "desc"}, tail)) if tail else []
        begin = last[:1] or newest
        cursor = _id(broker, begin[0]) if begin else None
        yield from reversed(last)
    troubled = False
    while True:
        try:
            broker.renew()
            events, following = broker.page(
                PATH, "events", {**query, "order": "asc", "limit": str(PAGE)}, cursor
            )
        except UnreachableError as error:
            if not troubled:
                say(f"{error}; still trying")
            troubled = True
            _wait()
            continue
        if troubled:
            say("the broker answers again")
        troubled = False
        yield from events
        idle = following in {None, cursor}
        cursor = following or cursor
        if idle:
            _wait()


def _wait() -> None:
    """Wait a moment, or until nobody reads stdout any more.

    Raises:
        BrokenPipeError: nobody does.
    """
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
    except (AttributeError, OSError, ValueError):
        time.sleep(POLL_S)
        return
    if poll.poll(POLL_S * 1000):
        raise BrokenPipeError


def _id(broker: Broker, event: Event) -> str:
    found = event.get("id")
    if not isinstance(found, str) or not found:
        raise broker.unexpected("an event without an id")
    return found


def _line(event: Event) -> str:
    """Return an event as a line: columns, what it is about, then all else by name."""
    head = "  ".join(f"{text_of(event.get(name)):<{width}}" for name, width in COLUMNS)
    about = text_of(event.get("repositories") or event.get("owner"))
    rest = "  ".join(
        f"{name}={text_of(value)}" for name, value in event.items() if name not in SHOWN and value is not None
    )
    return f"{head}  {about}  {rest}".rstrip()
