"""Alerts and dashboard say what is: each expression is PromQL and names only what a real scrape has."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from harness import bearer, world_in
from scrapes import WEBHOOK_SECRET, Scrape, a_bit_of_everything, scrape

ROOT = Path(__file__).parents[2]
RULES = yaml.safe_load((ROOT / "helm/alerts/rules.yaml").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((ROOT / "helm/dashboards/github-token-broker.json").read_text())
README = (ROOT / "README.md").read_text()
TARGET = {"job", "instance", "namespace"}
"""Labels that the scraper adds."""


def panels() -> Iterator[dict[str, Any]]:
    for panel in DASHBOARD["panels"]:
        yield panel
        yield from panel.get("panels", ())


QUERIES = [
    (f"{panel['title']} {target['refId']}", target["expr"])
    for panel in panels()
    for target in panel.get("targets", ())
]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Scrape:
    """A scrape after a bit of everything, probes, and a list of repositories (it tells of a limit)."""

    async def run() -> Scrape:
        async with world.inside(github_webhook_secret=WEBHOOK_SECRET) as app:
            caller, admin = await app.key("acme/*"), await app.key("*/*", admin=True)
            await a_bit_of_everything(app.http, world.github, caller=caller, admin=admin)
            for path in ("/v1/github/repositories", "/livez", "/readyz", "/metrics"):
                assert (await app.http.get(path, headers=bearer(caller))).status_code == 200
            await asyncio.sleep(0.3)  # the page that was just made has passed
            return await scrape(app.http)

    with world_in(tmp_path_factory.mktemp("told")) as world:
        return asyncio.run(run())


def parts(expression: str) -> list[promql_parser.Expr]:
    """Return an expression's nodes.

    Raises:
        ValueError: it is no PromQL.
    """
    found: list[promql_parser.Expr] = []
    parsed = promql_parser.parse(expression.replace("$__rate_interval", "5m").replace("$job", ".+"))
    promql_parser.walk(parsed, found.append)
    return found


def complaints(expression: str, told: Scrape) -> list[str]:
    """Return what an expression names that no scrape has."""
    labels = told.labels
    found: list[str] = []
    for part in parts(expression):
        if isinstance(part, promql_parser.VectorSelector):
            if part.name not in labels:
                found.append(f"no series {part.name}")
                continue
            for matcher in part.matchers.matchers:
                if matcher.name in TARGET:
                    continue
                known = labels[part.name].get(matcher.name)
                if known is None:
                    found.append(f"{part.name} has no label {matcher.name}")
                    continue
                found += [
                    f'{part.name} never has {matcher.name}="{value}"'
                    for value in matcher.value.split("|")
                    if not any(re.fullmatch(value, one) for one in known)
                ]
        if isinstance(part, promql_parser.AggregateExpr) and part.modifier is not None:
            inside = [
                one for one in parts(part.expr.prettify()) if isinstance(one, promql_parser.VectorSelector)
            ]
            for one in inside:
                missing = set(part.modifier.labels) - TARGET - set(labels.get(one.name or "", ()))
                found += [f"{one.name} cannot be summed by {label}" for label in sorted(missing)]
    return found


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_names_only_what_exists(rule: dict[str, Any], told: Scrape) -> None:
    assert complaints(rule["expr"], told) == []


@pytest.mark.parametrize(("name", "expression"), QUERIES, ids=[name for name, _ in QUERIES])
def test_a_panel_names_only_what_exists(name: str, expression: str, told: Scrape) -> None:
    assert complaints(expression, told) == []


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("broker_nothing", "no series broker_nothing"),
        ('broker_store_state{colour="red"}', "broker_store_state has no label colour"),
        ('broker_store_state{state=~"ok|lots"}', 'broker_store_state never has state="lots"'),
        ("sum by (owner) (rate(broker_mints_total[5m]))", "broker_mints_total cannot be summed by owner"),
    ],
)
def test_what_does_not_exist_would_be_noticed(expression: str, complaint: str, told: Scrape) -> None:
    assert complaints(expression, told) == [complaint]


def test_an_expression_that_is_no_promql_would_be_noticed() -> None:
    with pytest.raises(ValueError, match=r"parenthesis|unclosed|unexpected"):
        parts("sum by (job (x)")


def test_every_metric_of_ours_is_in_the_readme_and_no_other(told: Scrape) -> None:
    ours = {
        f"{name}_total" if family.type == "counter" else name
        for name, family in told.families.items()
        if name.startswith("broker_")
    }
    assert set(re.findall(r"`(broker_\w+)[`{]", README)) == ours


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_can_be_acted_upon(rule: dict[str, Any]) -> None:
    name = rule["alert"]
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"]["summary"].endswith(".")
    promql_parser.parse_duration(rule.get("for", "1m"))
    assert rule["annotations"]["runbook_url"] == f"README.md#runbook-{name.lower()}"
    assert f"\n#### Runbook: {name}\n" in README


def test_every_runbook_belongs_to_an_alert() -> None:
    assert re.findall(r"#### Runbook: (\w+)", README) == [rule["alert"] for rule in ALERTS]


def lost(before: Any, after: Any, where: str = "") -> list[str]:
    """Return what Grafana's own model of a dashboard did not understand, and so left out."""
    if isinstance(before, dict):
        return [
            complaint
            for name, value in before.items()
            for complaint in (
                lost(value, after[name], f"{where}.{name}")
                if isinstance(after, dict) and name in after
                else [f"{where}.{name}"]
            )
        ]
    if isinstance(before, list):
        if not isinstance(after, list) or len(before) != len(after):
            return [where]
        pairs = enumerate(zip(before, after, strict=True))
        return [complaint for at, (one, two) in pairs for complaint in lost(one, two, f"{where}[{at}]")]
    return [] if before == after else [where]


def through_grafana(dashboard: dict[str, Any]) -> Any:
    register_default_plugins()
    return json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))


def test_the_dashboard_loads_in_grafanas_schema() -> None:
    assert lost(DASHBOARD, through_grafana(DASHBOARD)) == []
    wrong = json.loads(json.dumps(DASHBOARD))
    wrong["panels"][1]["fieldConfig"]["defaults"]["unitt"] = "s"
    assert lost(wrong, through_grafana(wrong)) == [".panels[1].fieldConfig.defaults.unitt"]


def test_the_dashboard_is_whole() -> None:
    all_panels = list(panels())
    assert len({panel["id"] for panel in all_panels}) == len(all_panels)
    taken: set[tuple[int, int]] = set()
    for panel in all_panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    rows = [panel["title"] for panel in all_panels if panel["type"] == "row"]
    assert rows[:3] == ["Is it fast?", "Is GitHub sick?", "Who is denied?"]
    for panel in all_panels:
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["targets"]
