"""The Prometheus meter: bounded labels, no names, windows of GitHub's limits."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from harness import clean_environment
from prometheus_client import Histogram
from scrapes import Scrape

from broker.errors import BrokerError
from broker.metrics import PrometheusMeter, workers_text
from broker.ports import AuditEvent, Event, StoreHealth


def scrape(meter: PrometheusMeter) -> Scrape:
    return Scrape(meter.text().decode())


def test_what_strangers_choose_becomes_no_label() -> None:
    meter = PrometheusMeter()
    for number in range(100):
        meter.webhook(f"event{number}", "ignored")
        meter.decided(AuditEvent(Event.TOKEN_DENIED, key_id="k", code=f"code{number}", owner=f"o{number}"))
        meter.request(route="other", status=404, code=f"code{number}", seconds=0.1)
        meter.minted(ahead=False, result=f"result{number}", seconds=0.1)
        meter.github_call("mint", f"outcome{number}", 0.1, {})
        meter.revoked(f"fate{number}")
    found = scrape(meter)
    assert found.value("broker_webhooks_total", event="other") == 100
    assert found.value("broker_tokens_denied_total", code="other") == 100
    assert found.value("broker_http_problems_total", code="other") == 100
    assert found.value("broker_mints_total", result="other") == 100
    assert found.value("broker_github_requests_total", result="other") == 100
    assert found.value("broker_revocations_total", result="other") == 100
    assert "99" not in {
        value for labels in found.labels.values() for each in labels.values() for value in each
    }


def test_every_code_of_the_error_tree_is_told_by_its_name() -> None:
    meter = PrometheusMeter()

    def kinds(kind: type[BrokerError]) -> list[type[BrokerError]]:
        return [kind, *(one for child in kind.__subclasses__() for one in kinds(child))]

    codes = {kind.code for kind in kinds(BrokerError)}
    for code in codes:
        meter.decided(AuditEvent(Event.TOKEN_DENIED, key_id="k", code=code))
    told = scrape(meter).labels["broker_tokens_denied_total"]["code"]
    assert codes <= told
    assert "other" not in told


def test_refusals_of_strangers_are_no_denials_of_keys() -> None:
    meter = PrometheusMeter()
    meter.decided(AuditEvent(Event.TOKEN_DENIED, code="invalid_api_key"))
    assert scrape(meter).value("broker_tokens_denied_total") == 0


def limits(limit: int, remaining: int, reset: int) -> dict[str, str]:
    return {
        "x-ratelimit-limit": str(limit),
        "x-ratelimit-remaining": str(remaining),
        "x-ratelimit-reset": str(reset),
    }


def see(meter: PrometheusMeter, now: float) -> None:
    meter.see(health=StoreHealth.OK, waiters=0, skew_s=None, now=now)


def test_the_installation_nearest_to_its_limit_is_told_until_its_window_has_passed() -> None:
    meter = PrometheusMeter()
    name = "broker_github_rate_limit_remaining"
    meter.github_call("installation_repositories", "ok", 0.1, limits(5000, 4000, 1000))
    meter.github_call("installation_repositories", "ok", 0.1, limits(5000, 100, 1000))
    meter.github_call("installation_repositories", "ok", 0.1, limits(12500, 12000, 2000))  # another one
    meter.github_call("installation_repositories", "ok", 0.1, {"x-ratelimit-remaining": "nonsense"})
    see(meter, 999)
    found = scrape(meter)
    assert found.value(name, by="installation") == 100
    assert found.value("broker_github_rate_limit", by="installation") == 5000
    see(meter, 1001)
    assert scrape(meter).value(name, by="installation") == 5000
    meter.github_call("app", "ok", 0.1, limits(5000, 7, 3000))
    assert scrape(meter).value(name, by="app") == 7


@pytest.mark.parametrize("state", list(StoreHealth))
def test_the_store_is_in_one_state(state: StoreHealth) -> None:
    meter = PrometheusMeter()
    meter.see(health=state, waiters=3, skew_s=-40.5, now=0)
    found = scrape(meter)
    assert {s.labels["state"] for s in found.samples if s.name == "broker_store_state" and s.value} == {state}
    assert found.value("broker_mint_waiters") == 3
    assert found.value("broker_github_clock_skew_seconds") == -40.5


def test_a_key_that_never_expires_is_no_key_that_expires_now() -> None:
    meter = PrometheusMeter()
    assert scrape(meter).value("broker_api_key_next_expiry_timestamp_seconds") == float("inf")
    meter.see_keys(active=2, next_expiry=1234.0)
    assert scrape(meter).value("broker_api_key_next_expiry_timestamp_seconds") == 1234
    meter.see_keys(active=2, next_expiry=None)
    assert scrape(meter).value("broker_api_key_next_expiry_timestamp_seconds") == float("inf")


ONE_WORKER = """
import sys
import threading
from pathlib import Path
from broker.metrics import PrometheusMeter
from broker.ports import Counts, StoreHealth
meter = PrometheusMeter(store="sqlite", shared=Path(sys.argv[1]))
meter.request(route="/livez", status=200, code=None, seconds=0.01)
health = StoreHealth(sys.argv[2])
meter.see(health=health, waiters=2, skew_s=1.0, now=0)
meter.see_counts(Counts(live_tokens=5, to_revoke=0, webhooks=0))
print("told", flush=True)
sys.stdin.read()
"""


def worker(folder: Path, health: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", ONE_WORKER, str(folder), health],
        env=clean_environment(PROMETHEUS_MULTIPROC_DIR=str(folder)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "told\n"
    return process


def test_workers_are_added_up_and_the_dead_have_no_say(tmp_path: Path) -> None:
    one, two = worker(tmp_path, "ok"), worker(tmp_path, "lost")
    try:
        found = Scrape(workers_text(tmp_path).decode())
        assert found.value("broker_http_requests_total", route="/livez") == 2
        assert found.value("broker_http_request_duration_seconds_count", route="/livez") == 2
        assert found.value("broker_mint_waiters") == 4
        assert found.value("broker_live_tokens") == 5  # of the store, whoever looked
        assert found.value("broker_store_state", state="lost") == 1
        assert found.value("broker_build_info") == 1
        both = found.value("process_resident_memory_bytes")
        assert "pid" not in {name for labels in found.labels.values() for name in labels}
        two.kill()
        two.wait(10)
        found = Scrape(workers_text(tmp_path).decode())
        assert found.value("broker_http_requests_total", route="/livez") == 2  # a counter never falls
        assert found.value("broker_mint_waiters") == 2
        assert found.value("broker_store_state", state="lost") == 0
        assert found.value("broker_store_state", state="ok") == 1
        assert 0 < found.value("process_resident_memory_bytes") < both
    finally:
        for process in (one, two):
            process.kill()
            process.communicate()


def test_a_worker_that_just_begins_to_write_disturbs_no_scrape(tmp_path: Path) -> None:
    one = worker(tmp_path, "ok")
    fresh = tmp_path / f"counter_{one.pid}0.db"
    fresh.touch()  # a file is empty for a moment before it has its size
    written = threading.Timer(0.05, fresh.write_bytes, [b"\x08" + bytes(4095)])
    written.start()
    try:
        found = Scrape(workers_text(tmp_path).decode())
        assert found.value("broker_http_requests_total", route="/livez") == 1
    finally:
        written.join()
        one.kill()
        one.communicate()


def test_times_fall_into_the_buckets_that_the_library_would_choose() -> None:
    meter = PrometheusMeter()
    reference = Histogram("reference", "", buckets=(0.001, 0.0025, 0.005, 0.01, 25), registry=None)
    seconds = (0.0, 0.001, 0.0011, 0.0025, 0.005, 0.00500001, 25, 26)
    for each in seconds:
        meter.request(route="/x", status=200, code=None, seconds=each)
        reference.observe(each)
    found = scrape(meter)
    name = "broker_http_request_duration_seconds"
    wanted = {
        sample.labels["le"]: sample.value
        for metric in reference.collect()
        for sample in metric.samples
        if sample.name == "reference_bucket"
    }
    assert {le: found.value(f"{name}_bucket", route="/x", le=le) for le in wanted} == wanted
    assert found.value(f"{name}_count", route="/x") == len(seconds)
    assert found.value(f"{name}_sum", route="/x") == pytest.approx(sum(seconds))
    assert found.value("broker_http_requests_total", route="/x", status="200") == len(seconds)
