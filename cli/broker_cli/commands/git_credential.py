"""`broker-cli git-credential`: what git calls; `setup-git` tells it to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from broker_cli.connection import connection_options
from broker_cli.git_credential import answer_git

if TYPE_CHECKING:
    from broker_cli.settings import Flags


@click.command(
    name="git-credential",
    short_help="What git calls; see setup-git.",
    help="""Answer git as a credential helper. git calls this; "broker-cli setup-git" tells it to.

    Other hosts, and repositories that the broker has no token for, are left to git's next helper.

    \b
    Examples:
      git -c credential.helper= -c 'credential.helper=!broker-cli git-credential' \\
          -c credential.useHttpPath=true clone https://github.com/acme/etl.git
      printf 'protocol=https\\nhost=github.com\\npath=acme/etl.git\\n' | broker-cli git-credential get
    """,
)
@click.argument("verb", type=click.Choice(["get", "store", "erase"]), metavar="get|store|erase")
@connection_options
@click.pass_obj
def git_credential(flags: Flags, *, verb: str) -> None:
    """Read what git writes to stdin and answer on stdout."""
    answer_git(flags, verb)
