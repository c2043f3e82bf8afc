"""A relay before a Redis that delays, hangs up, speaks TLS, or keeps replicas from hearing of anything."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


class Relay:
    """Forwards a free port to ``port``.

    Attributes:
        delay_s: before each chunk that comes from the server.
        deaf: whoever replicates is sent nothing any more.
    """

    def __init__(self, port: int, *, certificate: tuple[Path, Path] | None = None) -> None:
        self.port = 0
        self.delay_s = 0.0
        self.deaf = False
        self._to = port
        self._tls: ssl.SSLContext | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.show(certificate)

    def show(self, certificate: tuple[Path, Path]) -> None:
        """From now on, show this certificate to whoever connects."""
        assert self._tls is not None
        self._tls.load_cert_chain(*certificate)

    def cut(self) -> None:
        """Hang up on everyone."""
        for task in self._tasks:
            task.cancel()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Relay"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = int(server.sockets[0].getsockname()[1])
        try:
            yield self
        finally:
            server.close()
            self.cut()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        replicates = asyncio.Event()
        writers = [writer]

        async def there() -> None:
            while chunk := await reader.read(1 << 16):
                if b"PSYNC" in chunk:
                    replicates.set()
                away.write(chunk)
                await away.drain()

        async def back() -> None:
            while chunk := await answers.read(1 << 16):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if not (self.deaf and replicates.is_set()):
                    writer.write(chunk)
                    await writer.drain()

        try:
            answers, away = await asyncio.open_connection("127.0.0.1", self._to)
            writers.append(away)
            ways = [asyncio.create_task(there()), asyncio.create_task(back())]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass  # the server is gone, or we are
        finally:
            for each in writers:
                each.close()
                with contextlib.suppress(OSError, asyncio.CancelledError):
                    await each.wait_closed()
            self._tasks.discard(task)
