"""A COMMIT whose reply was lost: the token is in use, or it dies; never both."""

import asyncio
from typing import Any

import pytest
from harness import World
from stage import until, wrap_backend

from broker.errors import StoreUnavailableError


@pytest.mark.parametrize("done", [True, False], ids=["done", "not done"])
async def test_a_token_whose_commit_is_unknown_dies_only_if_it_was_not_kept(
    any_world: World, done: bool
) -> None:
    """A caller is never given a token that this broker has killed, also if the process dies meanwhile."""
    world = any_world
    async with world.inside() as app:
        key = await app.key("acme/*")
        whole = app.broker.store._backend
        failing = True

        async def commit(*arguments: Any) -> Any:
            verdict = await whole.commit(*arguments) if done or not failing else None
            if failing:
                raise StoreUnavailableError("the reply is lost")
            return verdict

        async def read(*arguments: Any) -> Any:
            if failing and world.github.tokens:
                raise StoreUnavailableError("down")
            return await whole.read(*arguments)

        wrap_backend(app, commit=commit, read=read)
        assert (await app.token(key, "acme/widgets")).status_code == 503
        (first,) = world.github.tokens
        await asyncio.sleep(0.7)
        assert not world.github.tokens[first].revoked  # nobody can tell yet
        failing = False
        if not done:
            await until(lambda: world.github.tokens[first].revoked, seconds=10)
            return
        app.broker.store._backend = whole
        told = await app.token(key, "acme/widgets")
        assert told.json()["token"] == first
        await asyncio.sleep(1.5)
        assert not world.github.tokens[first].revoked
        assert (await app.token(key, "acme/widgets")).json()["token"] == first
