"""Per-key rate limits: taken from the store in chunks, so that few requests write."""

import asyncio
import weakref
from collections import OrderedDict
from typing import Final

from broker.errors import RateLimitedError
from broker.model import ApiKeyRecord
from broker.ports import Store

_REMEMBERED: Final = 20_000
_NONE_LEFT: Final = -1
"""The store gave nothing: nobody asks it again in this minute. 0: this chunk is used up, ask for another."""


class RateLimiter:
    """Holds each key to its ``rate_limit_per_minute``, across all replicas.

    A process takes chunks of ``max(1, limit // 20)`` from the minute's counter: never above the limit,
    at most 5 % early per further process, at most 20 writes a minute for limits of 40 and more.

    Args:
        store: keeps the counters.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def take(self, caller: ApiKeyRecord) -> None:
        """Count one request of ``caller``.

        Raises:
            RateLimitedError: the limit of this minute is used up.
        """
        limit = caller.rate_limit_per_minute
        if limit is None:
            return
        async with self._locks.setdefault(caller.id, asyncio.Lock()):
            await self._take(caller.id, limit)

    async def _take(self, key_id: str, limit: int) -> None:
        now = asyncio.get_running_loop().time()
        left, ends_at = self._held.get(key_id, (0, 0.0))
        if ends_at <= now or not left:
            granted, seconds = await self._store.take(key_id, chunk=max(1, limit // 20), limit=limit)
            left, ends_at = granted or _NONE_LEFT, now + seconds
        self._held[key_id] = (left if left == _NONE_LEFT else left - 1, ends_at)
        self._held.move_to_end(key_id)
        if len(self._held) > _REMEMBERED:
            self._held.popitem(last=False)
        if left == _NONE_LEFT:
            raise _used_up(ends_at - now)


def _used_up(seconds: float) -> RateLimitedError:
    return RateLimitedError(
        "the key's own limit", public="This key's limit for this minute is used up.", retry_after_s=seconds
    )
