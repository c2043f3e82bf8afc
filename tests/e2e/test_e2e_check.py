"""``broker check`` says what is wrong and what to do about it."""

import pytest
from harness import World


def test_all_is_well(any_world: World) -> None:
    any_world.github.set_app_permissions(any_world.app, {"contents": "read", "metadata": "read"})
    any_world.key("acme/*")
    done = any_world.command("check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "GitHub knows the app as token-broker" in done.stdout
    assert "installed on acme: all repositories" in done.stdout
    assert "answers and opens" in done.stdout
    warned = [line for line in done.stdout.splitlines() if line.startswith("!")]
    persistent = any_world.store_url.startswith("sqlite")
    assert [line for line in warned if "keeps nothing over a restart" not in line] == []
    assert (warned == []) is persistent  # the tests' Redis keeps nothing
    assert "✗" not in done.stdout


def test_before_the_first_start_nothing_is_made(world: World) -> None:
    done = world.command("check")
    assert "does not exist yet" in done.stdout
    assert not (world.folder / "broker.db").exists()


def test_every_finding_names_its_page(world: World) -> None:
    page = f"{world.server.url}/organizations/acme-platform/settings/apps/token-broker"
    secret = {"BROKER_GITHUB_WEBHOOK_SECRET": "s" * 32}
    assert f"no webhook address: {page}\n" in world.command("check", **secret).stdout

    world.app.public = True
    hook = world.github.add_hook(world.app, "https://broker.example.com/", None)
    hook.losing = True
    world.github.installations[world.installation.id].permissions.pop("contents")
    done = world.command("check", **secret)
    assert done.returncode == 1
    for said in (
        f"more than read (issues: write): take that away on {page}/permissions",
        f"make it private on {page}/advanced",
        f"goes to https://broker.example.com/, not to /webhooks/github of a broker: {page}",
        f"has no secret, so every delivery is refused: set one on {page}",
        f"does not subscribe to repository (renames, transfers): tick it on {page}/permissions",
        "acme has not granted contents yet: an owner has to accept it: ",
    ):
        assert said in done.stdout, done.stdout
    assert "switch the webhook off" in world.command("check").stdout
    assert "strangers" not in world.command("check", BROKER_ALLOWED_OWNERS="acme").stdout

    hook.url, hook.secret = "https://broker.example.com/webhooks/github", "s" * 32
    world.app.public = False
    world.app.events.append("repository")
    world.github.set_app_permissions(world.app, {"contents": "read", "metadata": "read"})
    world.github.set_permissions(world.installation)
    well = world.command("check", **secret).stdout
    assert [line for line in well.splitlines() if line.startswith(("!", "✗"))] == [
        line for line in well.splitlines() if "does not exist yet" in line
    ]


@pytest.mark.parametrize("what", ["key", "id", "contents", "unreachable"])
def test_problems_end_with_1(world: World, what: str) -> None:
    more: dict[str, str] = {}
    said = ""
    if what == "key":
        world.app.public_keys.clear()
        world.app.new_private_key()
        said = "BROKER_GITHUB_PRIVATE_KEY_FILE"
    elif what == "id":
        more["BROKER_GITHUB_CLIENT_ID"] = "Iv23nobody"
        said = "Is Iv23nobody the app's id"
    elif what == "contents":
        world.github.set_app_permissions(world.app, {"metadata": "read"})
        said = "lacks the permission contents: read"
    else:
        world.server.stop()
        said = world.server.api_url
    done = world.command("check", **more)
    assert done.returncode == 1, done.stdout
    assert said in done.stdout
    assert "Traceback" not in done.stderr


def test_warnings(world: World) -> None:
    world.github.suspend(world.installation)
    world.github.clock_skew_s = 45
    (world.folder / ".env").write_text("BROKER_MINT_BUDGTE=5\n")
    (world.folder / ".env").chmod(0o644)
    done = world.command("check")
    assert done.returncode == 0, done.stdout
    for said in (
        "more than read (issues: write)",
        "suspended: an owner has to unsuspend it",
        "s off GitHub's: mend it (NTP)",
        "chmod 600",
        "is BROKER_MINT_BUDGET meant?",
    ):
        assert said in done.stdout, said
    left_out = world.command("check", BROKER_ALLOWED_OWNERS="other")
    assert "BROKER_ALLOWED_OWNERS leaves out" in left_out.stdout


def test_settings_that_are_wrong_end_with_2(world: World) -> None:
    done = world.command("check", BROKER_PORT="x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("broker: BROKER_PORT: ")
