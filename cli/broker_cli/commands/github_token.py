"""`broker-cli github token`: prints one token, or keeps one in a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from broker_cli.connection import connection_options
from broker_cli.errors import UsageError
from broker_cli.tokens import print_token, token_request
from broker_cli.wishes import wish_options

if TYPE_CHECKING:
    from broker_cli.settings import Flags


@click.command(
    short_help="Print a token.",
    help="""Print a short-lived, read-only token for repositories of one owner.

    The token and one newline go to stdout, all else to stderr.
    OWNER/REPO may also be written OWNER/REPO.git or https://github.com/OWNER/REPO[.git].

    \b
    Examples:
      broker-cli github token acme/etl
      broker-cli github token acme/etl acme/shared --min-ttl 1800
      broker-cli github token --owner acme --permission contents=read
      broker-cli github token https://github.com/acme/etl.git --json
      broker-cli github token acme/etl --output /run/secrets/github-token --watch
    """,
)
@click.argument("repositories", nargs=-1, metavar="[OWNER/REPO]...")
@wish_options
@click.option("--json", "as_json", is_flag=True, help="Print the whole answer, with expiry and permissions.")
@click.option(
    "--output", metavar="FILE", help="Write to this file in place of stdout: whole or not at all, mode 0600."
)
@click.option(
    "--watch",
    is_flag=True,
    help="Keep the token in the file of --output fresh until stopped (SIGTERM), also through an outage.",
)
@connection_options
@click.pass_obj
def token(
    flags: Flags,
    *,
    repositories: tuple[str, ...],
    owner: str | None,
    permissions: tuple[str, ...],
    min_ttl: int | None,
    refresh: bool,
    as_json: bool,
    output: str | None,
    watch: bool,
) -> None:
    """Check the arguments, ask the broker, check its answer, print the token."""
    request = token_request(
        repositories, owner=owner, permissions=permissions, min_ttl_s=min_ttl, refresh=refresh
    )
    if watch and not output:
        raise UsageError("--watch keeps a file fresh: name it with --output FILE")
    if output == "":
        raise UsageError("--output names no file")
    if output is None:
        print_token(flags, request, as_json=as_json)
        return
    from broker_cli.keeping import keep_token, write_token  # noqa: PLC0415 - not needed for stdout

    (keep_token if watch else write_token)(flags, request, output, as_json=as_json)
