"""A new data key under running brokers: nothing is lost, nobody waits, and the old key opens nothing."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from admin_stage import AdminStage
from harness import World
from stage import Wrapped, pair, until, verdict

from broker.build import build_backend, build_keks
from broker.errors import ConflictError, StoreUnavailableError
from broker.store.backend import Backend, Place
from broker.store.resealing import Resealed, reseal
from broker.store.seal import wrap_numbers

OK = (200, "ok")


async def on_backend(world: World, work: Callable[[Backend], Any]) -> Any:
    backend = build_backend(world.settings())
    try:
        await backend.connect()
        return await work(backend)
    finally:
        await backend.close()


async def resealed(world: World, *, grace_s: float = 2.5, **instead: Any) -> Resealed:
    async def work(backend: Backend) -> Resealed:
        keks = build_keks(world.settings())
        done: Resealed = await reseal(Wrapped(backend, **instead), keks, grace_s=grace_s)  # type: ignore[arg-type]
        return done

    found: Resealed = await on_backend(world, work)
    return found


async def numbers_in(world: World) -> set[int]:
    """Return the data keys that seal what lies in the store."""

    async def work(backend: Backend) -> set[int]:
        found = set()
        for place in Place:
            async for entries in backend.sealed(place):
                for entry in entries:
                    blob = entry.blob.partition(b"|")[2] if place is Place.HOOKS else entry.blob
                    found.add(int.from_bytes(blob[1:3], "big"))
        return found

    found: set[int] = await on_backend(world, work)
    return found


async def test_brokers_go_on_while_everything_is_sealed_anew(any_world: World) -> None:
    async with pair(any_world, failure_cooldown=1) as (one, two):
        stage = await AdminStage.of(any_world, one)
        keys = [await one.key("acme/*") for _ in range(5)]
        token = await stage.issued(keys[0], "acme/widgets")
        await stage.call("PUT", "/blocks/acme/gadgets", json={"reason": "drill"})
        assert await numbers_in(any_world) == {1}
        old = one.broker.store._sealer
        stopping, seen, made = asyncio.Event(), [], []

        async def load() -> None:
            number = 0
            while not stopping.is_set():
                app = (one, two)[number % 2]
                seen.append(verdict(await app.token(keys[number % 5], "acme/widgets")))
                if number % 20 == 0:
                    made.append((await stage.made("acme/*"))["key"])
                number += 1
                await asyncio.sleep(0.01)

        loading = asyncio.create_task(load())
        await asyncio.sleep(0.2)
        done = await resealed(any_world)
        stopping.set()
        await loading
        assert set(seen) == {OK}
        assert (done.number, done.refused) == (2, 0)
        assert await numbers_in(any_world) == {2}

        async def forgot() -> bool:
            sealers = [app.broker.store._sealer for app in (one, two)]
            return all(sealer and {number for number, _ in sealer._ciphers} == {2} for sealer in sealers)

        await until(forgot)
        assert one.broker.store._sealer is not old
        for app in (one, two):
            for key in (*keys, *made):
                assert verdict(await app.token(key, "acme/widgets")) == OK
        assert await stage.issued(keys[0], "acme/widgets") == token
        assert verdict(await two.token(keys[0], "acme/gadgets")) == (403, "blocked")
        assert (
            await stage.call("POST", "/revocations", json={"all": True, "reason": "x"})
        ).status_code == 200
        assert any_world.github.tokens[token].revoked


async def test_whoever_is_interrupted_begins_where_it_was(any_world: World) -> None:
    async with any_world.inside() as app:
        keys = [await app.key("acme/*") for _ in range(6)]
        assert verdict(await app.token(keys[0], "acme/widgets")) == OK
        for fails_at in (0, 3, 2):
            backend = build_backend(any_world.settings())
            await backend.connect()
            calls = 0

            async def cut(*arguments: Any, at: int = fails_at, inner: Backend = backend) -> bool:
                nonlocal calls
                calls += 1
                if calls > at:
                    raise StoreUnavailableError("cut off")
                return await inner.reseal(*arguments)

            with pytest.raises(StoreUnavailableError, match="cut off"):
                await reseal(Wrapped(backend, reseal=cut), build_keks(any_world.settings()), grace_s=0)  # type: ignore[arg-type]
            await backend.close()
            for key in keys:
                assert verdict(await app.token(key, "acme/widgets")) == OK

        async def no_drop(*_: Any) -> bool:
            raise StoreUnavailableError("cut off")

        with pytest.raises(StoreUnavailableError):
            await resealed(any_world, grace_s=0, drop_wraps=no_drop)
        backend = build_backend(any_world.settings())
        await backend.connect()

        async def no_end(*arguments: Any) -> bool:
            raise StoreUnavailableError("cut off")

        with pytest.raises(StoreUnavailableError):
            await reseal(Wrapped(backend, mend=no_end), build_keks(any_world.settings()), grace_s=0)  # type: ignore[arg-type]
        state = await backend.load()
        assert set(wrap_numbers({**state.fields, **state.key_wraps})) == {2}
        assert (await reseal(backend, build_keks(any_world.settings()), grace_s=0)).number == 2
        assert (await backend.load()).fields["data_keys"] == b"2"
        await backend.close()
        for key in keys:
            assert verdict(await app.token(key, "acme/widgets")) == OK


async def test_two_who_begin_at_once_make_one_data_key(any_world: World) -> None:
    async with any_world.inside() as app:
        key = await app.key("acme/*")
        done = await asyncio.gather(
            *(resealed(any_world, grace_s=0) for _ in range(4)), return_exceptions=True
        )
        assert any(isinstance(one, Resealed) for one in done)
        assert all(isinstance(one, (Resealed, ConflictError)) for one in done), done
        assert verdict(await app.token(key, "acme/widgets")) == OK


async def test_what_the_old_key_sealed_is_no_record_any_more(world: World) -> None:
    """After a leak of the old data key: who writes with it forges nothing."""
    async with world.inside() as app:
        key = await app.key("acme/*")
        store = app.broker.store
        entry = await store.find_key(key.split("_")[1])
        assert entry is not None
        old_blob = entry.version
        await resealed(world, grace_s=0)
        await until(lambda: store._data_keys == b"2")

        async def put_back(backend: Backend) -> bool:
            (mine,) = [one async for some in backend.sealed(Place.KEYS) for one in some]
            return await backend.reseal(store._store_id or b"", mine, old_blob)

        assert await on_backend(world, put_back)
        begin = time.monotonic()
        assert verdict(await app.token(key, "acme/widgets")) == (503, "store_unavailable")
        assert time.monotonic() - begin < 5


def test_the_command_reseal(world: World) -> None:
    world.key("acme/*")
    done = world.command("store", "reseal")
    assert done.returncode == 0, done.stderr
    assert "data key 2: 1 entries sealed anew" in done.stderr
