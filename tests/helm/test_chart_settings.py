"""The chart and the broker know the same settings, and the same public paths."""

import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_stage import CHART, SETS, Helm, default_values, environment, kinds, values_of

from broker.settings import SECRET_FIELDS, Settings
from broker.web.openapi import document

KNOWN = {f"BROKER_{name.upper()}" for name in Settings.model_fields}
KNOWN |= {f"BROKER_{name.upper()}_FILE" for name in SECRET_FIELDS}
SECRETS = {f"BROKER_{name.upper()}" for name in SECRET_FIELDS}


def snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper()


@pytest.mark.parametrize("name", SETS)
def test_every_variable_of_the_chart_is_a_setting(helm: Helm, name: str) -> None:
    ours = {item for item in environment(helm.rendered("-f", values_of(name))) if item.startswith("BROKER_")}
    assert ours - KNOWN == set()


def test_every_setting_can_be_reached_by_a_value(helm: Helm) -> None:
    reached: set[str] = set()
    for name in SETS:
        reached |= environment(helm.rendered("-f", values_of(name))).keys()
    reached |= {item.removesuffix("_FILE") for item in reached if item.removesuffix("_FILE") in SECRETS}
    assert {f"BROKER_{name.upper()}" for name in Settings.model_fields} - reached == set()


def test_every_plain_setting_tells_its_variable() -> None:
    text = (CHART / "values.yaml").read_text()
    for name in default_values()["settings"]:
        comment = re.search(rf"# -- [^\n]*\b(BROKER_\w+)\n  {name}:", text)
        assert comment is not None, name
        assert comment[1] == f"BROKER_{snake(name)}"


def _leaves(values: dict[str, Any], indent: int = 0) -> Iterator[tuple[str, int]]:
    for name, value in values.items():
        nested = isinstance(value, dict) and value and "labels" not in name and "Probe" not in name
        if nested and name not in {"podSecurityContext", "securityContext", "resources", "annotations"}:
            yield from _leaves(value, indent + 2)
        else:
            yield name, indent


def test_every_value_has_a_comment() -> None:
    text = (CHART / "values.yaml").read_text()
    commented = re.findall(r"^( *)# -- [^\n]+\n(?:\1# [^\n]+\n)*\1(\w+):", text, re.MULTILINE)
    assert sorted((name, len(indent)) for indent, name in commented) == sorted(_leaves(default_values()))


def test_numbers_reach_the_broker_as_it_reads_them(helm: Helm) -> None:
    got = environment(helm.rendered("-f", values_of("full")))
    assert got["BROKER_AUDIT_MAX_EVENTS"] == "2000000"
    assert got["BROKER_FAILURE_COOLDOWN"] == "2.5"
    assert got["BROKER_ALLOWED_OWNERS"] == "acme,acme-labs"
    assert got["BROKER_TRUSTED_PROXIES"] == "10.0.0.0/8"


@pytest.mark.parametrize("name", SETS)
def test_the_broker_takes_the_environment(
    helm: Helm, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The settings that the chart gives pass the broker's own check; the secret files apart."""
    monkeypatch.chdir(tmp_path)
    given = environment(helm.rendered("-f", values_of(name)))
    for variable, value in given.items():
        if not variable.endswith("_FILE"):
            monkeypatch.setenv(variable, value)
    settings = Settings(github_private_key="-")  # type: ignore[arg-type]
    assert ipaddress.ip_address(settings.host).is_unspecified
    assert settings.port == 8080


def test_a_large_app_id_stays_a_number_of_digits(helm: Helm) -> None:
    assert environment(helm.rendered("-f", values_of("valkey")))["BROKER_GITHUB_APP_ID"] == "1234567"


def _covered(path: str, rules: list[dict[str, str]]) -> bool:
    return any(
        path == rule["path"] or (rule["pathType"] == "Prefix" and path.startswith(rule["path"] + "/"))
        for rule in rules
    )


def test_the_ingress_shows_what_callers_need_and_no_more(helm: Helm) -> None:
    """A new route has to be sorted: to everyone, to admins, or to nobody outside."""
    public, admin = (
        ingress["spec"]["rules"][0]["http"]["paths"]
        for ingress in kinds(helm.rendered("-f", values_of("full")), "Ingress")
    )
    if not _covered("/v1/github/token", public):
        public, admin = admin, public
    inside = {"/livez", "/readyz", "/metrics"}
    for path in document()["paths"]:
        plain = re.sub(r"\{[^}]+\}", "x", path)
        assert _covered(plain, public) == (not path.startswith("/v1/admin") and path not in inside), path
        assert _covered(plain, admin) == (path.startswith("/v1/admin") or path == "/v1/whoami"), path
    for path in ("/", "/metrics", "/livez", "/v1/admin", "/v1/admin/keys"):
        assert not _covered(path, public)


def test_values_files_of_the_ci_folder_are_valid_yaml_with_a_first_line_that_tells_what_for() -> None:
    for name in SETS:
        text = Path(values_of(name)).read_text()
        assert text.startswith("# "), name
        assert yaml.safe_load(text)
