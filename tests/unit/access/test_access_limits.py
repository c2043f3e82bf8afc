"""Per-key limits: all of the limit is given, and never more, whoever asks."""

import asyncio
from dataclasses import replace

import pytest

from broker.access.limits import RateLimiter
from broker.errors import RateLimitedError
from broker.model import ApiKeyRecord, Role


class Counter:
    """One minute's counter that several processes share."""

    def __init__(self) -> None:
        self.used = 0
        self.calls = 0

    async def take(self, key_id: str, *, chunk: int, limit: int) -> tuple[int, float]:
        self.calls += 1
        await asyncio.sleep(0)
        granted = max(0, min(chunk, limit - self.used))
        self.used += granted
        return granted, 30.0


def caller(limit: int | None) -> ApiKeyRecord:
    return ApiKeyRecord("AAAAAAAAAAAA", "00", "n", Role.CALLER, (), (), 0, "t", rate_limit_per_minute=limit)


async def passes(limiter: RateLimiter, limit: int, tries: int) -> int:
    async def one() -> int:
        try:
            await limiter.take(caller(limit))
        except RateLimitedError as error:
            return 0 if 0 < (error.retry_after_s or 0) <= 60 else 1000
        return 1

    return sum(await asyncio.gather(*(one() for _ in range(tries))))


@pytest.mark.parametrize("limit", [1, 2, 3, 19, 20, 39, 40, 41, 100, 1000])
@pytest.mark.parametrize("at_once", [True, False])
async def test_one_process_gives_the_whole_limit(limit: int, at_once: bool) -> None:
    limiter = RateLimiter(Counter())  # type: ignore[arg-type]
    if at_once:
        assert await passes(limiter, limit, limit + 50) == limit
    else:
        assert sum([await passes(limiter, limit, 1) for _ in range(limit + 5)]) == limit


@pytest.mark.parametrize("limit", [1, 5, 40, 200])
async def test_two_processes_never_give_more_and_lose_a_chunk_at_most(limit: int) -> None:
    counter = Counter()
    one, two = RateLimiter(counter), RateLimiter(counter)  # type: ignore[arg-type]
    given = sum(await asyncio.gather(passes(one, limit, limit), passes(two, limit, limit)))
    assert given <= limit
    assert given >= limit - max(1, limit // 20) + 1 or given == limit


@pytest.mark.parametrize("limit", [1, 5, 39, 40, 200])
async def test_a_process_holds_a_twentieth_at_most(limit: int) -> None:
    """What one process has taken and does not need is all that another one misses."""
    counter = Counter()
    one, two = RateLimiter(counter), RateLimiter(counter)  # type: ignore[arg-type]
    assert await passes(one, limit, 1) == 1
    assert counter.used == max(1, limit // 20)
    assert await passes(two, limit, limit) == limit - max(1, limit // 20)


async def test_the_next_minute_is_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Used up is used up until the minute ends, without asking again, and not a moment longer."""
    now = 1000.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    counter = Counter()
    limiter = RateLimiter(counter)  # type: ignore[arg-type]
    assert await passes(limiter, 2, 3) == 2
    asked = counter.calls
    now += 10
    with pytest.raises(RateLimitedError) as caught:
        await limiter.take(caller(2))
    assert (counter.calls, caught.value.retry_after_s) == (asked, 20.0)
    counter.used = 0
    now += 20
    assert await passes(limiter, 2, 3) == 2


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key that was longest without a request is forgotten: what it had left counts as used."""
    monkeypatch.setattr("broker.access.limits._REMEMBERED", 2)
    counter = Counter()
    limiter = RateLimiter(counter)  # type: ignore[arg-type]
    a, b, c = (replace(caller(1000), id=name * 12) for name in "abc")
    for one in (a, b, a, c):
        await limiter.take(one)
    assert counter.calls == 3
    await limiter.take(a)
    assert counter.calls == 3
    await limiter.take(b)
    assert counter.calls == 4


async def test_few_requests_write() -> None:
    counter = Counter()
    limiter = RateLimiter(counter)  # type: ignore[arg-type]
    await passes(limiter, 400, 500)
    assert counter.calls <= 21


async def test_no_limit_asks_nobody() -> None:
    counter = Counter()
    await RateLimiter(counter).take(caller(None))  # type: ignore[arg-type]
    assert counter.calls == 0
