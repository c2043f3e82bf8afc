"""`broker-cli admin revoke`: ends live tokens."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import click

from broker_cli.api import open_broker
from broker_cli.commands.admin_outcome import check_outcome, write_outcome
from broker_cli.connection import connection_options
from broker_cli.errors import UsageError
from broker_cli.names import parse_owner, parse_repository

if TYPE_CHECKING:
    from broker_cli.settings import Flags


@click.command(
    help="""End every live token that reaches something; callers who still may get new ones.

    To keep them from getting new ones, see 'broker-cli admin block' and 'broker-cli admin keys revoke'.

    \b
    Examples:
      broker-cli admin revoke --repository acme/etl --reason "leaked in a log"
      broker-cli admin revoke --reason "found in a gist" \\
        --token-sha256 "$(printf %s "$TOKEN" | openssl dgst -sha256 -binary | base64)"
      broker-cli admin revoke --all --reason "host compromised"
    """
)
@click.option("--repository", metavar="OWNER/REPO", help="Tokens that reach this repository.")
@click.option("--owner", metavar="OWNER", help="Tokens for this owner.")
@click.option("--installation", type=click.IntRange(1, 2**53 - 1), metavar="ID", help="Of this installation.")
@click.option("--token-sha256", metavar="HASH", help="The token with this hash, as in GitHub's audit log.")
@click.option("--all", "everything", is_flag=True, help="Every live token.")
@click.option("--reason", required=True, help="Why; for the audit.")
@click.option("--yes", is_flag=True, help="Don't ask before --all; without a terminal nobody is asked.")
@click.option("--json", "as_json", is_flag=True, help="Print what the broker answers, as JSON.")
@connection_options
@click.pass_obj
def revoke(
    flags: Flags,
    *,
    repository: str | None,
    owner: str | None,
    installation: int | None,
    token_sha256: str | None,
    everything: bool,
    reason: str,
    yes: bool,
    as_json: bool,
) -> None:
    """Revoke what is named and tell what became of the tokens."""
    named: dict[str, object] = {}
    if repository is not None:
        named["repository"] = parse_repository(repository)[1]
    if owner is not None:
        named["owner"] = parse_owner(owner)
    if installation is not None:
        named["installation_id"] = installation
    if token_sha256 is not None:
        if re.fullmatch(r"[A-Za-z0-9+/]{43}=", token_sha256) is None:
            raise UsageError("--token-sha256 is no base64 of a SHA-256 (44 characters); never give the token")
        named["token_sha256"] = token_sha256
    if everything:
        named["all"] = True
    if len(named) != 1:
        raise UsageError(
            "give exactly one of --repository, --owner, --installation, --token-sha256 and --all"
        )
    with open_broker(flags) as broker:
        if everything and not yes and sys.stdin is not None and sys.stdin.isatty():
            _confirm()
            broker.renew()
        answer = broker.post("/v1/admin/revocations", {**named, "reason": reason})
        check_outcome(broker, answer)
    write_outcome(answer, as_json=as_json)


def _confirm() -> None:
    """Ask the person at the terminal.

    Raises:
        UsageError: anything but yes.
    """
    sys.stderr.write("broker-cli: revoke every live token of every caller? Type yes: ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() != "yes":
        raise UsageError("nothing was revoked")
