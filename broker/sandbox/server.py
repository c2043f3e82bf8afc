"""Run an ASGI app on a loopback port in a background thread; opens sockets."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from typing import TYPE_CHECKING, Any, Self

import uvicorn

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from starlette.types import ASGIApp, Receive, Scope, Send

RESET_EXTENSION = "sandbox.reset"
WRITE_EXTENSION = "sandbox.write"

_HOST = "127.0.0.1"
_GRACE_S = 1
_TICK_S = 0.01
_START_TIMEOUT_S = 15.0
_STOP_TIMEOUT_S = 90.0


class ThreadedServer:
    """An ASGI app served on 127.0.0.1 from a thread of this process.

    It may be stopped and started again; the port stays the same. The scope has the extension
    ``sandbox.reset``: a callable that cuts the connection with a TCP reset; and ``sandbox.write``: one
    that writes raw bytes.

    Args:
        app: any ASGI app; its lifespan is run.
        port: 0 takes a free one.
        certfile: PEM of a certificate, for TLS.
        keyfile: PEM of its key.
        date_header: False if the app sends ``Date`` itself.
        keep_alive_s: how long an idle connection stays open.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        port: int = 0,
        certfile: Path | str | None = None,
        keyfile: Path | str | None = None,
        date_header: bool = True,
        keep_alive_s: int = 75,
    ) -> None:
        self.port = port
        self._app = app
        self._certfile = certfile
        self._keyfile = keyfile
        self._date_header = date_header
        self._keep_alive_s = keep_alive_s
        self._thread: threading.Thread | None = None
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        """The root, without trailing slash."""
        return f"{'https' if self._certfile else 'http'}://{_HOST}:{self.port}"

    def start(self) -> Self:
        """Listen, and return once requests are answered.

        Raises:
            OSError: the port is taken.
            RuntimeError: it runs already, or the app failed to start.
        """
        if self._thread is not None:
            raise RuntimeError("the server runs already")
        # asyncio turns Nagle's delay (40 ms a reply) off only if the protocol is named
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((_HOST, self.port))
            # from here on connections wait in the backlog, they are not refused
            listener.listen(1024)
        except OSError:
            listener.close()
            raise
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            _Resettable(self._app),
            http="httptools",
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=self._date_header,
            timeout_keep_alive=self._keep_alive_s,
            timeout_graceful_shutdown=_GRACE_S,
            ssl_certfile=self._certfile,
            ssl_keyfile=str(self._keyfile) if self._keyfile else None,
        )
        self._server = _Server(config)
        self._thread = threading.Thread(
            target=self._run, args=(self._server, listener), name="sandbox-server", daemon=True
        )
        self._thread.start()
        if not self._server.settled.wait(_START_TIMEOUT_S) or not self._server.started:
            self.stop()
            raise RuntimeError("the server did not start: its app failed")
        return self

    def stop(self) -> None:
        """Stop listening, cut what is still open after a second, and return when all is closed."""
        if self._thread is None or self._server is None:
            return
        self._server.should_exit = True
        self._thread.join(_STOP_TIMEOUT_S)
        if self._thread.is_alive():
            raise RuntimeError("the server does not stop")
        self._thread = self._server = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @staticmethod
    def _run(server: _Server, listener: socket.socket) -> None:
        try:
            asyncio.run(_serve(server, listener))
        except SystemExit:
            # uvicorn's way to say that the app failed; `start` tells its caller
            server.started = False
        finally:
            listener.close()
            server.settled.set()


class _Server(uvicorn.Server):
    """uvicorn, telling when its start has ended well or badly."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.settled = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.settled.set()

    async def main_loop(self) -> None:
        counter = 0
        # uvicorn looks every 0.1 s whether to stop: too slow for hundreds of tests
        while not await self.on_tick(counter):
            counter += 1
            await asyncio.sleep(_TICK_S)


async def _serve(server: _Server, listener: socket.socket) -> None:
    await server.serve(sockets=[listener])
    for connection in list(server.server_state.connections):
        transport: Any = getattr(connection, "transport", None)
        if transport is not None:
            transport.abort()
    # two turns of the loop: one for connection_lost, one for the sockets to close
    await asyncio.sleep(0)
    await asyncio.sleep(0)


class _Resettable:
    """Put both extensions into the scope, from the connection that uvicorn hides behind ``send``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            extensions = scope.setdefault("extensions", {})
            extensions[RESET_EXTENSION] = _resetter(send)
            extensions[WRITE_EXTENSION] = _writer(send)
        await self._app(scope, receive, send)


def _resetter(send: Any) -> Callable[[], None]:  # noqa: ANN401 - a bound method of uvicorn's cycle
    def reset() -> None:
        transport = send.__self__.transport
        raw = transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()

    return reset


def _writer(send: Any) -> Callable[[bytes], None]:  # noqa: ANN401 - a bound method of uvicorn's cycle
    def write(raw: bytes) -> None:
        send.__self__.transport.write(raw)

    return write
