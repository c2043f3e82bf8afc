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
        "exec": "broker_cli.commands.execute:execute",
        "setup-git": "broker_cli.commands.setup_git:setup_git",
        "git-credential": "broker_cli.commands.git_credential:git_credential",
        "login": "broker_cli.commands.login:login",
        "logout": "broker_cli.commands.login:logout",
        "whoami": "broker_cli.commands.whoami:whoami",
        "doctor": "broker_cli.commands.doctor:doctor",
        "admin": "broker_cli.commands.admin:admin",
    },
    help="""Short-lived, read-only GitHub tokens from your own broker.

    \b
    Settings come from the environment, or are kept by "broker-cli login":
      BROKER_API_URL       the broker, like https://broker.example.com
      BROKER_API_KEY       your API key, or
      BROKER_API_KEY_FILE  a file that holds it
      BROKER_CA_FILE       a PEM file, if the broker's certificate is of a private CA

    \b
    Examples:
      broker-cli github token acme/etl
      broker-cli exec --repo acme/etl -- gh release list --repo acme/etl
      broker-cli setup-git           git clones and fetches with short-lived tokens
      broker-cli github ls           what your key may read
      broker-cli doctor              what is wrong, and the next step

    \b
    Exit status: 0 done, 1 the broker said no, 2 wrong usage or settings,
    3 API key missing or refused, 4 broker or GitHub not reached in time.

    \b
    Completion: eval "$(_BROKER_CLI_COMPLETE=bash_source broker-cli)", or zsh_source;
    for fish: _BROKER_CLI_COMPLETE=fish_source broker-cli | source
    """,
)
connection_options(cli)
click.version_option(__version__, prog_name="broker-cli", message="%(prog)s %(version)s")(cli)


def complete(instruction: str) -> int:
    """Answer a shell that completes a command line; returns the exit status. Nothing is sent anywhere."""
    from click.shell_completion import shell_complete  # noqa: PLC0415 - rarely asked for

    return shell_complete(cli, {}, "broker-cli", "_BROKER_CLI_COMPLETE", instruction)
