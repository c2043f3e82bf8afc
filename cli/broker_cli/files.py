"""Files that hold a secret: written whole or not at all, for their owner's eyes only; writes the file system.

os.path throughout: pathlib costs 5 ms to load.
"""

from __future__ import annotations

import contextlib
import os
import stat

from broker_cli.errors import UsageError

MODE = 0o600
FOLDER_MODE = 0o700


def write_whole(path: str, content: bytes) -> None:
    """Write a file so that a reader sees the old or the new content whole, also after a power cut; mode 0600.

    The content goes into a new file beside the target, which then takes the target's name.

    Raises:
        UsageError: the target is a link or no file, or its folder does not let us.
    """
    folder = os.path.dirname(path) or "."  # noqa: PTH120
    try:
        _refuse_what_is_no_file(path)
        draft = os.path.join(folder, f".{os.path.basename(path)[:200]}.{os.urandom(8).hex()}")  # noqa: PTH118, PTH119
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, MODE)
        try:
            with open(descriptor, "wb") as file:  # noqa: PTH123
                os.fchmod(descriptor, MODE)  # whatever the umask took away
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            os.replace(draft, path)  # noqa: PTH105
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(draft)  # noqa: PTH108
            raise
        _settle(folder)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
    except ValueError:
        raise UsageError("the file's name is no path") from None


def make_private_folder(path: str) -> None:
    """Make a folder that only its owner can enter, and those above it.

    Raises:
        UsageError: it can't be made.
    """
    try:
        os.makedirs(path, mode=FOLDER_MODE, exist_ok=True)  # noqa: PTH103
    except OSError as error:
        raise UsageError(f"cannot make the folder {path}: {error.strerror}") from None


def _refuse_what_is_no_file(path: str) -> None:
    """Refuse a link (it could lead anywhere) and what a rename would destroy: a device, a pipe, a folder."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        raise UsageError(f"{path} is a symbolic link, which is not followed: name the file itself")
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path} is not a file")


def _settle(folder: str) -> None:
    """Let the new name survive a power cut; some file systems can't, and the file is there all the same."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
