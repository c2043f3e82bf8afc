"""`broker-cli login` and `logout`: keep a broker's address and key in the profile, or forget them."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from broker_cli.about import about_broker
from broker_cli.api import open_broker
from broker_cli.connection import connection_options
from broker_cli.errors import UsageError
from broker_cli.output import say
from broker_cli.profile import Profile, remove_profile, write_profile
from broker_cli.settings import (
    MAX_KEY_FILE_BYTES,
    GivenKey,
    load_route,
    overriding_variables,
    profile_location,
)

if TYPE_CHECKING:
    from broker_cli.settings import Flags


@click.command(
    short_help="Keep address and API key.",
    help="""Keep the broker's address and your API key, so that other commands need no environment.

    The key is asked for without echo, or read from stdin, never taken from an argument. The broker is asked
    whether it knows the key; only then both are written to the profile (mode 0600), from where the key goes
    to this very address and nowhere else.

    \b
    Examples:
      broker-cli login --api-url https://broker.example.com
      broker-cli login --api-url https://broker.example.com --ca-file ca.pem
      vault read -field=key secret/broker | broker-cli login --api-url https://broker.example.com
    """,
)
@connection_options
@click.pass_obj
def login(flags: Flags) -> None:
    """Check the key with the broker before anything is written."""
    route = load_route(flags)
    key = _read_key(route.endpoint.url)
    with open_broker(flags, key=key) as broker:
        about = about_broker(broker)
        settings = broker.settings
    path = profile_location()
    ca_file = None if settings.ca_file is None else os.path.abspath(settings.ca_file)  # noqa: PTH100
    write_profile(Profile(path, settings.endpoint.url, settings.key.reveal(), ca_file))
    say(f"logged in to {settings.endpoint.url} with key {about.key_name} ({about.key_id}), kept in {path}")
    for name in overriding_variables():
        say(f"{name} is set here and comes before the profile: unset it to use what was just kept")


@click.command(
    short_help="Forget them.",
    help="""Forget the address and the API key that "broker-cli login" kept.

    The key itself goes on until a broker's admin revokes it or it expires.

    \b
    Examples:
      broker-cli logout
    """,
)
@connection_options
@click.pass_obj
def logout(flags: Flags) -> None:
    """Remove the profile, readable or not."""
    del flags
    path = profile_location()
    if remove_profile(path):
        say(f"removed {path}; the key itself goes on until it is revoked or expires")
    else:
        say(f"there is no profile {path}: nothing to do")


def _read_key(url: str) -> GivenKey:
    """Return the key that is typed, or that stdin holds."""
    if sys.stdin is None:
        raise UsageError("stdin is closed: there is nowhere to read the API key from")
    if sys.stdin.isatty():
        from getpass import getpass  # noqa: PLC0415

        try:
            text = getpass(f"API key for {url}: ", stream=sys.stderr)
        except EOFError:
            text = ""
        source = "the prompt"
    else:
        text = sys.stdin.buffer.read(MAX_KEY_FILE_BYTES).decode("ascii", "replace")
        source = "stdin"
    if not text.strip():
        raise UsageError(f"{source} held no API key")
    return GivenKey(text.strip(), source)
