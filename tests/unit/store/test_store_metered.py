"""The metered backend: each step told once, answers and errors unchanged."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, cast

import pytest

from broker.errors import InvalidRequestError, StoreUnavailableError
from broker.store.backend import Backend, Want
from broker.store.batch import Batcher
from broker.store.metered import metered


class Fake:
    place = "here"

    def __init__(self) -> None:
        self.reads: Batcher[Want, Want] = Batcher(self._batch, deadline_s=1)

    async def _batch(self, wants: Sequence[Want], until: float) -> Sequence[Want]:
        del until
        if Want() in wants:
            raise StoreUnavailableError
        return wants

    def read(self, want: Want) -> Awaitable[Want]:
        return self.reads.submit(want)

    async def load(self) -> None:
        raise StoreUnavailableError

    async def sweep(self) -> None:
        raise ZeroDivisionError

    async def list_keys(self, *, cursor: str | None, limit: int) -> None:
        raise InvalidRequestError(public=f"{cursor} {limit}")

    async def close(self) -> None:
        await asyncio.sleep(60)


async def test_steps_are_told_and_otherwise_as_they_were() -> None:
    told: list[tuple[str, str | None]] = []

    def tell(step: str, seconds: float, trouble: str | None) -> None:
        assert 0 <= seconds < 60
        told.append((step, trouble))

    backend = metered(cast("Backend", Fake()), tell)
    want = Want(keys=("a",))
    assert await backend.read(want) is want
    assert await asyncio.gather(backend.read(want), backend.read(want)) == [want, want]
    with pytest.raises(StoreUnavailableError):
        await backend.read(Want())
    with pytest.raises(StoreUnavailableError):
        await backend.load()
    with pytest.raises(ZeroDivisionError):
        await backend.sweep()
    with pytest.raises(InvalidRequestError):
        await backend.list_keys(cursor="x", limit=1)
    leaving = asyncio.create_task(cast("Any", backend).close())
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert told == [
        ("read", None),
        ("read", None),  # both of one batch
        ("read", "unavailable"),
        ("load", "unavailable"),
        ("sweep", "unexpected"),
    ]
    assert cast("Any", backend).place == "here"
