"""Secrets are files from Secrets, are nowhere else, and a change of one that is a value restarts the pods."""

import json
import shutil
from pathlib import Path

import pytest
from chart_stage import CHART, Helm, environment, kinds, one, values_of

PASSWORD = "ExampleOfAPassword1234"
MARKS = [
    PASSWORD,
    "bm90IGEga2V5LCBhbiBleGFtcGxl",
    "example-webhook-secret",
    "example-admin-key",
    "example-encryption-key",
]


def test_secrets_given_as_values_are_in_secret_objects_only(helm: Helm) -> None:
    manifests = helm.rendered("-f", values_of("valkey"))
    for mark in MARKS:
        holders = {item["kind"] for item in manifests if mark in json.dumps(item)}
        assert holders == {"Secret"}, mark


def _notes(helm: Helm, tmp_path: Path, *arguments: str) -> str:
    """Return NOTES.txt: helm shows it to clusters only, so a copy of the chart has it in a manifest."""
    copy = shutil.copytree(CHART, tmp_path / "chart")
    text = (copy / "templates" / "NOTES.txt").read_text()
    (copy / "templates" / "_notes.tpl").write_text('{{ define "notes" }}' + text + "{{ end }}")
    manifest = '{{ dict "apiVersion" "v1" "kind" "Notes" "text" (include "notes" .) | toJson }}'
    (copy / "templates" / "notes.yaml").write_text(manifest)
    notes: str = one(helm.rendered(*arguments, chart=copy), "Notes")["text"]
    return notes


def test_the_notes_tell_the_next_step_and_no_secret(helm: Helm, tmp_path: Path) -> None:
    notes = _notes(helm, tmp_path, "-f", values_of("valkey"))
    assert "kubectl -n prod exec deploy/rel-github-token-broker -- broker keys create" in notes
    assert "port-forward svc/rel-github-token-broker 8080:80" in notes
    assert "adminKey" in notes
    assert not [mark for mark in MARKS if mark in notes]


def test_the_notes_with_an_ingress_name_its_host(helm: Helm, tmp_path: Path) -> None:
    notes = _notes(helm, tmp_path, "-f", values_of("full"))
    assert "BROKER_API_URL=https://broker.example.com" in notes
    assert "port-forward" not in notes


@pytest.mark.parametrize(
    "value",
    [
        "github.privateKey.value=another",
        "github.webhookSecret.value=another",
        "adminKey.value=another",
        "encryptionKeys.value=another",
        "valkey.auth.password=AnotherPassword12345",
    ],
)
def test_a_changed_secret_restarts_the_pods(helm: Helm, value: str) -> None:
    def checksum(*arguments: str) -> str:
        deployment = one(helm.rendered("-f", values_of("valkey"), *arguments), "Deployment")
        annotations: dict[str, str] = deployment["spec"]["template"]["metadata"]["annotations"]
        return annotations["checksum/secrets"]

    assert checksum("--set", value) != checksum()
    assert checksum("--set", "replicaCount=5") == checksum()


@pytest.mark.parametrize("name", ["full", "valkey", "sentinel", "enterprise"])
def test_every_file_that_a_variable_names_is_mounted(helm: Helm, name: str) -> None:
    manifests = helm.rendered("-f", values_of(name))
    pod = one(manifests, "Deployment")["spec"]["template"]["spec"]
    (etc,) = (volume for volume in pod["volumes"] if volume["name"] == "etc")
    mounted = {}
    for source in etc["projected"]["sources"]:
        ((kind, reference),) = source.items()
        for item in reference["items"]:
            mounted[f"/etc/broker/{item['path']}"] = (kind, reference["name"], item["key"])
    named = {
        path
        for variable, value in environment(manifests).items()
        if variable.endswith("_FILE")
        for path in value.split(",")
    }
    assert named <= set(mounted)
    # A CA of the store is named by the store's URL; all the rest by a variable.
    assert {path for path in mounted if "/store-ca/" not in path} == named
    made = {item["metadata"]["name"]: item["stringData"] for item in kinds(manifests, "Secret")}
    for kind, reference, key in mounted.values():
        assert kind == "configMap" or reference not in made or key in made[reference]


def test_the_order_of_private_keys_is_kept(helm: Helm) -> None:
    named = environment(helm.rendered("-f", values_of("full")))["BROKER_GITHUB_PRIVATE_KEY_FILE"]
    assert named == "/etc/broker/github-private-key/new.pem,/etc/broker/github-private-key/old.pem"
