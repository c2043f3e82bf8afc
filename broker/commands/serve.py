"""``broker serve``: runs the service under uvicorn."""

import logging
from importlib.metadata import version

import click
import uvicorn

from broker import settings as broker_settings
from broker.build import build, sqlite_path
from broker.observe import configure_logging
from broker.web.protocol import BoundedProtocol

_log = logging.getLogger("broker.serve")

DRAIN_S = 20
_BACKLOG = 2048
_KEEP_ALIVE_S = 75
_MAX_CONCURRENT = 4096


@click.command("serve")
def command() -> None:
    """Run the service with the settings of the environment or .env."""
    settings = broker_settings.load()
    configure_logging(form=settings.log_format, level=settings.log_level)
    build(settings)  # what only shows when the parts are put together, shows here
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
    uvicorn.run(
        "broker.build:app_from_environment",
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
        limit_concurrency=_MAX_CONCURRENT,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
        ssl_certfile=settings.tls_cert_file,
        ssl_keyfile=str(settings.tls_key_file) if settings.tls_key_file else None,
    )
