"""``broker keys`` beside running services: at once on every one of them."""

import json
import re

from e2e_callers import ask, callers, start_together
from harness import World, bearer

from broker.access import keys


async def test_a_revoked_key_is_refused_at_once_by_every_service(any_world: World) -> None:
    """Rule 6: when the command has returned, no request that reaches any replica is given anything."""
    world = any_world
    services = start_together(world, 2)
    key, other = await world.quick_key("acme/*"), await world.quick_key("acme/*")
    async with callers() as http:
        for service in services:
            assert (await ask(http, service, key)).token
        done = world.command("keys", "revoke", key[5:17])
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        for service in services:
            refused = await ask(http, service, key)
            assert (refused.status, refused.body["code"]) == (401, "invalid_api_key")
            assert refused.headers["www-authenticate"] == "Bearer"
            assert (await http.get(f"{service.url}/v1/whoami", headers=bearer(key))).status_code == 401
            assert (await ask(http, service, other)).token


def test_the_command_keys(any_world: World) -> None:
    world = any_world
    generated = world.command("keys", "generate", BROKER_STORE_URL="mysql://nowhere")
    assert (generated.returncode, generated.stderr) == (0, "")
    assert re.fullmatch(keys.PATTERN + r"\n", generated.stdout)

    key = world.key("acme/*", "Other/prefix-*", permissions=("contents", "issues=read"))
    assert re.fullmatch(keys.PATTERN, key)
    admin = world.key(admin=True)
    dated = world.command(
        "keys",
        "create",
        "--name",
        "dated",
        "--repository",
        "acme/widgets",
        "--expires-in",
        "1s",
        "--rate-limit",
        "5",
    )
    assert dated.returncode == 0
    assert re.fullmatch(r"key \w{12} for acme/widgets, ends \S+Z\n", dated.stderr)
    assert (
        world.command("keys", "create", "--name", "x", "--repository", "a/*", "--expires-in", "90").returncode
        == 2
    )
    assert re.fullmatch(keys.PATTERN + r"\n", dated.stdout)

    listed = world.command("keys", "list", "--json")
    assert (listed.returncode, listed.stderr) == (0, "")
    rows = [json.loads(line) for line in listed.stdout.splitlines()]
    assert [row["id"] for row in rows] == [one[5:17] for one in (key, admin, dated.stdout)]
    assert [row["role"] for row in rows] == ["caller", "admin", "caller"]
    assert rows[0]["permissions"] == {"contents": "read", "issues": "read", "metadata": "read"}
    assert rows[2]["expires_at"] is not None
    assert rows[2]["rate_limit_per_minute"] == 5
    for secret in (key, admin, dated.stdout.strip()):
        assert secret[17:] not in listed.stdout

    for _ in range(2):  # ending it again changes nothing
        assert world.command("keys", "revoke", key[5:17]).returncode == 0
    rows = [json.loads(line) for line in world.command("keys", "list", "--json").stdout.splitlines()]
    assert [row["revoked_at"] is not None for row in rows] == [True, False, False]
    assert "revoked" in world.command("keys", "list").stdout


def test_the_command_keys_used_wrongly(world: World) -> None:
    for arguments, said in (
        (("create", "--name", "x"), "--repository"),
        (("create", "--name", "x", "--repository", "acme/*", "--expires-in", "soon"), "--expires-in"),
        (("revoke", "too-short"), "12 characters"),
    ):
        wrong = world.command("keys", *arguments)
        assert (wrong.returncode, wrong.stdout) == (2, "")
        assert said in wrong.stderr
    for arguments, said in (
        (("create", "--name", "x", "--repository", "no-slash"), "repositories"),
        (("create", "--name", "x", "--repository", "a/*", "--permission", "contents=write"), "read"),
        (("create", "--name", "x\x07", "--repository", "a/*"), "name"),
        (("revoke", "0" * 12), "no key"),
    ):
        refused = world.command("keys", *arguments)
        assert (refused.returncode, refused.stdout) == (1, ""), arguments
        assert said in refused.stderr
        assert "Traceback" not in refused.stderr
