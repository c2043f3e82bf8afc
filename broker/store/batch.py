"""Merges what many tasks want of one connection into one conversation at a time; no I/O itself."""

import asyncio
import copy
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import Final, Generic, TypeVar

from broker.errors import StoreError, StoreUnavailableError

MAX_BATCH: Final = 256
MAX_WAITING: Final = 10_000
_TURNS: Final = 3
"""Between two batches: who was answered goes on, the next requests are read, and ask: one batch for many."""

Item = TypeVar("Item")
Reply = TypeVar("Reply")


class Batcher(Generic[Item, Reply]):
    """Hands items to ``run`` in batches: all of one loop turn, and all that came while a batch ran.

    A batch runs in a task of its own, so a caller who is cancelled stops waiting and disturbs nobody.

    Args:
        run: gets the items and the loop time at which it is cancelled; returns one reply for each
            item, in order. An exception among the replies goes to its own caller; one that is raised,
            to the whole batch. On ``CancelledError`` it must leave nothing behind that still owes replies.
        deadline_s: how long the oldest item of a batch may have waited when its batch is given up.
        max_batch: most items of one batch.
        max_waiting: with so many items queued, further ones are refused.

    Attributes:
        told: called after each batch with its seconds, and with what kept its answer away.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item], float], Awaitable[Sequence[Reply | Exception]]],
        *,
        deadline_s: float,
        max_batch: int = MAX_BATCH,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._run = run
        self._deadline_s = deadline_s
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self.told: Callable[[float, BaseException | None], None] = _to_nobody
        self._waiting: deque[tuple[Item, asyncio.Future[Reply], float]] = deque()
        self._task: asyncio.Task[None] | None = None

    def submit(self, item: Item) -> Awaitable[Reply]:
        """Queue an item; await what is returned, at once.

        Raises:
            StoreUnavailableError: too many wait already, or (awaited) no answer within the deadline.
        """
        if len(self._waiting) >= self._max_waiting:
            error = StoreUnavailableError("too many calls wait for the store")
            self.told(0.0, error)
            raise error
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply] = loop.create_future()
        self._waiting.append((item, future, loop.time() + self._deadline_s))
        if self._task is None:
            # The task's first step comes after everything that is ready now: that is the loop turn.
            self._task = loop.create_task(self._drain())
        return future

    async def close(self) -> None:
        """Cancel what runs; whoever waits gets ``StoreUnavailableError``."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        while self._waiting:
            _fail([self._waiting.popleft()[1]], StoreUnavailableError("the store is closed"))

    async def _drain(self) -> None:
        try:
            while self._waiting:
                await self._batch()
                for _ in range(_TURNS):
                    await asyncio.sleep(0)
        finally:
            if self._task is asyncio.current_task():
                self._task = None

    async def _batch(self) -> None:
        items, futures, until = self._next()
        if not items:
            return
        began = perf_counter()
        trouble: BaseException | None = None
        try:
            async with asyncio.timeout_at(until):
                replies = await self._run(items, until)
        except TimeoutError:
            trouble = StoreUnavailableError(f"no answer from the store in {self._deadline_s:g} s")
            _fail(futures, trouble)
        except asyncio.CancelledError as error:
            trouble = error
            _fail(futures, StoreUnavailableError("the store is closed"))
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to those who wait for it
            trouble = error
            _fail(futures, error)
        else:
            for future, reply in zip(futures, replies, strict=True):
                if isinstance(reply, Exception):
                    _fail([future], reply)
                elif not future.done():
                    future.set_result(reply)
        finally:
            self.told(perf_counter() - began, trouble)

    def _next(self) -> tuple[list[Item], list[asyncio.Future[Reply]], float]:
        """Take the next batch; who does not wait any more is left out."""
        items: list[Item] = []
        futures: list[asyncio.Future[Reply]] = []
        until = 0.0
        while self._waiting and len(items) < self._max_batch:
            item, future, item_until = self._waiting.popleft()
            if not future.done():
                until = until or item_until
                items.append(item)
                futures.append(future)
        return items, futures, until


def _to_nobody(seconds: float, trouble: BaseException | None) -> None:
    del seconds, trouble


def _fail(futures: Sequence[asyncio.Future[Reply]], error: Exception) -> None:
    """Give each waiter an error of its own: a shared one would grow a traceback with each of them."""
    for future in futures:
        if not future.done():
            future.set_exception(copy.copy(error) if isinstance(error, StoreError) else error)
