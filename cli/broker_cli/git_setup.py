"""git's configuration for one host: our helper in it, or out of it again; runs `git config`.

For a host, `credential.<url>.helper` is a list in order of the configuration's files; an empty value forgets
all that came before it, of this host and of every host. So an empty value and then our helper make sure that
no other helper is asked first or gets to store the token. What others wrote before stays where it is, and
counts again once both are taken out.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

from broker_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker_cli.settings import Flags

VERB = "git-credential"
NO_SUCH_NAME = 1
NOTHING_TO_UNSET = 5


class Scope(NamedTuple):
    """Which of git's configuration files: `--global`, `--local` or `--system`."""

    option: str


def helper_command(flags: Flags) -> str:
    """Return our helper as git's configuration names it: this very program, wherever PATH points later.

    Address and CA file are written along if they were flags; a key never is.
    """
    program = os.path.abspath(sys.argv[0])  # noqa: PTH100 - a link is kept: what it points at may move
    is_script = os.path.basename(program) == "broker-cli"  # noqa: PTH119
    words = [program] if is_script else [sys.executable, "-m", "broker_cli"]
    if flags.api_url:
        words += ["--api-url", flags.api_url]
    if flags.ca_file:
        words += ["--ca-file", os.path.abspath(flags.ca_file)]  # noqa: PTH100
    return f"!{shlex.join([*words, VERB])}"


def is_ours(helper: str) -> bool:
    """Tell whether a helper in git's configuration is this program, of whatever place and time."""
    try:
        words = shlex.split(helper.removeprefix("!"))
    except ValueError:
        return False
    return (
        helper.startswith("!")
        and words[-1:] == [VERB]
        and any(os.path.basename(word) in {"broker-cli", "broker_cli"} for word in words)  # noqa: PTH119
    )


def install_helper(scope: Scope, url: str, helper: str) -> bool:
    """Write our helper for a host; False if it was there as it should be.

    Raises:
        UsageError: git can't be run or can't write its configuration.
    """
    before = _helpers(scope, url)
    wanted = [*_without_ours(before), "", helper]
    if before == wanted and _values(scope, _name(url, "useHttpPath")) == ["true"]:
        return False
    _write_helpers(scope, url, wanted)
    _git_config(scope, "--replace-all", _name(url, "useHttpPath"), "true")
    return True


def remove_helper(scope: Scope, url: str) -> bool:
    """Take our helper for a host out again; False if it was not there.

    Raises:
        UsageError: git can't be run or can't write its configuration.
    """
    before = _helpers(scope, url)
    wanted = _without_ours(before)
    if before == wanted:
        return False
    _write_helpers(scope, url, wanted)
    _git_config(scope, "--unset-all", _name(url, "useHttpPath"), accept=NOTHING_TO_UNSET)
    return True


def effective_helpers(url: str) -> list[str]:
    """Return the helpers that git asks for a host, from all of its files: those after the last empty one.

    Raises:
        UsageError: git can't be run.
    """
    found = _values(None, _name(url, "helper"))
    last_empty = max((place for place, helper in enumerate(found) if not helper), default=-1)
    return found[last_empty + 1 :]


def uses_path(url: str) -> bool:
    """Tell whether git names the repository to the helpers of a host.

    Raises:
        UsageError: git can't be run.
    """
    return _values(None, _name(url, "useHttpPath"))[-1:] == ["true"]


def git_version() -> str:
    """Return what `git --version` says.

    Raises:
        UsageError: there is no git.
    """
    return _run(["git", "--version"]).stdout.strip()


def _name(url: str, variable: str) -> str:
    return f"credential.{url}.{variable}"


def _helpers(scope: Scope, url: str) -> list[str]:
    return _values(scope, _name(url, "helper"))


def _without_ours(helpers: Sequence[str]) -> list[str]:
    """Return a list without our helper, and without the empty value that we put before it."""
    kept: list[str] = []
    for helper in helpers:
        if not is_ours(helper):
            kept.append(helper)
        elif kept and not kept[-1]:
            kept.pop()
    return kept


def _write_helpers(scope: Scope, url: str, helpers: Sequence[str]) -> None:
    name = _name(url, "helper")
    _git_config(scope, "--unset-all", name, accept=NOTHING_TO_UNSET)
    for helper in helpers:
        _git_config(scope, "--add", name, helper)


def _values(scope: Scope | None, name: str) -> list[str]:
    done = _git_config(scope, "--null", "--get-all", name, accept=NO_SUCH_NAME)
    return done.stdout.split("\0")[:-1]


def _git_config(
    scope: Scope | None, *arguments: str, accept: int | None = None
) -> subprocess.CompletedProcess[str]:
    where = [] if scope is None else [scope.option]
    done = _run(["git", "config", *where, *arguments])
    if done.returncode not in {0, accept}:
        said = done.stderr.strip().removeprefix("fatal: ").removeprefix("error: ").partition("\n")[0]
        raise UsageError(f"git config {' '.join(where)} failed: {said or f'status {done.returncode}'}")
    return done


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="surrogateescape", check=False
        )
    except OSError as error:
        raise UsageError(f"cannot run git ({error.strerror}): is it installed?") from None
