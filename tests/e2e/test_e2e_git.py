"""git itself, with the client as its helper, against the real service and the emulated GitHub."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from harness import SCRIPTS, World, clean_environment, world_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness import Service


@dataclass
class Person:
    """Somebody with a home folder, an API key, and git."""

    world: World
    service: Service
    key: str
    home: Path

    def environment(self, **more: str) -> dict[str, str]:
        kept = {
            name: value
            for name, value in clean_environment().items()
            if not name.startswith(("GIT_", "XDG_"))
        }
        return {
            **kept,
            "HOME": str(self.home),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "BROKER_API_URL": self.service.url,
            "BROKER_API_KEY": self.key,
            "LC_ALL": "C",
            **more,
        }

    def run(self, *command: str, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=self.environment(**more),
            cwd=self.home,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def git(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return self.run("git", *arguments, **more)

    def client(self, *arguments: str, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        return self.run(str(SCRIPTS / "broker-cli"), *arguments, stdin=stdin, **more)

    def fill(self, path: str) -> dict[str, str]:
        """Return what `git credential fill` finds for a path on the emulated GitHub."""
        done = self.run("git", "credential", "fill", stdin=f"url={self.world.server.url}/{path}\n\n")
        return dict(line.partition("=")[::2] for line in done.stdout.splitlines())

    def leftovers(self) -> str:
        """Return all that git and the client wrote below the home folder, as text."""
        return "".join(
            file.read_text(errors="replace")
            for file in self.home.rglob("*")
            if file.is_file() and not file.is_symlink()
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Service, str]]:
    """One emulated GitHub, service and key for all stories here: each takes seconds to start."""
    with world_in(tmp_path_factory.mktemp("git"), git=True) as world:
        key = world.key("acme/*")
        yield world, world.service(), key


@pytest.fixture
def person(place: tuple[World, Service, str], tmp_path: Path) -> Person:
    world, service, key = place
    home = tmp_path / "home"
    home.mkdir()
    found = Person(world, service, key, home)
    git(found, "config", "--global", "user.name", "t")
    git(found, "config", "--global", "user.email", "t@example.com")
    # Would write every token to a file if it were asked.
    git(found, "config", "--global", "credential.helper", "store")
    done = found.client("setup-git")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return found


def git(person: Person, *arguments: str, **more: str) -> str:
    done = person.git(*arguments, **more)
    assert done.returncode == 0, f"{arguments}: {done.stderr}"
    return done.stdout


def test_clone_fetch_submodules_and_nothing_left_behind(person: Person) -> None:
    world, url = person.world, person.world.server.url
    git(person, "clone", f"{url}/acme/widgets.git", "clone")
    assert (person.home / "clone" / "README.md").is_file()
    git(person, "-C", "clone", "fetch")

    # A submodule of the same owner, by a relative address; made here, as a token may only read.
    repository = world.github.find_repository("acme/widgets")
    assert repository is not None
    bare = world.github.git_path(repository)
    git(
        person, "-C", "clone", "-c", "protocol.file.allow=always", "submodule", "add", "../gadgets.git", "sub"
    )
    git(person, "-C", "clone", "commit", "-m", "a submodule")
    git(person, "-C", "clone", "push", str(bare), "HEAD:main")
    git(person, "clone", "--recurse-submodules", f"{url}/acme/widgets.git", "whole")
    assert (person.home / "whole" / "sub" / "README.md").is_file()

    pushed = person.git("-C", "whole", "push", "origin", "HEAD:main")
    assert pushed.returncode != 0

    left = person.leftovers()
    assert not [token for token in world.github.tokens if token in left]
    assert person.key not in left
    assert not (person.home / ".git-credentials").exists()
    assert "x-access-token" not in (person.home / "clone" / ".git" / "config").read_text()


def test_the_lfs_endpoint_expiry_and_other_hosts(person: Person) -> None:
    world = person.world
    plain = person.fill("acme/widgets.git")
    mints = world.github.count("mint")
    lfs = person.fill("acme/widgets.git/info/lfs")
    assert plain["username"] == lfs["username"] == "x-access-token"
    assert plain["password"] == lfs["password"]
    assert plain["password"] in world.github.tokens
    asked = person.client(
        "git-credential",
        "get",
        stdin=f"protocol=http\nhost=127.0.0.1:{world.server.port}\npath=acme/widgets\n\n",
    )
    answered = dict(line.split("=", 1) for line in asked.stdout.splitlines())
    expires_s = int(answered["password_expiry_utc"])
    left_s = expires_s - int(subprocess.check_output(["date", "+%s"]))
    assert 300 <= left_s <= 3601

    # Another host, and what the broker has no token for, go to the next helper; which of both is told.
    for text, silent in (
        ("protocol=https\nhost=gitlab.example\npath=acme/widgets.git\n\n", True),
        (f"protocol=http\nhost=127.0.0.1:{world.server.port}\npath=stranger/secrets.git\n\n", False),
        (f"protocol=http\nhost=127.0.0.1:{world.server.port}\n\n", True),
    ):
        asked = person.client("git-credential", "get", stdin=text)
        assert (asked.returncode, asked.stdout) == (0, "")
        assert (asked.stderr == "") == silent
    assert world.github.count("mint") == mints

    # The next helper in git's own list is really asked.
    next_helper = '!f() { test "$1" = get && echo username=next && echo password=next-password; }; f'
    ours = f"!{SCRIPTS}/broker-cli git-credential"
    done = person.run(
        "git", "-c", "credential.useHttpPath=true", "-c", f"credential.helper={ours}",
        "-c", f"credential.helper={next_helper}", "credential", "fill",
        stdin="url=https://gitlab.example/acme/widgets.git\n\n",
    )  # fmt: skip
    assert "username=next\n" in done.stdout


def test_a_refused_token_is_replaced_at_the_next_try(person: Person) -> None:
    world, url = person.world, person.world.server.url
    first = person.fill("acme/widgets.git")["password"]
    mints = world.github.count("mint")
    world.github.tokens[first].revoked = True
    failed = person.git("clone", f"{url}/acme/widgets.git", "clone")
    assert failed.returncode != 0  # git has it refused, and tells the helper
    git(person, "clone", f"{url}/acme/widgets.git", "clone")
    assert world.github.count("mint") == mints + 1
    assert person.fill("acme/widgets.git")["password"] != first
    assert world.github.count("mint") == mints + 1
    left = person.leftovers()
    assert not [token for token in world.github.tokens if token in left]


def test_trouble_is_told_in_one_line_that_helps(person: Person) -> None:
    url = person.world.server.url
    refused = person.git("clone", f"{url}/stranger/secrets.git", "clone")
    assert refused.returncode != 0
    assert "broker-cli: no token for stranger/secrets" in refused.stderr
    wrong = person.git("clone", f"{url}/acme/widgets.git", "clone", BROKER_API_KEY="")
    assert wrong.returncode != 0
    assert "there is no API key" in wrong.stderr
    assert person.client("setup-git", "--undo").returncode == 0
    plain = person.git("clone", f"{url}/acme/widgets.git", "clone")
    assert plain.returncode != 0
    assert "broker-cli" not in plain.stderr


def test_the_rest_of_the_client_against_the_real_service(person: Person) -> None:
    world = person.world
    doctor = person.client("doctor")
    assert doctor.returncode == 0, doctor.stdout
    assert f"git gets its tokens for {world.server.url} from the broker" in doctor.stdout
    page = person.client("github", "setup", "--print")
    assert page.stdout == f"{world.server.url}/github-apps/{world.app.slug}/installations/new\n", page.stderr
    ran = person.client("exec", "--repo", "acme/widgets", "--", "sh", "-c", 'echo "$GITHUB_TOKEN"')
    assert ran.stdout.strip() in world.github.tokens
    kept = person.client("github", "token", "acme/widgets", "--output", "token")
    assert kept.returncode == 0, kept.stderr
    assert (person.home / "token").read_text().strip() in world.github.tokens
    unset = {"BROKER_API_URL": "", "BROKER_API_KEY": ""}
    logged = person.client("login", "--api-url", person.service.url, stdin=person.key, **unset)
    assert logged.returncode == 0, logged.stderr
    git(person, "clone", f"{world.server.url}/acme/widgets.git", "by-profile", **unset)
    assert person.client("logout", **unset).returncode == 0
    assert person.client("whoami", **unset).returncode == 2
