"""``broker serve``: runs the service."""

import contextlib
import logging
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

import click
import uvicorn

from broker import settings as broker_settings
from broker.build import build, build_meter, sqlite_path
from broker.errors import BrokerError
from broker.metrics import CONTENT_TYPE, workers_text
from broker.observe import configure_logging
from broker.serving import end_of_start, serve, serve_by_workers
from broker.web.metrics import MetricsPage
from broker.web.protocol import BoundedProtocol

_log = logging.getLogger("broker.serve")

_METRICS_BACKLOG = 16
_METRICS_CONCURRENT = 32
_METRICS_END_S = 3


@click.command("serve")
def command() -> None:
    """Run the service with the settings of the environment or .env."""
    signal.signal(signal.SIGTERM, end_of_start)
    settings = broker_settings.load()
    configure_logging(form=settings.log_format, level=settings.log_level)
    meter = build_meter(settings)
    broker = build(settings, meter=meter)  # what only shows when the parts are put together, shows here
    for line in broker_settings.unknown_variables():
        _log.warning("%s", line)
    if settings.admin_key is not None:
        _log.warning("BROKER_ADMIN_KEY is set: make admin keys with it, then take it out of the settings")
    store = settings.store_url.get_secret_value()
    _log.info(
        "starting",
        extra={
            "version": version("github-token-broker"),
            "listen": f"{settings.host}:{settings.port}",
            "workers": settings.workers,
            "github": settings.github_api_url,
            "store": str(sqlite_path(store).absolute())
            if store.startswith("sqlite:")
            else store.partition(":")[0],
        },
    )
    with contextlib.ExitStack() as stack:
        text = meter.text
        if settings.workers > 1:
            folder = stack.enter_context(_folder_of_workers())
            broker_settings.hand_to_workers(folder)
            text = partial(workers_text, folder)
        if settings.metrics_port is not None:
            stack.enter_context(_listening(settings.host, settings.metrics_port, text))
        run = serve if settings.workers == 1 else serve_by_workers
        status = run(settings, broker)
    sys.exit(status)


@contextlib.contextmanager
def _folder_of_workers() -> Iterator[Path]:
    """Make the private folder (0700) that workers share their metrics in, and take it away at the end.

    Raises:
        BrokerError: there is no place for it.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix="broker-metrics-", ignore_cleanup_errors=True)
    except OSError as error:
        raise BrokerError(f"BROKER_WORKERS: several need a place for temporary files: {error}") from None
    with made as folder:
        yield Path(folder)


@contextlib.contextmanager
def _listening(host: str, port: int, text: Callable[[], bytes]) -> Iterator[None]:
    """Show the metrics on a port of their own, from a thread: with several workers no loop runs here.

    Raises:
        BrokerError: the port cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=_METRICS_BACKLOG)
    except OSError as error:
        raise BrokerError(f"BROKER_METRICS_PORT: cannot listen on {host}:{port}: {error.strerror}") from None
    server = uvicorn.Server(
        uvicorn.Config(
            MetricsPage(text, CONTENT_TYPE).alone(),
            http=BoundedProtocol,
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=_METRICS_CONCURRENT,
            timeout_graceful_shutdown=1,
        )
    )
    thread = threading.Thread(target=server.run, args=([listener],), name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(_METRICS_END_S)
        listener.close()
