"""Metrics as a scraper sees them: parsed by Prometheus' own parser, after a run with a bit of everything."""

import hashlib
import hmac
import json
import uuid
from collections.abc import Mapping
from typing import Any

import httpx
from harness import bearer, unknown_key
from prometheus_client.parser import text_string_to_metric_families

from broker.sandbox.faults import Fault
from broker.sandbox.github import EmulatedGitHub

WEBHOOK_SECRET = "It's a Secret to Everybody"


class Scrape:
    """One scrape. Fails to parse where Prometheus would."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    @property
    def labels(self) -> dict[str, dict[str, set[str]]]:
        """Return label names and values by name of the series."""
        found: dict[str, dict[str, set[str]]] = {}
        for sample in self.samples:
            labels = found.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
        return found

    def value(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of that name with (at least) those labels."""
        return sum(
            sample.value for sample in self.samples if sample.name == name and _has(sample.labels, labels)
        )


def _has(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(labels.get(name) == value for name, value in wanted.items())


async def scrape(http: httpx.AsyncClient, url: str = "/metrics") -> Scrape:
    answer = await http.get(url)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return Scrape(answer.text)


def delivery(event: str, body: bytes, *, secret: str = WEBHOOK_SECRET) -> dict[str, Any]:
    """Return what httpx needs to post a webhook."""
    signature = "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return {
        "content": body,
        "headers": {
            "Content-Type": "application/json",
            "X-GitHub-Event": event,
            "X-GitHub-Delivery": str(uuid.uuid4()),
            "X-Hub-Signature-256": signature,
        },
    }


async def a_bit_of_everything(
    http: httpx.AsyncClient, github: EmulatedGitHub, *, caller: str, admin: str
) -> None:
    """Ask 12 times for tokens (1 mint, 4 cached, 1 mint that fails, refusals), revoke, deliver, err.

    ``caller`` is a key with ``acme/*``, ``admin`` one of the role.
    """

    async def ask(key: str, repository: str) -> int:
        body = {"repositories": [repository]}
        return (await http.post("/v1/github/token", json=body, headers=bearer(key))).status_code

    assert [await ask(caller, "acme/widgets") for _ in range(5)] == [200] * 5
    assert [await ask(caller, "stranger/secrets") for _ in range(3)] == [403] * 3
    assert [await ask(unknown_key(), "acme/widgets") for _ in range(2)] == [401] * 2
    assert await ask("ghbk_malformed", "acme/widgets") == 401
    fault = github.faults.add(Fault(route="mint", status=500))
    assert await ask(caller, "acme/gadgets") == 502
    github.faults.remove(fault)
    gone = {"repository": "acme/widgets", "reason": "test"}
    revoked = await http.post("/v1/admin/revocations", json=gone, headers=bearer(admin))
    assert revoked.json()["revoked"] == 1, revoked.text
    body = json.dumps(
        {"action": "deleted", "installation": {"id": 9, "account": {"login": "nobody"}}}
    ).encode()
    sent = delivery("installation", body)
    assert [(await http.post("/webhooks/github", **sent)).status_code for _ in range(2)] == [202, 200]
    forged = delivery("installation", body, secret="wrong")
    assert (await http.post("/webhooks/github", **forged)).status_code == 401
    for path in ("/acme/widgets", "/v1/admin/keys/0Aa1Bb2Cc3Dd", "/wp-login.php?key=" + caller):
        assert (await http.get(path)).status_code in {401, 404}
