"""Looks at the parts now and then and tells the metrics; asks the store for numbers, rarely."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final, Protocol

from broker.errors import StoreError
from broker.ports import Clock, Counts, Store, StoreHealth

_log = logging.getLogger(__name__)

LOOK_S: Final = 1.0
COUNT_S: Final = 15.0
KEYS_S: Final = 300.0
IN_USE_S: Final = 7 * 86400.0
"""A key that was not used for so long is nobody's trouble when it expires."""

_PAGE: Final = 200


class Gauges(Protocol):
    """Where the numbers go."""

    def see(self, *, health: StoreHealth, waiters: int, skew_s: float | None, now: float) -> None:
        """Take what this process knows without asking anybody."""
        ...

    def see_counts(self, counts: Counts) -> None:
        """Take how much the store holds."""
        ...

    def see_keys(self, *, active: int, next_expiry: float | None) -> None:
        """Take how many keys there are, and when the next one in use expires."""
        ...


class Watch:
    """The background look.

    Args:
        store: its health, and its numbers.
        gauges: where they go.
        clock: wall time.
        waiters: returns how many callers wait for a mint.
        skew_s: returns GitHub's clock minus the local one, in seconds, once it is known.
    """

    def __init__(
        self,
        store: Store,
        gauges: Gauges,
        clock: Clock,
        *,
        waiters: Callable[[], int],
        skew_s: Callable[[], float | None],
    ) -> None:
        self._store = store
        self._gauges = gauges
        self._clock = clock
        self._waiters = waiters
        self._skew_s = skew_s

    async def run(self) -> None:
        """Look until cancelled."""
        now = asyncio.get_running_loop().time
        counted_at = keys_at = float("-inf")
        while True:
            self.look()
            with contextlib.suppress(StoreError):  # its state has been told
                if now() - counted_at >= COUNT_S:
                    self._gauges.see_counts(await self._store.counts())
                    counted_at = now()
                if now() - keys_at >= KEYS_S:
                    await self.look_at_keys()
                    keys_at = now()
            await asyncio.sleep(LOOK_S)

    def look(self) -> None:
        """Tell what is known without asking."""
        self._gauges.see(
            health=self._store.health,
            waiters=self._waiters(),
            skew_s=self._skew_s(),
            now=self._clock.now(),
        )

    async def look_at_keys(self) -> None:
        """Read all keys, page by page, and tell when the next one in use expires.

        Raises:
            StoreError: the store does not answer.
        """
        active, next_expiry, cursor = 0, float("inf"), None
        while True:
            page = await self._store.list_keys(cursor=cursor, limit=_PAGE)
            now = self._store.now()
            for entry in page.items:
                ends = float("inf") if entry.record.expires_at is None else entry.record.expires_at
                if entry.record.revoked_at is not None or ends <= now:
                    continue
                active += 1
                if entry.last_used_at is not None and now - entry.last_used_at < IN_USE_S:
                    next_expiry = min(next_expiry, ends)
            cursor = page.next_cursor
            if cursor is None:
                break
        self._gauges.see_keys(active=active, next_expiry=None if next_expiry == float("inf") else next_expiry)
