"""Real `uv` and `pip` against the client's index of a running service.

Beside it stands an index that plays the public one: it has click, and somebody else's `broker-cli` 99.0.
"""

import hashlib
import importlib.metadata
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import pytest
from harness import World, clean_environment, world_in
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from broker.build import build, build_app
from broker.sandbox.server import ThreadedServer

THEIRS = "broker_cli-99.0-py3-none-any.whl"


def wheel_of_installed(name: str) -> tuple[str, bytes]:
    """Return an installed distribution as a wheel again: tests need no network for it."""
    distribution = importlib.metadata.distribution(name)
    content = BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for path in distribution.files or ():
            if (
                ".." not in path.parts
                and path.suffix != ".pyc"
                and path.name not in {"INSTALLER", "REQUESTED"}
            ):
                archive.writestr(str(path), path.locate().read_bytes())
    return f"{name}-{distribution.version}-py3-none-any.whl", content.getvalue()


def their_client() -> bytes:
    """Return somebody else's `broker-cli`, of a higher version than ours."""
    content = BytesIO()
    info = "broker_cli-99.0.dist-info"
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("theirs.py", "def main():\n    print('theirs')\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: broker-cli\nVersion: 99.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/entry_points.txt", "[console_scripts]\nbroker-cli = theirs:main\n")
        archive.writestr(f"{info}/RECORD", "")
    return content.getvalue()


def public_index() -> ASGIApp:
    click, content = wheel_of_installed("click")
    files = {click: content, THEIRS: their_client()}
    projects = {"click": click, "broker-cli": THEIRS}

    async def page(request: Request) -> Response:
        file = projects.get(request.path_params["name"])
        if file is None:
            raise HTTPException(404)
        digest = hashlib.sha256(files[file]).hexdigest()
        return HTMLResponse(f'<a href="../../files/{file}#sha256={digest}">{file}</a>')

    async def download(request: Request) -> Response:
        return Response(files[request.path_params["name"]], media_type="application/octet-stream")

    return Starlette(routes=[Route("/simple/{name}/", page), Route("/files/{name}", download)])


class Counted:
    """An app, and the requests that it was asked."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.asked: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.asked.append(f"{scope['method']} {scope['path']}")
        await self.app(scope, receive, send)


@dataclass
class Indexes:
    """The two indexes, and installers that know nothing of this machine's."""

    world: World
    ours: str
    public: str
    asked: list[str]
    folder: Path
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        kept = {
            name: value
            for name, value in clean_environment().items()
            if not name.startswith(("UV_", "PIP_", "VIRTUAL_ENV"))
        }
        self.environment = {
            **kept,
            "UV_NO_CONFIG": "1",
            "UV_CACHE_DIR": str(self.folder / "uv-cache"),
            "UV_TOOL_DIR": str(self.folder / "uv-tools"),
            "UV_PYTHON": sys.executable,
            "UV_PYTHON_DOWNLOADS": "never",
            "UV_DEFAULT_INDEX": f"{self.public}/simple/",
            "PIP_CONFIG_FILE": "/dev/null",
            "PIP_NO_CACHE_DIR": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "HOME": str(self.folder),
        }

    def run(self, *command: str | Path, **environment: str) -> str:
        done = subprocess.run(
            [str(part) for part in command],
            env={**self.environment, **environment},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Indexes]:
    folder = tmp_path_factory.mktemp("indexes")
    with world_in(folder) as world:
        app = Counted(build_app(build(world.settings())))
        with ThreadedServer(app) as ours, ThreadedServer(public_index()) as public:
            yield Indexes(world, ours.url, public.url, app.asked, folder)


def test_uv_tool_run_gets_a_token_with_our_client(indexes: Indexes) -> None:
    """The way that README leads with: ours, whatever version the public index has; warm, one request."""
    world = indexes.world
    settings = {
        "UV_INDEX": f"{indexes.ours}/simple/",
        "BROKER_API_URL": indexes.ours,
        "BROKER_API_KEY": world.key("acme/*"),
    }
    command = ("uv", "tool", "run", "broker-cli", "github", "token", "acme/widgets")
    token = indexes.run(*command, **settings)
    assert token.strip() in world.github.tokens
    assert token == token.strip() + "\n"

    indexes.asked.clear()
    assert indexes.run(*command, **settings) == token
    assert indexes.asked == ["GET /simple/click/", "POST /v1/github/token"]


def test_without_our_index_it_would_be_somebody_elses(indexes: Indexes) -> None:
    """Shows that the public index of these tests does what the real one does."""
    assert (
        indexes.run("uv", "tool", "run", "broker-cli", UV_CACHE_DIR=str(indexes.folder / "else"))
        == "theirs\n"
    )


@pytest.mark.parametrize("path", ["/simple/", "/simple", "/"])
def test_uv_finds_ours_also_where_the_address_lacks_simple(
    indexes: Indexes, tmp_path: Path, path: str
) -> None:
    cache = str(tmp_path / "cache")
    said = indexes.run(
        "uv", "tool", "run", "broker-cli", "--version", UV_INDEX=indexes.ours + path, UV_CACHE_DIR=cache
    )
    assert importlib.metadata.version("broker-cli") in said
    assert "theirs" not in said


def test_uv_pip_install_beside_the_public_index(indexes: Indexes, tmp_path: Path) -> None:
    indexes.run("uv", "venv", "--quiet", tmp_path / "venv")
    indexes.asked.clear()
    indexes.run(
        *("uv", "pip", "install", "--quiet", "--python", tmp_path / "venv", "--no-cache", "broker-cli"),
        UV_INDEX=f"{indexes.ours}/simple/",
    )
    listed = indexes.run("uv", "pip", "list", "--python", tmp_path / "venv", "--format", "freeze")
    ours = importlib.metadata.version("broker-cli")
    assert listed.splitlines()[0] == f"broker-cli=={ours}"
    assert any(asked.endswith(".whl.metadata") for asked in indexes.asked)


@pytest.mark.slow
def test_pip_installs_it_by_its_address(indexes: Indexes, tmp_path: Path) -> None:
    """pip takes the highest version of all its indexes, so ours is named by address and hash instead."""
    python = tmp_path / "venv" / "bin" / "python"
    indexes.run(sys.executable, "-m", "venv", tmp_path / "venv")
    install = (python, "-m", "pip", "install", "--quiet")
    version = importlib.metadata.version("broker-cli")
    wheel = f"{indexes.ours}/simple/broker-cli/broker_cli-{version}-py3-none-any.whl"
    indexes.run(*install, "--index-url", f"{indexes.public}/simple/", f"broker-cli @ {wheel}")
    assert version in indexes.run(tmp_path / "venv" / "bin" / "broker-cli", "--version")

    indexes.run(
        *install, "--force-reinstall", "--no-deps", "--index-url", f"{indexes.ours}/simple/", "broker-cli"
    )
    assert version in indexes.run(tmp_path / "venv" / "bin" / "broker-cli", "--version")

    both = ("--index-url", f"{indexes.ours}/simple/", "--extra-index-url", f"{indexes.public}/simple/")
    indexes.run(*install, "--force-reinstall", *both, "broker-cli")
    assert indexes.run(tmp_path / "venv" / "bin" / "broker-cli") == "theirs\n"
