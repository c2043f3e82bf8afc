"""`broker setup` refuses what cannot end well before it opens anything."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
from click.testing import CliRunner

from broker import settings
from broker.__main__ import cli
from broker.errors import InvalidRequestError, SetupError
from broker.github import pages
from broker.github.manifest import LONGEST_NAME, manifest, parse_webhook_url
from broker.model import App, NewApp, Secret
from broker.setup.flow import Setup, Wish
from broker.setup.keeping import Keeping


@pytest.fixture(autouse=True)
def _logs_come_back() -> Iterator[None]:
    """The command switches the logs of its process off; here the process goes on."""
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--org", "a/b"), "is not a name"),
        (("--name", "x" * (LONGEST_NAME + 1)), "1 to 34"),
        (("--name", "  "), "1 to 34"),
        (("--webhook-url", "http://broker.example.com"), "https://broker.example.com"),
        (("--webhook-url", "https://localhost/webhooks/github"), "GitHub cannot reach localhost"),
        (("--webhook-url", "https://10.0.0.8"), "GitHub cannot reach 10.0.0.8"),
        (("--kubernetes-secret", "No"), "no name of a Secret"),
        (("--port", "70000"), "70000"),
    ],
)
def test_wrong_wishes_end_with_2(folder: Path, arguments: tuple[str, ...], said: str) -> None:
    done = CliRunner().invoke(cli, ["setup", "--no-browser", *arguments])
    assert (done.exit_code, said in done.output) == (2, True), done.output
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", [".env", "app.pem", "webhook-secret"])
def test_nothing_is_written_over(folder: Path, name: str) -> None:
    kept = folder / "broker-app"
    kept.mkdir()
    (kept / name).symlink_to(folder / "elsewhere")
    done = CliRunner().invoke(cli, ["setup", "--no-browser"])
    assert done.exit_code == 2
    assert f"{name}: there already" in done.output
    assert [path.name for path in kept.iterdir()] == [name]


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_page_of_somebody_else_is_not_deleted(folder: Path, kind: str) -> None:
    page = folder / "setup.html"
    if kind == "file":
        page.write_text("somebody's")
    else:
        page.symlink_to(folder / "elsewhere")
    done = CliRunner().invoke(cli, ["setup", "--manual", "--output", str(folder)], input="\n")
    assert (done.exit_code, "setup.html: there already" in done.output) == (2, True), done.output
    assert [path.name for path in folder.iterdir()] == ["setup.html"]
    assert page.is_symlink() or page.read_text() == "somebody's"


def test_a_page_that_appears_meanwhile_stays(folder: Path) -> None:
    keeping = Keeping(folder, settings.GitHubPlace(), kubernetes_secret=None, force=False, manual=True)
    keeping.prepare()
    (folder / "setup.html").write_text("somebody's")
    with pytest.raises(SetupError, match="could not be written"):
        keeping.carry("ours")
    assert (folder / "setup.html").read_text() == "somebody's"


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_folder_that_others_write_to_is_refused(folder: Path, mode: int) -> None:
    shared = folder / "shared"
    shared.mkdir()
    shared.chmod(mode)
    with pytest.raises(SetupError, match="others may write to it"):
        Keeping(shared, settings.GitHubPlace(), kubernetes_secret=None, force=True).prepare()
    assert list(shared.iterdir()) == []


def test_a_folder_of_another_user_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeping = Keeping(folder, settings.GitHubPlace(), kubernetes_secret=None, force=False)
    keeping.prepare()
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(SetupError, match="belongs to another user"):
        keeping.prepare()


def new_app(*, webhook_secret: str | None = None) -> NewApp:
    app = App(7, "ours", "acme", {"contents": "read"}, (), owner_kind="Organization")
    return NewApp(app, "Iv23li", Secret("PEM"), Secret(webhook_secret) if webhook_secret else None)


def test_force_replaces_and_else_a_file_that_appears_meanwhile_stays(folder: Path) -> None:
    place = settings.GitHubPlace()
    careful = Keeping(folder, place, kubernetes_secret=None, force=False)
    careful.prepare()
    (folder / "app.pem").write_text("somebody's")
    with pytest.raises(SetupError, match="make a new private key on the app's page"):
        careful.keep(new_app())
    assert (folder / "app.pem").read_text() == "somebody's"
    Keeping(folder, place, kubernetes_secret=None, force=True).keep(new_app(webhook_secret="w"))
    assert (folder / "app.pem").read_text() == "PEM\n"
    assert (folder / "webhook-secret").read_text() == "w\n"
    assert "BROKER_GITHUB_CLIENT_ID=Iv23li\n" in (folder / ".env").read_text()
    assert {path.name for path in folder.iterdir()} == {".env", "app.pem", "webhook-secret", ".gitignore"}


async def test_an_app_of_somebody_else_is_not_kept(folder: Path) -> None:
    """A code that was slipped in brings an app of its own; with --org that shows."""
    kept: list[NewApp] = []

    class Far:
        async def __aenter__(self) -> Self:
            return self

        async def __aexit__(self, *_: object) -> None: ...

        async def convert_manifest(self, code: str) -> NewApp:
            return new_app()

    wish = Wish(settings.GitHubPlace(), "acme-prod", "ours", None)
    setup = Setup(wish, kept.append, connect=lambda *_: Far())  # type: ignore[arg-type,return-value]
    with pytest.raises(SetupError, match="is of acme, not of acme-prod: nothing was kept"):
        await setup.redeem(setup.state, "c" * 20)
    assert kept == []
    with pytest.raises(SetupError, match="used already"):
        await setup.redeem(setup.state, "c" * 20)


@pytest.mark.parametrize(
    ("web", "api", "install"),
    [
        ("https://github.com", "https://api.github.com", "https://github.com/apps/x/installations/new"),
        ("https://acme.ghe.com", "https://api.acme.ghe.com", "https://acme.ghe.com/apps/x/installations/new"),
        (
            "https://g.acme.io",
            "https://g.acme.io/api/v3",
            "https://g.acme.io/github-apps/x/installations/new",
        ),
        ("https://ghe.com", "https://ghe.com/api/v3", "https://ghe.com/github-apps/x/installations/new"),
    ],
)
def test_every_github_has_its_addresses(web: str, api: str, install: str) -> None:
    assert (pages.api(web), pages.install(web, "x")) == (api, install)
    assert settings.load_place(web).github_api_url == api


def test_the_place_is_read_without_an_app(folder: Path) -> None:
    (folder / ".env").write_text("BROKER_GITHUB_URL=https://git.acme.com\n")
    assert settings.load_place().github_api_url == "https://git.acme.com/api/v3"
    (folder / ".env").write_text(
        "BROKER_GITHUB_URL=https://g.acme.io\nBROKER_GITHUB_API_URL=https://a.acme.io\n"
    )
    assert settings.load_place().github_api_url == "https://a.acme.io"


def test_a_manifest_asks_for_reading_alone() -> None:
    quiet = manifest(name="n", homepage="https://h", redirect_url="http://127.0.0.1:1/", webhook_url=None)
    assert quiet["default_permissions"] == {"contents": "read", "metadata": "read"}
    assert quiet["public"] is False
    # GitHub refuses hook_attributes without an address, and setup_url would outlive the local page.
    assert not {"hook_attributes", "default_events", "setup_url"} & set(quiet)


@pytest.mark.parametrize(
    "text", ["https://a@b.com", "https://b.com:0", "https://b.com/#x", "https://[::1", "b.com"]
)
def test_odd_webhook_urls_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        parse_webhook_url(text)


def test_a_bare_origin_gets_the_brokers_own_path() -> None:
    assert parse_webhook_url("https://b.com/") == "https://b.com/webhooks/github"
    assert parse_webhook_url("https://b.com/hooks/github") == "https://b.com/hooks/github"
