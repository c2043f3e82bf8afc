"""Keys that nobody has: bounded by address, and no good key is shut out for them."""

import asyncio

import pytest

from broker.access import limits
from broker.access.keys import PresentedKey, generate
from broker.access.limits import FREE_FAILURES, ROOM, Strangers
from broker.errors import RateLimitedError

HERE = "192.0.2.7"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LOOK_EVERY_S", 0.05)


def key() -> PresentedKey:
    return generate()[1]


def keys(count: int) -> list[PresentedKey]:
    return [PresentedKey(f"{number:012}", f"{number:064}") for number in range(count)]


def flooded(address: str | None = HERE) -> Strangers:
    strangers = Strangers()
    for one in keys(FREE_FAILURES + 1):
        strangers.failed(one, address)
    return strangers


async def waits(strangers: Strangers, one: PresentedKey, address: str | None = HERE) -> bool:
    """Return whether a key has to wait at all."""
    task = asyncio.create_task(strangers.wait(one, address))
    await asyncio.sleep(0)
    late = not task.done()
    await task
    return late


async def test_a_few_failures_cost_nothing() -> None:
    strangers = Strangers()
    for one in keys(FREE_FAILURES - 1):
        assert not await waits(strangers, one)
        strangers.failed(one, HERE)


async def test_from_the_thirtieth_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: 1000.0)
    strangers = Strangers()
    for one in keys(FREE_FAILURES - 1):
        strangers.failed(one, HERE)
    await strangers.wait(key(), HERE)
    strangers.failed(key(), HERE)
    task = asyncio.create_task(strangers.wait(key(), HERE))
    await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])


async def test_after_many_the_next_is_looked_up_a_moment_later() -> None:
    strangers = flooded()
    assert await waits(strangers, key())


async def test_a_key_that_was_good_never_waits() -> None:
    strangers = flooded()
    good = key()
    assert await waits(strangers, good)
    strangers.succeeded(good)
    assert not await waits(strangers, good)
    strangers.failed(good, HERE)  # it has ended
    assert await waits(strangers, good)


async def test_knowing_the_id_of_a_good_key_is_not_enough() -> None:
    strangers = flooded()
    good = key()
    strangers.succeeded(good)
    assert await waits(strangers, PresentedKey(good.id, "0" * 64))


@pytest.mark.parametrize(
    ("flooding", "other", "same"),
    [
        ("192.0.2.7", "192.0.2.8", False),
        ("192.0.2.7", "::ffff:192.0.2.7", True),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:0:8000::1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        (None, "192.0.2.7", False),
        (None, None, True),
    ],
)
async def test_what_counts_as_one_address(flooding: str | None, other: str | None, same: bool) -> None:
    assert await waits(flooded(flooding), key(), other) is same


async def test_those_who_wait_are_let_in_together() -> None:
    strangers = flooded()
    order: list[str] = []

    async def one(number: int) -> None:
        await strangers.wait(key(), HERE)
        order.append(f"in {number}")

    tasks = [asyncio.create_task(one(number)) for number in range(50)]
    await asyncio.sleep(0)
    assert not order
    await tasks[0]
    assert len(order) == 50, "one turn of the loop, and so one batch of the store's"
    await asyncio.gather(*tasks)


async def test_more_than_there_is_room_for_are_told_to_try_again() -> None:
    """Chance picks: whoever comes first, or last, has no better one."""
    strangers = flooded()
    crowd = 2 * ROOM
    found = await asyncio.gather(*(strangers.wait(one, HERE) for one in keys(crowd)), return_exceptions=True)
    let_in = [number for number, each in enumerate(found) if each is None]
    assert len(let_in) == ROOM
    refused = [each for each in found if each is not None]
    assert {type(each) for each in refused} == {RateLimitedError}
    early = sum(number < ROOM for number in let_in)
    assert 0.35 * ROOM < early < 0.65 * ROOM  # seven standard deviations
    assert await waits(strangers, key()), "the next ones find room again"


async def test_one_place_is_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ROOM", 1)
    strangers = flooded()
    found = await asyncio.gather(*(strangers.wait(one, HERE) for one in keys(300)), return_exceptions=True)
    assert [each for each in found if not isinstance(each, RateLimitedError)] == [None]


async def test_who_leaves_disturbs_nobody() -> None:
    strangers = flooded()
    tasks = [asyncio.create_task(strangers.wait(one, HERE)) for one in keys(ROOM + 50)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(each) for each in found} <= {type(None), asyncio.CancelledError, RateLimitedError}
    assert not await waits(Strangers(), key())


async def test_failures_are_forgiven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FORGIVEN_EACH_S", 0.02)
    strangers = flooded()
    await asyncio.sleep(0.1)
    assert not await waits(strangers, key())


async def test_one_line_tells_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LINE_EVERY_S", 0.1)
    strangers = Strangers()
    told = []
    for one in keys(200):
        strangers.failed(one, HERE)
        told.append(strangers.lines(HERE))
    assert told[: FREE_FAILURES - 1] == [1] * (FREE_FAILURES - 1)
    assert sum(told) < 200
    assert told.count(0) > 100
    await asyncio.sleep(0.15)
    strangers.failed(key(), HERE)
    last = strangers.lines(HERE)
    assert last > 1
    assert sum(told) + last == 201, "none is left out, none told twice"


async def test_lines_are_folded_from_the_thirtieth_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: 1000.0)
    strangers = Strangers()
    told = []
    for one in keys(FREE_FAILURES + 5):
        strangers.failed(one, HERE)
        told.append(strangers.lines(HERE))
    assert told == [1] * FREE_FAILURES + [0] * 5


async def test_a_flood_that_ends_is_forgiven_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it was: what is forgiven each two seconds is the last one."""
    now = 1000.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    strangers = Strangers()
    for one in keys(500):
        strangers.failed(one, HERE)
    now += 2.5
    await strangers.wait(key(), HERE)


async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_REMEMBERED", 100)
    strangers = Strangers()
    for number in range(1000):
        strangers.failed(key(), f"2001:db8:0:{number:x}::1")
        strangers.succeeded(key())
    assert len(strangers._sources) == 100
    assert len(strangers._proven) == 100


async def test_the_oldest_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_REMEMBERED", 2)
    strangers = Strangers()
    a, b, c = "192.0.2.1", "192.0.2.2", "192.0.2.3"
    for address in (a, b, a, c):
        for one in keys(FREE_FAILURES + 1):
            strangers.failed(one, address)
    assert [await waits(strangers, key(), address) for address in (a, b, c)] == [True, False, True]
    good = [key() for _ in range(3)]
    for one in good:
        strangers.succeeded(one)
    assert [await waits(strangers, one, c) for one in good] == [True, False, False]
