"""Limits: of each key, taken from the store in chunks; of strangers, kept by address in this process."""

import asyncio
import ipaddress
import random
import weakref
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from broker.access.keys import PresentedKey
from broker.errors import RateLimitedError
from broker.model import ApiKeyRecord
from broker.ports import Store

FREE_FAILURES: Final = 30
"""So many failed authentications of one address cost nothing but their look-up."""

FORGIVEN_EACH_S: Final = 2.0
"""One failure is forgotten each so many seconds."""

LOOK_EVERY_S: Final = 0.25
ROOM: Final = 256
"""Keys in one common look-up: what the store reads in one batch."""

LINE_EVERY_S: Final = 10.0
_IPV6_PREFIX: Final = 64
"""Whoever has one IPv6 address has its whole /64."""

_REMEMBERED: Final = 20_000
_NONE_LEFT: Final = -1
"""The store gave nothing: nobody asks it again in this minute. 0: this chunk is used up, ask for another."""

_RANDOM: Final = random.SystemRandom()


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


@dataclass(slots=True)
class _Source:
    """An address with failures.

    Attributes:
        failures: what is not forgiven yet, as of ``at`` (loop time).
        room: who waits for the next common look-up.
        came: how many wanted in since the last one.
        folded: failures that no line of the log has told.
        told_at: loop time of the last line.
    """

    at: float
    failures: float = 0.0
    room: list[asyncio.Future[bool]] = field(default_factory=list)
    came: int = 0
    folded: int = 0
    told_at: float = 0.0


class Strangers:
    """Bounds what keys that nobody has may cost, by the address that they come from.

    Only failed authentications count. From the 30th on (one is forgiven each 2 s), keys of that address
    which have never been good in this process wait up to a quarter of a second and are looked up together,
    at most 256 at a time: one batched read. Should more come, chance picks them, and the others are told
    to try again. So a flood costs the store four reads a second, and a good key behind the same address
    (NAT, a proxy) is never locked out: once seen it never waits, before that it is a moment late.

    All of it is in this process's memory, and bounded: 20,000 addresses, 20,000 good keys' digests.
    """

    def __init__(self) -> None:
        self._sources: OrderedDict[str, _Source] = OrderedDict()
        self._proven: OrderedDict[str, None] = OrderedDict()

    @property
    def known(self) -> bool:
        """Whether any address has failed lately; if not, nobody has to wait."""
        return bool(self._sources)

    async def wait(self, presented: PresentedKey, address: str | None) -> None:
        """Return when the store may be asked about a key; at once, unless its address is flooding.

        Raises:
            RateLimitedError: too many of that address wait already.
        """
        if presented.sha256 in self._proven:
            return
        source = self._sources.get(_network(address))
        if source is None or self._unforgiven(source) < FREE_FAILURES:
            return
        loop = asyncio.get_running_loop()
        place: asyncio.Future[bool] = loop.create_future()
        source.came += 1
        if len(source.room) < ROOM:
            source.room.append(place)
            if len(source.room) == 1:
                loop.call_later(LOOK_EVERY_S, _admit, source)
        else:
            # Each that comes between two look-ups has the same chance, whenever it comes.
            chosen = _RANDOM.randrange(source.came)
            if chosen >= ROOM:
                raise _crowded()
            lost, source.room[chosen] = source.room[chosen], place
            if not lost.done():
                lost.set_result(False)
        if not await place:
            raise _crowded()

    def succeeded(self, presented: PresentedKey) -> None:
        """Remember that a key was good."""
        if presented.sha256 not in self._proven:
            self._proven[presented.sha256] = None
            if len(self._proven) > _REMEMBERED:
                self._proven.popitem(last=False)

    def failed(self, presented: PresentedKey, address: str | None) -> None:
        """Count a key that is unknown, wrong or has ended."""
        self._proven.pop(presented.sha256, None)
        name = _network(address)
        source = self._sources.setdefault(name, _Source(asyncio.get_running_loop().time()))
        self._sources.move_to_end(name)
        if len(self._sources) > _REMEMBERED:
            self._sources.popitem(last=False)
        source.failures = min(self._unforgiven(source) + 1, FREE_FAILURES + 1)

    def lines(self, address: str | None) -> int:
        """Return how many failures one line of the log is to tell now; 0: no line, a later one counts it."""
        source = self._sources.get(_network(address))
        if source is None or self._unforgiven(source) < FREE_FAILURES:
            return 1
        now = asyncio.get_running_loop().time()
        source.folded += 1
        if now - source.told_at < LINE_EVERY_S:
            return 0
        count, source.folded, source.told_at = source.folded, 0, now
        return count

    @staticmethod
    def _unforgiven(source: _Source) -> float:
        now = asyncio.get_running_loop().time()
        source.failures = max(0.0, source.failures - (now - source.at) / FORGIVEN_EACH_S)
        source.at = now
        return source.failures


def _admit(source: _Source) -> None:
    """Let all who wait in; woken in one turn of the loop, they share one batch of the store's."""
    room, source.room, source.came = source.room, [], 0
    for place in room:
        if not place.done():
            place.set_result(True)


def _crowded() -> RateLimitedError:
    return RateLimitedError(
        "too many unknown keys of this address",
        public="Too many unknown keys come from this address. Try again.",
        retry_after_s=1.0,
    )


def _network(address: str | None) -> str:
    """Return what counts as one address: an IPv4 address, or the /64 of an IPv6 one."""
    try:
        ip = ipaddress.ip_address(address or "")
    except ValueError:
        return ""
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(ip), _IPV6_PREFIX), strict=False))
