"""Connections that make us wait: each wait ends, and near the limit the longest goes first."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from stage import until
from uvicorn.server import ServerState

from broker.web import protocol
from broker.web.protocol import BoundedProtocol

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
async def serving(app: App, *, limit: int | None = None) -> AsyncIterator[Served]:
    config = uvicorn.Config(
        app, http=BoundedProtocol, ws="none", lifespan="off", log_config=None, limit_concurrency=limit
    )
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: BoundedProtocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
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
