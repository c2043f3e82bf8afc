"""The product around an emulated GitHub: real service processes, or the real app inside the test's loop."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import httpx
from cryptography.hazmat.primitives.asymmetric import rsa
from servers import free_port

from broker import settings as broker_settings
from broker.access.keys import generate
from broker.build import Broker, build, build_app, build_backend, build_keks
from broker.issuing.keys import KeyPolicy, KeyRegister
from broker.model import Role
from broker.ports import AuditEvent, Clock, Event
from broker.sandbox.github import EmulatedApp, EmulatedGitHub, EmulatedInstallation, RunningGitHub
from broker.store.sealed import SealedStore

SCRIPTS = Path(sysconfig.get_path("scripts"))
BYTECODE = Path(__file__).parent.parent / ".pytest_cache" / "bytecode"
"""Processes start in half the time if what they import is compiled, wherever bytecode is switched off."""


def clean_environment(**more: str) -> dict[str, str]:
    """Return an environment without anything of ours in it, plus ``more``."""
    left_out = {"PYTHONDONTWRITEBYTECODE"}
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("BROKER_") and name not in left_out
    }
    return {**kept, "PYTHONUNBUFFERED": "1", "PYTHONPYCACHEPREFIX": str(BYTECODE), **more}


@dataclass
class Service:
    """A real ``broker serve`` process."""

    environment: dict[str, str]
    folder: Path
    port: int
    name: str
    process: subprocess.Popen[bytes] | None = None
    command: ClassVar = (str(SCRIPTS / "broker"), "serve")
    log_path: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log_path = self.folder / f"{self.name}.log"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, *, wait: bool = True) -> "Service":
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env={**self.environment, "BROKER_PORT": str(self.port)},
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self, *, path: str = "/readyz", seconds: float = 20) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.process is None or self.process.poll() is not None:
                raise AssertionError(f"{self.name} ended:\n{self.log()[-3000:]}")
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(self.url + path, timeout=2).status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(f"{self.name} is not ready:\n{self.log()[-3000:]}")

    def signal(self, number: int) -> None:
        """Send a signal to the process and, with several workers, to all of them."""
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """kill -9."""
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait(10)

    def stop(self, *, seconds: float = 30) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(seconds)
        finally:
            if self.process.poll() is None:
                self.kill()

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""


class World:
    """An emulated GitHub with one app, installed on ``acme``, and what a service needs to use it.

    Repositories: ``acme/widgets`` and ``acme/gadgets`` (private), ``stranger/secrets`` (not installed).
    """

    def __init__(self, folder: Path, github: EmulatedGitHub, app: EmulatedApp, pem: str) -> None:
        self.folder = folder
        self.github = github
        self.app = app
        self.pem = pem
        self.installation: EmulatedInstallation
        self.server: RunningGitHub
        self.store_url = f"sqlite:///{folder / 'broker.db'}"
        self.services: list[Service] = []

    # -- configuration ---------------------------------------------------------------------------

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of a service."""
        return clean_environment(
            **{
                "BROKER_GITHUB_CLIENT_ID": self.app.client_id,
                "BROKER_GITHUB_PRIVATE_KEY": self.pem,
                "BROKER_GITHUB_API_URL": self.server.api_url,
                "BROKER_GITHUB_URL": self.server.url,
                "BROKER_STORE_URL": self.store_url,
                "BROKER_LOG_FORMAT": "json",
                "BROKER_LOG_LEVEL": "debug",
                **more,
            }
        )

    def settings(self, **more: Any) -> broker_settings.Settings:
        """Return settings for an app inside the test."""
        return broker_settings.load(
            **{
                "github_client_id": self.app.client_id,
                "github_private_key": self.pem,
                "github_api_url": self.server.api_url,
                "github_url": self.server.url,
                "store_url": self.store_url,
                **more,
            }
        )

    # -- real processes --------------------------------------------------------------------------

    def service(self, *, start: bool = True, **more: str) -> Service:
        """Return a ``broker serve`` process on a free port; ``more`` is environment."""
        name = f"service-{len(self.services)}"
        one = Service(self.environment(**more), self.folder, free_port(), name)
        self.services.append(one)
        return one.start() if start else one

    def command(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run ``broker …``."""
        return subprocess.run(
            [str(SCRIPTS / "broker"), *arguments],
            env=self.environment(**more),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def key(self, *patterns: str, admin: bool = False, permissions: tuple[str, ...] = ()) -> str:
        """Return a new key, made by ``broker keys create``."""
        arguments = ["keys", "create", "--name", "test"]
        for pattern in patterns:
            arguments += ["--repository", pattern]
        for permission in permissions:
            arguments += ["--permission", permission]
        if admin:
            arguments.append("--admin")
        done = self.command(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    async def quick_key(self, *patterns: str) -> str:
        """Return a new caller's key, made in this process: for tests that are not about the command."""
        settings = self.settings()
        store = SealedStore(build_backend(settings), build_keks(settings))
        await store.open()
        try:
            policy = KeyPolicy.parse(
                name="test",
                role=Role.CALLER,
                repositories=patterns,
                permissions=None,
                rate_limit_per_minute=None,
            )
            return (await KeyRegister(store).create(policy, by="test", expires_in_s=None))[0].reveal()
        finally:
            await store.close()

    def client(self, service: Service, key: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``broker-cli …`` against a service."""
        return self.client_of(service.url, key, *arguments)

    def client_of(
        self, url: str, key: str | None, *arguments: str, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run ``broker-cli …`` against a URL, with or without a key; ``more`` is environment."""
        if key is not None:
            more["BROKER_API_KEY"] = key
        return subprocess.run(
            self.client_command(*arguments),
            env=clean_environment(BROKER_API_URL=url, XDG_CONFIG_HOME=str(self.folder), **more),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @staticmethod
    def client_command(*arguments: str) -> list[str]:
        """Return the command line of ``broker-cli …``."""
        return [sys.executable, "-m", "broker_cli", *arguments]

    # -- the app inside the test -----------------------------------------------------------------

    @asynccontextmanager
    async def inside(self, *, clock: Clock | None = None, **more: Any) -> AsyncIterator["Inside"]:
        """Run the app in the test's own loop; ``more`` is settings."""
        broker = build(self.settings(**more), clock=clock)
        async with broker.running():
            transport = httpx.ASGITransport(build_app(broker), client=("192.0.2.7", 4242))
            async with httpx.AsyncClient(transport=transport, base_url="http://broker.test") as http:
                yield Inside(broker, http)


@dataclass
class Inside:
    """The real app in the test's loop, and a client of it."""

    broker: Broker
    http: httpx.AsyncClient

    async def key(
        self,
        *patterns: str,
        admin: bool = False,
        permissions: dict[str, object] | None = None,
        expires_in_s: float | None = None,
        limit: int | None = None,
    ) -> str:
        """Return a new key."""
        past = expires_in_s is not None and expires_in_s < 0
        policy = KeyPolicy.parse(
            name="test",
            role=Role.ADMIN if admin else Role.CALLER,
            repositories=patterns,
            permissions=permissions,
            rate_limit_per_minute=limit,
        )
        register = KeyRegister(self.broker.store)
        key, record = await register.create(policy, by="test", expires_in_s=None if past else expires_in_s)
        if past:  # the register makes no key that has ended
            entry = await register.show(record.id)
            ended = replace(entry.record, expires_at=record.created_at - 1)
            event = AuditEvent(Event.KEY_CHANGED, key_id=record.id)
            await self.broker.store.write_key(entry, ended, event)
        return key.reveal()

    async def token(self, key: str, *repositories: str, **body: Any) -> httpx.Response:
        """``POST /v1/github/token``."""
        if repositories:
            body["repositories"] = list(repositories)
        return await self.http.post("/v1/github/token", json=body, headers=bearer(key))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def unknown_key() -> str:
    """Return a well-formed key that no store knows."""
    return generate()[0].reveal()


@functools.cache
def _private_key() -> rsa.RSAPrivateKey:
    """Return one key for all worlds of a run: making one takes longer than most tests."""
    return rsa.generate_private_key(65537, 2048)


@contextmanager
def world_in(folder: Path, *, api_prefix: str = "", git: bool = False) -> Iterator[World]:
    """Run an emulated GitHub and stop every service that the test started."""
    with EmulatedGitHub() as github:
        app = github.add_app(permissions={"contents": "read", "metadata": "read", "issues": "write"})
        world = World(folder, github, app, app.new_private_key(_private_key()))
        for name in ("widgets", "gadgets"):
            github.add_repository(f"acme/{name}", create_git=git)
        github.add_repository("stranger/secrets")
        world.installation = github.install(app, "acme")
        with github.serve(api_prefix=api_prefix) as server:
            world.server = server
            try:
                yield world
            finally:
                for service in world.services:
                    service.kill() if service.process and service.process.poll() is None else None
