"""The configured store, opened for one command that then ends."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import click

from broker import settings as broker_settings
from broker.build import build_backend, build_keks
from broker.errors import BrokerError, SettingsError
from broker.store.backend import Backend
from broker.store.seal import KeyEncryptionKey
from broker.store.sealed import SealedStore

R = TypeVar("R")


def with_store(work: Callable[[SealedStore], Awaitable[R]]) -> R:
    """Run ``work`` on the configured store.

    Raises:
        SettingsError: the settings are wrong.
        ClickException: the store or the work failed; one line.
    """

    async def attached(backend: Backend, keks: Sequence[KeyEncryptionKey]) -> R:
        store = SealedStore(backend, keks)
        await store.open()
        try:
            return await work(store)
        finally:
            await store.close()

    return _run(attached)


def with_backend(work: Callable[[Backend, Sequence[KeyEncryptionKey]], Awaitable[R]]) -> R:
    """Run ``work`` on the configured store as it lies there, whole or not, and on the keys that open it.

    Raises:
        SettingsError: the settings are wrong.
        ClickException: the store or the work failed; one line.
    """

    async def connected(backend: Backend, keks: Sequence[KeyEncryptionKey]) -> R:
        try:
            await backend.connect()
            return await work(backend, keks)
        finally:
            await backend.close()

    return _run(connected)


def _run(work: Callable[[Backend, Sequence[KeyEncryptionKey]], Awaitable[R]]) -> R:
    async def run() -> R:
        settings = broker_settings.load()
        logging.disable(logging.CRITICAL)  # the error says it all, once
        return await work(build_backend(settings), build_keks(settings))

    try:
        return asyncio.run(run())
    except SettingsError:
        raise
    except BrokerError as error:
        detail = "" if str(error) == error.public else f" ({error})"
        raise click.ClickException(error.public + detail) from None
