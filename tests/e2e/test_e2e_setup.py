"""`broker setup`: from nothing to a broker that works, by the pages that a browser would be shown."""

import re
import stat
import subprocess
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import yaml
from e2e_setup import ORG, Form, a_github, browser, environment, pressed, setting_up
from harness import SCRIPTS

from broker.sandbox.github import Fault


def test_from_nothing_to_a_broker_that_works(tmp_path: Path) -> None:
    with (
        a_github() as (github, server),
        setting_up(server, tmp_path, "--org", ORG) as setup,
        browser() as http,
    ):
        github.manifests.install_page_lag_s = 2
        page = http.get(setup.page)
        assert "contents: read, metadata: read" in page.text
        confirm = pressed(http, page)
        assert f"Create GitHub App for {ORG}" in confirm.text
        there = pressed(http, confirm)
        assert there.url.path.endswith("/install")  # the code is no longer in the address bar
        assert "code" not in str(there.url)
        (app,) = github.apps.values()
        assert app.permissions == {"contents": "read", "metadata": "read"}
        assert (app.events, app.public) == ([], False)
        link = setup.wait_for(rf"{re.escape(server.url)}/\S+/installations/new")
        assert setup.process.poll() is None
        shown = http.get(there.url)
        while "Install it on repositories" not in shown.text:
            shown = http.get(there.url)
        # The link of a page that is not on github.com is that of Enterprise Server.
        assert link in shown.text
        github.install(app, ORG, repositories=["widgets"])
        setup.wait_for("revoked again")
        assert "All done" in http.get(there.url).text
        assert setup.ended() == 0, setup.said
        assert github.live_tokens() == []
        minted = [token.permissions for token in github.tokens.values()]
        assert minted == [{"metadata": "read"}, {"contents": "read", "metadata": "read"}]

        folder = tmp_path / "broker-app"
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
        assert modes == {".env": 0o600, "app.pem": 0o600, ".gitignore": 0o600}
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        secret = (folder / "app.pem").read_text()
        assert "PRIVATE KEY" in secret
        assert "PRIVATE KEY" not in setup.said
        # What it tells to paste next works as it stands.
        run = "uv run --project .* broker|uv run broker|broker"
        lines = re.findall(rf"^  ((?:cd|{run}) .*)$", setup.said, re.MULTILINE)
        assert [line.split("broker ")[-1].split()[0] for line in lines[1:]] == ["check", "keys", "serve"]
        for line in lines[1:3]:
            done = subprocess.run(
                ["bash", "-ec", f"{lines[0]} && {re.sub(run, str(SCRIPTS / 'broker'), line, count=1)}"],
                env={k: v for k, v in environment(server).items() if not k.startswith("BROKER_")},
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert "✗" not in done.stdout
        assert re.fullmatch(r"ghbk_\w+\n", done.stdout)


@pytest.mark.slow
def test_enterprise_server_a_webhook_and_a_secret_for_kubernetes(tmp_path: Path) -> None:
    arguments = ("--webhook-url", "https://broker.example.com", "--kubernetes-secret", "github-app")
    with (
        a_github(api_prefix="/api/v3") as (github, server),
        setting_up(server, tmp_path, *arguments, "--github-url", server.url) as setup,
        browser() as http,
    ):
        pressed(http, pressed(http, http.get(setup.page)), name="ours")
        link = setup.wait_for(rf"{re.escape(server.url)}/github-apps/ours/installations/new")
        (app,) = github.apps.values()
        assert (app.owner.login, app.events) == ("octocat", ["repository"])
        assert github.hooks[0].url == "https://broker.example.com/webhooks/github"
        github.add_repository("octocat/dotfiles")
        installed = pressed(http, http.get(link))
        assert "was installed" in installed.text
        assert setup.ended() == 0, setup.said
        assert "first token came, for octocat/dotfiles" in setup.said
        secret = yaml.safe_load((tmp_path / "broker-app" / "secret.yaml").read_text())
        values = yaml.safe_load((tmp_path / "broker-app" / "values.yaml").read_text())
    assert secret["metadata"]["name"] == "github-app"
    assert secret["stringData"]["webhook-secret"] == github.hooks[0].secret
    assert secret["stringData"]["private-key.pem"].startswith("-----BEGIN RSA PRIVATE KEY-----\n")
    assert values == {
        "github": {
            "appId": str(app.app_id),
            "privateKey": {"existingSecret": "github-app"},
            "webhookSecret": {"existingSecret": "github-app"},
            "url": server.url,
            "apiUrl": server.api_url,
        }
    }
    chart = yaml.safe_load((Path(__file__).parents[2] / "helm" / "values.yaml").read_text())["github"]
    assert set(values["github"]) <= set(chart)
    assert set(secret["stringData"]) == {*chart["privateKey"]["keys"], chart["webhookSecret"]["key"]}


def test_without_a_browser_the_address_is_pasted_back(tmp_path: Path) -> None:
    with a_github() as (github, server), setting_up(server, tmp_path, "--org", ORG, "--manual") as setup:
        setup.wait_for("Paste that whole address here")
        carried = tmp_path / "broker-app" / "setup.html"
        assert stat.S_IMODE(carried.stat().st_mode) == 0o600
        with httpx.Client(timeout=20, trust_env=False) as http:
            form = Form(
                httpx.Response(200, text=carried.read_text(), request=httpx.Request("GET", "http://x"))
            )
            created = pressed(http, http.post(form.action, data=form.fields))
        ended = created.headers["location"]
        github.manifests.without_webhook_secret = True
        assert urlsplit(ended).hostname == "127.0.0.1"
        assert setup.process.stdin is not None
        setup.process.stdin.write(f"{ended}\n")
        setup.process.stdin.flush()
        setup.wait_for("GitHub made the app")
        assert not carried.exists()
        (app,) = github.apps.values()
        github.install(app, ORG)
        assert setup.ended() == 0, setup.said
        assert parse_qs(urlsplit(ended).query)["code"][0] not in setup.said


def test_only_the_first_browser_on_this_machine_with_the_right_state(tmp_path: Path) -> None:
    with a_github() as (github, server), setting_up(server, tmp_path) as setup, browser() as http:
        address = urlsplit(setup.page)
        root = f"{address.scheme}://{address.netloc}"
        assert http.get(root).status_code == 404
        assert http.get(f"{root}/made?code=x&state=y").status_code == 404
        rebound = http.get(setup.page, headers={"Host": f"evil.example:{address.port}"})
        assert rebound.status_code == 404
        page = http.get(setup.page)
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "frame-ancestors 'none'" in policy
        # Whoever reads the address in a process list comes too late, and gets no state.
        with browser() as stranger:
            assert stranger.get(setup.page).status_code == 403
            state = parse_qs(urlsplit(Form(page).action).query)["state"][0]
            slipped_in = stranger.get(f"{setup.page}made", params={"code": "c" * 40, "state": state})
            assert slipped_in.status_code == 403
        for wrong in ("", "x", state[:-1], "é"):
            refused = http.get(f"{setup.page}made", params={"code": "c" * 40, "state": wrong})
            assert refused.status_code == 403
        assert github.count("convert_manifest") == 0
        confirm = pressed(http, page)
        form = Form(confirm)
        created = http.post(form.action, data=form.fields, follow_redirects=False)
        assert http.get(created.headers["location"]).status_code == 200
        again = http.get(created.headers["location"])
        assert again.status_code == 403
        assert github.count("convert_manifest") == 1
        code = parse_qs(urlsplit(created.headers["location"]).query)["code"][0]
        assert code not in setup.said
        with open(f"/proc/{setup.process.pid}/cmdline", "rb") as file:  # noqa: PTH123
            assert state.encode() not in file.read()


def test_a_code_that_github_does_not_know(tmp_path: Path) -> None:
    with a_github() as (github, server), setting_up(server, tmp_path) as setup, browser() as http:
        page = http.get(setup.page)
        state = parse_qs(urlsplit(Form(page).action).query)["state"][0]
        answer = http.get(f"{setup.page}made", params={"code": "c" * 40, "state": state})
        assert answer.status_code == 502
        assert "works once" in answer.text
        assert setup.ended() == 1
        assert "delete it there, and begin anew" in setup.said
        assert "c" * 40 not in setup.said
        assert "Traceback" not in setup.said
        assert github.count("convert_manifest") == 1
    assert not (tmp_path / "broker-app" / "app.pem").exists()


def test_the_key_is_kept_before_anything_that_can_fail(tmp_path: Path) -> None:
    with a_github() as (github, server), setting_up(server, tmp_path) as setup, browser() as http:
        github.faults.add(Fault(route="app", status=403, body={"message": "no"}))
        pressed(http, pressed(http, http.get(setup.page)))
        assert setup.ended() == 1
        (app,) = github.apps.values()
        assert "GitHub does not know the new app" in setup.said
    assert "PRIVATE KEY" in (tmp_path / "broker-app" / "app.pem").read_text()
    assert f"BROKER_GITHUB_APP_ID={app.app_id}\n" in (tmp_path / "broker-app" / ".env").read_text()
