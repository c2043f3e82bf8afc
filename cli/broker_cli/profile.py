"""The profile file: one broker's address and the key for it; reads and writes the file system.

The file is `$XDG_CONFIG_HOME/broker-cli/profile.json` (else in `~/.config`), mode 0600, one JSON object:

    {"version": 1, "api_url": "https://broker.example.com", "api_key": "ghbk_...", "ca_file": "/etc/ca.pem"}

`api_key` and `ca_file` may be missing or null, and unknown fields are ignored, so that an older client reads
what a newer one wrote; another `version` is refused. JSON because the standard library writes it as well.
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from broker_cli.errors import UsageError

VERSION = 1
MAX_BYTES = 64 * 1024


class Profile(NamedTuple):
    """What the file holds, not yet checked any further than its types."""

    path: str
    api_url: str
    unverified_api_key: str | None
    ca_file: str | None

    def __repr__(self) -> str:
        return f"Profile({self.path})"


def profile_path(config_home: str) -> str:
    """Return where the profile is; `config_home` is $XDG_CONFIG_HOME, ignored unless absolute as XDG says."""
    # os.path in this module: pathlib costs 5 ms to load.
    if not os.path.isabs(config_home):  # noqa: PTH117
        config_home = os.path.expanduser("~/.config")  # noqa: PTH111
    return os.path.join(config_home, "broker-cli", "profile.json")  # noqa: PTH118


def find_profile(path: str) -> Profile | None:
    """Return the profile, or None if there is no such file.

    Raises:
        UsageError: it is not ours, others can read or change it, or it can't be understood.
    """
    try:
        # Non-blocking: a FIFO in its place must not hang the command.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UsageError(f"cannot read the profile {path}: {error.strerror}") from None
    try:
        _check_owner_and_mode(path, os.fstat(descriptor))
        content = os.read(descriptor, MAX_BYTES)
    finally:
        os.close(descriptor)
    return _parse(path, content)


def write_profile(profile: Profile) -> None:
    """Write a profile, whole or not at all, in a folder that only its owner can enter if it is new.

    Raises:
        UsageError: the file system does not let us.
    """
    import json  # noqa: PLC0415

    from broker_cli.files import make_private_folder, write_whole  # noqa: PLC0415

    document = {
        "version": VERSION,
        "api_url": profile.api_url,
        "api_key": profile.unverified_api_key,
        "ca_file": profile.ca_file,
    }
    make_private_folder(os.path.dirname(profile.path))  # noqa: PTH120
    write_whole(profile.path, f"{json.dumps(document, indent=2)}\n".encode())


def remove_profile(path: str) -> bool:
    """Remove a profile, whatever state it is in; False if there is none.

    Raises:
        UsageError: the file system does not let us.
    """
    try:
        os.unlink(path)  # noqa: PTH108
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise UsageError(f"cannot remove the profile {path}: {error.strerror}") from None
    return True


def _check_owner_and_mode(path: str, status: os.stat_result) -> None:
    """Refuse a file that somebody else could have read or written."""
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"the profile {path} is not a file")
    if status.st_uid != os.geteuid():
        raise UsageError(
            f"the profile {path} belongs to another user (uid {status.st_uid}): remove it or chown it"
        )
    if status.st_mode & 0o077:
        raise UsageError(
            f"the profile {path} can be read or changed by others (mode {stat.S_IMODE(status.st_mode):04o}):"
            f" run chmod 600 {path}, and replace the key if they may have read it"
        )


def _parse(path: str, content: bytes) -> Profile:
    """Return the profile written in `content`."""
    import json  # noqa: PLC0415

    wrong = UsageError(f"the profile {path} is damaged: remove it, or set BROKER_API_URL and BROKER_API_KEY")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise wrong from None
    if not isinstance(document, dict):
        raise wrong
    if document.get("version") != VERSION:
        raise UsageError(f"the profile {path} was written by another version of broker-cli: log in again")
    api_url, api_key, ca_file = (document.get(name) for name in ("api_url", "api_key", "ca_file"))
    if (
        not isinstance(api_url, str)
        or not isinstance(api_key, str | None)
        or not isinstance(ca_file, str | None)
    ):
        raise wrong
    return Profile(path, api_url, api_key, ca_file)
