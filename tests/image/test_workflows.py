"""The workflows: pinned, with the permissions that a job needs only, on the versions that we promise."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerfile_stage import ROOT

FOLDER = ROOT / ".github" / "workflows"
FILES = sorted(FOLDER.glob("*.yml"))
VALUES = ROOT / "helm" / "values.yaml"
DIGEST = "sha256:" + "a" * 64


def _jobs(path: Path) -> dict[str, Any]:
    jobs: dict[str, Any] = yaml.safe_load(path.read_text())["jobs"]
    return jobs


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_action_is_pinned_by_a_commit_and_tells_its_version(path: Path) -> None:
    uses = re.findall(r"uses: (.*)", path.read_text())
    assert uses
    for use in uses:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use), use


def test_an_action_has_the_same_commit_everywhere() -> None:
    uses = {use for path in FILES for use in re.findall(r"uses: (\S+)", path.read_text())}
    names = [use.partition("@")[0] for use in uses]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_is_permitted_but_what_a_job_names(path: Path) -> None:
    assert yaml.safe_load(path.read_text())["permissions"] == {}
    for name, job in _jobs(path).items():
        assert job["permissions"], name
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False
            # A name of a branch or tag must not become part of a script.
            assert "${{" not in step.get("run", ""), name


def test_the_tests_run_on_every_python_that_we_promise() -> None:
    versions = _jobs(FOLDER / "tests.yml")["python"]["strategy"]["matrix"]["python"]
    assert versions == ["3.11", "3.12", "3.13", "3.14"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={versions[0]}"


def test_no_release_goes_to_the_public_index() -> None:
    """Names there belong to others; a mistake would give their users our code, or ours theirs."""
    text = (FOLDER / "release.yml").read_text()
    assert not re.search(r"uv publish|twine|gh-action-pypi-publish", text)
    for project in ("pyproject.toml", "cli/pyproject.toml"):
        assert "Private :: Do Not Upload" in (ROOT / project).read_text()


def test_a_released_chart_uses_the_image_of_its_release(tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    shutil.copy(VALUES, values)
    command = [str(ROOT / ".github" / "pin-chart-image"), str(values)]
    subprocess.run([*command, "ghcr.io/acme/github-token-broker", DIGEST], check=True)
    pinned, before = (yaml.safe_load(path.read_text()) for path in (values, VALUES))
    image = {"repository": "ghcr.io/acme/github-token-broker", "digest": DIGEST}
    assert pinned == {**before, "image": {**before["image"], **image}}
    # What is already pinned has no line to replace, and a wrong digest never gets in.
    for repository, digest in (
        ("ghcr.io/other/name", DIGEST),
        ("ghcr.io/acme/github-token-broker", "latest"),
    ):
        assert subprocess.run([*command, repository, digest], check=False).returncode != 0
