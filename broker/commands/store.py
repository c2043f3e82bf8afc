"""``broker store``: what is done to the store itself, not to what it holds."""

import re
from collections.abc import Sequence

import click

from broker.commands.opened import with_backend, with_store
from broker.store.adopting import Survey, adopt, survey
from broker.store.backend import Backend
from broker.store.resealing import reseal
from broker.store.seal import KeyEncryptionKey


@click.group("store")
def command() -> None:
    """Look after the store itself."""


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


@command.command("reseal")
def reseal_command() -> None:
    """Make a new data key and seal everything with it; brokers may run meanwhile.

    For when a dump of the store leaked and a key that opens it too. First rotate that key and forget it
    (`broker store forget-key`). If it is interrupted, run it again.
    """
    done = with_backend(reseal)
    click.echo(f"data key {done.number}: {done.entries} entries sealed anew", err=True)
    if done.refused:
        click.echo(f"{done.refused} entries do not open: not written by this broker, left alone", err=True)


@command.command("adopt")
@click.option("--begin-anew", is_flag=True, help="Make a new store where there is nothing: all API keys end.")
@click.option("--store-id", help="What the store was called, if it has lost that (the broker's log tells).")
@click.option("--yes", is_flag=True, help="Do not ask.")
def adopt_command(*, begin_anew: bool, store_id: str | None, yes: bool) -> None:
    """Have running brokers accept the store as it is now, and mend what can be mended.

    A broker that has seen a store takes no other store, no emptied one and no old copy: its callers get 503.
    After you restored a backup or moved to another store, run this once; running brokers serve again within
    seconds, without a restart.
    """

    async def look(backend: Backend, keks: Sequence[KeyEncryptionKey]) -> Survey:
        return await survey(backend, keks, store_id=store_id.encode() if store_id else None)

    async def do(backend: Backend, keks: Sequence[KeyEncryptionKey]) -> bytes:
        return await adopt(backend, keks, await look(backend, keks))

    seen = with_backend(look)
    for line in seen.tell():
        click.echo(line, err=True)
    if seen.empty and not begin_anew:
        raise click.ClickException("Restore a backup; or give --begin-anew, and make new API keys.")
    if not yes:
        click.confirm("Adopt it?", abort=True, err=True)
    adopted = with_backend(do)
    click.echo(f"store {adopted.decode('ascii', 'replace')} is adopted; running brokers follow", err=True)
