"""The life of ``broker serve``: listens, drains when told to end, watches worker processes.

Told to end (SIGTERM, SIGINT), a process first lets kept-alive connections bring one more request, whose
answer closes the connection; then it stops listening, finishes what runs, writes what is pending, and ends
with status 0. Told again, it waits for nobody. What hangs, hangs no longer than ``TOTAL_S``: whoever told
it to end kills it after 30 s, and then nothing is written at all.
"""

import asyncio
import contextlib
import gc
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Final

import uvicorn

from broker import settings as broker_settings
from broker.build import Broker, Life, build, build_app
from broker.observe import configure_logging
from broker.settings import Settings
from broker.web.protocol import BoundedProtocol, connection_limit

_log = logging.getLogger("broker.serve")

FAREWELL_S: Final = 3.0
REQUESTS_S: Final = 20.0
"""From the signal on; what runs then still has seconds to be answered, and pending writes have theirs."""

TOTAL_S: Final = 29.0
CUT: Final = 1
"""Exit status when something had to be left unfinished."""

_STARTUP_FAILURE: Final = 3
_HURRY: Final = signal.SIGUSR1
_BACKLOG: Final = 2048
_KEEP_ALIVE_S: Final = 75
_LOOK_S: Final = 0.25
_GARBAGE: Final = 10_000
"""So many more objects before cycles are looked for: Python's 700 are in use by 30 requests in work, and each
look would take those for old. Nearly nothing here makes cycles."""

_YOUNG_S: Final = 5.0


def config_of(settings: Settings, broker: Broker) -> uvicorn.Config:
    """Return how the service is served."""
    tls = broker.tls
    return uvicorn.Config(
        build_app(broker),
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=BoundedProtocol,
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=True,
        backlog=_BACKLOG,
        limit_concurrency=connection_limit(),
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(REQUESTS_S),
        ssl_context_factory=None if tls is None else lambda _config, _default: tls.listening,
    )


class Server(uvicorn.Server):
    """One process that serves.

    Args:
        config: see ``config_of``.
        life: what the app is told by.
        worker: a worker ends when its parent says so or dies. Signals also come to all processes of a
            terminal or a service at once, so that a worker told twice may have been told once.
    """

    def __init__(self, config: uvicorn.Config, life: Life, *, worker: bool) -> None:
        super().__init__(config)
        self.status = 0
        self._life = life
        self._worker = worker
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told_at = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal to end; runs between any two steps of the main thread."""
        del frame
        if not self._life.draining:
            self._begin()
        elif sig == _HURRY or not self._worker:
            self._life.hurried = True
            self.status = 128 + (signal.SIGTERM if sig == _HURRY else sig)
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._hurry)

    def _begin(self) -> None:
        self._told_at = time.monotonic()
        self._life.draining = True
        self.should_exit = True
        end = threading.Timer(TOTAL_S, _end_at_once)
        end.daemon = True
        end.start()

    def _hurry(self) -> None:
        """Answer what runs, and wait for it no longer."""
        self.force_exit = True
        for task in self.server_state.tasks:
            task.cancel()
        asyncio.get_running_loop().call_later(0.5, self._abort)

    def _abort(self) -> None:
        for connection in self.server_state.connections:
            connection.transport.abort()

    async def main_loop(self) -> None:
        """Serve until told to end."""
        self._loop = asyncio.get_running_loop()
        parent = multiprocessing.parent_process()
        if self._worker and parent is not None:
            self._loop.add_reader(parent.sentinel, self._orphaned, parent.sentinel)
        # What is there now stays: looking through it again and again made one request in hundreds wait.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GARBAGE)
        await super().main_loop()

    def _orphaned(self, sentinel: int) -> None:
        asyncio.get_running_loop().remove_reader(sentinel)
        if not self._life.draining:
            _log.error("the parent process has died")
            self._begin()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain."""
        await self._farewell()
        left_s = REQUESTS_S - (time.monotonic() - self._told_at)
        self.config.timeout_graceful_shutdown = max(1, round(left_s))
        running = set(self.server_state.tasks)
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn leaves the lifespan open then
            if cut := self.server_state.tasks:
                await asyncio.wait(set(cut), timeout=1)
            await self.lifespan.shutdown()
        elif self._life.unfinished or any(task.cancelled() or task.cancelling() for task in running):
            self.status = CUT

    async def _farewell(self) -> None:
        """Let idle connections bring one more request: its answer says that it is the last.

        To close a connection that is kept alive while a request is on its way there would lose that request,
        and clients do not send a POST again by themselves.
        """
        until = self._told_at + FAREWELL_S
        while time.monotonic() < until and not self.force_exit:
            if not any(_idle(connection) for connection in self.server_state.connections):
                return
            await asyncio.sleep(0.05)


def _idle(connection: object) -> bool:
    cycle = getattr(connection, "cycle", None)
    return cycle is None or cycle.response_complete


def _end_at_once() -> None:
    """End the process although something hangs; the log may be what hangs."""
    telling = threading.Thread(
        target=_log.critical, args=("not everything ended in time: pending counts may be lost",), daemon=True
    )
    telling.start()
    telling.join(0.5)
    os._exit(CUT)


def serve(settings: Settings, broker: Broker) -> int:
    """Serve in this process until told to end; return the exit status."""
    os.umask(0o077)
    server = Server(config_of(settings, broker), broker.life, worker=False)
    server.run()
    return server.status if server.started else _STARTUP_FAILURE


def _work(listening: socket.socket) -> None:
    """Serve as one of several processes; what each of them runs."""
    settings = broker_settings.load()
    configure_logging(form=settings.log_format, level=settings.log_level)
    os.umask(0o077)
    broker = build(settings)
    server = Server(config_of(settings, broker), broker.life, worker=True)
    signal.signal(_HURRY, server.handle_exit)
    server.run([listening])
    sys.exit(server.status if server.started else _STARTUP_FAILURE)


def serve_by_workers(settings: Settings, broker: Broker) -> int:
    """Serve in several processes until told to end; return the exit status."""
    listening = config_of(settings, broker).bind_socket()
    workers = Workers(settings.workers, listening)
    try:
        return workers.run()
    finally:
        listening.close()


class Workers:
    """Processes that listen on one socket; one that dies is replaced.

    Args:
        count: how many.
        listening: bound once, for all of them.
    """

    def __init__(self, count: int, listening: socket.socket) -> None:
        self._count = count
        self._listening = listening
        self._context = multiprocessing.get_context("spawn")
        self._started_at: dict[BaseProcess, float] = {}
        self._signals: list[int] = []
        self._told = 0
        self._status = 0

    def run(self) -> int:
        """Keep the workers running until told to end; return the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda sig, _frame: self._signals.append(sig))
        until: float | None = None
        while not self._told or self._started_at:
            while not self._told and len(self._started_at) < self._count:
                self._start()
            wait([process.sentinel for process in self._started_at], timeout=_LOOK_S)
            for process in [one for one in self._started_at if one.exitcode is not None]:
                self._ended(process)
            while self._signals:
                self._tell(self._signals.pop(0))
            if self._told and until is None:
                until = time.monotonic() + TOTAL_S + 0.5
            if until is not None and time.monotonic() > until:
                self._signal(signal.SIGKILL)
        return self._status

    def _start(self) -> None:
        process = self._context.Process(target=_work, args=(self._listening,))
        process.start()
        self._started_at[process] = time.monotonic()

    def _ended(self, process: BaseProcess) -> None:
        lived_s = time.monotonic() - self._started_at.pop(process)
        code = process.exitcode
        if self._told:
            # One that was told before it began to listen for signals has died of the signal.
            self._status = self._status or (0 if code == -signal.SIGTERM else abs(code or 0))
        elif code == _STARTUP_FAILURE:
            _log.error("a worker could not start, so none is to run")
            self._status = _STARTUP_FAILURE
            self._tell(signal.SIGTERM)
        else:
            _log.error("a worker process died and is replaced", extra={"pid": process.pid, "status": code})
            if lived_s < _YOUNG_S:
                time.sleep(1)

    def _tell(self, sig: int) -> None:
        self._told += 1
        if self._told == 1:
            _log.info("ending", extra={"workers": len(self._started_at)})
            self._signal(signal.SIGTERM)
        else:
            self._status = 128 + sig
            self._signal(_HURRY)

    def _signal(self, sig: signal.Signals) -> None:
        for process in self._started_at:
            with contextlib.suppress(ProcessLookupError):
                if process.pid is not None and process.exitcode is None:
                    os.kill(process.pid, sig)


def end_of_start(sig: int, frame: FrameType | None) -> None:
    """End a process that was told to before it serves: as process 1 of a container it would not die of it.

    Raises:
        SystemExit: always.
    """
    del frame
    sys.exit(128 + sig)
