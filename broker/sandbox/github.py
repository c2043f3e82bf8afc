"""The emulated GitHub as tests and the demo hold it: state, journal, faults, and a server for them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from broker.sandbox import git, rest
from broker.sandbox.exchange import Reply, Route
from broker.sandbox.faults import Fault, Faults
from broker.sandbox.front import Front
from broker.sandbox.manifests import Manifests
from broker.sandbox.server import ThreadedServer
from broker.sandbox.state import (
    Change,
    EmulatedAccount,
    EmulatedApp,
    EmulatedInstallation,
    EmulatedRepository,
    EmulatedToken,
    State,
)
from broker.sandbox.webhooks import Delivery, Hook

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from broker.sandbox.exchange import Exchange
    from broker.sandbox.journal import Call

__all__ = [
    "Change",
    "Delivery",
    "EmulatedAccount",
    "EmulatedApp",
    "EmulatedGitHub",
    "EmulatedInstallation",
    "EmulatedRepository",
    "EmulatedToken",
    "Fault",
    "Hook",
    "RunningGitHub",
]


class EmulatedGitHub(State):
    """A GitHub in this process: change it from any thread while it is served.

    Args:
        clock: epoch seconds; ``clock_skew_s`` comes on top.

    Attributes:
        calls: the journal, in order of arrival.
        faults: what goes wrong on purpose.
        latency_s: seconds that every call takes at least.
        route_latency_s: more seconds, by name of the route.
        observers: called with each call before it is worked on, on the server's thread.
        routes: first match wins.
        hooks: webhooks of apps.
        manifests: the pages on which a browser makes and installs apps.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:  # noqa: TID251 - GitHub has a clock of its own
        super().__init__(clock=clock)
        self.calls: list[Call] = []
        self.faults = Faults()
        self.latency_s = 0.0
        self.route_latency_s: dict[str, float] = {}
        self.observers: list[Callable[[Call], None]] = []
        self.hooks: list[Hook] = []
        self.manifests = Manifests(self)
        self.routes: list[Route] = [
            *git.routes(),
            *rest.routes(),
            *self.manifests.routes(),
            Route("hook_config", "GET", "/app/hook/config", self._hook_config, credential="jwt"),
        ]

    def note(self, call: Call) -> Call:
        """Write a call into the journal."""
        with self.lock:
            self.calls.append(call)
        return call

    def count(self, route: str | None = None) -> int:
        """Return how many calls came in, of one route or of all."""
        with self.lock:
            return sum(route is None or call.route == route for call in self.calls)

    def clear_calls(self) -> None:
        """Forget the journal."""
        with self.lock:
            self.calls.clear()

    def app(self, *, api_prefix: str = "") -> Front:
        """Return one ASGI app for API and git.

        Args:
            api_prefix: "" for the paths of api.github.com, ``/api/v3`` for those of GHES.
        """
        return Front(self, api_prefix=api_prefix)

    def serve(
        self,
        port: int = 0,
        api_prefix: str = "",
        *,
        certfile: Path | str | None = None,
        keyfile: Path | str | None = None,
    ) -> RunningGitHub:
        """Return a context manager that serves this GitHub on 127.0.0.1."""
        return RunningGitHub(self, port=port, api_prefix=api_prefix, certfile=certfile, keyfile=keyfile)

    def add_hook(
        self, app: EmulatedApp, url: str | None = None, secret: str | None = None, *, ping: bool = False
    ) -> Hook:
        """Give an app a webhook: from now on what changes is told to ``url``, signed with ``secret``.

        Args:
            app: whose installations are told about.
            url: None: deliveries are only written down.
            secret: None: nothing is signed.
            ping: begin with a ping, as GitHub does.
        """
        with self.lock:
            hook = Hook(self, app, url, secret, hook_id=400_000_001 + len(self.hooks))
            self.hooks.append(hook)
        if ping:
            hook.ping()
        return hook

    def _hook_config(self, exchange: Exchange) -> Reply:
        hook = next((one for one in self.hooks if one.app is exchange.signer), None)
        config = {"content_type": "form", "insecure_ssl": "0"}
        if hook is not None:
            config |= {"content_type": hook.content_type, "url": hook.url or ""}
            if hook.secret is not None:
                config["secret"] = "********"
        return Reply.of_json(200, config)

    def close(self) -> None:
        """Stop delivering, and delete the repositories that the emulator made."""
        for hook in self.hooks:
            hook.close()
        super().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RunningGitHub(ThreadedServer):
    """An emulated GitHub on a port; ``stop`` and ``start`` are an outage on the same port."""

    def __init__(
        self,
        github: EmulatedGitHub,
        *,
        port: int = 0,
        api_prefix: str = "",
        certfile: Path | str | None = None,
        keyfile: Path | str | None = None,
    ) -> None:
        super().__init__(
            github.app(api_prefix=api_prefix),
            port=port,
            certfile=certfile,
            keyfile=keyfile,
            date_header=False,
        )
        self.github = github
        self._api_prefix = api_prefix

    @property
    def api_url(self) -> str:
        """Root of the REST API; ``url`` is that of the web and of git."""
        return self.url + self._api_prefix
