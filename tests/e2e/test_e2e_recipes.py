"""The recipes of README as they stand there: their scripts run, their YAML read, their requests made.

Each recipe says what was not tried; that is what needs the program itself.
"""

import base64
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from harness import SCRIPTS, Service, World, clean_environment, world_in

README = (Path(__file__).parents[2] / "README.md").read_text()
PACKAGE = {
    "pyproject.toml": (
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "widgets"\nversion = "1.0"\n'
        '[tool.hatch.build.targets.wheel]\ninclude = ["widgets.py"]\n'
    ),
    "widgets.py": "WHAT = 'private'\n",
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def example(heading: str, language: str, part: str = "") -> str:
    """Return the example in ``language`` under a heading of README."""
    section = re.split(r"\n#{2,3} ", README.partition(f"# {heading}\n")[2])[0]
    return next(one for one in re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL) if part in one)


@dataclass
class Job:
    """A machine where a job runs: it has the broker's address and a key, and nothing else of ours."""

    world: World
    service: Service
    key: str
    folder: Path

    def here(self, text: str) -> str:
        return text.replace("https://broker.example.com", self.service.url).replace(
            "https://github.com", self.world.server.url
        )

    def environment(self, **more: str) -> dict[str, str]:
        return clean_environment(
            **{
                "PATH": os.pathsep.join((str(SCRIPTS), os.environ["PATH"])),
                "HOME": str(self.folder),
                "UV_CACHE_DIR": str(self.world.folder / "uv-cache"),
                "GIT_CONFIG_NOSYSTEM": "1",
                "GIT_TERMINAL_PROMPT": "0",
                "UV_INDEX": f"{self.service.url}/simple/",
                "BROKER_API_URL": self.service.url,
                "BROKER_API_KEY": self.key,
                **more,
            }
        )

    def bash(self, script: str, **more: str) -> str:
        """Run a script as CI systems do: it ends at the first command that fails."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.here(script)],
            env=self.environment(**more),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def assert_cloned(self, said: str) -> None:
        """Fail unless the repository is there, with the token in no file of it and in nothing printed."""
        clone = self.folder / "widgets"
        assert (clone / "widgets.py").is_file()
        config = (clone / ".git" / "config").read_text()
        assert self.world.github.tokens
        for token in self.world.github.tokens:
            assert token not in config
            assert token not in said
            assert base64.b64encode(f"x-access-token:{token}".encode()).decode() not in config + said


def active(venv: Path) -> str:
    """Return lines of shell that make an environment with pip and go into it."""
    made = f"uv venv --quiet --seed --python {shlex.quote(sys.executable)} {venv}\n"
    return f"{made}export VIRTUAL_ENV={venv} PATH={venv}/bin:$PATH\n"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Service, str]]:
    """A service, its emulated GitHub, and a key."""
    with world_in(tmp_path_factory.mktemp("recipes")) as world:
        world.github.delete_repository("acme/widgets")
        world.github.add_repository("acme/widgets", files=PACKAGE)
        yield world, world.service(), world.key("acme/*")


@pytest.fixture
def job(broker: tuple[World, Service, str], tmp_path: Path) -> Job:
    return Job(*broker, tmp_path)


def parsed(text: str) -> list[Any]:
    return list(yaml.safe_load_all(text))


def test_github_actions(job: Job) -> None:
    (workflow,) = parsed(example("GitHub Actions", "yaml"))
    step = next(one for one in workflow["jobs"]["build"]["steps"] if "run" in one)
    assert step["env"].pop("BROKER_API_KEY") == "${{ secrets.BROKER_API_KEY }}"
    said = job.bash(step["run"], **{name: job.here(value) for name, value in step["env"].items()})
    (mask,) = [line for line in said.splitlines() if line.startswith("::add-mask::")]
    assert mask.removeprefix("::add-mask::") in job.world.github.tokens
    job.assert_cloned(said.replace(mask, ""))


def test_gitlab_ci(job: Job) -> None:
    (pipeline,) = parsed(example("GitLab CI", "yaml"))
    variables = {name: job.here(value) for name, value in pipeline["build"]["variables"].items()}
    job.assert_cloned(job.bash("\n".join(pipeline["build"]["script"]), **variables))


def test_jenkins(job: Job) -> None:
    (script,) = re.findall(r"sh '''\n(.*?)'''", example("Jenkins", "groovy"), re.DOTALL)
    assert "\\" not in script  # Groovy would read it before the shell does
    job.assert_cloned(job.bash("set -x\n" + script))


def test_pip_and_uv_with_a_private_git_dependency(job: Job) -> None:
    idiom = example("Recipes", "bash", "GIT_CONFIG_COUNT")
    installs = example("pip, uv and Terraform modules", "bash", "git+https").splitlines()
    assert [line.split()[0] for line in installs] == ["uv", "pip"]
    for line in installs:
        venv = job.folder / line.split()[0]
        create = f"uv venv --quiet --seed --python {shlex.quote(sys.executable)} {venv}\n"
        activate = f"export VIRTUAL_ENV={venv} PATH={venv}/bin:$PATH\n"
        said = job.bash(
            create + activate + idiom + line + "\npython -c 'import widgets; print(widgets.WHAT)'\n"
        )
        assert said.splitlines().count("private") == 1
        for token in job.world.github.tokens:
            assert token not in said
            assert not any(token.encode() in path.read_bytes() for path in venv.rglob("*") if path.is_file())


def test_pip_and_uv_with_the_credential_helper(job: Job) -> None:
    """The same two lines; nobody but git has the token."""
    heading = "pip, uv and Terraform modules"
    git = {"GIT_CONFIG_GLOBAL": str(job.folder / "gitconfig"), "UV_CACHE_DIR": str(job.folder / "uv-cache")}
    (setup,) = [line for line in example(heading, "bash", "setup-git").splitlines() if "setup-git" in line]
    said = job.bash(setup, **git)
    for line in example(heading, "bash", "git+https").splitlines():
        venv = job.folder / line.split()[0]
        asked = job.world.github.count("git_upload_pack")
        said += job.bash(f"{active(venv)}{line}\npython -c 'import widgets; print(widgets.WHAT)'\n", **git)
        assert job.world.github.count("git_upload_pack") > asked
    assert said.splitlines().count("private") == 2
    assert job.world.github.tokens
    for token in job.world.github.tokens:
        assert token not in said
        assert not any(
            token.encode() in path.read_bytes() for path in job.folder.rglob("*") if path.is_file()
        )


def test_docker_buildkit(job: Job) -> None:
    """What RUN runs, with the secret in the environment, where BuildKit puts it."""
    dockerfile = example("Docker BuildKit", "dockerfile").replace("\\\n", " ")
    (run,) = [line for line in dockerfile.splitlines() if "--mount" in line]
    mount, script = re.fullmatch(r"RUN --mount=(\S+)\s+(.*)", run).groups()  # type: ignore[union-attr]
    assert mount == "type=secret,id=github_token,env=GITHUB_TOKEN"
    token, _, build = example("Docker BuildKit", "bash").replace("\\\n", " ").partition(" docker ")
    assert build.split() == ["build", "--secret", "id=github_token,env=GITHUB_TOKEN", "."]
    venv = job.folder / "venv"
    said = job.bash(f"{active(venv)}{token}\nexport GITHUB_TOKEN\n{script}\npython -c 'import widgets'\n")
    assert not any(token in said for token in job.world.github.tokens)


def test_the_function_for_airflow_and_dagster(job: Job) -> None:
    script = example("Airflow and Dagster", "python")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            script + "\nprint(github_token('acme/widgets'))\ngithub_token('acme/nothing')\n",
        ],
        env=job.environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout.strip() in job.world.github.tokens
    assert "RuntimeError: broker-cli: The app is not installed" in done.stderr


def test_git_sync(job: Job) -> None:
    """The URL of the Secret, asked as git-sync does: Basic from its user information, 1 s, no redirects."""
    secret, deployment = parsed(example("git-sync", "yaml"))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": secret["metadata"]["name"]}}]
    url = secret["stringData"]["GITSYNC_ASKPASS_URL"]
    url = url.replace("https://", "http://").replace("broker.example.com", job.service.url.partition("//")[2])
    url = url.replace("ghbk_...", job.key)
    warm = job.environment()  # git-sync tries again after its second; the mint goes on meanwhile
    command = [str(SCRIPTS / "broker-cli"), "github", "token", "acme/widgets"]
    assert subprocess.run(command, env=warm, capture_output=True, timeout=60, check=False).returncode == 0
    answer = httpx.get(url, timeout=10)
    assert answer.status_code == 200
    username, password = answer.text.splitlines()
    assert username == "username=x-access-token"
    assert password.removeprefix("password=") in job.world.github.tokens


def test_external_secrets_operator_argo_cd_flux(job: Job) -> None:
    """The generator's request, and the Secret that its template makes of the answer."""
    heading = "External Secrets Operator, Argo CD, Flux"
    secret, generator, external = parsed(example(heading, "yaml", "generators"))
    spec = generator["spec"]
    assert spec["secrets"] == [{"name": "broker", "secretRef": {"name": secret["metadata"]["name"]}}]
    assert secret["stringData"]["key"] == "ghbk_..."
    assert secret["metadata"]["labels"]["external-secrets.io/type"] == "webhook"
    headers = {name: value.replace("{{ .broker.key }}", job.key) for name, value in spec["headers"].items()}
    answer = httpx.request(spec["method"], job.here(spec["url"]), headers=headers, content=spec["body"])
    assert answer.status_code == 200, answer.text
    assert spec["result"]["jsonPath"] == "$"
    least = json.loads(spec["body"])["min_ttl"]
    assert external["spec"]["refreshInterval"] == "30m"
    assert least > 30 * 60
    (source,) = external["spec"]["dataFrom"]
    assert source["sourceRef"]["generatorRef"]["name"] == generator["metadata"]["name"]
    template = external["spec"]["target"]["template"]["data"]
    made = {
        name: re.sub(r"\{\{ \.(\w+) \}\}", lambda found: str(answer.json()[found[1]]), value)
        for name, value in template.items()
    }
    assert made["password"] in job.world.github.tokens
    assert made["url"].endswith(".git")
    clone = (
        f"git clone --quiet http://{made['username']}:{made['password']}@127.0.0.1:{job.world.server.port}"
    )
    job.bash(f"{clone}/acme/widgets.git")
    (flux,) = parsed(example(heading, "yaml", "toolkit.fluxcd.io"))
    assert flux["spec"]["secretRef"]["name"] == external["spec"]["target"]["name"]
