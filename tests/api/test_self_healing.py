"""Rule 9 without any webhook: within BROKER_INSTALLATION_TTL the broker's picture is GitHub's again."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from harness import Inside, World

from broker.issuing import installations

TTL_S = 1.0
WITHIN_S = 6.0  # the TTL, a look each half second, and a busy machine


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    deadline = asyncio.get_running_loop().time() + WITHIN_S
    while not await true():
        assert asyncio.get_running_loop().time() < deadline, "the picture was not mended in time"
        await asyncio.sleep(0.1)


async def code_of(app: Inside, key: str, name: str) -> str:
    answer = await app.token(key, name)
    if answer.status_code == 200:
        assert answer.json()["repositories"] == [name]
        return "ok"
    return str(answer.json()["code"])


@pytest.mark.parametrize("many", [False, True], ids=["one by one", "one sweep"])
async def test_lost_webhooks_heal(any_world: World, many: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uninstall, reinstall, suspend, all to selected, fewer permissions: each is noticed, none leaks."""
    world = any_world
    if many:
        monkeypatch.setattr(installations, "SWEEP_FROM", 0)
    world.github.add_repository("other/app")
    world.github.install(world.app, "other")
    async with world.inside(installation_ttl=TTL_S, failure_cooldown=0.2) as app:
        key = await app.key("acme/*")

        async def is_(code: str, name: str = "acme/widgets") -> None:
            async def there() -> bool:
                found = await code_of(app, key, name)
                assert await code_of(app, key, "other/app") == "forbidden"
                return found == code

            await until(there)

        await is_("ok")
        first = (await app.token(key, "acme/widgets")).json()["token"]
        world.github.suspend(world.installation)
        await is_("installation_suspended")
        world.github.unsuspend(world.installation)
        await is_("ok")
        world.github.uninstall(world.installation)
        await is_("not_installed")
        again = world.github.install(world.app, "acme")
        await is_("ok")
        fresh = await app.token(key, "acme/widgets")
        assert fresh.json()["installation_id"] == again.id
        assert fresh.json()["token"] != first
        world.github.set_selection(again, ["acme/gadgets"])
        await is_("not_installed")
        await is_("ok", "acme/gadgets")
        world.github.set_selection(again, None)
        await is_("ok")
        world.github.set_permissions(again, {"metadata": "read"})
        await is_("permission_not_granted")
    if many:
        assert world.github.count("installations") > 0
        assert world.github.count("installation") == 0
