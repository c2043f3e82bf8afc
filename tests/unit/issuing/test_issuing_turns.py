"""Fair turns: never above the bounds, never stuck, no owner starves another."""

import asyncio
import random

import pytest

from broker.errors import GitHubTimeoutError
from broker.issuing.turns import Turns


class Watched:
    def __init__(self, *, total: int, per_owner: int) -> None:
        self.turns = Turns(total=total, per_owner=per_owner)
        self.running: dict[str, int] = {}
        self.most = 0
        self.most_of_one = 0
        self.order: list[str] = []

    async def work(self, owner: str, seconds: float = 0.0) -> None:
        async with self.turns.turn(owner):
            self.order.append(owner)
            self.running[owner] = self.running.get(owner, 0) + 1
            self.most = max(self.most, sum(self.running.values()))
            self.most_of_one = max(self.most_of_one, *self.running.values())
            try:
                await asyncio.sleep(seconds)
            finally:
                self.running[owner] -= 1


async def test_bounds_hold() -> None:
    watched = Watched(total=5, per_owner=2)
    await asyncio.gather(*(watched.work(f"o{number % 4}", 0.001) for number in range(100)))
    assert (watched.most, watched.most_of_one) == (5, 2)


async def test_a_flood_of_one_owner_delays_only_itself() -> None:
    watched = Watched(total=2, per_owner=2)
    flood = [asyncio.create_task(watched.work("flood", 0.001)) for _ in range(50)]
    await asyncio.sleep(0)
    await watched.work("small")
    assert watched.order.index("small") <= 4
    await asyncio.gather(*flood)


async def test_a_cancelled_waiter_does_not_swallow_a_turn() -> None:
    """Cancelled in the very loop turn in which the turn becomes free."""
    turns = Turns(total=1, per_owner=1)
    free = asyncio.Event()

    async def hold() -> None:
        async with turns.turn("a"):
            await free.wait()

    async def one() -> None:
        async with turns.turn("a"):
            pass

    holder = asyncio.create_task(hold())
    await asyncio.sleep(0)
    first, second = asyncio.create_task(one()), asyncio.create_task(one())
    await asyncio.sleep(0)
    free.set()  # the holder's step is next in line …
    first.cancel()  # … and runs before the waiter hears of this
    async with asyncio.timeout(1):
        await asyncio.gather(holder, second)
        await one()
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_nothing_is_lost_under_random_cancellation() -> None:
    seeded = random.Random(7)
    watched = Watched(total=3, per_owner=2)
    for _ in range(60):
        tasks = [
            asyncio.create_task(watched.work(seeded.choice("abc"), seeded.random() / 500)) for _ in range(12)
        ]
        for _ in range(seeded.randrange(4)):
            await asyncio.sleep(0)
        for task in seeded.sample(tasks, 6):
            task.cancel()
            if seeded.random() < 0.5:
                await asyncio.sleep(0)
        async with asyncio.timeout(2):
            await asyncio.gather(*tasks, return_exceptions=True)
        assert watched.turns._running == {}
        assert not watched.turns._waiting
    assert watched.most <= 3
    assert watched.most_of_one <= 2


async def test_a_queue_is_bounded_for_each_owner_and_in_all() -> None:
    turns = Turns(total=1, per_owner=1, waiting=5, waiting_per_owner=3)
    free = asyncio.Event()

    async def work(owner: str) -> None:
        async with turns.turn(owner):
            await free.wait()

    async def full(owner: str) -> bool:
        task = asyncio.create_task(work(owner))
        tasks.append(task)
        await asyncio.sleep(0)
        return task.done() and isinstance(task.exception(), GitHubTimeoutError)

    tasks: list[asyncio.Task[None]] = []
    assert [await full("flood") for _ in range(6)] == [False] * 4 + [True] * 2
    assert [await full(owner) for owner in ("b", "c", "d")] == [False, False, True]
    free.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(each is None for each in found) == 6
    refused = next(each for each in found if isinstance(each, GitHubTimeoutError))
    assert refused.retry_after_s
    assert turns._running == {}
    assert not turns._waiting


async def test_whoever_waits_too_long_leaves() -> None:
    turns = Turns(total=1, per_owner=1, within_s=0.05)
    free = asyncio.Event()
    order: list[str] = []

    async def work(name: str) -> None:
        async with turns.turn("a"):
            order.append(name)
            await free.wait()

    holder = asyncio.create_task(work("first"))
    await asyncio.sleep(0)
    with pytest.raises(GitHubTimeoutError):
        await work("late")
    assert not turns._waiting
    next_one = asyncio.create_task(work("next"))
    free.set()
    await asyncio.gather(holder, next_one)
    assert order == ["first", "next"], "the turn of the one who left went to the next"
    assert turns._running == {}
