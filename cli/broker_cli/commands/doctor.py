"""`broker-cli doctor`: looks at everything between this machine and a token, and tells the next step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from broker_cli.connection import connection_options
from broker_cli.diagnosis import Verdict, examine
from broker_cli.output import plain, write_result

if TYPE_CHECKING:
    from broker_cli.settings import Flags

MARKS = {Verdict.GOOD: "ok", Verdict.HINT: "hint", Verdict.WRONG: "WRONG"}


@click.command(
    short_help="What is wrong, and what next.",
    help="""Find out what is wrong, and what to do next: settings, network, TLS, clock, key, broker, git.

    Prints a line a finding. Exit status 0 if nothing is wrong (hints may be left), else that of the first
    thing that is: 2 settings, 3 the API key, 4 the broker. No secret is printed.

    \b
    Examples:
      broker-cli doctor
      broker-cli doctor --api-url https://broker.example.com
    """,
)
@connection_options
@click.pass_obj
def doctor(flags: Flags) -> None:
    """Print every finding as it is made; a later one may need what an earlier one found missing."""
    status = 0
    for finding in examine(flags):
        text = f"{finding.text}: {finding.next_step}" if finding.next_step else finding.text
        write_result(f"{MARKS[finding.verdict]:<6}{plain(text)}")
        if finding.verdict is Verdict.WRONG and status == 0:
            status = finding.status
    if status:
        raise click.exceptions.Exit(status)
