"""Make bare git repositories and commit to them; starts git processes, touches the disk."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_TIMEOUT_S = 60


def git_environment() -> dict[str, str]:
    """Return an environment in which git reads no configuration of the machine and asks nothing.

    Raises:
        FileNotFoundError: git is not on the path.
    """
    git = shutil.which("git")
    if git is None:
        raise FileNotFoundError("git was not found on PATH: the emulator serves repositories through it")
    return {
        "PATH": os.pathsep.join((str(Path(git).parent), os.defpath)),
        "HOME": os.devnull,
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
    }


def create(path: Path, *, default_branch: str = "main") -> None:
    """Make an empty bare repository at ``path``.

    Raises:
        subprocess.CalledProcessError: git refused.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _git(["init", "--quiet", "--bare", f"--initial-branch={default_branch}", str(path)])


def commit(path: Path, *, branch: str, files: Mapping[str, str | bytes], message: str, at: int) -> str:
    """Add one commit with ``files`` (path to content) on top of ``branch``; return its id.

    Args:
        path: the bare repository.
        branch: made if it is not there.
        files: what the commit adds or changes.
        message: of the commit.
        at: author and committer time, seconds since the epoch.

    Raises:
        subprocess.CalledProcessError: git refused.
    """
    ref = f"refs/heads/{branch}"
    parent = _git(["-C", str(path), "for-each-ref", "--format=%(objectname)", ref]).strip()
    text = message.encode()
    stream = [
        f"commit {ref}\ncommitter Emulated GitHub <noreply@github.invalid> {at} +0000\n".encode(),
        b"data %d\n%s\n" % (len(text), text),
        *([b"from %s\n" % parent] if parent else []),
    ]
    for name, content in files.items():
        blob = content.encode() if isinstance(content, str) else content
        stream.append(b"M 100644 inline %s\ndata %d\n%s\n" % (name.encode(), len(blob), blob))
    _git(["-C", str(path), "fast-import", "--quiet", "--done"], b"".join([*stream, b"done\n"]))
    return _git(["-C", str(path), "rev-parse", ref]).strip().decode()


def _git(arguments: list[str], stdin: bytes = b"") -> bytes:
    return subprocess.run(
        ["git", *arguments],
        input=stdin,
        env=git_environment(),
        capture_output=True,
        check=True,
        timeout=_TIMEOUT_S,
    ).stdout
