"""`broker-cli github token`: prints one token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from broker_cli.connection import connection_options, open_broker
from broker_cli.errors import UsageError
from broker_cli.names import parse_owner, parse_permissions, parse_repositories
from broker_cli.output import write_json, write_result

if TYPE_CHECKING:
    from broker_cli.settings import Flags

MAX_MIN_TTL_S = 3300


@click.command(
    help="""Print a short-lived, read-only token for repositories of one owner.

    The token and one newline go to stdout, all else to stderr.
    OWNER/REPO may also be written OWNER/REPO.git or https://github.com/OWNER/REPO[.git].

    \b
    Examples:
      broker-cli github token acme/etl
      broker-cli github token acme/etl acme/shared --min-ttl 1800
      broker-cli github token --owner acme --permission contents=read
      broker-cli github token https://github.com/acme/etl.git --json
    """
)
@click.argument("repositories", nargs=-1, metavar="[OWNER/REPO]...")
@click.option("--owner", metavar="OWNER", help="All repositories of this owner, in place of OWNER/REPO.")
@click.option(
    "--permission",
    "permissions",
    multiple=True,
    metavar="NAME=read",
    help="Give the token this permission only; may be repeated. [contents=read]",
)
@click.option(
    "--min-ttl",
    type=click.IntRange(0, MAX_MIN_TTL_S),
    metavar="SECONDS",
    help=f"The least life the token must have left, 0 to {MAX_MIN_TTL_S}.",
)
@click.option("--refresh", is_flag=True, help="Ask for a new token even if the broker has a good one.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole answer, with expiry and permissions.")
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
) -> None:
    """Check the arguments, ask the broker, check its answer, print the token."""
    request = _scope(repositories, owner)
    if permissions:
        request["permissions"] = parse_permissions(permissions)
    if min_ttl is not None:
        request["min_ttl"] = min_ttl
    if refresh:
        request["refresh"] = True
    with open_broker(flags) as broker:
        answer = broker.post("/v1/github/token", request)
        text, granted = answer.get("token"), answer.get("permissions")
        # A token is opaque: no length, no alphabet. What it can't hold is what would end a line or a header.
        if not isinstance(text, str) or not text or not text.isprintable() or any(map(str.isspace, text)):
            raise broker.unexpected("it holds no token")
        if isinstance(granted, dict) and any(level != "read" for level in granted.values()):
            raise broker.unexpected("the token can do more than read, so it is not passed on")
    if as_json:
        write_json(answer)
    else:
        write_result(text)


def _scope(repositories: tuple[str, ...], owner: str | None) -> dict[str, object]:
    """Return the members of the request that say which repositories the token is for."""
    if owner is not None:
        if repositories:
            raise UsageError("give repositories or --owner, not both")
        return {"owner": parse_owner(owner)}
    if not repositories:
        raise UsageError("name a repository (owner/repo), or an owner with --owner")
    host, names = parse_repositories(repositories)
    return {"repositories": names} if host is None else {"repositories": names, "host": host}
