"""Connections that make us wait: each wait ends, and near the limit the longest goes first."""

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from stage import until
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from broker.errors import PayloadTooLargeError
from broker.web import protocol
from broker.web.protocol import BoundedProtocol
from broker.web.wire import WHOLE_BODY, read_body

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
SOON_S = 10
App = Callable[[Any, Any, Any], Awaitable[None]]


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


class Served:
    def __init__(self, port: int, state: ServerState) -> None:
        self.port = port
        self.state = state
        self._open: list[asyncio.StreamWriter] = []

    async def connect(self, *, limit: int = 2**16) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=limit)
        self._open.append(writer)
        return reader, writer

    def close(self) -> None:
        for writer in self._open:
            writer.transport.abort()


@asynccontextmanager
async def serving(
    app: App,
    *,
    limit: int | None = None,
    keep_alive_s: int = 5,
    http: type[HttpToolsProtocol] = BoundedProtocol,
) -> AsyncIterator[Served]:
    config = uvicorn.Config(
        app,
        http=http,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        limit_concurrency=limit,
        timeout_keep_alive=keep_alive_s,
    )
    config.load()
    state = ServerState()
    state.default_headers = [(b"date", b"Sat, 28 Nov 2026 09:19:23 GMT")]
    server = await asyncio.get_running_loop().create_server(
        lambda: http(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    served = Served(server.sockets[0].getsockname()[1], state)
    try:
        yield served
    finally:
        served.close()
        server.close()
        for one in list(state.connections):
            one.transport.abort()  # type: ignore[union-attr]
        await until(lambda: not state.connections and not state.tasks)
        await server.wait_closed()


async def closed(reader: asyncio.StreamReader) -> bytes:
    """Return what came until the other side closed."""
    async with asyncio.timeout(SOON_S):
        with contextlib.suppress(ConnectionError):
            return await reader.read()
        return b""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_WITHIN_S", 0.2)
    monkeypatch.setattr(protocol, "READ_WITHIN_S", 0.3)


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\na: ", b"\r\n"])
async def test_a_head_has_a_deadline(quick: None, sent: bytes) -> None:
    async with serving(hello) as served:
        reader, writer = await served.connect()
        writer.write(sent)
        assert await closed(reader) == b""
        await until(lambda: not served.state.connections)


async def test_a_head_that_trickles_gets_no_more_time(quick: None) -> None:
    async with serving(hello) as served:
        reader, writer = await served.connect()

        async def trickle() -> None:
            while True:
                writer.write(b"\r\n")
                await asyncio.sleep(0.02)

        task = asyncio.create_task(trickle())
        assert await closed(reader) == b""
        task.cancel()


async def test_the_next_head_has_a_deadline_too(quick: None) -> None:
    async with serving(hello) as served:
        reader, writer = await served.connect()
        writer.write(GET)
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        await asyncio.sleep(0.5)
        writer.write(GET)  # an idle connection is kept
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.write(GET[:-3])
        assert await closed(reader) == b""


async def test_a_body_that_trickles_behind_its_answer_is_cut(quick: None) -> None:
    async with serving(hello) as served:
        reader, writer = await served.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")

        async def trickle() -> None:
            while True:
                writer.write(b"x")
                await asyncio.sleep(0.02)

        task = asyncio.create_task(trickle())
        assert await closed(reader) == b""
        task.cancel()


async def test_too_many_headers_are_refused() -> None:
    async with serving(hello) as served:
        for count, status in ((protocol.MAX_HEADERS, b"200"), (protocol.MAX_HEADERS + 1, b"400")):
            reader, writer = await served.connect()
            writer.write(b"GET / HTTP/1.1\r\n" + b"a:b\r\n" * count + b"\r\n")
            assert (await reader.readline()).split()[1] == status


async def test_too_many_headers_are_not_kept_although_their_head_has_no_end() -> None:
    async with serving(hello) as served:
        reader, writer = await served.connect()
        writer.write(b"GET / HTTP/1.1\r\n" + b"a:b\r\n" * (protocol.MAX_HEADERS + 2))
        assert (await reader.readline()).split()[1] == b"400"


async def _reads_all(scope: Any, receive: Any, send: Any) -> None:
    """Answers when the body has ended."""
    while (await receive()).get("more_body"):
        pass
    await hello(scope, receive, send)


async def test_trailers_count_as_headers() -> None:
    """httptools gives them to whom it gives headers, after the head: nobody may send a million of them."""
    async with serving(_reads_all) as served:
        for count, status in ((protocol.MAX_HEADERS - 2, b"200"), (protocol.MAX_HEADERS - 1, b"400")):
            reader, writer = await served.connect()
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n")
            writer.write(b"a:b\r\n" * count + b"\r\n")
            assert (await reader.readline()).split()[1] == status


async def test_a_trailer_without_end_is_cut() -> None:
    async with serving(_reads_all) as served:
        reader, writer = await served.connect()
        writer.write(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\na: ")
        await writer.drain()
        await asyncio.sleep(0.05)
        for _ in range(4):
            writer.write(b"x" * (protocol.MAX_HEAD_BYTES // 2))
            await asyncio.sleep(0.02)
        assert await closed(reader) == b""


async def test_a_body_in_small_chunks_is_not_taken_for_trailers() -> None:
    async with serving(_reads_all) as served:
        reader, writer = await served.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(20):
            writer.write(b"1\r\na\r\n" * 1000)
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"200"


@pytest.mark.parametrize("head", [b"GET /%s HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\na: %s\r\n\r\n"])
async def test_a_head_beyond_its_size_is_cut(head: bytes) -> None:
    async with serving(hello) as served:
        reader, writer = await served.connect()
        writer.write((head % (b"x" * (protocol.MAX_HEAD_BYTES + 1)))[:-1])
        assert await closed(reader) == b""


async def test_an_answer_that_nobody_reads_is_given_up(quick: None) -> None:
    ended = asyncio.Event()

    async def long(scope: Any, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(100):
                await send({"type": "http.response.body", "body": b"x" * 1_000_000, "more_body": True})
        finally:
            ended.set()

    async with serving(long) as served:
        _, writer = await served.connect(limit=1024)
        writer.write(GET)
        async with asyncio.timeout(SOON_S):
            await ended.wait()
        await until(lambda: not served.state.connections)


async def test_an_answer_that_is_read_slowly_is_not(quick: None) -> None:
    size = 3_000_000

    async def long(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * size})

    async with serving(long) as served:
        reader, writer = await served.connect(limit=1024)
        writer.write(GET)
        read = 0
        while read < size:
            read += len(await reader.read(100_000))
            await asyncio.sleep(0.01)


async def test_pipelined_requests_are_all_answered(quick: None) -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.15)
        await hello(scope, receive, send)

    async with serving(slow) as served:
        reader, writer = await served.connect()
        writer.write(GET * 4)
        for _ in range(4):
            await reader.readuntil(b"ok")


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HT", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx"],
    ids=["idle", "head", "body"],
)  # fmt: skip
async def test_the_longest_wait_goes_first_near_the_limit(
    monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """Whoever is being served is never cut, and there is room for the next."""
    monkeypatch.setattr(protocol, "SPARE", 5)
    free = asyncio.Event()

    async def work(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        if scope["path"] == "/slow":
            await free.wait()
        await hello(scope, receive, send)

    async with serving(work, limit=20) as served:
        slow, writer = await served.connect()
        writer.write(GET.replace(b"/ ", b"/slow "))
        await until(lambda: bool(served.state.tasks))
        first, early = await served.connect()
        early.write(sent)
        for _ in range(60):
            _, more = await served.connect()
            more.write(sent)
            await asyncio.sleep(0)
        assert await closed(first) == b""
        await until(lambda: len(served.state.connections) <= 15)
        for _ in range(30):
            reader, more = await served.connect()
            more.write(GET)
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        free.set()
        assert (await slow.readuntil(b"ok")).startswith(b"HTTP/1.1 200")


async def test_two_servers_of_a_process_mind_their_own() -> None:
    async with serving(hello, limit=1000) as calm, serving(hello, limit=8) as small:
        reader, writer = await calm.connect()
        for _ in range(40):
            await small.connect()
        await until(lambda: len(small.state.connections) <= 6)
        writer.write(GET)
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")


def test_the_limit_follows_the_files_that_we_may_open() -> None:
    assert 256 <= protocol.connection_limit() <= protocol.MAX_CONNECTIONS


async def test_nothing_is_kept_of_a_connection_that_was_reset() -> None:
    """uvicorn's own keep-alive timer held it, with the body that nobody had read, for 75 s."""
    async with serving(hello) as served:
        reader, writer = await served.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n" + b"x" * 30_000)
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        (kept,) = served.state.connections
        assert isinstance(kept, BoundedProtocol)
        assert not kept.cycle.body
        kept.connection_lost(ConnectionResetError())
        assert kept.timeout_keep_alive_task is None
        writer.transport.abort()


# -- answers ---------------------------------------------------------------------------------------

LENGTH_2 = (b"content-length", b"2")
JSON = (b"content-type", b"application/json")


def answering(*parts: bytes, headers: list[tuple[bytes, bytes]], status: int = 200) -> App:
    """Return an app that sends such an answer, its body in parts."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for number, part in enumerate(parts, 1):
            await send({"type": "http.response.body", "body": part, "more_body": number < len(parts)})

    return app


ANSWERS: dict[str, tuple[App, bytes]] = {
    "whole": (answering(b"ok", headers=[JSON, LENGTH_2]), GET),
    "to a body": (
        answering(b"ok", headers=[LENGTH_2]),
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
    ),
    "empty": (answering(b"", headers=[(b"content-length", b"0")]), GET),
    "HEAD": (answering(b"ok", headers=[LENGTH_2]), GET.replace(b"GET", b"HEAD")),
    "no content": (answering(b"", headers=[], status=204), GET),
    "not modified": (answering(b"", headers=[], status=304), GET),
    "an error": (answering(b"no", headers=[LENGTH_2], status=503), GET),
    "of unknown length": (answering(b"ok", headers=[JSON]), GET),
    "in parts": (answering(b"o", b"k", headers=[LENGTH_2]), GET),
    "in parts, of unknown length": (answering(b"o", b"k", headers=[]), GET),
    "chunked": (answering(b"ok", headers=[(b"transfer-encoding", b"chunked")]), GET),
    "the last": (answering(b"ok", headers=[LENGTH_2, (b"connection", b"close")]), GET),
    "the last, shouted": (answering(b"ok", headers=[LENGTH_2, (b"Connection", b"close")]), GET),
    "to HTTP/1.0": (answering(b"ok", headers=[LENGTH_2]), b"GET / HTTP/1.0\r\n\r\n"),
    "to one who leaves": (
        answering(b"ok", headers=[LENGTH_2]),
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ),
    "headers twice": (answering(b"ok", headers=[LENGTH_2, (b"x", b"1"), (b"x", b"2")]), GET),
    "a tab": (answering(b"ok", headers=[LENGTH_2, (b"x", b"1\t2")]), GET),
    "a value of two lines": (answering(b"ok", headers=[LENGTH_2, (b"x", b"1\r\nset-cookie: 2")]), GET),
    "a value of two lines, barely": (answering(b"ok", headers=[LENGTH_2, (b"x", b"1\nset-cookie: 2")]), GET),
    "a name of two lines": (answering(b"ok", headers=[LENGTH_2, (b"x: 1\r\ny", b"2")]), GET),
    "a name with a colon": (answering(b"ok", headers=[LENGTH_2, (b"x:y", b"2")]), GET),
    "an end of text": (answering(b"ok", headers=[LENGTH_2, (b"x", b"1\x00")]), GET),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_is_what_uvicorn_would_send(name: str) -> None:
    app, request = ANSWERS[name]
    answers = []
    for http in (BoundedProtocol, HttpToolsProtocol):
        async with serving(app, http=http) as served:
            reader, writer = await served.connect()
            writer.write(request)
            # It ends the connection, so all of the answer is here, and nothing more.
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answers.append(await closed(reader))
    assert answers[0] == answers[1]
    refused = name.startswith(("a value", "a name", "an end"))
    assert (b"" if refused else b"HTTP/1.1 ") == answers[0][:9]


@pytest.mark.parametrize("length", [b"1", b"3"])
async def test_an_answer_of_another_length_than_it_says_does_not_pass_for_whole(length: bytes) -> None:
    async with serving(answering(b"ok", headers=[(b"content-length", length)])) as served:
        reader, writer = await served.connect()
        writer.write(GET)
        answer = await closed(reader)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert not head.startswith(b"HTTP/1.1 200") or len(body) != int(length)


async def test_whoever_fails_between_head_and_body_answers_500() -> None:
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [LENGTH_2]})
        raise ValueError("on purpose")

    async with serving(failing) as served:
        reader, writer = await served.connect()
        writer.write(GET)
        assert (await closed(reader)).startswith(b"HTTP/1.1 500 ")


class Counting:
    """A transport that counts writes."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.writes = 0

    def write(self, data: bytes) -> None:
        self.writes += 1
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


async def test_a_whole_answer_is_one_write() -> None:
    async with serving(answering(b"ok", headers=[JSON, LENGTH_2])) as served:
        reader, writer = await served.connect()
        await until(lambda: len(served.state.connections) == 1)
        (one,) = served.state.connections
        counting = Counting(one.transport)  # type: ignore[union-attr]
        one.transport = counting  # type: ignore[union-attr, assignment]
        for number in range(1, 4):
            writer.write(GET)
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
            assert counting.writes == number


async def test_a_connection_is_kept_while_it_is_used_and_closed_when_idle() -> None:
    async with serving(hello, keep_alive_s=1) as served:
        reader, writer = await served.connect()
        begun = asyncio.get_running_loop().time()
        for _ in range(4):
            writer.write(GET)
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(0.6)
        assert await closed(reader) == b""
        assert asyncio.get_running_loop().time() - begun >= 2.7
        await until(lambda: not served.state.connections)


async def test_an_answer_that_takes_longer_than_a_connection_is_kept_arrives() -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(1.5)
        await hello(scope, receive, send)

    async with serving(slow, keep_alive_s=1) as served:
        reader, writer = await served.connect()
        for _ in range(2):
            writer.write(GET)
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        assert await closed(reader) == b""


async def test_a_body_that_came_with_its_head_is_read_at_once_and_a_late_one_too() -> None:
    read: list[tuple[bool, bytes]] = []

    async def reading(scope: Any, receive: Any, send: Any) -> None:
        read.append((WHOLE_BODY in scope.get("extensions", {}), await read_body(scope, receive)))
        await hello(scope, receive, send)

    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\n"
    async with serving(reading) as served:
        reader, writer = await served.connect()
        for first, then in (
            (head + b"abcd", b""),
            (head + b"ab", b"cd"),
            (head, b"abcd"),
            (head + b"efgh", b""),
        ):
            writer.write(first)
            await asyncio.sleep(0.1)
            writer.write(then)
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
    assert read == [(True, b"abcd"), (False, b"abcd"), (False, b"abcd"), (True, b"efgh")]


async def test_a_whole_body_is_bounded_like_any_other() -> None:
    refused: list[type] = []

    async def reading(scope: Any, receive: Any, send: Any) -> None:
        try:
            await read_body(scope, receive, limit=3)
        except PayloadTooLargeError as error:
            refused.append(type(error))
        await hello(scope, receive, send)

    body = b"4\r\nabcd\r\n0\r\n\r\n"
    head = (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    async with serving(reading) as served:
        reader, writer = await served.connect()
        writer.write(head + body)
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
    assert refused == [PayloadTooLargeError]


async def test_a_closed_connection_is_no_garbage_that_waits() -> None:
    """The process looks through its garbage rarely: what holds itself would pile up with each connection."""
    async with serving(hello) as served:
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                reader, writer = await served.connect()
                writer.write(GET)
                assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
                writer.close()
            await until(lambda: not served.state.connections)
            await until(lambda: not any(type(one) is BoundedProtocol for one in gc.get_objects()))
        finally:
            gc.enable()


async def test_a_pipelined_connection_that_closes_is_cut_if_nobody_reads(quick: None) -> None:
    """HTTP/1.0 closes after the first answer, with the second request queued behind it."""
    body = b"x" * 40_000
    app = answering(body, headers=[(b"content-length", b"40000")])
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.setblocking(False)
        async with serving(app) as served:
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", served.port))
            await until(lambda: len(served.state.connections) == 1)
            (one,) = served.state.connections
            held = one.transport.get_extra_info("socket")  # type: ignore[union-attr]
            held.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
            await loop.sock_sendall(
                client, b"GET / HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\n\r\n" * 2
            )
            await until(one.transport.is_closing)  # type: ignore[union-attr]
            await until(lambda: not served.state.connections)


async def test_an_idle_connection_keeps_nothing_of_its_last_body() -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    async with serving(hello) as served:
        reader, writer = await served.connect()
        for size in (4000, 60_000):
            writer.write(head % size + b"x" * size)
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
            (one,) = served.state.connections
            assert isinstance(one, BoundedProtocol)
            assert not one.cycle.body
            assert "extensions" not in one.cycle.scope


async def test_only_a_small_body_is_at_hand() -> None:
    seen: list[bool] = []

    async def looking(scope: Any, receive: Any, send: Any) -> None:
        seen.append(WHOLE_BODY in scope.get("extensions", {}))
        await hello(scope, receive, send)

    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    async with serving(looking) as served:
        reader, writer = await served.connect()
        for size in (protocol.MAX_AT_HAND, protocol.MAX_AT_HAND + 1):
            writer.write(head % size + b"x" * size)
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
    assert seen == [True, False]
