"""The ``broker`` command: one thin file a subcommand, imported when it is called."""

import importlib
import sys
from typing import Final

import click

from broker.errors import BrokerError, SettingsError

_COMMANDS: Final = {
    "setup": "Make a GitHub App for the broker, in the browser.",
    "serve": "Run the service.",
    "check": "See whether settings, store, key and GitHub are right.",
    "keys": "Make, list and revoke API keys, straight on the store.",
    "store": "Look after the store's own keys.",
    "healthcheck": "Ask a broker whether it lives.",
    "demo": "See it work: an emulated GitHub, the real service and client, a private clone.",
}


class _Lazy(click.Group):
    """Imports a subcommand when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names."""
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return one command."""
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"broker.commands.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show what there is without importing it."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="github-token-broker", prog_name="broker")
def cli() -> None:
    """Short-lived, read-only, repository-scoped GitHub tokens from your own GitHub App.

    Settings come from the environment (BROKER_*) or a .env file. Begin with `broker demo`, then
    `broker setup`.
    """


def main() -> None:
    """Run the command; settings that are wrong end it with status 2, one line a problem."""
    try:
        cli()
    except SettingsError as error:
        for problem in error.problems:
            click.echo(f"broker: {problem}", err=True)
        sys.exit(2)
    except BrokerError as error:
        click.echo(f"broker: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
