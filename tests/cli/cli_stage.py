"""A real HTTP server that plays the broker, and the real `broker-cli` process against it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from broker_cli import __version__
from broker_cli.__main__ import run as run_here
from broker_cli.api_key import check_digits

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from pathlib import Path

    import pytest

SECRET = "s3cr3tS3cr3tS3cr3tS3cr3tS3cr3tS3cr3tS3cr3tA"
KEY_ID = "K3y1dK3y1dAB"
_BODY = f"ghbk_{KEY_ID}_{SECRET}"
KEY = _BODY + check_digits(_BODY)
TOKEN = "ghs_12345_" + "eyJhbGciOi.J9-x_" * 30
ANSWER = {
    "token": TOKEN,
    "expires_at": "2026-11-22T10:00:00Z",
    "repositories": ["acme/etl"],
    "permissions": {"contents": "read", "metadata": "read"},
    "installation_id": 7,
    "cached": False,
}

WHOAMI = {
    "id": KEY_ID,
    "name": "nightly",
    "role": "caller",
    "repositories": ["acme/*"],
    "permissions": {"contents": "read", "metadata": "read"},
    "created_at": "2026-11-22T10:00:00Z",
    "created_by": "ops",
    "expires_at": None,
    "revoked_at": None,
    "last_used_at": None,
    "rate_limit_per_minute": None,
    "broker": {
        "version": __version__,
        "github_url": "https://github.com",
        "install_url": "https://github.com/apps/x/installations/new",
    },
}


@dataclass
class Seen:
    """One request as the server got it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Say:
    """One answer: a status with a body, or a function that writes to the handler itself."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    kind: str = "application/json"
    act: Callable[[BaseHTTPRequestHandler], None] | None = None


def problem(status: int, code: str, detail: str = "The detail.", **headers: str) -> Say:
    body = {"type": "about:blank", "title": "Title", "status": status, "detail": detail, "code": code}
    body["request_id"] = "from-the-broker"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Say(status, body, named, "application/problem+json")


class FakeBroker:
    """Answers from a list, the last one for ever; keeps what it saw."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.answers: list[Say] = [Say(200, ANSWER)]
        self.seen: list[Seen] = []
        self.hang = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: object) -> None:
                pass

            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    super().handle()

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.seen.append(
                    Seen(self.command, self.path, dict(self.headers), body, self.client_address[1])
                )
                say = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                if say.act is not None:
                    say.act(self)
                    self.close_connection = True
                    return
                content = say.body if isinstance(say.body, bytes) else json.dumps(say.body).encode()
                self.send_response(say.status)
                self.send_header("Content-Type", say.kind)
                self.send_header("Content-Length", str(len(content)))
                for name, value in say.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815 - the library's names

        class Server(ThreadingHTTPServer):
            def get_request(self) -> Any:
                connection, address = super().get_request()
                if context is not None:
                    connection.settimeout(10)
                    connection = context.wrap_socket(
                        connection, server_side=True, do_handshake_on_connect=False
                    )
                return connection, address

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.url = f"{'http' if context is None else 'https'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self.hang.set()
        self.server.shutdown()
        self.server.server_close()


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()


class Run:
    """Runs `broker-cli` with an environment that is written out, and nothing of the caller's but PATH."""

    def __init__(self, command: str, bytecode: str, home: Path, url: str) -> None:
        self.command = command
        self.home = home
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LC_ALL": "C",
            "PYTHONPYCACHEPREFIX": bytecode,
            "BROKER_API_URL": url,
            "BROKER_API_KEY": KEY,
        }
        for name in ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG"):
            if name in os.environ:
                self.environment[name] = os.environ[name]

    def __call__(self, *arguments: str, **environment: str | None) -> Ran:
        done = subprocess.run(
            [self.command, *arguments],
            env=self.with_(**environment),
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )
        ran = Ran(done.returncode, done.stdout.decode(), done.stderr.decode())
        # Promises that hold whatever happened.
        assert SECRET not in ran.err + ran.out, "the key's secret was shown"
        assert TOKEN not in ran.err, "the token was shown on stderr"
        assert "Traceback" not in ran.err
        assert all(line.isprintable() for line in ran.lines)
        if ran.code != 0:
            assert ran.out == "", "something on stdout without success"
        return ran

    def with_(self, **environment: str | None) -> dict[str, str]:
        merged = {**self.environment, **environment}
        return {name: value for name, value in merged.items() if value is not None}


@dataclass
class Here:
    """Runs a command line in this process: for what no process of its own is needed to show."""

    monkeypatch: pytest.MonkeyPatch
    capfd: pytest.CaptureFixture[str]
    home: Path

    def __call__(self, *arguments: str, stdin: bytes = b"") -> Ran:
        self.capfd.readouterr()
        self.monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = run_here(arguments)
        out, err = self.capfd.readouterr()
        assert SECRET not in err + out, "the key's secret was shown"
        assert TOKEN not in err, "the token was shown on stderr"
        return Ran(code, out, err)
