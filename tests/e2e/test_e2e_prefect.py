"""The recipes for Prefect in README, with the real `prefect` package: its step runner, server and worker.

The repository is served over TLS, as Prefect drops credentials silently where a URL begins with http.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import SCRIPTS, Service, World, clean_environment, world_in
from servers import certificate, free_port

README = (Path(__file__).parents[2] / "README.md").read_text()
PREFECT = "prefect>=3.9.1,<4"
HELPER = (
    re.split(r"\n## ", README.partition("\n## Prefect\n")[2])[0].partition("```bash\n")[2].partition("```")[0]
)
FLOW = "from prefect import flow\n\n\n@flow(log_prints=True)\ndef hello():\n    print('cloned and run')\n"
# Importing Prefect takes longer than all that it does here: one process takes the tests' wishes in turn.
RUNNER = """
import asyncio, json, os, sys, traceback, yaml
from prefect.deployments.steps.core import run_steps

answers = os.fdopen(os.dup(1), "w")
for line in sys.stdin:
    want, before, code = json.loads(line), dict(os.environ), 0
    os.environ.update(want["environment"])
    os.chdir(want["folder"])
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(name, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.dup2(file, number)
        os.close(file)
    try:
        if want["pull"] is None:
            exec(want["code"], {"__name__": "__main__"})
        else:
            asyncio.run(run_steps(yaml.safe_load(want["pull"])["pull"]))
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os.environ.clear()
    os.environ.update(before)
    print(code, file=answers, flush=True)
"""
WORK_POOL = """
import asyncio
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.workers.process import ProcessWorker

async def make():
    template = ProcessWorker.get_default_base_job_template()
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name="here", type="process", base_job_template=template))

asyncio.run(make())
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def recipe(part: str) -> str:
    """Return the first ``pull:`` section of README that has ``part`` in it."""
    blocks = re.findall(r"```yaml\n(pull:\n.*?)```", README, re.DOTALL)
    return str(next(block for block in blocks if part in block))


@dataclass
class Done:
    """What a process, or a part of its work, came to."""

    returncode: int
    stdout: str
    stderr: str


@dataclass
class Prefect:
    """A Prefect server, and the commands of its environment, set up as a worker that uses the broker."""

    bin: Path
    folder: Path
    world: World
    service: Service
    key: str
    git_url: str
    ca: Path
    port: int = field(default_factory=free_port)
    runners: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    def environment(self, **more: str) -> dict[str, str]:
        return clean_environment(
            **{
                "PATH": os.pathsep.join((str(self.bin), str(SCRIPTS), os.environ["PATH"])),
                "HOME": str(self.folder),
                "PREFECT_HOME": str(self.folder / "prefect"),
                "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api",
                "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                "PREFECT_WORKER_QUERY_SECONDS": "1",
                "DO_NOT_TRACK": "1",
                "NO_COLOR": "1",
                "GIT_SSL_CAINFO": str(self.ca),
                "GIT_TERMINAL_PROMPT": "0",
                "GIT_CONFIG_NOSYSTEM": "1",
                "BROKER_API_URL": self.service.url,
                "BROKER_API_KEY": self.key,
                "UV_INDEX": f"{self.service.url}/simple/",
                **more,
            }
        )

    def run(self, *command: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=self.environment(**more),
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def ok(self, *command: str, cwd: Path, **more: str) -> str:
        done = self.run(*command, cwd=cwd, **more)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def runner(self, level: str) -> subprocess.Popen[str]:
        """Return the process that runs steps and code at that level of logging."""
        if level not in self.runners:
            self.runners[level] = subprocess.Popen(
                [str(self.bin / "python"), "-c", RUNNER],
                env=self.environment(PREFECT_LOGGING_LEVEL=level),
                cwd=self.folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        return self.runners[level]

    def pull(self, text: str, cwd: Path, *, level: str = "DEBUG", **more: str) -> Done:
        """Run a ``pull:`` section, with GitHub's address replaced, through Prefect's step runner."""
        return self._done(cwd, level, more, pull=self.here(text), code="")

    def python(self, code: str, cwd: Path, **more: str) -> Done:
        return self._done(cwd, "DEBUG", more, pull=None, code=code)

    def _done(self, cwd: Path, level: str, more: dict[str, str], **what: str | None) -> Done:
        runner = self.runner(level)
        assert runner.stdin is not None
        assert runner.stdout is not None
        runner.stdin.write(json.dumps({**what, "folder": str(cwd), "environment": more}) + "\n")
        runner.stdin.flush()
        code = int(runner.stdout.readline())
        said = []
        for name in ("stdout", "stderr"):
            said.append((cwd / name).read_text())
            (cwd / name).unlink()
        return Done(code, *said)

    def here(self, text: str) -> str:
        """Return an example with the addresses of this test, and the repository that is there."""
        host = self.git_url.removeprefix("https://")
        return (
            text.replace("github.com", host)
            .replace("https://broker.example.com", self.service.url)
            .replace("owner/repository", "acme/etl")
            .replace("acme/widgets", "acme/etl")
        )

    def api(self, path: str, **body: Any) -> Any:
        answer = httpx.post(f"http://127.0.0.1:{self.port}/api{path}", json=body, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def assert_no_secret(self, text: str) -> None:
        """Fail if a token that was minted, or the secret of any key, is in ``text``."""
        found = [token for token in self.world.github.tokens if token in text]
        assert not found
        assert not re.search(r"ghbk_\w{12}_\w{20}", text)


@pytest.fixture(scope="module")
def prefect(installed: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    folder = tmp_path_factory.mktemp("prefect")
    commands = installed(PREFECT)
    with world_in(folder) as world, contextlib.ExitStack() as stack:
        for name in ("etl", "library"):
            world.github.add_repository(f"acme/{name}", files={"flow.py": FLOW})
        cert, key_file = certificate(folder)
        git = stack.enter_context(world.github.serve(certfile=cert, keyfile=key_file))
        service = world.service(BROKER_GITHUB_URL=git.url)
        one = Prefect(commands, folder, world, service, world.key("acme/*"), git.url, cert)
        with (folder / "prefect-server.log").open("wb") as log:
            server = subprocess.Popen(
                [
                    str(commands / "prefect"),
                    "server",
                    "start",
                    "--host",
                    "127.0.0.1",
                    "--port",
                    str(one.port),
                ],
                env=one.environment(PREFECT_API_URL=""),
                cwd=folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                one.runner("DEBUG")  # gets itself ready meanwhile
                until = time.monotonic() + 200
                while time.monotonic() < until:
                    assert server.poll() is None, (folder / "prefect-server.log").read_text()[-3000:]
                    with contextlib.suppress(httpx.HTTPError):
                        if httpx.get(f"http://127.0.0.1:{one.port}/api/health", timeout=5).is_success:
                            break
                    time.sleep(0.2)
                yield one
            finally:
                for process in (server, *one.runners.values()):
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait(10)
                for runner in one.runners.values():
                    for pipe in (runner.stdin, runner.stdout):
                        assert pipe is not None
                        pipe.close()


def test_the_recipe_with_credentials_shows_no_token_even_at_debug(prefect: Prefect, tmp_path: Path) -> None:
    """And where the token does lie, README says: in the clone's `.git/config`, until it expires."""
    done = prefect.pull(recipe("username: x-access-token\n"), tmp_path)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "DEBUG" in said
    assert (tmp_path / "etl" / "flow.py").is_file()
    prefect.assert_no_secret(said)
    config = (tmp_path / "etl" / ".git" / "config").read_text()
    assert any(token in config for token in prefect.world.github.tokens)

    again = prefect.pull(recipe("username: x-access-token\n"), tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Successfully pulled" in again.stderr
    prefect.assert_no_secret(again.stdout + again.stderr)


def test_the_recipe_with_the_token_in_the_url_shows_it_at_debug_only(
    prefect: Prefect, tmp_path: Path
) -> None:
    (tmp_path / "info").mkdir()
    done = prefect.pull(recipe("https://x-access-token:{{"), tmp_path / "info", level="INFO")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "info" / "etl" / "flow.py").is_file()
    prefect.assert_no_secret(done.stdout + done.stderr)
    debug = prefect.pull(recipe("https://x-access-token:{{"), tmp_path)
    assert any(token in debug.stderr for token in prefect.world.github.tokens)  # as README warns


def test_a_secret_block_holds_the_api_key(prefect: Prefect, tmp_path: Path) -> None:
    """The worker's environment has no key then; nor does the log."""
    block = (
        "from prefect.blocks.system import Secret; import os;"
        "Secret(value=os.environ['KEY']).save('broker-api-key')"
    )
    saved = prefect.python(block, tmp_path, KEY=prefect.key)
    assert saved.returncode == 0, saved.stderr
    text = recipe("BROKER_API_KEY: ")
    done = prefect.pull(text, tmp_path, BROKER_API_KEY="", BROKER_API_URL="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "etl" / "flow.py").is_file()
    prefect.assert_no_secret(done.stdout + done.stderr)


@pytest.fixture(scope="module")
def with_submodules(prefect: Prefect, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A repository with another one of its owner in it, by an absolute and by a relative address."""
    folder = tmp_path_factory.mktemp("submodules")
    modules = "".join(
        f'[submodule "{name}"]\n\tpath = {name}\n\turl = {url}\n'
        for name, url in (("absolute", f"{prefect.git_url}/acme/library.git"), ("relative", "../library.git"))
    )
    library = prefect.world.github.find_repository("acme/library")
    assert library is not None
    assert library.path is not None
    head = prefect.ok("git", "-C", str(library.path), "rev-parse", "main", cwd=folder).strip()
    parent = prefect.world.github.add_repository("acme/etl-with-lib", files={".gitmodules": modules})
    work = folder / "work"
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.com")
    prefect.ok("git", "clone", "--quiet", str(parent.path), str(work), cwd=folder)
    for name in ("absolute", "relative"):
        prefect.ok("git", "update-index", "--add", "--cacheinfo", f"160000,{head},{name}", cwd=work)
    prefect.ok("git", *identity, "commit", "--quiet", "-m", "submodules", cwd=work)
    prefect.ok("git", "push", "--quiet", "origin", "HEAD:main", cwd=work)
    return "acme/etl-with-lib"


def assert_submodules(clone: Path) -> None:
    for name in ("absolute", "relative"):
        assert (clone / name / "flow.py").is_file()


def test_submodules_of_the_same_owner_with_one_token(
    prefect: Prefect, with_submodules: str, tmp_path: Path
) -> None:
    text = recipe("include_submodules: true\n").replace("acme/lib\n", "acme/library\n")
    done = prefect.pull(text.replace("acme/widgets", with_submodules), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_submodules(tmp_path / "etl-with-lib")
    prefect.assert_no_secret(done.stdout + done.stderr)


def test_with_the_credential_helper_no_token_is_anywhere(
    prefect: Prefect, with_submodules: str, tmp_path: Path
) -> None:
    """No token in a URL, in Prefect's hands, in a file of the clone or in a log; submodules alike."""
    git = {"GIT_CONFIG_GLOBAL": str(tmp_path / "gitconfig")}
    (line,) = [line for line in HELPER.splitlines() if "setup-git" in line]
    prefect.ok(*line.split(), cwd=tmp_path, **git)
    text = recipe("include_submodules: true  #")
    assert "token" not in text
    clone = text.replace("acme/widgets", with_submodules)
    tokens = set(prefect.world.github.tokens)
    done = prefect.pull(clone, tmp_path, **git)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "DEBUG" in said
    assert_submodules(tmp_path / "etl-with-lib")
    again = prefect.pull(clone, tmp_path, **git)  # into the folder that is there already
    assert again.returncode == 0, again.stdout + again.stderr
    prefect.assert_no_secret(said + again.stdout + again.stderr)
    assert set(prefect.world.github.tokens) - tokens  # it was not public: the helper was asked
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert not any(token.encode() in path.read_bytes() for token in prefect.world.github.tokens), path

    (tmp_path / "refused").mkdir()
    narrow = prefect.world.key("acme/gadgets")
    refused = prefect.pull(clone, tmp_path / "refused", BROKER_API_KEY=narrow, **git)
    assert refused.returncode != 0
    assert "broker-cli: no token for acme/etl-with-lib" in refused.stderr
    prefect.assert_no_secret(refused.stdout + refused.stderr)


def test_from_source_with_credentials(prefect: Prefect, tmp_path: Path) -> None:
    (text,) = [
        block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "from_source" in block
    ]
    done = prefect.python(prefect.here(text) + "\nprint('loaded', hello.name)\n", tmp_path)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "loaded hello" in said
    prefect.assert_no_secret(said)


@pytest.mark.timeout(600)
def test_a_deployment_run_completes_and_refusals_can_be_read(prefect: Prefect, tmp_path: Path) -> None:
    """Server, worker and deployment: what a data engineer sees, and that no secret is anywhere in it."""
    (tmp_path / "flow.py").write_text(FLOW)
    pull = prefect.here(recipe("username: x-access-token\n"))
    (tmp_path / "prefect.yaml").write_text(
        f"name: test\n{pull}\ndeployments:\n"
        "  - name: demo\n    entrypoint: flow.py:hello\n    work_pool:\n      name: here\n"
    )
    made = prefect.python(WORK_POOL, tmp_path)
    assert made.returncode == 0, made.stderr
    command = str(prefect.bin / "prefect")
    prefect.ok(command, "--no-prompt", "deploy", "--all", cwd=tmp_path)
    (deployment,) = prefect.api("/deployments/filter")
    revoked = prefect.world.key("acme/*")
    assert prefect.world.command("keys", "revoke", revoked[5:17]).returncode == 0
    runs = [
        prefect.api(
            f"/deployments/{deployment['id']}/create_flow_run",
            state={"type": "SCHEDULED"},
            job_variables={"env": environment},
        )["id"]
        for environment in ({}, {"BROKER_API_KEY": revoked})
    ]
    (tmp_path / "worker").mkdir()
    worker = prefect.run(
        *(command, "worker", "start", "--pool", "here", "--run-once"),
        cwd=tmp_path / "worker",
        PREFECT_LOGGING_LEVEL="DEBUG",
    )
    worked = worker.stdout + worker.stderr
    ended = []
    for run in runs:
        (found,) = prefect.api("/flow_runs/filter", flow_runs={"id": {"any_": [run]}})
        lines = prefect.api("/logs/filter", logs={"flow_run_id": {"any_": [run]}}, limit=200)
        shown = "\n".join([*(line["message"] for line in lines), found["state"]["message"] or ""])
        found.pop("job_variables")  # the key that this test put there itself
        prefect.assert_no_secret(worked + shown + json.dumps(found))
        ended.append((found["state"]["type"], shown))
    (good, shown), (bad, refused) = ended
    assert good == "COMPLETED", shown + worked
    assert "cloned and run" in shown
    assert bad == "CRASHED", refused
    # Prefect's flow run only says which step failed; why is in the worker's log, as README says.
    assert "run_shell_script" in refused
    assert revoked[5:17] in why(worked)


def why(log: str) -> str:
    """Return the line that tells why a step failed: the client's own."""
    reason = log.partition("failed with error code")[2]  # uv's own lines may come before the client's
    return next(line for line in reason.splitlines() if "broker-cli: " in line)


@pytest.mark.parametrize("wrong", ["not granted", "broker down"])
def test_why_a_step_failed_can_be_read(prefect: Prefect, tmp_path: Path, wrong: str) -> None:
    if wrong == "not granted":
        helps, more = "ask the broker's admin", {"BROKER_API_KEY": prefect.world.key("acme/gadgets")}
    else:
        helps = f"http://127.0.0.1:{free_port()}"
        more = {"BROKER_API_URL": helps}
    sooner = recipe("username: x-access-token\n").replace(
        "broker-cli github", "broker-cli --timeout 5 github"
    )
    done = prefect.pull(sooner, tmp_path, **more)
    assert done.returncode != 0
    prefect.assert_no_secret(done.stdout + done.stderr)
    assert helps in why(done.stderr)
