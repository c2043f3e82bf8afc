"""The demo: an emulated GitHub, the real service, the real client, a real ``git clone``; starts processes."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click

from broker.sandbox.github import EmulatedGitHub, RunningGitHub

REPOSITORY: Final = "acme/widgets"
_READY_S: Final = 30.0
_COMMAND_S: Final = 60.0
_FILES: Final = {
    "README.md": "# Widgets\n\nA private repository. You read this with a token that lives an hour.\n",
    "widgets.py": 'print("hello from a private repository")\n',
}


class DemoError(Exception):
    """A step did not do what it has to."""


class Demo:
    """One run of the demo in a folder of its own.

    Args:
        folder: everything is written here.
        github: the emulated GitHub.
        server: where it listens.
        environment: of the service.
    """

    def __init__(
        self, folder: Path, github: EmulatedGitHub, server: RunningGitHub, environment: dict[str, str]
    ) -> None:
        self._folder = folder
        self._github = github
        self._server = server
        self._environment = environment
        self._number = 0
        self.url = f"http://127.0.0.1:{environment['BROKER_PORT']}"
        self.key = ""

    # -- showing ---------------------------------------------------------------------------------

    def title(self, text: str) -> None:
        """Begin a step."""
        self._number += 1
        click.secho(f"\n{self._number}. {text}", bold=True)

    def note(self, text: str) -> None:
        """Say what is going on."""
        click.echo(f"   {text}")

    def shell(self, text: str) -> None:
        """Show a command as a user would type it."""
        click.secho(f"   $ {text}", fg="cyan")

    def good(self, text: str) -> None:
        """Show a result."""
        click.echo(click.style("   ✓ ", fg="green") + text)

    # -- doing -----------------------------------------------------------------------------------

    def run(
        self, *command: str, environment: Mapping[str, str], expect: int = 0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command; its exit status must be ``expect``.

        Raises:
            DemoError: it is another one.
        """
        done = subprocess.run(
            command,
            env={**_bare_environment(), **environment},
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=_COMMAND_S,
            check=False,
        )
        if done.returncode != expect:
            raise DemoError(
                f"{command[0]} ended with {done.returncode}, not {expect}: {done.stderr.strip()[-800:]}"
            )
        return done

    def broker(self, *arguments: str) -> str:
        """Run ``broker …`` with the service's environment; return its stdout."""
        done = self.run(sys.executable, "-m", "broker", *arguments, environment=self._environment)
        return done.stdout.strip()

    def client(self, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        """Run ``broker-cli …`` as a job would."""
        return self.run(
            sys.executable,
            "-m",
            "broker_cli",
            *arguments,
            expect=expect,
            environment={"BROKER_API_URL": self.url, "BROKER_API_KEY": self.key},
        )

    def git(self, *arguments: str, token: str | None = None, expect: int = 0) -> str:
        """Run git without any configuration but the token, which travels in the environment."""
        environment = {
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_TERMINAL_PROMPT": "0",
        }
        if token is not None:
            helper = '!f() { echo username=x-access-token; echo "password=$DEMO_TOKEN"; }; f'
            environment |= {
                "DEMO_TOKEN": token,
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": "credential.helper",
                "GIT_CONFIG_VALUE_0": helper,
            }
        return self.run("git", *arguments, expect=expect, environment=environment).stderr

    # -- the steps -------------------------------------------------------------------------------

    def tell(self) -> None:
        """Go through it all.

        Raises:
            DemoError: a step did not do what it has to.
        """
        clone_url = f"{self._server.url}/{REPOSITORY}.git"
        self.title("A GitHub, emulated on this machine, with a private repository")
        self.note(f"{self._server.url}  (API and git; strict where GitHub is strict)")
        self.git("clone", "-q", clone_url, "refused", expect=128)
        self.shell(f"git clone {clone_url}")
        self.good("refused without a token")

        self.title("The broker, with the private key of a GitHub App installed there")
        self.shell("broker serve")
        _wait_ready(self.url)
        self.good(f"{self.url}/readyz says ready; the store is an embedded SQLite file")

        self.title("An API key that may read repositories of acme whose name begins with w")
        self.shell("broker keys create --name demo --repository 'acme/w*'")
        self.key = self.broker("keys", "create", "--name", "demo", "--repository", "acme/w*")
        self.good(f"{self.key}  (shown this once; the store keeps its SHA-256)")

        self.title("A job asks for a token")
        self.shell(f"broker-cli github token {REPOSITORY}")
        token = self.client("github", "token", REPOSITORY).stdout.strip()
        self.good(token)
        minted = self._github.tokens[token]
        rights = ", ".join(f"{name}: {level}" for name, level in minted.permissions.items())
        self.note(f"one repository, {rights}, gone in an hour")

        self.title("… and clones the private repository with it")
        self.shell(f"git clone {clone_url}")
        self.git("clone", "-q", clone_url, "widgets", token=token)
        cloned = sorted(path.name for path in (self._folder / "widgets").iterdir() if path.name != ".git")
        self.good(f"cloned: {', '.join(cloned)}")
        program = str(self._folder / "widgets" / "widgets.py")
        ran = self.run(sys.executable, program, environment={}).stdout.strip()
        self.shell("python widgets/widgets.py")
        self.good(ran)

        self.title("What it does not do")
        pushed = self.git(
            "-C", "widgets", "push", "-q", "origin", "HEAD:refs/heads/evil", token=token, expect=128
        )
        if "403" not in pushed and "denied" not in pushed:
            raise DemoError(f"a push was not refused as it has to be: {pushed[-300:]}")
        self.shell("git push")
        self.good("refused: the token can only read")
        self.shell("broker-cli github token acme/secrets")
        refused = self.client("github", "token", "acme/secrets", expect=1)
        self.good(refused.stderr.strip().splitlines()[0])

        self.title("Asked again, GitHub is not")
        before = self._github.count("mint")
        for _ in range(3):
            self.client("github", "token", REPOSITORY)
        if self._github.count("mint") != before:
            raise DemoError("a warm call went to GitHub")
        self.good(f"three more tokens from the sealed cache; mints so far: {before}")

    def end(self) -> None:
        """Show the end of a key."""
        self.title("The key is revoked")
        key_id = self.key.split("_")[1]
        self.shell(f"broker keys revoke {key_id}")
        self.broker("keys", "revoke", key_id)
        refused = self.client("github", "token", REPOSITORY, expect=3)
        self.good(refused.stderr.strip().splitlines()[0])
        click.secho("\nThat was all of it. ", bold=True, nl=False)
        click.echo(
            "`broker demo --serve` keeps it running for you to try; README tells how to go to github.com."
        )

    def stay(self) -> None:
        """Print what to paste into another terminal, and wait to be stopped."""
        admin_key = self.broker("keys", "create", "--name", "demo-admin", "--admin")
        clone_url = f"{self._server.url}/{REPOSITORY}.git"
        helper = "!uv run broker-cli git-credential"
        git = f"git -c credential.helper= -c credential.helper='{helper}' -c credential.useHttpPath=true"
        key_id = self.key.split("_")[1]
        admin = f"BROKER_API_KEY={admin_key} uv run broker-cli admin"
        click.secho("\nIt stays up. In another terminal, in this folder:\n", bold=True)
        for line in (
            f"export BROKER_API_URL={self.url}",
            f"export BROKER_API_KEY={self.key}",
            f"uv run broker-cli github token {REPOSITORY}",
            f'{git} clone {clone_url} "$(mktemp -d)/widgets"',
            "uv run broker-cli github token acme/secrets  # refused: this key may not",
            f"{admin} keys revoke {key_id} --tokens revoke",
            f"uv run broker-cli github token {REPOSITORY}  # refused: the key is gone",
        ):
            click.echo(f"  {line}")
        click.echo(
            "\nOutside of a clone the client comes from the broker itself (after the first two lines):\n\n"
            f"  UV_INDEX={self.url}/simple/ uv tool run broker-cli github token {REPOSITORY}"
        )
        click.echo("\nCtrl-C ends it.")
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


def _bare_environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()  # noqa: TID251 - what the demo's processes inherit
        if not name.startswith(("BROKER_", "GIT_"))
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_ready(url: str) -> None:
    deadline = time.monotonic() + _READY_S
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline:
        try:
            with opener.open(f"{url}/readyz", timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise DemoError("the service did not become ready")


@contextmanager
def _service(folder: Path, environment: dict[str, str]) -> Iterator[None]:
    log = folder / "broker.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "broker", "serve"],
            env={**_bare_environment(), **environment},
            cwd=folder,
            stdout=output,
            stderr=output,
        )
        try:
            yield
        except DemoError as error:
            tail = log.read_text(errors="replace")[-2000:]
            raise DemoError(f"{error}\nThe service's log ends with:\n{tail}") from None
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def run(*, serve: bool) -> None:
    """Run the demo.

    Args:
        serve: stay up afterwards instead of revoking the key and ending.

    Raises:
        DemoError: a step did not do what it has to.
    """
    if shutil.which("git") is None:
        raise DemoError("git is not on PATH; the demo clones a repository with it")
    # However it is told to end, the service that it started ends with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="broker-demo-") as name, EmulatedGitHub() as github:
        folder = Path(name)
        app = github.add_app(permissions={"contents": "read", "metadata": "read"})
        key_file = folder / "app.pem"
        key_file.touch(mode=0o600)
        key_file.write_text(app.new_private_key())
        github.add_repository(REPOSITORY, files=_FILES, create_git=True)
        github.add_repository("acme/secrets")
        github.install(app, "acme")
        with github.serve() as server:
            environment = {
                "BROKER_GITHUB_CLIENT_ID": app.client_id,
                "BROKER_GITHUB_PRIVATE_KEY_FILE": str(key_file),
                "BROKER_GITHUB_API_URL": server.api_url,
                "BROKER_GITHUB_URL": server.url,
                "BROKER_STORE_URL": f"sqlite:///{folder / 'broker.db'}",
                "BROKER_PORT": str(_free_port()),
            }
            with _service(folder, environment):
                demo = Demo(folder, github, server, environment)
                demo.tell()
                if serve:
                    demo.stay()
                else:
                    demo.end()
