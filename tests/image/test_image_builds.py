"""The steps of the Dockerfile, run in a clean folder without a Docker engine; what they made is started."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from dockerfile_stage import ROOT, of, steps
from harness import World
from servers import free_port, until

NOBODY = 65532


@dataclass(frozen=True)
class Image:
    """What the steps made.

    Attributes:
        top: stands for ``/``.
        environment: that of the last stage.
    """

    top: Path
    environment: dict[str, str]

    def inside(self, text: str) -> str:
        """Return the text with the image's paths as paths of this machine."""
        return re.sub(r"(?<![\w/.])/(opt|src|dist|data)\b", rf"{self.top}/\1", text)


def _copied(image: Image) -> None:
    """Do what ``COPY . ./`` does with what .dockerignore lets through."""
    for name in re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE):
        source, target = ROOT / name, image.top / "src" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(
                source, target, ignore=shutil.ignore_patterns("__pycache__", ".env", "*.pem", "*.db")
            )
        elif source.exists():
            shutil.copy(source, target)


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    with tempfile.TemporaryDirectory(prefix="image-") as folder:
        top = Path(folder).resolve()
        top.chmod(0o755)
        made = Image(top, {})
        (top / "src").mkdir()
        build = {**os.environ}
        for step in steps():
            if step.name == "ENV":
                target = build if step.stage == "build" else made.environment
                target |= {key: made.inside(value) for key, value in step.variables().items()}
            if step.stage == "build" and (step.name, step.text) == ("COPY", ". ./"):
                _copied(made)
            if step.stage == "build" and step.name == "COPY" and step.text == "requirements.txt ./":
                shutil.copy(ROOT / "requirements.txt", top / "src")
            if step.stage == "build" and step.name == "RUN" and not step.text.startswith("uv python install"):
                # The interpreter is the one thing that only GitHub has: ours stands in for it.
                stand_in = {"UV_PYTHON": sys.executable, "UV_PYTHON_PREFERENCE": "system", "UV_NO_CACHE": "0"}
                environment = {key: value for key, value in build.items() if key != "SSL_CERT_FILE"}
                done = subprocess.run(
                    ["sh", "-ec", made.inside(step.text)],
                    cwd=top / "src",
                    env={**environment, **stand_in},
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert done.returncode == 0, done.stdout + done.stderr
        yield made


def _tree(top: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in top.rglob("*")}


def _other_user(image: Image) -> int | None:
    """Return a user who owns nothing; None where only root could, or where others have no Python."""
    if os.geteuid() != 0:
        return None
    python = (image.top / "opt/broker/bin/python").resolve()
    return NOBODY if all(folder.stat().st_mode & 0o001 for folder in python.parents) else None


@pytest.mark.slow
def test_the_image_serves_from_files_that_it_cannot_write(image: Image, world: World) -> None:
    """As the chart runs it: as another user than the files' owner where that can be; only data is written."""
    (entrypoint,) = (step.exec_form() for step in of("final", "ENTRYPOINT"))
    (health,) = (step.exec_form() for step in of("final", "HEALTHCHECK"))
    before = _tree(image.top)
    data = Path(tempfile.mkdtemp(prefix="data-"))
    environment = {**world.environment(BROKER_PORT=str(free_port())), **image.environment}
    for name in ("BROKER_STORE_URL", "SSL_CERT_FILE", "PYTHONPYCACHEPREFIX"):
        del environment[name]
    user = _other_user(image)
    if user:
        os.chown(data, user, user)

    who = {"cwd": data, "env": environment, "user": user, "group": user}

    def healthy() -> bool:
        words = [image.inside(word) for word in health]
        return subprocess.run(words, capture_output=True, timeout=60, check=False, **who).returncode == 0

    assert not healthy()  # nobody is there yet
    with (data / "log").open("wb") as log:
        words = [image.inside(word) for word in [*entrypoint, "serve"]]
        serving = subprocess.Popen(words, stdout=log, stderr=log, **who)
    try:
        until(lambda: serving.poll() is not None or healthy(), seconds=60)
        assert serving.poll() is None, (data / "log").read_text()
    finally:
        serving.terminate()
        serving.wait(60)
    assert "Application shutdown complete" in (data / "log").read_text()
    assert (data / "broker.db").exists()
    assert _tree(image.top) == before
    shutil.rmtree(data)


@pytest.mark.slow
def test_the_image_holds_no_emulated_github_and_says_so(image: Image) -> None:
    (packages,) = (image.top / "opt" / "broker" / "lib").glob("python3*/site-packages")
    assert (packages / "broker" / "web").is_dir()
    assert not (packages / "broker" / "sandbox").exists()
    assert list((packages / "broker" / "client_wheels").glob("broker_cli-*.whl")), "no client to hand out"
    assert not list(packages.glob("pytest*"))
    done = subprocess.run(
        [str(image.top / "opt/broker/bin/broker"), "demo"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "the demo is not part of this image" in done.stderr


@pytest.mark.slow
def test_every_module_is_compiled(image: Image) -> None:
    """Its file system is read-only: what is not compiled now is compiled at every start."""
    (packages,) = (image.top / "opt" / "broker" / "lib").glob("python3*/site-packages")
    sources = list((packages / "broker").rglob("*.py"))
    assert sources
    for source in sources:
        assert list((source.parent / "__pycache__").glob(f"{source.stem}.*.pyc")), source
