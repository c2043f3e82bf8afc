"""The batcher: each caller gets its own reply, errors stay with whom they belong to."""

import asyncio
from collections.abc import Sequence

import pytest

from broker.errors import StoreUnavailableError
from broker.store.batch import Batcher


async def double(items: Sequence[int], until: float) -> Sequence[int | Exception]:
    await asyncio.sleep(0)
    return [item * 2 for item in items]


async def test_one_turn_is_one_batch() -> None:
    sizes: list[int] = []

    async def run(items: Sequence[int], until: float) -> Sequence[int | Exception]:
        sizes.append(len(items))
        return await double(items, until)

    batcher = Batcher(run, deadline_s=1)

    async def one(item: int) -> int:
        return await batcher.submit(item)

    assert await asyncio.gather(*(one(n) for n in range(300))) == [n * 2 for n in range(300)]
    assert sizes == [256, 44]


async def test_whoever_was_answered_and_asks_again_is_in_the_next_batch() -> None:
    """Else those who came while a batch ran and those whom it answered would take turns for ever."""
    batches: list[list[int]] = []
    began, go_on = asyncio.Event(), asyncio.Event()

    async def run(items: Sequence[int], until: float) -> Sequence[int | Exception]:
        batches.append(sorted(items))
        began.set()
        await go_on.wait()
        return list(items)

    batcher = Batcher(run, deadline_s=5)

    async def twice(item: int) -> None:
        await batcher.submit(item)
        await batcher.submit(item + 10)

    early = [asyncio.create_task(twice(item)) for item in (1, 2)]
    await began.wait()
    late = asyncio.create_task(twice(3))
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(*early, late)
    assert batches[:2] == [[1, 2], [3, 11, 12]]


async def test_an_error_among_the_replies_is_its_callers_own() -> None:
    async def run(items: Sequence[int], until: float) -> Sequence[int | Exception]:
        return [ValueError(str(item)) if item % 2 else item for item in items]

    batcher = Batcher(run, deadline_s=1)
    found = await asyncio.gather(*(batcher.submit(n) for n in range(4)), return_exceptions=True)
    assert [str(one) for one in found] == ["0", "1", "2", "3"]
    assert [type(one) for one in found] == [int, ValueError, int, ValueError]


async def test_a_batch_that_fails_fails_nobody_after_it() -> None:
    fail = True

    async def run(items: Sequence[int], until: float) -> Sequence[int | Exception]:
        if fail:
            raise StoreUnavailableError("gone")
        return await double(items, until)

    batcher = Batcher(run, deadline_s=1)
    found = await asyncio.gather(*(batcher.submit(n) for n in range(3)), return_exceptions=True)
    assert all(isinstance(one, StoreUnavailableError) for one in found)
    assert len({id(one) for one in found}) == 3
    fail = False
    assert await batcher.submit(4) == 8


async def test_a_batch_that_hangs_is_given_up_and_the_next_works() -> None:
    hang = asyncio.Event()
    cancelled = 0

    async def run(items: Sequence[int], until: float) -> Sequence[int | Exception]:
        nonlocal cancelled
        if not hang.is_set():
            hang.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled += 1
                raise
        return await double(items, until)

    batcher = Batcher(run, deadline_s=0.1)
    first = asyncio.ensure_future(batcher.submit(1))
    await hang.wait()
    await asyncio.sleep(0.05)
    second = asyncio.ensure_future(batcher.submit(2))
    with pytest.raises(StoreUnavailableError):
        await first
    assert await second == 4
    assert cancelled == 1


async def test_who_is_cancelled_disturbs_nobody() -> None:
    batcher = Batcher(double, deadline_s=1)
    futures = [asyncio.ensure_future(batcher.submit(n)) for n in range(10)]
    for future in futures[::2]:
        future.cancel()
    found = await asyncio.gather(*futures, return_exceptions=True)
    assert [one for one in found if not isinstance(one, BaseException)] == [2, 6, 10, 14, 18]


async def test_too_many_are_refused() -> None:
    batcher = Batcher(double, deadline_s=1, max_waiting=5)
    waiting = [batcher.submit(n) for n in range(5)]
    with pytest.raises(StoreUnavailableError):
        batcher.submit(6)
    assert await asyncio.gather(*waiting) == [0, 2, 4, 6, 8]


async def test_close_tells_everyone() -> None:
    async def run(items: Sequence[int], until: float) -> Sequence[int | Exception]:
        await asyncio.sleep(60)
        return items

    batcher = Batcher(run, deadline_s=60)
    waiting = [asyncio.ensure_future(batcher.submit(n)) for n in range(3)]
    await asyncio.sleep(0.01)
    waiting.append(asyncio.ensure_future(batcher.submit(9)))
    await batcher.close()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(one, StoreUnavailableError) for one in found)
