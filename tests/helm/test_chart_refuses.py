"""Wrong values are refused when rendering, by a message that names the value and repeats no secret."""

import pytest
from chart_stage import Helm, values_of

SECRET = "hunter2hunter2"
WRONG = [
    # set, arguments, what the message has to name
    ("minimal", ["github.clientId="], "github.clientId"),
    ("minimal", ["github.clientId=not an id"], "clientId"),
    ("minimal", ["github.appId=123"], "github.appId"),
    ("minimal", ["github.privateKey.existingSecret="], "github.privateKey.existingSecret"),
    ("minimal", ["github.privateKey.value=" + SECRET], "github.privateKey.value"),
    ("minimal", ["github.privateKey.keys=x.pem"], "keys"),
    ("minimal", ["github.apiUrl=http://github.example.com"], "apiUrl"),
    ("minimal", ["github.clientID=Iv1"], "clientID"),
    ("minimal", ["store.existingSecret="], "store.existingSecret"),
    ("minimal", ["store.url=redis://:" + SECRET + "@redis"], "store.url"),
    ("minimal", ["store.existingSecret=", "store.url=postgres://:" + SECRET + "@db"], "store.url"),
    ("sentinel", ["store.url=rediss://:" + SECRET + "@redis"], "ssl_ca_certs=/etc/broker/store-ca/ca.crt"),
    ("minimal", ["persistence.enabled=true"], "persistence.enabled"),
    ("sqlite", ["replicaCount=2"], "replicaCount"),
    ("sqlite", ["autoscaling.enabled=true"], "autoscaling.enabled"),
    ("sqlite", ["persistence.enabled=false"], "persistence.enabled"),
    ("sqlite", ["store.url=sqlite:///broker.db"], "store.url"),
    ("sqlite", ["store.url=sqlite:////tmp/broker.db"], "store.url"),
    ("sqlite", ["store.url=sqlite:////var/lib/broker/../broker.db"], "store.url"),
    ("sqlite", ["persistence.accessModes={ReadWriteMany}"], "accessModes"),
    ("sqlite", ["persistence.size=lots"], "size"),
    ("valkey", ["valkey.auth.password="], "valkey.auth.existingSecret"),
    ("valkey", ["valkey.auth.password=short"], "valkey.auth.password"),
    ("valkey", ["valkey.auth.password=" + SECRET + "@:/"], "valkey.auth.password"),
    ("valkey", ["store.url=redis://redis"], "store.existingSecret"),
    ("valkey", ["adminKey.existingSecret=x"], "adminKey.value"),
    ("minimal", ["replicaCount=two"], "replicaCount"),
    ("minimal", ["replicaCount=-1"], "replicaCount"),
    ("minimal", ["replicas=2"], "replicas"),
    ("minimal", ["image.tag=a b"], "tag"),
    ("minimal", ["image.digest=sha256:abc"], "digest"),
    ("minimal", ["settings.tokenMinTTL=300"], "tokenMinTTL"),
    ("minimal", ["settings.tokenMinTtl=4000"], "tokenMinTtl"),
    ("minimal", ["settings.auditRetention=forever"], "auditRetention"),
    ("minimal", ["settings.logLevel=loud"], "logLevel"),
    ("minimal", ["settings.port=80"], "port"),
    ("minimal", ["settings.trustedProxies={proxy.example.com}"], "trustedProxies"),
    ("minimal", ["terminationGracePeriodSeconds=30"], "terminationGracePeriodSeconds"),
    ("minimal", ["terminationGracePeriodSeconds=40", "preStopSleepSeconds=10"], "terminationGrace"),
    ("minimal", ["ingress.enabled=true"], "ingress.host"),
    ("minimal", ["ingress.enabled=true", "ingress.host=https://b.example.com"], "host"),
    ("full", ["ingress.admin.host=broker.example.com"], "ingress.admin.host"),
    ("full", ["ingress.admin.host="], "ingress.admin.host"),
    ("full", ["ingress.paths[0].path=/", "ingress.paths[0].pathType=Prefix"], "ingress.paths"),
    ("full", ["ingress.paths[0].path=/v1", "ingress.paths[0].pathType=Prefix"], "ingress.paths"),
    ("full", ["autoscaling.minReplicas=10"], "autoscaling.minReplicas"),
    ("full", [f"autoscaling.target{of}UtilizationPercentage=null" for of in ("CPU", "Memory")], "targetCPU"),
    ("full", ["metrics.enabled=false"], "metrics.enabled"),
    ("minimal", ["metrics.port=8080"], "metrics.port"),
    ("minimal", ["podDisruptionBudget.maxUnavailable=0"], "maxUnavailable"),
    ("minimal", ["commonLabels.app\\.kubernetes\\.io/name=x"], "commonLabels"),
    ("minimal", ["extraEnv[0].name=BROKER_HOST", "extraEnv[0].value=::"], "extraEnv"),
    ("minimal", ["networkPolicy.enabled=yes"], "enabled"),
    ("minimal", ["service.type=ExternalName"], "type"),
]  # fmt: skip


@pytest.mark.parametrize(("base", "values", "named"), WRONG, ids=[f"{w[0]}-{w[1][0][:60]}" for w in WRONG])
def test_a_wrong_value_is_refused_by_name(helm: Helm, base: str, values: list[str], named: str) -> None:
    arguments = [argument for value in values for argument in ("--set", value)]
    done = helm.template("-f", values_of(base), *arguments)
    assert done.returncode != 0
    assert named in done.stderr, done.stderr
    assert SECRET not in done.stderr


def test_nothing_set_is_refused_with_the_first_thing_to_set(helm: Helm) -> None:
    done = helm.template()
    assert done.returncode != 0
    assert "github.clientId: not set." in done.stderr


@pytest.mark.parametrize(
    "values",
    [
        ["settings.mintBudget=null"],
        ["podSecurityContext.runAsUser=null", "podSecurityContext.fsGroup=null"],  # OpenShift chooses them
        ["podDisruptionBudget.maxUnavailable=25%"],
        ["ingress.enabled=true", "ingress.host=b.example.com", "ingress.tlsSecret=b-tls"],
        ["replicaCount=1"],
        ["global.imageRegistry=x"],
    ],
)  # fmt: skip
def test_right_values_are_taken(helm: Helm, values: list[str]) -> None:
    arguments = [argument for value in values for argument in ("--set", value)]
    assert helm.template("-f", values_of("minimal"), *arguments).returncode == 0
