"""`broker-cli exec`: runs a command that finds a token in its environment."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import click

from broker_cli.connection import connection_options
from broker_cli.output import say
from broker_cli.settings import environment_for_child
from broker_cli.tokens import get_token, token_request
from broker_cli.wishes import wish_options

if TYPE_CHECKING:
    from broker_cli.settings import Flags

EXIT_CANNOT_RUN = 126
EXIT_NO_SUCH_COMMAND = 127


@click.command(
    name="exec",
    short_help="Run one command with a token.",
    context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False},
    help="""Run a command with a token in GITHUB_TOKEN and GH_TOKEN, for that command alone.

    The command takes this one's place: signals reach it, and its exit status is the result
    (127 if there is no such command, 126 if it can't be run). It sees no BROKER_* variable.

    \b
    Examples:
      broker-cli exec --repo acme/etl -- gh release list --repo acme/etl
      broker-cli exec --owner acme --permission metadata=read -- ./inventory.sh
      broker-cli exec --repo acme/etl --repo acme/shared --min-ttl 3000 -- make release-notes
    """,
)
@click.option(
    "--repo",
    "repositories",
    multiple=True,
    metavar="OWNER/REPO",
    help="A repository that the token is for; may be repeated, for repositories of one owner.",
)
@wish_options
@connection_options
@click.argument(
    "command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND [ARGUMENT]..."
)
@click.pass_obj
def execute(
    flags: Flags,
    *,
    repositories: tuple[str, ...],
    owner: str | None,
    permissions: tuple[str, ...],
    min_ttl: int | None,
    refresh: bool,
    command: tuple[str, ...],
) -> None:
    """Get the token first; without one the command is not run."""
    request = token_request(
        repositories, owner=owner, permissions=permissions, min_ttl_s=min_ttl, refresh=refresh
    )
    environment = environment_for_child(get_token(flags, request).token)
    # Python ignores these two, and what is ignored stays so in what is run: a pipe's reader that went away
    # would not end it.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(command[0], command, environment)  # noqa: S606 - no shell is what is wanted
    except FileNotFoundError:
        say(f"exec: there is no command {command[0]!r}")
        raise click.exceptions.Exit(EXIT_NO_SUCH_COMMAND) from None
    except OSError as error:
        say(f"exec: cannot run {command[0]!r}: {error.strerror}")
        raise click.exceptions.Exit(EXIT_CANNOT_RUN) from None
