"""Fair turns: bounds concurrent calls to GitHub and those that wait, in all and per owner; no I/O."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from broker.errors import GitHubTimeoutError

WAITING_PER_OWNER: Final = 512
WAITING: Final = 2048
WITHIN_S: Final = 20.0
"""Whoever has no turn by then leaves the queue: nobody waits for that call any more."""


class Turns:
    """Hands out turns round robin between owners, so that one owner's flood delays only itself.

    Args:
        total: most turns at once.
        per_owner: most turns of one owner at once (GitHub's secondary limit counts per installation).
        within_s: how long a turn is waited for.
        waiting: most that wait.
        waiting_per_owner: most that wait for a turn of one owner.
    """

    def __init__(
        self,
        *,
        total: int,
        per_owner: int,
        within_s: float = WITHIN_S,
        waiting: int = WAITING,
        waiting_per_owner: int = WAITING_PER_OWNER,
    ) -> None:
        self._total = total
        self._per_owner = per_owner
        self._within_s = within_s
        self._most_waiting = waiting
        self._most_waiting_per_owner = waiting_per_owner
        self._running: dict[str, int] = {}
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def turn(self, owner: str) -> AsyncIterator[None]:
        """Wait for a turn of ``owner`` and hold it.

        Raises:
            GitHubTimeoutError: none came in time, or too many wait already.
        """
        await self._take(owner)
        try:
            yield
        finally:
            self._give_back(owner)

    def _free(self, owner: str) -> bool:
        return sum(self._running.values()) < self._total and self._running.get(owner, 0) < self._per_owner

    async def _take(self, owner: str) -> None:
        if self._free(owner) and owner not in self._waiting:
            self._running[owner] = self._running.get(owner, 0) + 1
            return
        queue = self._waiting.get(owner, deque())
        full = len(queue) >= self._most_waiting_per_owner
        if full or sum(len(each) for each in self._waiting.values()) >= self._most_waiting:
            raise _no_turn("too many calls to GitHub wait for a turn")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, queue).append(future)
        try:
            async with asyncio.timeout(self._within_s):
                await self._wait(owner, future)
        except TimeoutError:
            raise _no_turn(f"no turn to call GitHub within {self._within_s:g} s") from None

    async def _wait(self, owner: str, future: asyncio.Future[None]) -> None:
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self._give_back(owner)  # the turn came in the moment of the cancellation
            else:
                self._forget(owner, future)
            raise

    def _forget(self, owner: str, future: asyncio.Future[None]) -> None:
        queue = self._waiting.get(owner)
        if queue is not None and future in queue:
            queue.remove(future)
            if not queue:
                del self._waiting[owner]

    def _give_back(self, owner: str) -> None:
        left = self._running[owner] - 1
        if left:
            self._running[owner] = left
        else:
            del self._running[owner]
        self._wake()

    def _wake(self) -> None:
        for owner in list(self._waiting):
            queue = self._waiting[owner]
            while queue and queue[0].cancelled():
                queue.popleft()  # its owner has not noticed yet; it must not swallow the turn
            if queue and self._free(owner):
                self._waiting.move_to_end(owner)
                self._running[owner] = self._running.get(owner, 0) + 1
                queue.popleft().set_result(None)
            if not queue:
                del self._waiting[owner]
            if sum(self._running.values()) >= self._total:
                return


def _no_turn(detail: str) -> GitHubTimeoutError:
    return GitHubTimeoutError(
        detail, public="Too many calls to GitHub wait for their turn. Try again later.", retry_after_s=5.0
    )
