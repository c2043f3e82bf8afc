"""Waiting for another process's work: how often to look, how much trouble of the store to bear; no I/O."""

import asyncio
from typing import Final

from broker.errors import StoreUnavailableError

POLL_S: Final = 0.025
_SLOWEST_POLL_S: Final = 0.25
_SHARE: Final = 8
STORE_PATIENCE_S: Final = 2.0


class Following:
    """One wait for the holder of a lease.

    Looks come 25 ms apart at first and then an eighth of the time waited so far, so that a slow GitHub does
    not cost the store forty questions a second for each scope and process.

    Who follows knows that somebody was at work a moment ago, so one answer of the store that is lost need not
    end the wait. Trouble is borne for ``STORE_PATIENCE_S``; then, and where nobody was seen at work yet, the
    error is the answer: a store that is down means a 503 soon.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._trouble_since: float | None = None

    async def pause(self) -> None:
        """Wait until it is time to look again: somebody else is at work."""
        now = asyncio.get_running_loop().time()
        if self._since is None:
            self._since = now
        await asyncio.sleep(min(_SLOWEST_POLL_S, max(POLL_S, (now - self._since) / _SHARE)))

    async def bear(self, error: StoreUnavailableError) -> None:
        """Wait until it is time to try the store again.

        Raises:
            StoreUnavailableError: ``error``; nobody was at work, or the trouble lasts too long.
        """
        now = asyncio.get_running_loop().time()
        if self._trouble_since is None:
            self._trouble_since = now
        if self._since is None or now - self._trouble_since >= STORE_PATIENCE_S:
            raise error
        await self.pause()

    def answered(self) -> None:
        """Note that the store is well."""
        self._trouble_since = None
