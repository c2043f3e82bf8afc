"""`broker setup` in a real browser: what GitHub's redirects, cookies and CSP make of the local page."""

import os
import shutil
from pathlib import Path

import pytest
from e2e_setup import ORG, a_github, setting_up

pytestmark = pytest.mark.browser


@pytest.mark.timeout(240)
def test_clicked_through(tmp_path: Path) -> None:
    from playwright.sync_api import expect, sync_playwright  # noqa: PLC0415 - .ci/run brings it for this test

    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    assert program is not None, "apt-get install chromium"
    pictures = Path(os.environ.get("SETUP_PICTURES", tmp_path))
    with (
        a_github(api_prefix="/api/v3") as (_, server),
        setting_up(server, tmp_path, "--org", ORG) as setup,
        sync_playwright() as playwright,
    ):
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        context = chromium.new_context(viewport={"width": 900, "height": 720})
        context.set_default_timeout(30_000)
        page = context.new_page()
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        # The pages bring all that they show: nothing is asked of anybody else.
        asked: list[str] = []
        context.on("request", lambda request: asked.append(request.url))

        page.goto(setup.page)
        page.screenshot(path=pictures / "setup-1-begin.png")
        page.keyboard.press("Tab")  # the one button is the first thing that the keyboard reaches
        page.keyboard.press("Enter")
        page.get_by_role("button", name=f"Create GitHub App for {ORG}").click()
        expect(page.get_by_role("heading", name="Install it on repositories")).to_be_visible(timeout=60_000)
        assert page.url.endswith("/install")
        page.screenshot(path=pictures / "setup-2-install.png")
        with context.expect_page() as opened:
            page.get_by_role("link", name="Choose repositories on GitHub").click()
        tab = opened.value
        assert tab.evaluate("window.opener") is None
        tab.get_by_label(f"{ORG}/widgets").check()
        tab.get_by_role("button", name="Install").click()
        expect(tab.get_by_role("heading", name="Installed")).to_be_visible()
        expect(page.get_by_role("heading", name="All done")).to_be_visible(timeout=60_000)
        page.screenshot(path=pictures / "setup-3-done.png")
        assert setup.ended() == 0, setup.said
        assert f"first token came, for {ORG}/widgets" in setup.said
        # Browsers ask for an icon; what the policy refuses would be told here too.
        assert [text for text in said if "404" not in text] == []
        own = setup.page.rsplit("/", 2)[0]
        assert {url.split("/")[2] for url in asked} == {server.url.split("/")[2], own.split("/")[2]}
        chromium.close()
