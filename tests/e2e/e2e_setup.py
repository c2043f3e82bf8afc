"""`broker setup` as a process, and what its tests look at."""

import contextlib
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin

import httpx
from harness import SCRIPTS, clean_environment

from broker.sandbox.github import EmulatedGitHub, RunningGitHub

ORG = "acme-platform"


class SetupProcess:
    """A running `broker setup`; what it prints is kept."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.said = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line

    def wait_for(self, pattern: str, *, seconds: float = 30) -> str:
        """Return the first match in what it has printed."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.said)):
            assert time.monotonic() < end, f"{pattern} was not printed:\n{self.said}"
            time.sleep(0.02)
        return found[0]

    @property
    def page(self) -> str:
        """The address of the local page."""
        return self.wait_for(r"http://127\.0\.0\.1:\d+/[\w-]{20,}/")

    def ended(self, *, seconds: float = 40) -> int:
        """Wait for the end; return the exit status."""
        status = self.process.wait(seconds)
        self._reader.join(5)
        return status


@contextmanager
def a_github(*, api_prefix: str = "") -> Iterator[tuple[EmulatedGitHub, RunningGitHub]]:
    """An emulated GitHub with an organization, two private repositories in it, and no app yet."""
    with EmulatedGitHub() as github:
        for name in ("widgets", "gadgets"):
            github.add_repository(f"{ORG}/{name}")
        with github.serve(api_prefix=api_prefix) as server:
            yield github, server


def environment(server: RunningGitHub) -> dict[str, str]:
    return clean_environment(
        BROKER_GITHUB_URL=server.url, BROKER_GITHUB_API_URL=server.api_url, BROKER_LOG_LEVEL="debug"
    )


@contextmanager
def setting_up(server: RunningGitHub, folder: Path, *arguments: str) -> Iterator[SetupProcess]:
    """Run `broker setup` until the end of the block."""
    process = subprocess.Popen(
        [str(SCRIPTS / "broker"), "setup", "--no-browser", *arguments],
        env=environment(server),
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    running = SetupProcess(process)
    try:
        yield running
    finally:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
        if process.poll() is None:
            process.kill()
            process.wait(10)
        running.ended()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


class Form(HTMLParser):
    """The form of a page: where it goes, and its fields."""

    def __init__(self, page: httpx.Response) -> None:
        super().__init__()
        self.action = ""
        self.fields: dict[str, str] = {}
        self.feed(page.text)
        self.action = urljoin(str(page.url), self.action)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "form":
            self.action = found.get("action") or ""
        elif tag == "input" and found.get("type") != "checkbox":
            self.fields[found.get("name") or ""] = found.get("value") or ""


def browser() -> httpx.Client:
    """Something that follows redirects and keeps cookies, as browsers do."""
    return httpx.Client(follow_redirects=True, timeout=20, trust_env=False)


def pressed(http: httpx.Client, page: httpx.Response, **fields: str) -> httpx.Response:
    """Press the one button of a page."""
    form = Form(page)
    return http.post(form.action, data=form.fields | fields)
