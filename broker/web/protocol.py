"""The HTTP/1.1 protocol under uvicorn, with the bounds that it does not have; reads and writes the socket.

uvicorn's httptools parser collects headers without a limit, waits for ever for the end of a head, and
for ever for a client that does not read its answer. A connection that waits for its client holds room
that others need: each such wait has an end here, and near the limit of connections whoever has kept
us waiting longest goes first, so that idle or slow connections never crowd out a probe or a caller.

A short answer is written whole, once, and a connection that is kept needs no timer of its own for each
answer: both took longer than parsing the request.
"""

import asyncio
import re
import resource
from collections.abc import Awaitable
from functools import lru_cache
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from broker.web.wire import WHOLE_BODY

MAX_HEAD_BYTES: Final = 32 * 1024
"""Of a request line with all its headers; a little more may arrive with the read that goes beyond."""

MAX_HEADERS: Final = 100
"""Short headers take forty times the room of their bytes."""

HEAD_WITHIN_S: Final = 10.0
"""From the accept, or from the first byte after an answer, to the end of the head."""

READ_WITHIN_S: Final = 20.0
"""How long a client may leave an answer unread."""

MAX_AT_HAND: Final = 4096
"""A body of so many bytes, which came with its head, is at hand without waiting for it."""

SPARE: Final = 128
"""So many connections below uvicorn's limit, those that wait for their clients begin to be closed."""


_NAME: Final = re.compile(rb"[a-z0-9-]+")
_CONTROL: Final = bytes((*range(9), *range(10, 32), 127))
_WITHOUT_BODY: Final = frozenset({204, 304})

MAX_CONNECTIONS: Final = 4096
_OTHER_FILES: Final = 256
"""Descriptors that are left for GitHub, the store and all else."""


def connection_limit() -> int:
    """Return how many connections are taken at once, after asking for that many files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + _OTHER_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(_OTHER_FILES, wanted - _OTHER_FILES)


class TooManyHeadersError(Exception):
    """The parser turns it into a 400."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection; see the module."""

    _waiting: dict["BoundedProtocol", None]
    """Connections of this server that wait for their clients, longest first."""

    _idle_since = 0.0
    _head_bytes = 0
    _in_head = True
    _answered = True
    _head_timer: asyncio.TimerHandle | None = None
    _answer_timer: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - whatever uvicorn gives
        super().__init__(*args, **kwargs)
        self._app: ASGIApp = self.app
        self.app = self._answered_whole

    def _answered_whole(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        cycle: RequestResponseCycle = send.__self__  # type: ignore[attr-defined]
        if 0 < len(cycle.body) <= MAX_AT_HAND and not cycle.more_body:
            scope["extensions"] = {WHOLE_BODY: bytes(cycle.body)}
        return self._app(scope, receive, _Answer(cycle).send)

    # -- the transport's callbacks ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._waiting = vars(self.server_state).setdefault("waiting", {})
        self._wait()
        self._expect_head()
        if self.limit_concurrency is not None:
            for _ in range(
                len(self.connections) - self.limit_concurrency + min(SPARE, self.limit_concurrency // 4)
            ):
                longest = next(iter(self._waiting), None)
                if longest is None or longest is self:
                    break
                longest._drop()  # noqa: SLF001 - one of our own

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._waiting.pop(self, None)
        self._head_timer = _cancel(self._head_timer)
        self._answer_timer = _cancel(self._answer_timer)
        # uvicorn leaves it after a reset, and all that it holds with it.
        self.timeout_keep_alive_task = _cancel(self.timeout_keep_alive_task)
        self.app = self._app  # else it holds itself, until the garbage is looked through
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what arrived."""
        cycle: RequestResponseCycle | None = self.cycle
        held = len(cycle.body) if cycle else 0
        super().data_received(data)
        if self._answered or self._in_head:
            # Only now: most heads come whole, and a timer costs. uvicorn has just forgotten its own.
            self._expect_head()
        if self._in_head or (
            # Neither head nor body: the trailers of a chunked body, or the lengths of its chunks.
            cycle
            and cycle is self.cycle
            and cycle.more_body
            and not cycle.response_complete
            and len(cycle.body) == held
        ):
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._drop()
        if self.transport.is_closing():
            self._expect_reading()

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        self._wait()
        self._expect_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        self._answer_timer = _cancel(self._answer_timer)
        if not self._answered:
            self._waiting.pop(self, None)

    # -- the parser's callbacks ------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A head begins."""
        self._head_bytes = 0
        self._in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or a trailer of a chunked body; does itself what uvicorn's would, as there are many.

        Raises:
            TooManyHeadersError: it is one too many.
        """
        headers = self.headers
        if len(headers) >= MAX_HEADERS:
            raise TooManyHeadersError
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        headers.append((name, value))

    def on_headers_complete(self) -> None:
        """A head is whole; what follows is bounded by who reads it."""
        self._in_head = self._answered = False
        if self._head_timer is not None:
            self._head_timer = _cancel(self._head_timer)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """A request is whole: from now on its client waits for us."""
        self._waiting.pop(self, None)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer is written, perhaps not sent."""
        if self.pipeline and not self.transport.is_closing():  # the next request is in work at once
            self._answered = False
            super().on_response_complete()
            return
        self._answered = True
        self.server_state.total_requests += 1
        self._wait()
        if self.cycle.body:
            self.cycle.body.clear()  # what of the request nobody has read
            self.cycle.scope.pop("extensions", None)
        if self.transport.is_closing():
            self._expect_reading()
            return
        self.flow.resume_reading()
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._expect_more(self.timeout_keep_alive)

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection if it has been idle all the time."""
        self.timeout_keep_alive_task = None
        if not self._answered or self._head_timer is not None:
            return  # in use; the next answer looks after it again
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._expect_more(left)
            return
        super().timeout_keep_alive_handler()
        self._expect_reading()

    def _unset_keepalive_if_required(self) -> None:
        """Keep the timer: to look again later costs nothing, to unset and set it costs each request."""

    # -- what is waited for ----------------------------------------------------------------------

    def _wait(self) -> None:
        """Note that it is the client's turn."""
        self._waiting.pop(self, None)
        self._waiting[self] = None

    def _expect_more(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _expect_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_WITHIN_S, self._drop)

    def _expect_reading(self) -> None:
        """Cut the connection if what was written is still not read by then: closing waits for it for ever."""
        if self._answer_timer is None:
            self._answer_timer = self.loop.call_later(READ_WITHIN_S, self._drop)

    def _drop(self) -> None:
        self._waiting.pop(self, None)
        self.connections.discard(self)  # at once, so that a burst of accepts counts right
        self.transport.abort()


class _Answer:
    """Sends an answer as uvicorn would; one that comes whole in one piece, with its head in one write.

    Whatever is unusual about an answer is left to uvicorn, which also says what is wrong with it.
    """

    __slots__ = ("_cycle", "_start")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._start: Message | None = None

    async def send(self, message: Message) -> None:
        """Take a message of the app: a head is kept until its body comes."""
        start, self._start = self._start, None
        if start is None:
            if message["type"] == "http.response.start" and not self._cycle.response_started:
                self._start = message
                return
        elif self._at_once(start, message):
            return
        else:
            await self._cycle.send(start)  # type: ignore[arg-type]
        await self._cycle.send(message)  # type: ignore[arg-type]

    def _at_once(self, start: Message, message: Message) -> bool:
        """Write the answer if it is whole and plain; False leaves all as it was."""
        cycle = self._cycle
        if (
            message["type"] != "http.response.body"
            or message.get("more_body", False)
            or not cycle.keep_alive
            or cycle.disconnected
            or cycle.flow.write_paused
            or cycle.access_log
            or cycle.scope["method"] == "HEAD"
            or start["status"] in _WITHOUT_BODY
        ):
            return False
        body = message.get("body", b"")
        headers = [*cycle.default_headers, *start["headers"]]
        named = dict(headers)
        if (
            len(named) != len(headers)
            or not _plain(tuple(named))
            or named.get(b"content-length") != b"%d" % len(body)
        ):
            return False
        lines = b"".join([b"%b: %b\r\n" % header for header in headers])
        if len(lines.translate(None, _CONTROL)) != len(lines) - 2 * len(headers):
            return False  # a value holds what could end its line
        cycle.response_started = True
        cycle.waiting_for_100_continue = False
        cycle.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[start["status"]], lines, body))
        cycle.response_complete = True
        cycle.message_event.set()
        cycle.on_response()
        return True


@lru_cache(64)
def _plain(names: tuple[bytes, ...]) -> bool:
    """Whether headers of these names ask for nothing special, and are names."""
    special = b"connection" in names or b"transfer-encoding" in names
    return not special and all(map(_NAME.fullmatch, names))


def _cancel(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    if timer is not None:
        timer.cancel()
    return None
