"""The raw store on Redis or Valkey (6.2 or newer): alone, behind Sentinel, or in a Cluster. Does I/O.

All names begin with one hash tag, so everything lies in one Cluster slot and every verb is one script on
one node. Four connections a process: reads, writes, ends (which may take longer, since they list what
has to die), and lists (audit, keys, house-keeping). Each is used by one ``Batcher``, which merges what a
loop turn wants into one round trip and bounds its time.
"""

import asyncio
import math
import re
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from typing import Any, Final

from broker.errors import InvalidRequestError, StoreUnavailableError
from broker.model import Secret
from broker.ports import Counts
from broker.store import redis_scripts as scripts
from broker.store.backend import (
    HOOK_LIFE_S,
    LEASE_MS,
    MARK_LIFE_S,
    STATE_FIELDS,
    AcquireArgs,
    AcquireReply,
    AuditPage,
    AuditWant,
    CommitArgs,
    EndArgs,
    EndReply,
    Entry,
    Identities,
    KeysPage,
    KeyWriteArgs,
    OutboxEntry,
    OwnerArgs,
    OwnerRow,
    Place,
    Row,
    State,
    StoredRow,
    View,
    Want,
)
from broker.store.batch import Batcher
from broker.store.redis_connect import Command, Link, Part, Primary, Unit
from broker.store.redis_scripts import Script
from broker.store.redis_url import parse_redis_url

MAX_PAUSE_S: Final = 3600.0
OWNER_LIFE_S: Final = 30 * 86400.0
BEAT_EVERY_S: Final = 1.0
"""So often, at most, the connection that reads shows that its node takes writes."""
BEAT_LIFE_S: Final = 3.0
"""So long what a node says counts after the last write that it took."""
_PROBE_LIFE_MS: Final = 60_000
_LONG_DEADLINES: Final = 3
_ROWS_PER_SCRIPT: Final = 200
_EVENT_PARTS: Final = 6
_AUDIT_CHUNK: Final = 500
_SWEEP_KEYS: Final = 200
_WRAP: Final = "dk:"
_STREAM_ID: Final = re.compile(r"[1-9][0-9]{0,18}-[0-9]{1,19}")
_SEQUENCE: Final = re.compile(r"[0-9]{1,15}")
_OWNER: Final = re.compile(r"[a-z0-9_-]{1,100}")
_MARK: Final = re.compile(rb"[0-9]+:([0-9]+)")
_MARKS: Final = ("m:", "f:o:", "w:")
_BLOCKS: Final = ("b:o:", "b:r:")


class RedisBackend:
    """``Backend`` on Redis.

    Args:
        url: see ``parse_redis_url``.
        audit_retention_s: audit events older than this are not shown, and swept.
        audit_max_events: about so many audit events are kept.
        deadline_s: how long a caller waits for a read or a write; ends and lists may take three times that.

    Raises:
        SettingsError: the URL is wrong.
    """

    def __init__(
        self,
        url: Secret,
        *,
        audit_retention_s: float = 90 * 86400.0,
        audit_max_events: int = 1_000_000,
        deadline_s: float = 1.0,
    ) -> None:
        target = parse_redis_url(url.reveal())
        self._tag = f"{{ghtb:{target.prefix}}}:"
        self._retention_ms = int(audit_retention_s * 1000)
        self._max_events = audit_max_events
        primary = Primary(target, connect_timeout_s=deadline_s)
        self._read_link = Link(primary)
        self._write_link = Link(primary)
        self._end_link = Link(primary)
        self._list_link = Link(primary)
        self._beat_at = -math.inf
        self._beat_on = -1
        self.reads: Batcher[Want, View] = Batcher(self._read_batch, deadline_s=deadline_s)
        self._writes: Batcher[Unit, Any] = Batcher(self._write_batch, deadline_s=deadline_s)
        long_s = _LONG_DEADLINES * deadline_s
        self._ends: Batcher[Unit, Any] = Batcher(self._end_batch, deadline_s=long_s)
        self._lists: Batcher[Unit, Any] = Batcher(self._list_batch, deadline_s=long_s)

    # -- connecting ------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Connect, or raise ``StoreUnavailableError``; every verb does it again by itself."""
        # Not PING: a Redis that cannot save refuses that too.
        ping = Unit((("ECHO", "1"),))
        await self.read(Want())
        await self._writes.submit(ping)
        await self._lists.submit(ping)
        # The connection for ends opens with the first of them.

    async def close(self) -> None:
        """Close all; idempotent."""
        for batcher in (self.reads, self._writes, self._ends, self._lists):
            await batcher.close()
        for link in (self._read_link, self._write_link, self._end_link, self._list_link):
            await link.close()

    def _name(self, *parts: str) -> str:
        return self._tag + ":".join(parts)

    def _unit(
        self, script: Script, keys: Sequence[str], arguments: Iterable[Part], *, replicated: bool = False
    ) -> Unit:
        rest: Command = (len(keys), *(self._tag + key for key in keys), *arguments)
        return Unit(
            (("EVALSHA", script.sha, *rest),),
            in_full=(("EVAL", script.text, *rest),),
            replicated=replicated,
        )

    async def _write(
        self, script: Script, keys: Sequence[str], arguments: Iterable[Part], *, replicated: bool = False
    ) -> Any:  # noqa: ANN401 - a script's reply
        return await self._writes.submit(self._unit(script, keys, arguments, replicated=replicated))

    async def _verdict(
        self, script: Script, keys: Sequence[str], arguments: Iterable[Part], *, replicated: bool = False
    ) -> str:
        return _text(await self._write(script, keys, arguments, replicated=replicated))

    async def _list(self, *command: Part) -> Any:  # noqa: ANN401 - any RESP value
        return await self._lists.submit(Unit((command,)))

    async def _write_batch(self, units: Sequence[Unit], until: float) -> Sequence[Any]:
        return await self._write_link.talk(units, until, repeatable=False)

    async def _end_batch(self, units: Sequence[Unit], until: float) -> Sequence[Any]:
        return await self._end_link.talk(units, until, repeatable=False)

    async def _list_batch(self, units: Sequence[Unit], until: float) -> Sequence[Any]:
        # Nothing of what goes this way does harm twice.
        return await self._list_link.talk(units, until, repeatable=True)

    # -- state -----------------------------------------------------------------------------------

    async def load(self) -> State:
        """Return the state, whole."""
        state, keys = await self._lists.submit(
            Unit(
                (
                    ("MULTI",),
                    ("HGETALL", self._name("S")),
                    ("HGETALL", self._name("K")),
                    ("EXEC",),
                )
            )
        )
        fields = {_text(name): value for name, value in _pairs(state)}
        found = {_text(name): value for name, value in _pairs(keys)}
        keys_id = found.pop("!", None)
        wraps = {name: value for name, value in found.items() if name.startswith(_WRAP)}
        return State(fields, keys_id, wraps, holds_keys=len(found) > len(wraps))

    async def initialise(self, fields: Mapping[str, bytes]) -> bool:
        """Create the state, only where nothing of ours is."""
        keys = ("S", "K", "KI", "U", "N", "A")
        arguments = (fields["id"], *_flat(fields))
        return bool(await self._write(scripts.INITIALISE, keys, arguments, replicated=True))

    async def mend(self, found: Identities, store_id: bytes, fields: Mapping[str, bytes]) -> bool:
        """Write identities and fields of the state, if the identities are those found."""
        arguments = (*_optional(found[0]), *_optional(found[1]), store_id, *_flat(fields))
        return bool(await self._write(scripts.MEND, ("S", "K", "KI"), arguments, replicated=True))

    async def probe(self) -> None:
        """Write something that needs memory: it is refused when any decision would be."""
        await self._writes.submit(Unit((("SET", self._name("beat"), "1", "PX", _PROBE_LIFE_MS),)))

    async def sealed(self, place: Place) -> AsyncIterator[Sequence[Entry]]:
        """Yield all sealed entries of a place, some at a time."""
        match place:
            case Place.KEYS | Place.NAMES:
                async for pairs in self._scan("HSCAN", "K" if place is Place.KEYS else "N"):
                    found = [Entry(place, _text(name), blob) for name, blob in pairs]
                    yield [one for one in found if one.name != "!" and not one.name.startswith(_WRAP)]
            case Place.OWNERS:
                cursor = None
                while True:
                    rows, cursor = await self.owners(cursor=cursor, limit=_SWEEP_KEYS)
                    yield [Entry(place, row.owner, row.blob) for row in rows]
                    if cursor is None:
                        return
            case Place.TOKENS:
                async for pairs in self._scan("ZSCAN", "RT"):
                    shas = [_text(sha) for sha, _ in pairs]
                    names = [f"R:{sha}" for sha in shas]
                    tokens = await self._lists.submit(self._unit(scripts.TOKENS, names, ()))
                    yield [
                        Entry(place, sha, blob, _text(scope))
                        for sha, (blob, scope) in zip(shas, tokens, strict=True)
                        if blob
                    ]
            case Place.BLOCKS:
                fields = (await self.load()).fields
                yield [Entry(place, name, blob) for name, blob in fields.items() if name.startswith(_BLOCKS)]
            case Place.HOOKS:
                yield [Entry(place, name, blob) for name, blob in await self.hooks(limit=_AUDIT_CHUNK)]

    async def reseal(self, store_id: bytes, entry: Entry, blob: bytes) -> bool:
        """Replace a sealed entry if it is still what it was."""
        hashes = {Place.KEYS: "K", Place.NAMES: "N", Place.BLOCKS: "S"}
        if entry.place in hashes:
            script, keys = scripts.RESEAL_FIELD, (hashes[entry.place],)
            arguments: tuple[Part, ...] = (store_id, entry.name, entry.blob, blob)
        elif entry.place is Place.HOOKS:
            script, keys = scripts.RESEAL_HOOK, ("WQ",)
            arguments = (store_id, entry.name, entry.blob, blob)
        elif entry.place is Place.OWNERS:
            script, keys = scripts.RESEAL_STRING, (f"O:{entry.name}",)
            arguments = (store_id, entry.blob, blob)
        else:
            arguments = (store_id, entry.blob, blob)
            names = ("S", "K", f"R:{entry.name}", f"T:{entry.scope}")
            return bool(await self._write(scripts.RESEAL_TOKEN, names, arguments, replicated=True))
        return bool(await self._write(script, ("S", "K", *keys), arguments, replicated=True))

    async def add_wraps(self, store_id: bytes, wraps: Mapping[str, bytes]) -> bool:
        """Write ``dk:`` fields to both places if the store is still this one."""
        arguments = (store_id, *_flat(wraps))
        return bool(await self._write(scripts.ADD_WRAPS, ("S", "K"), arguments, replicated=True))

    async def drop_wraps(self, store_id: bytes, names: Sequence[str]) -> bool:
        """Delete ``dk:`` fields from both places if the store is still this one."""
        return bool(await self._write(scripts.DROP_WRAPS, ("S", "K"), (store_id, *names), replicated=True))

    # -- reading ---------------------------------------------------------------------------------

    def read(self, want: Want) -> Awaitable[View]:
        """READ: everything that this loop turn wants, in one transaction and one round trip."""
        return self.reads.submit(want)

    async def _read_batch(self, wants: Sequence[Want], until: float) -> Sequence[View]:
        sent_at = asyncio.get_running_loop().time()
        # A tuple's order: a reply's place says whose it is.
        fields = tuple(set(STATE_FIELDS).union(*[want.fields for want in wants]))
        keys = tuple({"!"}.union(*[want.keys for want in wants]))
        strings = tuple(set[str]().union(*[want.strings for want in wants]))
        commands: list[Command] = [
            ("MULTI",),
            ("HMGET", self._name("S"), *fields),
            ("HMGET", self._name("K"), *keys),
            ("TIME",),
            ("EXEC",),
        ]
        if strings:
            commands.insert(3, ("MGET", *(self._tag + name for name in strings)))
        reply = await self._vouched(Unit(tuple(commands)), until)
        if isinstance(reply, Exception):
            raise reply
        found_fields = _present(fields, reply[0])
        found_keys = _present(keys, reply[1])
        found_strings = _present(strings, reply[2]) if strings else {}
        now = _seconds(reply[-1])
        try:
            epoch = int(found_fields.get("epoch", b"0"))
            gh_offset = float(found_fields.get("gh_offset", b"0"))
        except ValueError:
            raise StoreUnavailableError("Redis: epoch or gh_offset is not a number") from None
        if not math.isfinite(gh_offset):
            raise StoreUnavailableError("Redis: gh_offset is not finite")
        view = View(
            sent_at=sent_at,
            now=now,
            store_id=found_fields.get("id"),
            keys_id=found_keys.pop("!", None),
            epoch=epoch,
            gh_offset=gh_offset,
            fields=found_fields,
            keys=found_keys,
            strings=found_strings,
        )
        return [view] * len(wants)

    async def _vouched(self, unit: Unit, until: float) -> Any:  # noqa: ANN401 - any RESP value
        """Have a unit answered by a node that has lately taken a write on this very connection.

        A primary that was cut off from its replicas goes on answering reads until it learns that it is one
        no more. With ``min-replicas-to-write`` it refuses writes before that: then what it reads counts for
        ``BEAT_LIFE_S`` more. The write is a ``DEL`` of nothing: it needs no memory, so a full Redis can still
        be read, and it changes nothing, so it is not replicated.
        """
        loop = asyncio.get_running_loop()
        while True:
            asked_at = loop.time()
            due = self._beat_on != self._read_link.number or asked_at - self._beat_at >= BEAT_EVERY_S
            beat = [Unit((("DEL", self._name("beat")),))] if due else []
            *beats, reply = await self._read_link.talk([*beat, unit], until, repeatable=True)
            if isinstance(reply, Exception):
                return reply
            on = self._read_link.number
            if due and (not isinstance(beats[0], Exception) or await self._whole(beats[0])):
                self._beat_at, self._beat_on = asked_at, on
            elif due and (on != self._beat_on or asked_at - self._beat_at > BEAT_LIFE_S):
                return beats[0]
            elif on != self._beat_on:
                continue  # a new connection, perhaps to another node: it has to show the same
            return reply

    async def _whole(self, refusal: Exception) -> bool:
        """Whether a Redis that refuses writes for its own disk's sake is still in touch with its replicas.

        ``MISCONF`` hides whether ``min-replicas-to-write`` would refuse too; INFO tells, where that is set.
        """
        if "MISCONF" not in str(refusal):
            return False
        found = _info(await self._quietly("INFO", "replication"))
        return "role" in found and found.get("min_slaves_good_slaves") != "0"

    # -- issuing ---------------------------------------------------------------------------------

    async def hand(self, *, store_id: bytes, epoch: int, sha: str, key_id: str, audit: Row) -> str:
        """HAND."""
        return await self._verdict(
            scripts.HAND,
            ("S", "K", f"R:{sha}", f"KT:{key_id}", "A"),
            (store_id, epoch, sha, key_id, self._max_events, *_event(audit)),
            replicated=True,  # a key that is revoked takes along what it was handed, also after a failover
        )

    async def acquire(self, args: AcquireArgs) -> AcquireReply:
        """ACQUIRE."""
        verdict, *rest = await self._write(
            scripts.ACQUIRE,
            (
                "S",
                "K",
                f"T:{args.scope}",
                args.failure,
                f"L:{args.scope}",
                "P:app",
                f"P:o:{args.owner}",
                f"B:{args.budget or ''}",
            ),
            (
                args.store_id,
                args.nonce,
                LEASE_MS,
                *_optional(args.expected_token),
                int(args.budget is not None),
                args.budget_limit,
                *args.floor,
            ),
        )
        match name := _text(verdict):
            case "paused" | "budget":
                return AcquireReply(name, wait_s=rest[0] / 1000)
            case "failed":
                return AcquireReply(name, failure=rest[0])
            case "lead":
                return AcquireReply(name, epoch=int(rest[0]))
            case _:
                return AcquireReply(name)

    async def lease(self, store_id: bytes, name: str, nonce: str) -> tuple[bool, int]:
        """Take a lease if it is free."""
        taken, epoch = await self._write(scripts.LEASE, ("S", "K", f"L:{name}"), (store_id, nonce, LEASE_MS))
        return bool(taken), int(epoch)

    async def renew(self, name: str, nonce: str) -> bool:
        """Keep a lease that is still ours."""
        return bool(await self._write(scripts.RENEW, (f"L:{name}",), (nonce, LEASE_MS)))

    async def release(self, name: str, nonce: str) -> None:
        """Give a lease back if it is ours."""
        await self._write(scripts.DROP, (f"L:{name}",), (nonce,))

    async def commit(self, args: CommitArgs) -> str:
        """COMMIT."""
        return await self._verdict(
            scripts.COMMIT,
            (
                "S",
                "K",
                f"T:{args.scope}",
                f"F:{args.scope}",
                f"F:refresh:{args.scope}",
                f"L:{args.scope}",
                f"R:{args.sha}",
                "RT",
                f"OT:{args.owner}",
                "A",
            ),
            (
                args.store_id,
                args.nonce,
                args.epoch,
                args.blob,
                args.sha,
                args.scope,
                args.owner,
                int(args.expires_at * 1000),
                int(args.gh_offset is not None),
                repr(args.gh_offset or 0.0),
                self._max_events,
                *_event(args.audit),
                len(args.marks),
                *args.marks,
                *args.blocks,
            ),
            replicated=True,
        )

    async def drop_token(self, scope: str, blob: bytes) -> None:
        """Forget the cached token of a scope if it is this one."""
        await self._write(scripts.DROP, (f"T:{scope}",), (blob,))

    async def fail(self, *, scope: str, nonce: str, failure: str, value: bytes, cooldown_s: float) -> bool:
        """FAIL."""
        arguments = (nonce, value, _ms(cooldown_s))
        return bool(await self._write(scripts.FAIL, (f"L:{scope}", failure), arguments))

    async def pause(self, name: str, seconds: float) -> None:
        """PAUSE: only ever longer."""
        await self._write(scripts.PAUSE, (f"P:{name}",), (_ms(min(seconds, MAX_PAUSE_S)),))

    async def paused(self, names: Sequence[str]) -> float:
        """Return the seconds that the longest of some pauses still lasts, 0 for none."""
        wanted = tuple(f"P:{name}" for name in names)
        view = await self.read(Want(strings=wanted))
        found = (view.strings.get(name) for name in wanted)
        return max((float(until) - view.now for until in found if until is not None), default=0.0)

    async def gate(self, name: str, seconds: float) -> bool:
        """Take a gate if it is free."""
        command = ("SET", self._name("G", name), "1", "NX", "PX", _ms(seconds))
        return await self._writes.submit(Unit((command,))) is not None

    async def take(self, name: str, *, chunk: int, limit: int) -> tuple[int, float]:
        """RATE: take up to ``chunk`` of this minute's ``limit``."""
        granted, left_ms = await self._write(scripts.TAKE, (f"B:{name}",), (chunk, limit))
        return granted, left_ms / 1000

    # -- audit -----------------------------------------------------------------------------------

    async def append(self, store_id: bytes, rows: Sequence[Row]) -> bool:
        """Append audit events if the store is still this one."""
        for start in range(0, len(rows), _ROWS_PER_SCRIPT):
            events = [part for row in rows[start : start + _ROWS_PER_SCRIPT] for part in _event(row)]
            if not await self._write(scripts.APPEND, ("S", "K", "A"), (store_id, self._max_events, *events)):
                return False
        return True

    async def audit(self, want: AuditWant) -> AuditPage:
        """Return a page of audit events.

        Raises:
            InvalidRequestError: the cursor is none of ours.
        """
        if want.cursor is not None and not _STREAM_ID.fullmatch(want.cursor):
            raise InvalidRequestError(public="cursor: not one that this list gave.")
        now_ms = int(_seconds(await self._list("TIME")) * 1000)
        oldest = max(0, now_ms - self._retention_ms, math.ceil((want.since or 0.0) * 1000))
        # A stream id is the millisecond and a number within it; a bare millisecond means all of it.
        newest = "+" if want.until is None else str(math.ceil(want.until * 1000) - 1)
        if newest.startswith("-"):
            return AuditPage((), None)
        rows: list[StoredRow] = []
        cursor, looked_at = want.cursor, 0
        while looked_at < want.scan:
            count = min(_AUDIT_CHUNK, want.scan - looked_at)
            after = f"({cursor}" if cursor else None
            if want.ascending:
                # The cursor may have grown older than what is still shown.
                begin = after if after and cursor and int(cursor.partition("-")[0]) >= oldest else str(oldest)
                command: Command = ("XRANGE", self._name("A"), begin, newest, "COUNT", count)
            else:
                command = ("XREVRANGE", self._name("A"), after or newest, str(oldest), "COUNT", count)
            entries = await self._list(*command)
            for place, (entry_id, parts) in enumerate(entries):
                looked_at += 1
                cursor = _text(entry_id)
                row = _matching(want, cursor, dict(_pairs(parts)))
                if row is not None:
                    rows.append(row)
                if len(rows) == want.limit:
                    more = place + 1 < len(entries) or len(entries) == count
                    return AuditPage(tuple(rows), cursor if more else None)
            if len(entries) < count:
                return AuditPage(tuple(rows), None)
        return AuditPage(tuple(rows), cursor)

    # -- keys ------------------------------------------------------------------------------------

    async def touch(self, used: Mapping[str, int]) -> None:
        """Write last-use times; older values never replace newer ones, unknown keys are left out."""
        items = tuple(used.items())
        for start in range(0, len(items), _ROWS_PER_SCRIPT):
            arguments = [part for item in items[start : start + _ROWS_PER_SCRIPT] for part in item]
            await self._write(scripts.TOUCH, ("K", "U"), arguments)

    async def write_key(self, args: KeyWriteArgs) -> EndReply:
        """KEY WRITE; with ``kill`` also the end of what was handed to the key."""
        kills = args.kill is not None
        unit = self._unit(
            scripts.WRITE_KEY,
            ("S", "K", "KI", "KP", "A", f"KT:{args.key_id}", "X", "XE", "XS"),
            (
                args.store_id,
                args.key_id,
                *_optional(args.expected),
                args.blob,
                int(args.purge_at is not None),
                int((args.purge_at or 0.0) * 1000),
                self._max_events,
                *_event(args.audit),
                *_optional(args.kill),
                *args.marks,
            ),
            replicated=True,
        )
        return _end_reply(await (self._ends if kills else self._writes).submit(unit))

    async def list_keys(self, *, cursor: str | None, limit: int) -> KeysPage:
        """Return a page of keys in order of creation.

        Raises:
            InvalidRequestError: the cursor is none of ours.
        """
        if cursor is not None and not _SEQUENCE.fullmatch(cursor):
            raise InvalidRequestError(public="cursor: not one that this list gave.")
        rows = await self._lists.submit(
            self._unit(scripts.LIST_KEYS, ("KI", "K", "U"), (cursor or "0", limit + 1))
        )
        page = rows[:limit]
        return KeysPage(
            tuple(
                (_text(key_id), blob, None if used is None else int(used))
                for _, key_id, blob, used in page
                if blob is not None
            ),
            _text(page[-1][0]) if len(rows) > limit else None,
        )

    async def last_used(self, key_id: str) -> int | None:
        """Return the last-use time of a key, as it was given to ``touch``."""
        used = await self._list("HGET", self._name("U"), key_id)
        return None if used is None else int(used)

    # -- owners ----------------------------------------------------------------------------------

    async def pin(self, owner: str) -> bytes | None:
        """Return the pinned account of an owner, sealed."""
        found = await self._list("HGET", self._name("N"), owner)
        return None if found is None else bytes(found)

    async def put_owner(self, args: OwnerArgs) -> str:
        """OWNER."""
        return await self._verdict(
            scripts.PUT_OWNER,
            ("S", "K", f"L:{args.lease}", "N", f"O:{args.owner}", "I", "OI"),
            (
                args.store_id,
                args.nonce,
                args.epoch,
                args.owner,
                args.installation_id,
                *_optional(args.blob),
                _ms(OWNER_LIFE_S),
                *_optional(args.expected_pin),
                *_optional(args.pin),
                *args.marks,
            ),
            replicated=True,
        )

    async def accept(
        self,
        *,
        store_id: bytes,
        owner: str,
        expected_pin: bytes,
        pin: bytes,
        audit: Row,
        marks: tuple[str, ...] = (),
    ) -> EndReply:
        """Replace an owner's pin, forget its record, end what was issued under the old one."""
        reply = await self._write(
            scripts.ACCEPT,
            ("S", "K", "N", f"O:{owner}", "I", "OI", "A"),
            (store_id, owner, expected_pin, pin, self._max_events, *_event(audit), *marks),
            replicated=True,
        )
        return _end_reply(reply)

    async def owner_of(self, installation_id: int) -> str | None:
        """Return the owner whose record has that installation id."""
        found = await self._lists.submit(
            self._unit(scripts.OWNER_OF, ("I",), (self._tag, str(installation_id)))
        )
        return None if found is None else _text(found)

    async def owners(self, *, cursor: str | None, limit: int) -> tuple[tuple[OwnerRow, ...], str | None]:
        """Return owners in alphabetical order, and the cursor to go on from.

        Raises:
            InvalidRequestError: the cursor is none of ours.
        """
        if cursor is not None and not _OWNER.fullmatch(cursor):
            raise InvalidRequestError(public="cursor: not one that this list gave.")
        found = await self._lists.submit(
            self._unit(scripts.LIST_OWNERS, ("OI",), (self._tag, cursor or "", limit + 1))
        )
        rows = tuple(OwnerRow(_text(owner), blob, int(live)) for owner, blob, live in found[:limit])
        return rows, rows[-1].owner if len(found) > limit else None

    # -- ending ----------------------------------------------------------------------------------

    async def end(self, args: EndArgs) -> EndReply:
        """END."""
        what, _, name = args.reach.partition(":")
        kind, enumerated = {
            "": ("", "RT"),
            "all": ("index", "RT"),
            "o": ("index", f"OT:{name}"),
            "t": ("token", f"R:{name}"),
        }[what]
        event = ("",) * _EVENT_PARTS if args.audit is None else _event(args.audit)
        reply = await self._ends.submit(
            self._unit(
                scripts.END,
                ("S", "K", "A", "X", "XE", "XS", enumerated),
                (
                    args.store_id,
                    args.must_exist,
                    args.wide,
                    kind,
                    name,
                    args.only,
                    args.note,
                    self._max_events,
                    int(args.audit is not None),
                    *event,
                    len(args.marks),
                    *args.marks,
                    *(part for field, value in args.blocks.items() for part in (field, *_optional(value))),
                ),
                replicated=True,
            )
        )
        return _end_reply(reply)

    async def outbox(self, shas: Sequence[str] | None, *, limit: int) -> tuple[OutboxEntry, ...]:
        """Return entries of the outbox, oldest expiry first."""
        rows = await self._lists.submit(
            self._unit(
                scripts.OUTBOX,
                ("X", "XE", "XS"),
                (self._tag, limit, int(shas is not None), *(shas or ())),
            )
        )
        found: list[OutboxEntry] = []
        for name, note, blob, owner, scope, expires_ms in rows:
            sha, _, only = _text(name).partition("|")
            expires_at = float(expires_ms) / 1000
            found.append(OutboxEntry(sha, only, note, _text(owner), _text(scope), blob, expires_at))
        return tuple(found)

    async def settle(self, store_id: bytes, done: Sequence[tuple[str, str, Row | None]]) -> int:
        """Take entries out of the outbox, each once, with its audit event if it was revoked."""
        count = 0
        for start in range(0, len(done), _ROWS_PER_SCRIPT):
            part = done[start : start + _ROWS_PER_SCRIPT]
            arguments: list[Part] = [store_id, self._max_events]
            for sha, only, row in part:
                event = ("",) * _EVENT_PARTS if row is None else _event(row)
                arguments += (sha, only, int(row is not None), *event)
            keys = ("S", "K", "A", "X", "XE", "XS", "RT", *(f"R:{sha}" for sha, _, _ in part))
            count += int(await self._write(scripts.SETTLE, keys, arguments, replicated=True))
        return count

    # -- webhooks --------------------------------------------------------------------------------

    async def hook(self, store_id: bytes, *, body_sha: str, guid: str, blob: bytes) -> str:
        """HOOK: dedupe and queue in one step."""
        return await self._verdict(
            scripts.HOOK,
            ("S", "K", f"W:{body_sha}", f"WD:{guid}", "WQ"),
            (store_id, _ms(HOOK_LIFE_S), blob),
            # GitHub does not send again what was answered with 2xx.
            replicated=True,
        )

    async def hooks(self, *, limit: int) -> tuple[tuple[str, bytes], ...]:
        """Return queued deliveries, oldest first."""
        entries = await self._list("XRANGE", self._name("WQ"), "-", "+", "COUNT", limit)
        return tuple((_text(place), parts[1]) for place, parts in entries)

    async def hooks_done(self, places: Sequence[str]) -> None:
        """Take deliveries out of the queue."""
        if places:
            await self._list("XDEL", self._name("WQ"), *places)

    # -- keeping house ---------------------------------------------------------------------------

    async def counts(self) -> Counts:
        """Return how much there is."""
        found = await self._lists.submit(self._unit(scripts.COUNTS, ("RT", "XE", "WQ"), ()))
        return Counts(*(int(one) for one in found))

    async def sweep(self) -> None:
        """Delete what has no life of its own in Redis: audit, keys, marks, entries of indexes and outbox."""
        keys = ("KP", "K", "U", "KI", "RT", "A")
        arguments = (_SWEEP_KEYS, self._retention_ms, self._max_events)
        while await self._lists.submit(self._unit(scripts.SWEEP, keys, arguments)) == _SWEEP_KEYS:
            pass
        async for pairs in self._scan("HSCAN", "I"):
            await self._sweep_owners([(_text(number), _text(owner)) for number, owner in pairs])
        async for pairs in self._scan("ZSCAN", "OI"):
            members = [_text(member).partition(" ") for member, _ in pairs]
            await self._sweep_owners([(number, owner) for owner, _, number in members])
        async for pairs in self._scan("ZSCAN", "XE"):
            names = [_text(name) for name, _ in pairs]
            tokens = (f"R:{name.partition('|')[0]}" for name in names)
            await self._lists.submit(self._unit(scripts.SWEEP_OUTBOX, ("X", "XE", "XS", *tokens), names))
        oldest = _seconds(await self._list("TIME")) - MARK_LIFE_S
        async for pairs in self._scan("HSCAN", "S"):
            marks = [(name, value) for name, value in pairs if _older(_text(name), value, oldest)]
            if marks:
                values: list[Part] = [int(MARK_LIFE_S), *(part for mark in marks for part in mark)]
                await self._lists.submit(self._unit(scripts.SWEEP_MARKS, ("S",), values))

    async def _sweep_owners(self, pairs: Sequence[tuple[str, str]]) -> None:
        keys = ("I", "OI", *(f"O:{owner}" for _, owner in pairs))
        items = [part for pair in pairs for part in pair]
        await self._lists.submit(self._unit(scripts.SWEEP_INSTALLATIONS, keys, items))

    async def _scan(self, command: str, key: str) -> AsyncIterator[list[tuple[bytes, bytes]]]:
        """Yield the pairs of a hash or sorted set, some hundreds at a time; some may come twice."""
        cursor = b"0"
        while True:
            cursor, flat = await self._list(command, self._name(key), cursor, "COUNT", _SWEEP_KEYS)
            pairs = list(_pairs(flat))
            # A small one comes whole, whatever the count.
            for start in range(0, len(pairs), _SWEEP_KEYS):
                yield pairs[start : start + _SWEEP_KEYS]
            if cursor == b"0":
                return

    async def warnings(self) -> list[str]:
        """Return what an operator should know; nothing where a managed Redis hides its configuration."""
        policy = await self._setting("maxmemory-policy")
        if policy is None:
            policy = _info(await self._quietly("INFO", "memory")).get("maxmemory_policy")
        found: list[str] = []
        if policy not in {None, "noeviction"}:
            found.append(
                f"Redis may evict keys and revocations: maxmemory-policy is {policy}, set it to noeviction."
            )
        appended, saved = await self._setting("appendonly"), await self._setting("save")
        if appended == "no" and saved == "":
            found.append("Redis keeps nothing over a restart: switch on appendonly (or at least save).")
        return found

    async def _quietly(self, *command: Part) -> Any:  # noqa: ANN401 - any RESP value
        """Return a reply, None where Redis refuses to say."""
        try:
            return await self._list(*command)
        except StoreUnavailableError:
            return None

    async def _setting(self, name: str) -> str | None:
        reply = await self._quietly("CONFIG", "GET", name)
        return _text(reply[1]) if reply else None


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _texts(values: Sequence[bytes]) -> tuple[str, ...]:
    return tuple(value.decode() for value in values)


def _end_reply(reply: Sequence[Any]) -> EndReply:
    verdict, *rest = reply
    epoch = int(rest[0]) if rest else 0
    return EndReply(_text(verdict), epoch, _texts(rest[1]) if len(rest) > 1 else ())


def _seconds(time: Sequence[bytes]) -> float:
    return int(time[0]) + int(time[1]) / 1_000_000


def _ms(seconds: float) -> int:
    """Return whole milliseconds, at least one: Redis refuses a life of 0."""
    return max(1, round(seconds * 1000))


def _optional(value: bytes | None) -> tuple[int, bytes]:
    return (0, b"") if value is None else (1, value)


def _flat(values: Mapping[str, bytes]) -> list[Part]:
    return [part for item in values.items() for part in item]


def _pairs(flat: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _present(names: Sequence[str], values: Sequence[bytes | None]) -> dict[str, bytes]:
    return {name: value for name, value in zip(names, values, strict=True) if value is not None}


def _event(row: Row) -> tuple[str, ...]:
    repositories = f"|{'|'.join(row.repositories)}|" if row.repositories else ""
    return (row.event, row.key_id, row.owner, repositories, row.request_id, row.body)


def _older(name: str, value: bytes, oldest: float) -> bool:
    """Whether a field of the state is a mark, and one that was set before ``oldest``."""
    found = _MARK.fullmatch(value) if name.startswith(_MARKS) else None
    return found is not None and int(found[1]) < oldest


def _matching(want: AuditWant, entry_id: str, parts: Mapping[bytes, bytes]) -> StoredRow | None:
    for wanted, name in ((want.event, b"e"), (want.key_id, b"k"), (want.request_id, b"q")):
        if wanted is not None and parts[name] != wanted.encode():
            return None
    if want.repository is not None and f"|{want.repository}|".encode() not in parts[b"r"]:
        return None
    time = int(entry_id.partition("-")[0]) / 1000
    if want.until is not None and time >= want.until:
        return None  # a cursor from another list may lie behind the end of this one
    return StoredRow(entry_id, time, parts[b"b"].decode())


def _info(reply: bytes | None) -> dict[str, str]:
    lines = (line.partition(":") for line in _text(reply or b"").splitlines())
    return {name: value for name, _, value in lines}
