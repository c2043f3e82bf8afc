"""The audit: one JSON line on the log for every decision, and records in the store.

The store gets the first hand-out of a token to a key in the same step that allows it (HAND), every
change in the step that makes it, and a counted record at most once a minute for what repeats.
"""

import asyncio
import contextlib
import logging
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Final

from broker.errors import StoreError
from broker.model import Grant, LiveToken
from broker.observe import Rendered, log_rendered
from broker.ports import AuditEvent, Meter, Store
from broker.wording import audit_body

_log = logging.getLogger("broker.audit")
_trouble = logging.getLogger(__name__)

EVERY_S: Final = 60.0
_TICK_S: Final = 5.0
_KEPT: Final = 50_000
_OFTEN: Final = 2
"""After so many hand-outs their line is kept: for what is asked for now and then it would be megabytes."""


@dataclass(slots=True)
class _Tally:
    """What repeats.

    Attributes:
        event: the last of those that are counted; that one is told.
        generation: of hand-outs, that of the snapshot on which the last one was decided.
        line: of hand-outs, what their lines on the log have in common.
        asked: who asked last (request id, address), where that is newer than ``event``.
    """

    event: AuditEvent
    count: int
    written_at: float
    generation: int = 0
    line: Rendered | None = None
    asked: tuple[str, str | None] | None = None

    def told(self, count: int) -> AuditEvent:
        """Return the event that stands for ``count`` of them."""
        if self.asked is None:
            return replace(self.event, count=count)
        return replace(self.event, count=count, request_id=self.asked[0], client_ip=self.asked[1])


class Auditor:
    """Records decisions.

    Args:
        store: keeps them.
        meter: counts them.
    """

    def __init__(self, store: Store, meter: Meter | None = None) -> None:
        self._store = store
        self._meter = meter or Meter()
        self._tallies: OrderedDict[tuple[str, ...], _Tally] = OrderedDict()
        self._used: dict[str, int] = {}
        self._used_written_at = 0.0
        self._ticking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to write counts each minute."""
        self._ticking = asyncio.create_task(self._tick(), name="audit-counts")

    async def stop(self) -> bool:
        """Write all that is pending; return whether the store took it."""
        if self._ticking is not None:
            self._ticking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticking
        try:
            await self.flush(everything=True)
        except StoreError as error:
            _trouble.error("counts of repeated decisions are lost", extra={"cause": str(error)})
            self._meter.audit_failed("lost", sum(tally.count for tally in self._tallies.values()))
            return False
        return True

    def log(self, event: AuditEvent) -> None:
        """Write the line on the log only."""
        self._meter.decided(event)
        _log.info(event.event, extra={"audit": audit_body(event)})

    def issued(self, event: AuditEvent, *, first: bool, generation: int) -> None:
        """Note a hand-out; the first of a token to a key has been stored by HAND and is not counted here.

        Args:
            event: it.
            first: HAND stored it.
            generation: of the snapshot on which it was decided.
        """
        self._meter.decided(event)
        body = audit_body(event)
        for of_request in ("request_id", "client_ip"):
            body.pop(of_request, None)
        line = Rendered.of(body)
        log_rendered(_log, event.event, line.of_request(event.request_id or "", event.client_ip))
        if first:
            return
        name = ("issued", event.token_sha256 or "", event.key_id or "")
        tally = self._tallies.get(name)
        if tally is None:
            tally = _Tally(event, 1, asyncio.get_running_loop().time(), generation)
            self._put(name, tally)
        else:
            tally.count += 1
            tally.event = event
            tally.generation = generation
            tally.line = tally.asked = None  # the line may show the key's old name
        if event.cached and tally.count >= _OFTEN:
            tally.line = line

    def issued_again(
        self, token: LiveToken, grant: Grant, request_id: str, client_ip: str | None, *, generation: int
    ) -> bool:
        """Note a hand-out that differs from one a moment ago only in who asked; False if there was none.

        Most hand-outs are such: their line is made of one that was rendered before.

        Args:
            token: what is handed out.
            grant: to whom.
            request_id: who asked.
            client_ip: from where.
            generation: of the snapshot on which it was decided: one of another does not count, as the store
                may have lost it since.
        """
        tally = self._tallies.get(("issued", token.sha256, grant.key_id))
        if (
            tally is None
            or tally.line is None
            or tally.generation != generation
            or tally.event.key_name != grant.key_name
        ):
            return False
        tally.count += 1
        tally.asked = (request_id, client_ip)
        self._meter.issued_again()
        log_rendered(_log, tally.event.event, tally.line.of_request(request_id, client_ip))
        return True

    async def denied(self, event: AuditEvent) -> None:
        """Note a refusal to a key that exists: stored at once, then once a minute with a count."""
        self.log(event)
        now = asyncio.get_running_loop().time()
        name = ("denied", event.code or "", event.key_id or "")
        tally = self._tallies.get(name)
        if tally is not None and now - tally.written_at < EVERY_S:
            tally.count += 1
            tally.event = event
            return
        count = 1 + (tally.count if tally is not None else 0)
        self._put(name, _Tally(event, 0, now))
        try:
            await self._store.record([replace(event, count=count)])
        except StoreError as error:
            self._tallies[name].count += count
            _trouble.error("a refusal is on the log only", extra={"cause": str(error)})
            self._meter.audit_failed("late", count)

    def used(self, key_id: str, at: float) -> None:
        """Note when a key was last used (Unix seconds); kept to the minute, written each minute."""
        self._used[key_id] = int(at)

    def _put(self, name: tuple[str, ...], tally: _Tally) -> None:
        self._tallies[name] = tally
        self._tallies.move_to_end(name)
        while len(self._tallies) > _KEPT:
            _, dropped = self._tallies.popitem(last=False)
            if dropped.count:
                self._meter.audit_failed("lost", dropped.count)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            with contextlib.suppress(StoreError):
                await self.flush()

    async def flush(self, *, everything: bool = False) -> None:
        """Write counts whose minute has passed, and last uses.

        Raises:
            StoreError: the store did not take them; they are kept for the next time.
        """
        now = asyncio.get_running_loop().time()
        due: list[tuple[tuple[str, ...], _Tally, int]] = []
        for name, tally in list(self._tallies.items()):
            if everything or now - tally.written_at >= EVERY_S:
                if tally.count:
                    due.append((name, tally, tally.count))
                else:
                    del self._tallies[name]
        if due:
            try:
                await self._store.record([tally.told(count) for _, tally, count in due])
            except StoreError:
                self._meter.audit_failed("late", sum(count for _, _, count in due))
                raise
            for _, tally, count in due:
                tally.count -= count
                tally.written_at = now
        if self._used and (everything or now - self._used_written_at >= EVERY_S):
            used, self._used = self._used, {}
            try:
                await self._store.touch_keys(used)
            except StoreError:
                self._used = used | self._used
                raise
            self._used_written_at = now
