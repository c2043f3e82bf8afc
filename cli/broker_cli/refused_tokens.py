"""Which token git had refused for a repository, from `erase` to the next `get`: small files in the cache.

A file holds the SHA-256 of the refused token, never the token. With it a `get` tells whether the broker still
gives that very token, and only then has another minted: what git erases may as well be somebody's mistyped
password. A cache that can't be read or written costs that refresh, and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from broker_cli.errors import UsageError
from broker_cli.files import make_private_folder, write_whole
from broker_cli.settings import cache_folder

if TYPE_CHECKING:
    from broker_cli.git_credential import Place

DIGEST_LENGTH = 64
# No token lives longer than an hour.
KEPT_S = 3600


class Refused(NamedTuple):
    """A token that was refused, known by its SHA-256."""

    digest: str

    def is_of(self, token: str) -> bool:
        """Tell whether a token is the one that was refused."""
        return _digest(token) == self.digest


def find_refused(place: Place) -> Refused | None:
    """Return what is noted of a repository's refused token, if anything."""
    try:
        descriptor = os.open(_path(place), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        content = os.read(descriptor, DIGEST_LENGTH + 1).decode("ascii", "replace")
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return Refused(content) if len(content) == DIGEST_LENGTH else None


def note_refused(place: Place, token: str) -> None:
    """Note that a repository's token was refused."""
    path = _path(place)
    with contextlib.suppress(UsageError):
        make_private_folder(_folder())
        _drop_old_notes()
        write_whole(path, _digest(token).encode())


def forget_refused(place: Place) -> None:
    """Drop a note that has done its work."""
    with contextlib.suppress(OSError):
        os.unlink(_path(place))  # noqa: PTH108 - pathlib costs 5 ms to load


def _drop_old_notes() -> None:
    """Drop what is noted of tokens that have ended by now."""
    oldest = time.time() - KEPT_S  # noqa: TID251 - the age of a file of this machine
    with contextlib.suppress(OSError), os.scandir(_folder()) as entries:
        for entry in entries:
            if entry.stat(follow_symlinks=False).st_mtime < oldest:
                os.unlink(entry.path)  # noqa: PTH108


def _folder() -> str:
    return os.path.join(cache_folder(), "refused")  # noqa: PTH118


def _path(place: Place) -> str:
    # Neither part can hold a slash, and none of both is `..`: they were parsed before.
    name = "+".join((place.host, *place.repository.lower().split("/")))
    return os.path.join(_folder(), name)  # noqa: PTH118


def _digest(token: str) -> str:
    from hashlib import sha256  # noqa: PLC0415

    return sha256(token.encode()).hexdigest()
