"""Ends waits that take too long, with one timer for all of them; no I/O."""

import asyncio
from collections.abc import Awaitable
from typing import Final, TypeVar

LOOK_S: Final = 1.0
"""A wait may last so much longer than it should."""

Waited = TypeVar("Waited")


class _Wait:
    __slots__ = ("ended", "task", "until")

    def __init__(self, task: asyncio.Task[object], until: float) -> None:
        self.task = task
        self.until = until
        self.ended = False


class Patience:
    """As ``asyncio.timeout``, for waits that are many and nearly always short.

    A timer that is set and cancelled for each request costs more than parsing the request does; here one
    looks each second, while somebody waits, who has waited too long.
    """

    def __init__(self) -> None:
        self._waits: dict[_Wait, None] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    async def wait(self, awaitable: Awaitable[Waited], seconds: float) -> Waited:
        """Return what ``awaitable`` does.

        Raises:
            TimeoutError: it took longer than ``seconds`` (and up to ``LOOK_S``); it was cancelled.
        """
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("only a task can wait")
        loop = task.get_loop()
        wait = _Wait(task, loop.time() + seconds)
        before = task.cancelling()
        if self._loop is not loop:
            self._loop = loop
            loop.call_later(LOOK_S, self._look, loop)
        self._waits[wait] = None
        try:
            return await awaitable
        except asyncio.CancelledError:
            # Who else cancels the task meanwhile is to be heard.
            if wait.ended and task.uncancel() <= before:
                raise TimeoutError from None
            raise
        finally:
            del self._waits[wait]

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for wait in self._waits:
            if wait.until <= now and not wait.ended:
                wait.ended = True
                wait.task.cancel()
        if self._waits:
            loop.call_later(LOOK_S, self._look, loop)
        elif self._loop is loop:
            self._loop = None
