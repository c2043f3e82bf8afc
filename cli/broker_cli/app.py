"""The root of the command tree."""

from __future__ import annotations

import click

from broker_cli import __version__
from broker_cli.connection import connection_options
from broker_cli.lazy import LazyGroup

cli = LazyGroup(
    name="broker-cli",
    lazy={
        "github": "broker_cli.commands.github:github",
        "whoami": "broker_cli.commands.whoami:whoami",
        "admin": "broker_cli.commands.admin:admin",
    },
    help="""Short-lived, read-only GitHub tokens from your own broker.

    \b
    Settings come from the environment:
      BROKER_API_URL       the broker, like https://broker.example.com
      BROKER_API_KEY       your API key, or
      BROKER_API_KEY_FILE  a file that holds it
      BROKER_CA_FILE       a PEM file, if the broker's certificate is of a private CA

    \b
    Examples:
      broker-cli github token acme/etl
      GH_TOKEN="$(broker-cli github token acme/etl)" gh release list --repo acme/etl
      broker-cli github ls
      broker-cli whoami

    \b
    Exit status: 0 done, 1 the broker said no, 2 wrong usage or settings,
    3 API key missing or refused, 4 broker or GitHub not reached in time.
    """,
)
connection_options(cli)
click.version_option(__version__, prog_name="broker-cli", message="%(prog)s %(version)s")(cli)
