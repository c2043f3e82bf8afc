"""``broker store``: what is done to the store itself, not to what it holds."""

import asyncio
import re

import click

from broker import settings as broker_settings
from broker.build import build_backend, build_keks
from broker.errors import BrokerError
from broker.observe import configure_logging
from broker.store.sealed import SealedStore


@click.group("store")
def command() -> None:
    """Look after the store's own keys."""


@command.command("forget-key")
@click.argument("fingerprint")
def forget_key(fingerprint: str) -> None:
    """Delete the wraps of a key-encryption key that is configured nowhere any more.

    The last step of a rotation: afterwards the old key opens nothing, not even with a later dump of the
    store. FINGERPRINT is what the log names; a wrong one lists those that the store holds.
    """
    if not re.fullmatch(r"[0-9a-f]{1,64}", fingerprint):
        raise click.BadParameter("a fingerprint is 16 hexadecimal digits", param_hint="FINGERPRINT")
    settings = broker_settings.load()
    configure_logging(form=settings.log_format, level="error")

    async def run() -> None:
        store = SealedStore(build_backend(settings), build_keks(settings))
        await store.open()
        try:
            await store.forget_key(fingerprint)
        finally:
            await store.close()

    try:
        asyncio.run(run())
    except BrokerError as error:
        if error.code == "settings":
            raise
        raise click.ClickException(error.public) from None
    click.echo(f"{fingerprint} opens this store no more", err=True)
