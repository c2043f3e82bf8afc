"""``broker serve``: runs the service under uvicorn."""

import contextlib
import logging
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

import click
import uvicorn
from starlette.types import ASGIApp

from broker import settings as broker_settings
from broker.build import app_from_environment, build, build_meter, sqlite_path
from broker.errors import BrokerError
from broker.metrics import CONTENT_TYPE, workers_text
from broker.observe import configure_logging
from broker.settings import Settings
from broker.web.metrics import MetricsPage
from broker.web.protocol import BoundedProtocol, connection_limit

_log = logging.getLogger("broker.serve")

DRAIN_S = 20
_BACKLOG = 2048
_KEEP_ALIVE_S = 75
_METRICS_BACKLOG = 16
_METRICS_CONCURRENT = 32
_METRICS_END_S = 3


@click.command("serve")
def command() -> None:
    """Run the service with the settings of the environment or .env."""
    settings = broker_settings.load()
    configure_logging(form=settings.log_format, level=settings.log_level)
    meter = build_meter(settings)
    build(settings, meter=meter)  # what only shows when the parts are put together, shows here
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
        # Workers are new processes: they make the app from the environment by its name.
        one = partial(app_from_environment, meter)
        _serve(settings, one if settings.workers == 1 else "broker.build:app_from_environment")


def _serve(settings: Settings, app: Callable[[], ASGIApp] | str) -> None:
    uvicorn.run(
        app,
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
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
        timeout_graceful_shutdown=DRAIN_S,
        ssl_certfile=settings.tls_cert_file,
        ssl_keyfile=str(settings.tls_key_file) if settings.tls_key_file else None,
    )


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
