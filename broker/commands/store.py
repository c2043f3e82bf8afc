"""``broker store``: what is done to the store itself, not to what it holds."""

import re

import click

from broker.commands.opened import with_store


@click.group("store")
def command() -> None:
    """Look after the store's own keys."""


@command.command("list-keys")
def list_keys() -> None:
    """List the fingerprints of the keys that open this store, and where each is configured."""
    for fingerprint, origin in with_store(lambda store: store.wrapping_keys()):
        click.echo(f"{fingerprint}  {origin or 'configured nowhere here'}")


@command.command("forget-key")
@click.argument("fingerprint")
def forget_key(fingerprint: str) -> None:
    """Delete the wraps of a key-encryption key that is configured nowhere any more.

    The last step of a rotation: afterwards the old key opens nothing, not even with a later dump of the
    store. FINGERPRINT is what `broker store list-keys` shows.
    """
    if not re.fullmatch(r"[0-9a-f]{1,64}", fingerprint):
        raise click.BadParameter("a fingerprint is 16 hexadecimal digits", param_hint="FINGERPRINT")
    with_store(lambda store: store.forget_key(fingerprint))
    click.echo(f"{fingerprint} opens this store no more", err=True)
