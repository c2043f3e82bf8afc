"""Secrets that change in their files while the process runs; looks at the files, reads them in a thread.

Files are looked at with ``stat`` every few seconds: a mounted Secret is replaced by swapping a link above
it, which a watch on the file would miss. What is read is checked as at the start. What cannot be used
changes nothing: the last good value stays, and one line on the log says why.
"""

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from broker.errors import StoreError
from broker.settings import TLS_PROBLEM, Settings
from broker.threads import in_thread

_log = logging.getLogger(__name__)

POLL_S: Final = 2.0
SETTLE_S: Final = 0.2
"""Whoever writes a file in several steps gets this long between two of them."""

_SETTLE_AT_MOST: Final = 20

Stamp = tuple[int, ...] | None


def stamps_of(paths: Sequence[Path]) -> dict[Path, Stamp]:
    """Return what tells one state of each file from another; None for one that is not there."""
    found: dict[Path, Stamp] = {}
    for path in paths:
        try:
            state = path.stat()
        except OSError:
            found[path] = None
        else:
            found[path] = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    return found


class SecretWatch:
    """Notices that files of secrets have changed.

    Args:
        settings: as at the start.
        use: takes settings over; raises ``StoreError`` if the store has to know and does not answer, and is
            called again then.
        use_tls: takes a new certificate over.
        poll_s: how often files are looked at.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        use: Callable[[Settings], Awaitable[None]],
        use_tls: Callable[[ssl.SSLContext], None],
        poll_s: float = POLL_S,
    ) -> None:
        self._settings = settings
        self._use = use
        self._use_tls = use_tls
        self._poll_s = poll_s
        self._paths = settings.watched_files()
        # Read at the start, a moment ago: a file that changed since then is noticed at the next change of
        # any, so all are read once more at the first look.
        self._seen: Mapping[Path, Stamp] = {}
        self._told: list[str] = []
        self._due = False

    async def run(self) -> None:
        """Look at the files for ever; returns at once if there are none."""
        while self._paths:
            await asyncio.sleep(self._poll_s)
            try:
                await self.look()
            except Exception:  # noqa: BLE001 - whatever it is, the next look may go well
                _log.exception("the files of secrets could not be looked at")

    async def look(self) -> None:
        """Take over what has changed since the last look."""
        stamps = stamps_of(self._paths)
        if stamps != self._seen:
            # Noted before the files are read: a change while they are read is one for the next look.
            before, self._seen = self._seen, await self._settled(stamps)
            await self._read(before)
        if self._due:
            await self._take_over()

    async def _settled(self, stamps: Mapping[Path, Stamp]) -> Mapping[Path, Stamp]:
        """Wait until the files stay as they are for a moment."""
        for _ in range(_SETTLE_AT_MOST):
            await asyncio.sleep(SETTLE_S)
            before, stamps = stamps, stamps_of(self._paths)
            if stamps == before:
                break
        return stamps

    async def _read(self, before: Mapping[Path, Stamp]) -> None:
        latest, problems = await in_thread(self._settings.reread)
        own = (latest.tls_cert_file, latest.tls_key_file)
        if any(path is not None and self._seen[path] != before.get(path) for path in own):
            try:
                context = await in_thread(latest.tls_context)
            except (OSError, ValueError):
                problems.append(TLS_PROBLEM)
            else:
                self._take_over_tls(context, first=not before)
        for problem in problems:
            if problem not in self._told:
                _log.error("a changed file cannot be used, what it held before stays in use: %s", problem)
        self._told = problems
        if latest != self._settings:
            self._settings, self._due = latest, True

    def _take_over_tls(self, context: ssl.SSLContext | None, *, first: bool) -> None:
        if context is None:
            return
        self._use_tls(context)
        if not first:
            _log.warning("TLS certificate and key taken over from their files")

    async def _take_over(self) -> None:
        try:
            await self._use(self._settings)
        except StoreError as error:
            _log.warning("changed keys wait for the store", extra={"cause": str(error)})
        else:
            self._due = False
