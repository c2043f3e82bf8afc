"""One timer for many short waits: who waits too long is told, and nobody else."""

import asyncio
from collections.abc import Awaitable

import pytest

from broker.web import patience
from broker.web.patience import Patience


async def within(waits: Patience, awaitable: Awaitable[str | bool | None], seconds: float) -> object:
    with waits.at_most(seconds):
        return await awaitable


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "LOOK_S", 0.02)


async def test_what_comes_in_time_is_returned() -> None:
    assert await within(Patience(), asyncio.sleep(0, "body"), 10) == "body"


async def test_what_takes_too_long_ends_and_others_do_not() -> None:
    waits = Patience()
    other = asyncio.create_task(within(waits, asyncio.sleep(0.3, "late"), 60))
    for _ in range(2):  # the second time the timer has to be there again, or still
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(within(waits, asyncio.Event().wait(), 0.01), 10)
    assert await other == "late"


async def test_it_works_again_after_a_pause() -> None:
    waits = Patience()
    await within(waits, asyncio.sleep(0), 10)
    await asyncio.sleep(0.1)
    assert waits._loop is None, "a timer wakes the process although nobody waits"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(within(waits, asyncio.Event().wait(), 0.01), 10)


async def test_a_task_that_is_cancelled_by_others_is_cancelled() -> None:
    task = asyncio.create_task(within(Patience(), asyncio.Event().wait(), 60))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=10)
    assert task.cancelled()


async def test_the_task_goes_on_after_its_wait_has_ended() -> None:
    waits = Patience()
    with pytest.raises(TimeoutError):
        await within(waits, asyncio.Event().wait(), 0.01)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)
