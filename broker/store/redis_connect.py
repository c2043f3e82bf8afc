"""Connections to the one Redis node that holds the store; finds it, and finds it again. Does I/O.

Built on redis-py's plain ``Connection``: no pool, no hidden retry, and it is always known whether a
reply is still owed. Whoever calls bounds the time (``Batcher`` cancels); a cancelled or failed
conversation closes its connection, so that no reply ever reaches another caller.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

from hiredis import pack_command
from redis.asyncio.connection import Connection, RedisSSLContext, SSLConnection
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from broker.errors import StoreUnavailableError
from broker.store.redis_url import Address, RedisTarget

_log = logging.getLogger(__name__)

PAUSE_S: Final = 0.1
"""Between two attempts to connect, for all connections of the process: a dead Redis costs little."""

_AGAIN_S: Final = 0.05
_WAIT_MS: Final = 1000
_WAIT_MARGIN_MS: Final = 200
"""Redis ends a WAIT up to 100 ms late; the caller shall still learn that it was the replicas."""
_MAX_SEEDS: Final = 32
_MAX_DETAIL: Final = 200
_ROLE_PRIMARY: Final = b"master"

Part = bytes | str | int | float
Command = tuple[Part, ...]


class Wire(Protocol):
    """What is used of redis-py's ``Connection``, typed."""

    async def connect(self) -> None:
        """Connect, authenticate, select the database."""

    async def disconnect(self, nowait: bool = False) -> None:  # noqa: FBT001, FBT002 - as redis-py has it
        """Close."""

    async def can_read(self) -> bool:
        """Return whether there is an end of file or a reply nobody asked for."""

    def pack_commands(self, commands: Sequence[Command]) -> list[bytes]:
        """Return commands as bytes."""

    async def send_packed_command(self, command: Sequence[bytes]) -> None:
        """Send bytes."""

    async def read_response(self) -> Any:  # noqa: ANN401 - any RESP value
        """Return the next reply, or raise the error that it is."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What succeeds or is refused as one: a command, or ``MULTI … EXEC``. Its reply is the last one.

    Attributes:
        in_full: what to send instead after ``NOSCRIPT``.
        replicated: whether ``wait`` replicas have to acknowledge it.
    """

    commands: tuple[Command, ...]
    in_full: tuple[Command, ...] | None = None
    replicated: bool = False


class Primary:
    """Knows where the primary is; shared by the connections of a backend.

    Args:
        target: from the URL.
        connect_timeout_s: for one attempt.
    """

    def __init__(self, target: RedisTarget, *, connect_timeout_s: float) -> None:
        self.target = target
        self.generation = 0
        self._timeout_s = connect_timeout_s
        self._seeds = list(target.addresses)
        self._slot = key_slot(f"{{ghtb:{target.prefix}}}".encode())
        self._address: Address | None = None
        self._last: Address | None = None
        self._lock = asyncio.Lock()
        self._quiet_until = 0.0
        self._reason = ""
        self._told_down = False
        self._told_up = False
        self._tls: RedisSSLContext | None = None

    def forget(self) -> None:
        """The connection broke: look the primary up before the next one."""
        self._address = None
        self._told_up = False

    def moved(self, address: Address | None) -> None:
        """The node is the wrong one: every connection to it has to go; ``address`` is known to be right."""
        self._address = address
        self._told_up = False
        self.generation += 1

    async def dial(self) -> tuple[Wire, Address, int]:
        """Return a connection to the primary. One attempt at a time, and a pause after each that failed.

        Raises:
            StoreUnavailableError: it failed, or failed a moment ago.
        """
        loop = asyncio.get_running_loop()
        async with self._lock:
            if loop.time() < self._quiet_until:
                raise StoreUnavailableError(self._reason)
            generation = self.generation
            try:
                self._address = self._address or await self._find()
                address = self._address
                if self._last not in {None, address}:
                    # The primary is another one now; nobody goes on talking to the old one.
                    self.generation = generation = generation + 1
                self._last = address
                wire = await self._open(address, self.target.username, self._password(), self.target.database)
                await self._check_role(wire)
            except (RedisError, OSError) as error:
                raise self._failed(loop, describe(error)) from error
            except asyncio.CancelledError:
                self._failed(loop, "no answer in time")
                raise
            if not self._told_up:
                self._told_up = True
                _log.info("connected to Redis %s:%s", *address)
            self._told_down = False
            return wire, address, generation

    def _failed(self, loop: asyncio.AbstractEventLoop, why: str) -> StoreUnavailableError:
        self.forget()
        self._quiet_until = loop.time() + PAUSE_S
        self._reason = f"Redis {self.target.shown}: {why}"
        if not self._told_down:
            self._told_down = True
            _log.warning("no connection to Redis %s: %s", self.target.shown, why)
        return StoreUnavailableError(self._reason)

    async def at(self, address: Address) -> Wire:
        """Return a connection to another node, for one ``ASK``."""
        return await self._open(address, self.target.username, self._password(), self.target.database)

    def _password(self) -> str | None:
        return self.target.password.reveal() if self.target.password else None

    async def _open(
        self, address: Address, username: str | None, password: str | None, database: int
    ) -> Wire:
        common: dict[str, Any] = {
            "host": address[0],
            "port": address[1],
            "db": database,
            "username": username,
            "password": password,
            # RESP2 has no pushes: each reply answers a command.
            "protocol": 2,
            "driver_info": None,
            "health_check_interval": 0,
            "decode_responses": False,
            "encoding_errors": "backslashreplace",
            "socket_connect_timeout": self._timeout_s,
            # Each conversation is bounded as a whole by its caller.
            "socket_timeout": None,
        }
        if self.target.tls is None:
            wire = cast("Wire", Connection(**common))
        else:
            secured = SSLConnection(**common, **self.target.tls)
            # Reading the system's certificates costs 20 ms of the loop: once, not per connection.
            self._tls = self._tls or secured.ssl_context
            secured.ssl_context = self._tls
            wire = cast("Wire", secured)
        try:
            await wire.connect()
        except BaseException:
            await wire.disconnect(nowait=True)
            raise
        return wire

    async def _check_role(self, wire: Wire) -> None:
        """Nothing is ever read from a replica; where an ACL forbids ``ROLE``, writing will tell."""
        try:
            role = await ask(wire, "ROLE")
        except ResponseError:
            return
        except BaseException:
            await wire.disconnect(nowait=True)
            raise
        if not isinstance(role, list) or role[0] != _ROLE_PRIMARY:
            await wire.disconnect(nowait=True)
            raise ReadOnlyError("not a primary but a replica or Sentinel")

    async def _find(self) -> Address:
        if self.target.kind == "single":
            return self.target.addresses[0]
        look: Callable[[Address], Awaitable[Address]]
        look = self._ask_sentinel if self.target.kind == "sentinel" else self._ask_node
        failure: Exception = OSError("nobody to ask")
        for seed in tuple(self._seeds):
            try:
                # A seed that hangs must leave time for the next.
                async with asyncio.timeout(self._timeout_s / 4):
                    found = await look(seed)
            except (RedisError, OSError, ValueError, TypeError, IndexError) as error:
                failure = error
                # Ask it last from now on, also if the caller's deadline ends this round.
                self._seeds.remove(seed)
                self._seeds.append(seed)
            else:
                return found
        raise OSError(describe(failure)) from failure

    async def _ask_sentinel(self, seed: Address) -> Address:
        command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.target.service)
        own = self.target.sentinel_password
        try:
            # Without a password first: sentinels often have none and shall not learn the primary's.
            reply = await self._ask_seed(
                seed, command, self.target.sentinel_username, own.reveal() if own else None
            )
        except AuthenticationError:
            if own:
                raise
            reply = await self._ask_seed(seed, command, self.target.username, self._password())
        if not reply:
            raise OSError("the sentinels do not know that service")
        return reply[0].decode(), int(reply[1])

    async def _ask_node(self, seed: Address) -> Address:
        slots = await self._ask_seed(seed, ("CLUSTER", "SLOTS"), self.target.username, self._password())
        owner: Address | None = None
        for first, last, *nodes in slots:
            for node in nodes:
                self._learn((_host(node[0], seed), int(node[1])))
            if first <= self._slot <= last and nodes:
                owner = (_host(nodes[0][0], seed), int(nodes[0][1]))
        if owner is None:
            raise OSError("no node serves our slot")
        return owner

    def _learn(self, address: Address) -> None:
        if address not in self._seeds and len(self._seeds) < _MAX_SEEDS:
            self._seeds.append(address)

    async def _ask_seed(
        self, seed: Address, command: Command, username: str | None, password: str | None
    ) -> Any:  # noqa: ANN401 - any RESP value
        wire = await self._open(seed, username, password, 0)
        try:
            return await ask(wire, *command)
        finally:
            await wire.disconnect(nowait=True)


class Link:
    """One connection; one conversation at a time is its caller's duty (a ``Batcher`` sees to it)."""

    def __init__(self, primary: Primary) -> None:
        self._primary = primary
        self.number = 0
        """Which connection this is: grows with each new one."""
        self._wire: Wire | None = None
        self._address: Address = ("", 0)
        self._generation = -1

    async def connect(self) -> None:
        """Be connected to the primary, or raise ``StoreUnavailableError``."""
        await self._connected()

    async def close(self) -> None:
        """Close; idempotent."""
        wire, self._wire = self._wire, None
        if wire is not None:
            with contextlib.suppress(RedisError, OSError):
                await wire.disconnect()

    async def talk(self, units: Sequence[Unit], until: float, *, repeatable: bool) -> list[Any]:
        """Send units in one go; return for each its reply, or the error that it alone met.

        Args:
            units: what to send.
            until: loop time at which the caller gives up (and cancels).
            repeatable: whether it does no harm to send them again after the connection broke.
        """
        replies: list[Any] = [None] * len(units)
        pending = dict(enumerate(units))
        lost = moves = 0
        while pending:
            try:
                await self._connected()
                got = await self._converse(tuple(pending.values()), until)
            except StoreUnavailableError as error:
                return self._give_up(replies, pending, error)
            except (RedisError, OSError) as error:
                self._primary.forget()
                _log.warning("lost Redis %s:%s: %s", *self._address, type(error).__name__)
                lost += 1
                if not repeatable or lost > 1:
                    return self._give_up(replies, pending, StoreUnavailableError(self._detail(error)))
                continue
            moved, again = await self._sort(replies, pending, got, until)
            moves += moved
            # Nodes that send us back and forth are not to be asked in a tight loop.
            if again or moves > 1:
                await asyncio.sleep(_AGAIN_S)
        return replies

    async def _sort(
        self, replies: list[Any], pending: dict[int, Unit], got: Sequence[Any], until: float
    ) -> tuple[bool, bool]:
        """Move what is answered out of ``pending``; return whether to ask elsewhere, and whether later."""
        moved = again = False
        for index, reply in zip(tuple(pending), got, strict=True):
            unit = pending[index]
            answer = await self._elsewhere(unit, reply, until) if isinstance(reply, AskError) else reply
            if isinstance(answer, NoScriptError) and unit.in_full is not None:
                pending[index] = Unit(unit.in_full, replicated=unit.replicated)
            elif self._refused(answer) and asyncio.get_running_loop().time() + _AGAIN_S < until:
                moved = moved or isinstance(answer, MovedError)
                again = again or not isinstance(answer, MovedError)
            else:
                failed = isinstance(answer, RedisError)
                replies[index] = StoreUnavailableError(self._detail(answer)) if failed else answer
                del pending[index]
        return moved, again

    @staticmethod
    def _give_up(replies: list[Any], pending: Mapping[int, Unit], error: StoreUnavailableError) -> list[Any]:
        """Those that were answered keep their answer."""
        for index in pending:
            replies[index] = error
        return replies

    def _refused(self, reply: object) -> bool:
        """Whether a node did nothing and another (or the same, later) will."""
        if isinstance(reply, MovedError):
            self._primary.moved((reply.host or self._address[0], reply.port))
        elif isinstance(reply, (ClusterDownError, ReadOnlyError, MasterDownError)):
            self._primary.moved(None)
        return isinstance(
            reply, (MovedError, TryAgainError, ClusterDownError, ReadOnlyError, MasterDownError)
        )

    def _detail(self, error: Exception) -> str:
        return f"Redis {self._address[0]}:{self._address[1]}: {describe(error)}"

    async def _connected(self) -> None:
        if self._wire is not None:
            # An end of file that arrived while we were idle, or a reply that nobody asked for: nothing
            # has been sent yet, so a new connection is safe for every verb.
            stale = self._generation != self._primary.generation
            if not stale:
                try:
                    stale = await self._wire.can_read()
                except (RedisError, OSError):
                    stale = True
            if stale:
                await self._drop()
        if self._wire is None:
            self._wire, self._address, self._generation = await self._primary.dial()
            self.number += 1

    async def _drop(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            with contextlib.suppress(RedisError, OSError):
                await wire.disconnect(nowait=True)

    async def _converse(self, units: Sequence[Unit], until: float) -> list[Any]:
        wire = self._wire
        if wire is None:
            raise OSError("not connected")
        try:
            return await self._exchange(wire, units, until)
        except BaseException:
            # Replies are still owed: they must not meet the next caller.
            await self._drop()
            raise

    async def _exchange(self, wire: Wire, units: Sequence[Unit], until: float) -> list[Any]:
        replicas = self._primary.target.wait
        confirmed = replicas > 0 and any(unit.replicated for unit in units)
        commands = [command for unit in units for command in unit.commands]
        if confirmed:
            # WAIT counts the writes of its own connection, so it goes along, outside of any MULTI.
            left_ms = int((until - asyncio.get_running_loop().time()) * 1000) - _WAIT_MARGIN_MS
            commands.append(("WAIT", replicas, max(1, min(_WAIT_MS, left_ms))))
        # In C; what redis-py's asyncio connections do in Python took longer than all else of a batch.
        packed: list[bytes] = [pack_command(command) for command in commands]  # type: ignore[arg-type]
        await wire.send_packed_command([b"".join(packed)])
        got = [await _unit_reply(wire, unit) for unit in units]
        if not confirmed:
            return got
        reached = await _reply(wire)
        if isinstance(reached, int) and reached >= replicas:
            return got
        short = StoreUnavailableError(f"{replicas} replicas must confirm a decision; WAIT said {reached}")
        return [
            short if unit.replicated and not isinstance(reply, Exception) else reply
            for unit, reply in zip(units, got, strict=True)
        ]

    async def _elsewhere(self, unit: Unit, asked: AskError, until: float) -> Any:  # noqa: ANN401 - any RESP value
        """Our slot is on its way to another node: ask there, this once."""
        try:
            wire = await self._primary.at((asked.host or self._address[0], asked.port))
            try:
                asking = Unit((("ASKING",), *unit.commands), replicated=unit.replicated)
                return (await self._exchange(wire, [asking], until))[0]
            finally:
                await wire.disconnect(nowait=True)
        except (RedisError, OSError) as error:
            return StoreUnavailableError(self._detail(error))


def describe(error: object) -> str:
    """Return an error's kind and text, without arguments of commands that Redis may quote."""
    text = str(error).partition(", with args")[0]
    return f"{type(error).__name__}: {text}"[:_MAX_DETAIL]


def _host(host: bytes | None, seed: Address) -> str:
    """Return a node's host; an empty one means "the host that you asked"."""
    return host.decode() if host else seed[0]


async def ask(wire: Wire, *command: Part) -> Any:  # noqa: ANN401 - any RESP value
    """Send one command, return its reply or raise its error."""
    await wire.send_packed_command(wire.pack_commands([command]))
    return await wire.read_response()


async def _reply(wire: Wire) -> Any:  # noqa: ANN401 - any RESP value
    try:
        return await wire.read_response()
    except ResponseError as error:
        return error


async def _unit_reply(wire: Wire, unit: Unit) -> Any:  # noqa: ANN401 - any RESP value
    """Read all replies of a unit; the first error stands for the unit."""
    error: Exception | None = None
    last: Any = None
    for _ in unit.commands:
        last = await _reply(wire)
        if isinstance(last, list):
            error = error or next((part for part in last if isinstance(part, Exception)), None)
        elif isinstance(last, Exception):
            error = error or last
    return error or last
