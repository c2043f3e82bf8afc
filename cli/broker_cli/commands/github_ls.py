"""`broker-cli github ls`: lists the repositories that tokens can be had for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from broker_cli.api import open_broker
from broker_cli.connection import connection_options
from broker_cli.output import plain, write_json, write_result

if TYPE_CHECKING:
    from broker_cli.settings import Flags


@click.command(
    short_help="List the repositories you can ask for.",
    help="""List the repositories that the app can reach and your key may ask for, one a line.

    \b
    Examples:
      broker-cli github ls
      broker-cli github ls --json
    """,
)
@click.option("--json", "as_json", is_flag=True, help="Print what the broker knows about each.")
@connection_options
@click.pass_obj
def ls(flags: Flags, *, as_json: bool) -> None:
    """Read every page first: a list that breaks off in the middle is not printed."""
    with open_broker(flags) as broker:
        repositories = list(broker.pages("/v1/github/repositories", "repositories"))
        names = [repository.get("full_name") for repository in repositories]
        lines = [plain(name) for name in names if isinstance(name, str)]
        if len(lines) != len(names):
            raise broker.unexpected("a repository without a name")
    if as_json:
        write_json({"repositories": repositories})
    elif lines:
        write_result("\n".join(lines))
