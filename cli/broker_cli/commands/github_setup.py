"""`broker-cli github setup`: opens the page where the app is installed or given more repositories."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from broker_cli.about import about_broker
from broker_cli.api import open_broker
from broker_cli.connection import connection_options
from broker_cli.errors import UnreachableError
from broker_cli.output import say, write_result

if TYPE_CHECKING:
    from broker_cli.settings import Flags


@click.command(
    short_help="Open the app's install page.",
    help="""Open GitHub's page where an owner installs the app, or lets it see more repositories.

    \b
    Examples:
      broker-cli github setup
      broker-cli github setup --print     only the address, for a machine without a browser
    """,
)
@click.option("--print", "only_print", is_flag=True, help="Print the page's address and open nothing.")
@connection_options
@click.pass_obj
def setup(flags: Flags, *, only_print: bool) -> None:
    """Ask the broker for the address; a browser only ever gets one of the broker's GitHub host."""
    with open_broker(flags) as broker:
        about = about_broker(broker)
        if about.install_url is None:
            raise UnreachableError(
                "the broker does not know yet which app it serves, as GitHub has not told it: try again in a"
                " minute, and tell the broker's operator if it lasts ('broker check' says what is wrong)"
            )
        page, home = urlsplit(about.install_url), urlsplit(about.github_url)
        if (page.scheme, page.netloc) != (home.scheme, home.netloc):
            raise broker.unexpected("an install page that is not on its GitHub host")
    if only_print:
        write_result(about.install_url)
        return
    import webbrowser  # noqa: PLC0415

    if webbrowser.open(about.install_url):
        say(f"opened {about.install_url}")
    else:
        say("there is no browser here; open this page elsewhere:")
        write_result(about.install_url)
