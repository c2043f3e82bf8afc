"""Metrics for Prometheus: counts what the ``Meter`` port tells and what ``broker.watch`` sees.

No label holds the name of a repository, an owner or a key, and each label has a bounded set of values:
whoever can scrape learns how the service is, not whom it serves.

One process keeps its numbers in memory. Several worker processes write theirs into files of one folder
(the multiprocess mode of ``prometheus_client``, chosen by the environment when that is imported), and
whoever is scraped adds them up.
"""

import contextlib
import os
import platform
import struct
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from broker.errors import BrokerError
from broker.github.wire import Route
from broker.ports import AuditEvent, Counts, Event, Meter, StoreHealth

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
OTHER: Final = "other"
"""The label of whatever is not on a list."""

WEBHOOK_EVENTS: Final = frozenset(
    {
        "github_app_authorization",
        "installation",
        "installation_repositories",
        "installation_target",
        "organization",
        "ping",
        "public",
        "push",
        "repository",
    }
)
FATES: Final = ("revoked", "failed", "pending")

_ANSWER_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25)
_GITHUB_S: Final = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10)
_STORE_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1)
_MINT_S: Final = (0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 20, 60)
_READS: Final = 10
_READ_AGAIN_S: Final = 0.02
_TROUBLES: Final = ("github_rejected_app", "github_unavailable", "github_rate_limited")

disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for each counter, which nothing here asks for


def _codes(kind: type[BrokerError] = BrokerError) -> frozenset[str]:
    """Return all codes of the error tree: what may become a label."""
    return frozenset({kind.code}).union(*(_codes(child) for child in kind.__subclasses__()))


class PrometheusMeter(Meter):
    """The meter of one process.

    Args:
        store: what kind of store is in use, for the build's line: ``sqlite``, ``redis`` ….
        shared: the folder that all worker processes write into, None if there is one process.
    """

    def __init__(self, *, store: str = "", shared: Path | None = None) -> None:
        registry = CollectorRegistry()
        self._registry = workers_registry(shared) if shared is not None else registry
        if shared is None:
            ProcessCollector(registry=registry)
        codes = _codes()
        self._codes: Final = codes

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"broker_{name}", what, labels, registry=registry)

        def histogram(name: str, what: str, buckets: Iterable[float], *labels: str) -> Histogram:
            return Histogram(f"broker_{name}", what, labels, buckets=tuple(buckets), registry=registry)

        def gauge(name: str, what: str, of_all: str, *labels: str) -> Gauge:
            # ``of_all``: what becomes of the numbers of several workers.
            return Gauge(f"broker_{name}", what, labels, registry=registry, multiprocess_mode=of_all)  # type: ignore[arg-type]

        self._requests = _Children(
            counter("http_requests_total", "Requests by route template and status.", "route", "status")
        )
        self._request_s = _Histograms(
            histogram("http_request_duration_seconds", "Time to answer a request.", _ANSWER_S, "route")
        )
        self._problems = _Children(counter("http_problems_total", "Problem answers by their code.", "code"))
        self._issued = _Children(
            counter("tokens_issued_total", "Tokens handed out: cached, or minted for the caller.", "source"),
            [("cached",), ("minted",)],
        )
        self._denied = _Children(
            counter("tokens_denied_total", "Refusals to keys that exist, by code.", "code"),
            [("forbidden",), ("blocked",), ("rate_limited",), ("not_installed",)],
        )
        self._mints = _Children(
            counter(
                "mints_total",
                "Mints that this service led: ahead, or asked for by a caller.",
                "why",
                "result",
            ),
            [(why, result) for why in ("asked", "ahead") for result in ("ok", "untrusted_reply", *_TROUBLES)],
        )
        self._mint_s = _Histograms(
            histogram("mint_duration_seconds", "Time to mint, with look-ups and retries.", _MINT_S, "why"),
            [("asked",), ("ahead",)],
        )
        self._waiters = gauge("mint_waiters", "Callers who wait for a mint right now.", "livesum")
        self._github = _Children(
            counter(
                "github_requests_total", "Attempts at GitHub's API by call and result.", "endpoint", "result"
            ),
            [(str(route), result) for route in Route for result in ("ok", *_TROUBLES)],
        )
        self._github_s = _Histograms(
            histogram("github_request_duration_seconds", "Time of one attempt.", _GITHUB_S, "endpoint")
        )
        self._rate = _RateLimits(
            gauge("github_rate_limit", "GitHub's limit of the window, as last told.", "livemax", "by"),
            gauge(
                "github_rate_limit_remaining",
                "The lowest number of remaining calls that GitHub told of any installation in this window.",
                "livemin",
                "by",
            ),
        )
        self._skew = gauge(
            "github_clock_skew_seconds", "GitHub's clock minus the local one, as last seen.", "livemostrecent"
        )
        self._store_s = _Histograms(
            histogram("store_step_duration_seconds", "Time of one step of the store.", _STORE_S, "step")
        )
        self._store_errors = _Children(
            counter("store_errors_total", "Steps of the store that had no answer.", "step", "kind"),
            [("read", "unavailable"), ("connect", "unavailable")],
        )
        self._store_state = gauge(
            "store_state", "1 for the state that some process sees the store in.", "livemax", "state"
        )
        self._live = gauge("live_tokens", "Tokens that are neither expired nor revoked.", "livemostrecent")
        self._to_revoke = gauge(
            "revocations_pending", "Tokens that still have to be revoked at GitHub.", "livemostrecent"
        )
        self._queued = gauge("webhooks_queued", "Deliveries that wait to be worked off.", "livemostrecent")
        self._revocations = _Children(
            counter("revocations_total", "Tries to revoke a token at GitHub, by result.", "result"),
            [(fate,) for fate in FATES],
        )
        self._webhooks = _Children(
            counter("webhooks_total", "Deliveries by event and result.", "event", "result"),
            [("installation", "accepted"), ("unverified", "invalid_signature"), ("unverified", "not_kept")],
        )
        self._audit = _Children(
            counter("audit_failures_total", "Audit events that the store did not take.", "what"),
            [("late",), ("lost",)],
        )
        self._keys = gauge("api_keys_active", "API keys neither revoked nor expired.", "livemostrecent")
        self._next_expiry = gauge(
            "api_key_next_expiry_timestamp_seconds",
            "When the next key expires that was used in the last 7 days; +Inf if none does.",
            "livemostrecent",
        )
        self._next_expiry.set(float("inf"))
        build = gauge("build_info", "Which build this is.", "livemax", "version", "python", "store")
        build.labels(version("github-token-broker"), platform.python_version(), store).set(1)

    # -- the port --------------------------------------------------------------------------------

    def request(self, *, route: str, status: int, code: str | None, seconds: float) -> None:
        """A request was answered."""
        self._requests.inc(route, str(status))
        self._request_s.observe(seconds, route)
        if code is not None:
            self._problems.inc(self._code(code))

    def decided(self, event: AuditEvent) -> None:
        """A decision went to the audit's log."""
        if event.event is Event.TOKEN_ISSUED:
            self._issued.inc("cached" if event.cached else "minted")
        elif event.event is Event.TOKEN_DENIED and event.key_id is not None:
            self._denied.inc(self._code(event.code or ""))

    def issued_again(self) -> None:
        """A cached token was handed out again, as a moment ago."""
        self._issued.inc("cached")

    def audit_failed(self, what: str, events: int = 1) -> None:
        """Events did not get into the store."""
        self._audit.inc(what, by=events)

    def minted(self, *, ahead: bool, result: str, seconds: float) -> None:
        """This process led a mint."""
        why = "ahead" if ahead else "asked"
        self._mints.inc(why, result if result in {"ok", "untrusted_reply"} else self._code(result))
        self._mint_s.observe(seconds, why)

    def revoked(self, fate: str) -> None:
        """One try to end a token at GitHub."""
        self._revocations.inc(fate if fate in FATES else OTHER)

    def webhook(self, event: str, result: str) -> None:
        """A delivery was answered."""
        known = event if event in WEBHOOK_EVENTS else OTHER
        self._webhooks.inc(known if event else "unverified", result)

    def store_step(self, step: str, seconds: float, trouble: str | None) -> None:
        """One atomic step of the store."""
        self._store_s.observe(seconds, step)
        if trouble is not None:
            self._store_errors.inc(step, trouble)

    def github_call(self, route: str, outcome: str, seconds: float, facts: Mapping[str, str]) -> None:
        """One attempt at GitHub; ``facts`` are headers of the reply."""
        self._github.inc(route, outcome if outcome == "ok" else self._code(outcome))
        self._github_s.observe(seconds, route)
        self._rate.told("app" if Route(route).by_app else "installation", facts)

    def _code(self, code: str) -> str:
        return code if code in self._codes else OTHER

    # -- what is looked at now and then ------------------------------------------------------------

    def see(self, *, health: StoreHealth, waiters: int, skew_s: float | None, now: float) -> None:
        """Take what this process knows without asking anybody; ``now`` is Unix seconds."""
        for state in StoreHealth:
            self._store_state.labels(str(state)).set(state is health)
        self._waiters.set(waiters)
        if skew_s is not None:
            self._skew.set(skew_s)
        self._rate.passed(now)

    def see_counts(self, counts: Counts) -> None:
        """Take how much the store holds."""
        self._live.set(counts.live_tokens)
        self._to_revoke.set(counts.to_revoke)
        self._queued.set(counts.webhooks)

    def see_keys(self, *, active: int, next_expiry: float | None) -> None:
        """Take how many keys there are, and when (Unix seconds) the next one in use expires."""
        self._keys.set(active)
        self._next_expiry.set(float("inf") if next_expiry is None else next_expiry)

    def text(self) -> bytes:
        """Return all metrics, of all workers, in Prometheus' text format."""
        return generate_latest(self._registry)


class _Children:
    """A counter's children, each looked up once: ``labels()`` costs more than counting.

    So does what ``inc()`` asks each time (is it a parent? is it negative?): a child's value is held itself.

    Args:
        counter: with labels.
        known: label values that are there from the start, so that the first event is seen as a rise.
    """

    def __init__(self, counter: Counter, known: Iterable[tuple[str, ...]] = ()) -> None:
        self._counter = counter
        self._add: dict[tuple[str, ...], Callable[[float], None]] = {}
        for each in known:
            self._child(each)

    def inc(self, *values: str, by: int = 1) -> None:
        (self._add.get(values) or self._child(values))(by)

    def _child(self, values: tuple[str, ...]) -> Callable[[float], None]:
        add: Callable[[float], None] = self._counter.labels(*values)._value.inc  # noqa: SLF001 - see the class
        self._add[values] = add
        return add


class _Histograms:
    """As ``_Children``, of a histogram with one label."""

    def __init__(self, histogram: Histogram, known: Iterable[tuple[str]] = ()) -> None:
        self._histogram = histogram
        self._children: dict[str, tuple[list[float], list[Any], Any]] = {}
        for (each,) in known:
            self._child(each)

    def observe(self, seconds: float, value: str) -> None:
        bounds, buckets, total = self._children.get(value) or self._child(value)
        buckets[bisect_left(bounds, seconds)].inc(1)
        total.inc(seconds)

    def _child(self, value: str) -> tuple[list[float], list[Any], Any]:
        held = self._histogram.labels(value)
        child = self._children[value] = held._upper_bounds, held._buckets, held._sum  # noqa: SLF001 - see _Children
        return child


class _RateLimits:
    """What GitHub told of its limits: who is nearest to the end decides, whoever that is.

    Each installation has a limit of its own, but no label may name one. A window that has passed says
    nothing any more.
    """

    def __init__(self, limit: Gauge, remaining: Gauge) -> None:
        self._limit = limit
        self._remaining = remaining
        self._windows: dict[str, tuple[float, float, float]] = {}

    def told(self, by: str, facts: Mapping[str, str]) -> None:
        with contextlib.suppress(KeyError, ValueError):
            limit, remaining, reset = (
                float(int(facts[f"x-ratelimit-{name}"])) for name in ("limit", "remaining", "reset")
            )
            kept = self._windows.get(by)
            if kept is None or remaining / max(limit, 1) <= kept[1] / max(kept[0], 1):
                self._windows[by] = (limit, remaining, reset)
                self._limit.labels(by).set(limit)
                self._remaining.labels(by).set(remaining)

    def passed(self, now: float) -> None:
        for by, (limit, _, reset) in list(self._windows.items()):
            if now > reset:
                del self._windows[by]
                self._remaining.labels(by).set(limit)


# -- several processes -----------------------------------------------------------------------------


class _Workers(Collector):
    """All workers' numbers, added up; those that only living ones have, of the living."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = MultiProcessCollector(None, path=str(folder))  # type: ignore[no-untyped-call]

    def collect(self) -> Iterable[Metric]:
        living = []
        for pid in sorted({int(file.stem.rpartition("_")[2]) for file in self._folder.glob("counter_*.db")}):
            if _lives(pid):
                living.append(pid)
            else:
                with contextlib.suppress(FileNotFoundError):  # another worker is scraped too
                    mark_process_dead(pid, path=str(self._folder))  # type: ignore[no-untyped-call]
        yield from self._read()
        yield from _processes(living)

    def _read(self) -> list[Metric]:
        """Return what is in the files; again, should a worker just be making one."""
        for _ in range(_READS - 1):
            with contextlib.suppress(struct.error, OSError, RuntimeError):
                return list(self._files.collect())  # type: ignore[no-untyped-call]
            time.sleep(_READ_AGAIN_S)
        return list(self._files.collect())  # type: ignore[no-untyped-call]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _processes(pids: Iterable[int]) -> Iterable[Metric]:
    """Return the standard process metrics, summed over processes (the start: of the oldest)."""
    sums: dict[str, float] = defaultdict(float)
    metrics: dict[str, Metric] = {}
    of_each: list[list[Metric]] = []
    for pid in pids:
        with contextlib.suppress(UnboundLocalError):  # what it trips over where a process is just ending
            of_each.append(list(ProcessCollector(pid=str(pid).strip, registry=None).collect()))
    for of_one in of_each:
        for metric in of_one:
            metrics.setdefault(metric.name, metric)
            value = metric.samples[0].value
            if metric.name.endswith("start_time_seconds"):
                sums[metric.name] = min(sums.get(metric.name, value), value)
            else:
                sums[metric.name] += value
    for name, metric in metrics.items():
        sample = metric.samples[0]
        metric.samples = [sample._replace(value=sums[name])]
        yield metric


def workers_registry(folder: Path) -> CollectorRegistry:
    """Return a registry of all that worker processes write into ``folder``."""
    registry = CollectorRegistry()
    registry.register(_Workers(folder))
    return registry


def workers_text(folder: Path) -> bytes:
    """Return the metrics of all workers, for a process that is none of them."""
    return generate_latest(workers_registry(folder))
