"""Every value set renders, passes helm's linter, and fits Kubernetes' own schemas, old and new."""

import kubernetes_validate
import pytest
import yaml
from chart_stage import CHART, ROOT, SETS, Helm, Manifest, kinds, one, pod_specs, values_of

# The oldest that Chart.yaml allows, and the newest that the validator knows.
VERSIONS = ("1.30", kubernetes_validate.latest_version())
OPERATORS = {"ServiceMonitor", "PrometheusRule"}


@pytest.fixture(scope="module")
def rendered(helm: Helm) -> dict[str, list[Manifest]]:
    return {name: helm.rendered("-f", values_of(name)) for name in SETS}


def test_there_are_the_sets_that_users_look_for() -> None:
    assert {"minimal", "full", "sqlite", "valkey", "sentinel"} <= set(SETS)


@pytest.mark.parametrize("name", SETS)
def test_lint(helm: Helm, name: str) -> None:
    done = helm.run("lint", "--strict", str(CHART), "-f", values_of(name))
    assert done.returncode == 0, done.stdout + done.stderr


def test_lint_of_the_bare_chart(helm: Helm) -> None:
    done = helm.run("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", SETS)
def test_manifests_fit_the_schemas_of_kubernetes(rendered: dict[str, list[Manifest]], name: str) -> None:
    for manifest in rendered[name]:
        if manifest["kind"] in OPERATORS:
            continue
        for version in VERSIONS:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_the_full_set_switches_everything_on(rendered: dict[str, list[Manifest]]) -> None:
    there = {manifest["kind"] for manifests in rendered.values() for manifest in manifests}
    templates = "".join(path.read_text() for path in (CHART / "templates").rglob("*.yaml"))
    written = {line.removeprefix("kind: ") for line in templates.splitlines() if line.startswith("kind: ")}
    assert there == written


def test_alerts_and_dashboard_arrive_as_they_are(rendered: dict[str, list[Manifest]]) -> None:
    """They have templates of Prometheus and Grafana in them, which helm must not touch."""
    rules = yaml.safe_load((CHART / "alerts" / "rules.yaml").read_text())
    assert one(rendered["full"], "PrometheusRule")["spec"] == rules
    board = CHART / "dashboards" / "github-token-broker.json"
    assert one(rendered["full"], "ConfigMap")["data"] == {board.name: board.read_text()}


@pytest.mark.parametrize("name", SETS)
def test_selectors_match_and_names_are_unique(rendered: dict[str, list[Manifest]], name: str) -> None:
    manifests = rendered[name]
    names = [(item["kind"], item["metadata"]["name"]) for item in manifests]
    assert len(names) == len(set(names))
    workloads = [item for item in manifests if item["kind"] in {"Deployment", "StatefulSet"}]
    pods = [item["spec"]["template"]["metadata"]["labels"] for item in workloads]
    for item, labels in zip(workloads, pods, strict=True):
        assert item["spec"]["selector"]["matchLabels"].items() <= labels.items()
    for item in manifests:
        selector = {
            "Service": lambda spec: spec["selector"],
            "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
            "NetworkPolicy": lambda spec: spec["podSelector"]["matchLabels"],
        }.get(item["kind"])
        if selector is not None:
            # One workload each: the Valkey pod must not get the broker's calls.
            assert sum(selector(item["spec"]).items() <= labels.items() for labels in pods) == 1, item


@pytest.mark.parametrize("name", SETS)
def test_ports_are_found_by_their_names(rendered: dict[str, list[Manifest]], name: str) -> None:
    workloads = [item for item in rendered[name] if item["kind"] in {"Deployment", "StatefulSet"}]
    named = {
        port["name"]
        for item in workloads
        for container in item["spec"]["template"]["spec"]["containers"]
        for port in container["ports"]
    }
    services = {item["metadata"]["name"]: item for item in kinds(rendered[name], "Service")}
    for service in services.values():
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= named
    for ingress in kinds(rendered[name], "Ingress"):
        for path in ingress["spec"]["rules"][0]["http"]["paths"]:
            backend = path["backend"]["service"]
            ports = services[backend["name"]]["spec"]["ports"]
            assert backend["port"]["name"] in {port["name"] for port in ports}


@pytest.mark.parametrize("name", SETS)
def test_pods_hold_the_restricted_standard(rendered: dict[str, list[Manifest]], name: str) -> None:
    """What "Pod Security Standards: restricted" asks for, and more: no root, no token, nothing writable."""
    for spec in pod_specs(rendered[name]):
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 10000
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert not any("hostPath" in volume for volume in spec.get("volumes", []))
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]
            assert not any("subPath" in mount for mount in container.get("volumeMounts", []))


@pytest.mark.parametrize("name", [name for name in SETS if name != "sqlite"])
def test_an_update_loses_no_request(rendered: dict[str, list[Manifest]], name: str) -> None:
    spec = one(rendered[name], "Deployment")["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    pod = spec["template"]["spec"]
    slept = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert slept > 0
    assert pod["terminationGracePeriodSeconds"] - slept > 30


def test_two_pods_never_have_the_sqlite_file_open(rendered: dict[str, list[Manifest]]) -> None:
    spec = one(rendered["sqlite"], "Deployment")["spec"]
    assert spec["strategy"] == {"type": "Recreate"}
    assert spec["replicas"] == 1
    claim = one(rendered["sqlite"], "PersistentVolumeClaim")["metadata"]["name"]
    volumes = {item["name"]: item for item in spec["template"]["spec"]["volumes"]}
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == claim


def test_the_chart_has_the_version_of_the_service() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = f'version = "{chart["version"]}"'
    assert chart["version"] == chart["appVersion"]
    assert version in (ROOT / "pyproject.toml").read_text()
