"""README and SECURITY say what is: settings, error codes, routes, commands and named tests exist."""

import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from broker.__main__ import cli
from broker.access.keys import PATTERN
from broker.settings import SECRET_FIELDS, Settings
from broker.web.errors import TITLES
from broker.web.openapi import document

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SECURITY = (ROOT / "SECURITY.md").read_text()


@pytest.mark.parametrize("name", [name.upper() for name in Settings.model_fields])
def test_every_setting_is_in_the_readme(name: str) -> None:
    assert f"`BROKER_{name}`" in README


@pytest.mark.parametrize("name", [name.upper() for name in SECRET_FIELDS])
def test_every_secret_setting_is_marked_as_readable_from_a_file(name: str) -> None:
    assert re.search(rf"`BROKER_{name}`[^|]* †", README), name


def test_the_readme_names_no_setting_that_does_not_exist() -> None:
    known = {f"BROKER_{name.upper()}" for name in Settings.model_fields}
    known |= {
        "BROKER_API_URL",
        "BROKER_API_KEY",
        "BROKER_API_KEY_FILE",
        "BROKER_CA_FILE",
        "BROKER_ALLOW_INSECURE",
    }
    known |= {f"BROKER_{name.upper()}_FILE" for name in SECRET_FIELDS}
    named = set(re.findall(r"BROKER_[A-Z_]+[A-Z]", README + SECURITY))
    assert named - known == set()


@pytest.mark.parametrize("code", sorted(set(TITLES) - {"internal_error"}))
def test_every_error_code_is_in_the_readme(code: str) -> None:
    assert f"`{code}`" in README


@pytest.mark.parametrize("path", sorted(document()["paths"]))
def test_every_route_is_in_the_readme(path: str) -> None:
    plain = re.sub(r"\{[^}]+\}", "", path).rstrip("/")
    assert plain in re.sub(r"\{[^}]+\}|…", "", README), path


def test_every_command_is_in_the_readme() -> None:
    for name in cli.list_commands(None):  # type: ignore[arg-type]
        assert f"broker {name}" in README
        assert CliRunner().invoke(cli, [name, "--help"]).exit_code == 0


def test_every_test_that_security_names_exists() -> None:
    named = set(re.findall(r"`(tests/[\w/.-]+)(?:::(\w+))?`", SECURITY + README))
    assert named
    for path, test in named:
        assert (ROOT / path).exists(), path
        if test:
            assert f"def {test}(" in (ROOT / path).read_text(), f"{path}::{test}"


def test_the_key_pattern_for_scanners_is_the_one_in_use() -> None:
    assert PATTERN in SECURITY


def test_service_and_client_share_one_version_number() -> None:
    service = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    client = tomllib.loads((ROOT / "cli" / "pyproject.toml").read_text())["project"]["version"]
    assert service == client
