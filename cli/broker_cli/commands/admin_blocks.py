"""`broker-cli admin block|unblock|blocks`: forbids owners and repositories."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from broker_cli.api import NO_CONTENT, open_broker
from broker_cli.commands.admin_outcome import check_outcome, write_outcome
from broker_cli.connection import connection_options
from broker_cli.names import parse_owner, parse_repository
from broker_cli.output import say, write_json
from broker_cli.tables import text_of, write_table

if TYPE_CHECKING:
    from broker_cli.settings import Flags

PATH = "/v1/admin/blocks"
_json_option = click.option("--json", "as_json", is_flag=True, help="Print what the broker answers, as JSON.")


@click.command(
    help="""Forbid an owner or a repository until it is lifted, and end every token that reaches it.

    Tokens for several repositories, or for all of an owner, count if the repository is among them.

    \b
    Examples:
      broker-cli admin block acme/etl --reason "incident 4711"
      broker-cli admin block acme --reason "contract ended"
    """
)
@click.argument("target", metavar="OWNER[/REPO]")
@click.option("--reason", required=True, help="Why; for the audit.")
@_json_option
@connection_options
@click.pass_obj
def block(flags: Flags, *, target: str, reason: str, as_json: bool) -> None:
    """Block and tell what became of the tokens."""
    name = _parsed(target)
    with open_broker(flags) as broker:
        answer = broker.change("PUT", f"{PATH}/{name}", {"reason": reason})
        check_outcome(broker, answer)
    say(f"{name} is blocked")
    write_outcome(answer, as_json=as_json)


@click.command(
    help="""Lift a block.

    \b
    Examples:
      broker-cli admin unblock acme/etl
    """
)
@click.argument("target", metavar="OWNER[/REPO]")
@connection_options
@click.pass_obj
def unblock(flags: Flags, *, target: str) -> None:
    """Lift one block."""
    name = _parsed(target)
    with open_broker(flags) as broker:
        broker.change("DELETE", f"{PATH}/{name}", None, status=NO_CONTENT)
    say(f"{name} is not blocked any more")


@click.command(
    help="""List what is blocked, by whom and why.

    \b
    Examples:
      broker-cli admin blocks
      broker-cli admin blocks --json
    """
)
@_json_option
@connection_options
@click.pass_obj
def blocks(flags: Flags, *, as_json: bool) -> None:
    """Print all blocks."""
    with open_broker(flags) as broker:
        found = list(broker.pages(PATH, "blocks"))
    if as_json:
        write_json({"blocks": found})
    elif found:
        write_table(
            ("BLOCKED", "BY", "SINCE", "REASON"),
            [
                (
                    text_of(one.get("repository") or one.get("owner")),
                    *(text_of(one.get(name)) for name in ("by", "created_at", "reason")),
                )
                for one in found
            ],
        )


def _parsed(target: str) -> str:
    """Return `owner` or `owner/repo`.

    Raises:
        UsageError: GitHub would not allow it.
    """
    return parse_repository(target)[1] if "/" in target else parse_owner(target)
