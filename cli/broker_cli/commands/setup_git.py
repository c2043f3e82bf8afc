"""`broker-cli setup-git`: makes this program git's credential helper for the broker's GitHub host."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from broker_cli.about import about_broker
from broker_cli.api import open_broker
from broker_cli.connection import connection_options
from broker_cli.endpoint import parse_endpoint
from broker_cli.errors import UsageError
from broker_cli.git_setup import Scope, helper_command, install_helper, remove_helper
from broker_cli.output import say

if TYPE_CHECKING:
    from broker_cli.settings import Flags

# Where uv keeps the environments of `uv tool run`: they go away with its cache.
PASSING_PLACES = ("/archive-v0/", "/builds-v0/")


@click.command(
    short_help="Let git get its tokens here.",
    help="""Let git get its tokens from the broker: clone, fetch and submodules of https addresses.

    Writes this program into git's configuration as the credential helper of the broker's GitHub host, with
    useHttpPath (so that git names the repository), and takes other helpers out of its way, as they would
    store the token. No token is written anywhere. Running it again changes nothing.

    \b
    Examples:
      broker-cli setup-git
      broker-cli setup-git --system             for every user of a machine or image
      broker-cli setup-git --host github.com    without asking the broker, as in a Dockerfile
      broker-cli setup-git --undo
    """,
)
@click.option(
    "--global",
    "scope",
    flag_value="--global",
    default="--global",
    help="In your own configuration. [default]",
)
@click.option("--local", "scope", flag_value="--local", help="In the repository of this folder only.")
@click.option("--system", "scope", flag_value="--system", help="In the machine's configuration.")
@click.option("--host", metavar="HOST", help="The GitHub host, in place of asking the broker for it.")
@click.option("--undo", is_flag=True, help="Take it out again; helpers that were there before count again.")
@connection_options
@click.pass_obj
def setup_git(flags: Flags, *, scope: str, host: str | None, undo: bool) -> None:
    """Find the host, change git's configuration, and say what was done."""
    url = _url_of_host(host) if host is not None else _url_of_broker(flags)
    where = Scope(scope)
    if undo:
        done = remove_helper(where, url)
        say(
            f"git asks its other helpers for {url} again"
            if done
            else f"git is not set up for {url}: no change"
        )
        return
    changed = install_helper(where, url, helper_command(flags))
    say(f"git gets its tokens for {url} from the broker" + ("" if changed else " already: no change"))
    if any(place in sys.prefix for place in PASSING_PLACES):
        say("this program runs from uv's cache, which may be cleaned: install it (uv tool install) first")


def _url_of_host(text: str) -> str:
    """Return the address of a host as a user types it."""
    found = parse_endpoint(
        text if "://" in text else f"https://{text}", source="--host", allow_insecure=False
    )
    if found.path:
        raise UsageError("--host is a host, like github.com, without a path")
    return found.url


def _url_of_broker(flags: Flags) -> str:
    with open_broker(flags) as broker:
        return about_broker(broker).github_url
