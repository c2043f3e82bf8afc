"""`broker-cli admin installations …` and `broker-cli admin owners …`: where the app is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from broker_cli.api import open_broker
from broker_cli.connection import connection_options
from broker_cli.names import parse_owner
from broker_cli.output import say, write_json, write_result
from broker_cli.tables import text_of, write_table

if TYPE_CHECKING:
    from broker_cli.settings import Flags

PATH = "/v1/admin/installations"
COUNTS = ("unchanged", "added", "changed", "removed")
_json_option = click.option("--json", "as_json", is_flag=True, help="Print what the broker answers, as JSON.")


@click.command(
    "list",
    help="""List the installations that the broker knows, with their live tokens.

    \b
    Examples:
      broker-cli admin installations list
      broker-cli admin installations list --json
    """,
)
@_json_option
@connection_options
@click.pass_obj
def list_(flags: Flags, *, as_json: bool) -> None:
    """Print all installations."""
    with open_broker(flags) as broker:
        found = list(broker.pages(PATH, "installations"))
    if as_json:
        write_json({"installations": found})
    elif found:
        write_table(
            ("OWNER", "ID", "REPOSITORIES", "SUSPENDED", "LIVE TOKENS", "CHECKED", "PERMISSIONS", "BLOCKED"),
            [
                tuple(
                    text_of(one.get(name))
                    for name in (
                        "owner",
                        "id",
                        "repository_selection",
                        "suspended",
                        "live_tokens",
                        "checked_at",
                        "permissions",
                        "blocked_reason",
                    )
                )
                for one in found
            ],
        )


@click.command(
    help="""Have the broker read the installations from GitHub again.

    \b
    Examples:
      broker-cli admin installations sync
    """
)
@_json_option
@connection_options
@click.pass_obj
def sync(flags: Flags, *, as_json: bool) -> None:
    """Sync and print the counts."""
    with open_broker(flags) as broker:
        answer = broker.post(f"{PATH}/sync", {})
        if not all(isinstance(answer.get(name), int) for name in COUNTS):
            raise broker.unexpected("it does not tell what was found")
    if as_json:
        write_json(answer)
    else:
        write_result(", ".join(f"{name} {text_of(answer[name])}" for name in COUNTS))


@click.command(
    help="""Accept that another GitHub account has an owner's name now.

    The broker refuses such an owner until you say that it is the right one.

    \b
    Examples:
      broker-cli admin owners accept acme
    """
)
@click.argument("owner", metavar="OWNER")
@_json_option
@connection_options
@click.pass_obj
def accept(flags: Flags, *, owner: str, as_json: bool) -> None:
    """Accept one owner."""
    name = parse_owner(owner)
    with open_broker(flags) as broker:
        answer = broker.post(f"/v1/admin/owners/{name}/accept", {})
        if not isinstance(answer.get("account_id"), int):
            raise broker.unexpected("it is no installation")
    if as_json:
        write_json(answer)
    else:
        say(f"{name} is accepted with account {text_of(answer['account_id'])}")
