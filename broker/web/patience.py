"""Ends waits that take too long, with one timer for all of them; no I/O."""

import asyncio
from types import TracebackType
from typing import Final

LOOK_S: Final = 1.0
"""A wait may last so much longer than it should."""


class Patience:
    """As ``asyncio.timeout``, for waits that are many and nearly always short.

    A timer that is set and cancelled for each request costs more than parsing the request does; here one
    looks each second, while somebody waits, who has waited too long.
    """

    def __init__(self) -> None:
        self._waits: dict[_Wait, None] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def at_most(self, seconds: float) -> "_Wait":
        """Return what bounds the waits in a ``with`` block.

        Raises:
            TimeoutError: (from the block) they took longer than ``seconds``, and up to ``LOOK_S``.
        """
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("only a task can wait")
        loop = task.get_loop()
        if self._loop is not loop:
            self._loop = loop
            loop.call_later(LOOK_S, self._look, loop)
        return _Wait(self._waits, task, loop.time() + seconds)

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


class _Wait:
    __slots__ = ("_before", "_waits", "ended", "task", "until")

    def __init__(self, waits: "dict[_Wait, None]", task: asyncio.Task[object], until: float) -> None:
        self._waits = waits
        self._before = task.cancelling()
        self.task = task
        self.until = until
        self.ended = False

    def __enter__(self) -> None:
        self._waits[self] = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._waits[self]
        # Who else cancels the task meanwhile is to be heard.
        if self.ended and kind is asyncio.CancelledError and self.task.uncancel() <= self._before:
            raise TimeoutError from None
