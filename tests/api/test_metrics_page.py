"""``GET /metrics`` of the app inside the loop: what a run with a bit of everything leaves there."""

import asyncio
import json
import logging
import re
import threading
from dataclasses import replace

import pytest
from harness import Inside, World, bearer
from scrapes import WEBHOOK_SECRET, Scrape, a_bit_of_everything, scrape
from stage import HandClock, Wrapped, until, wrap_backend

from broker.build import build
from broker.errors import StoreUnavailableError
from broker.observe import JsonFormatter
from broker.ports import AuditFilter, Counts
from broker.sandbox.faults import Fault
from broker.settings import load


async def run(world: World, app: Inside) -> Scrape:
    await until(lambda: app.broker.about.app is not None)
    caller, admin = await app.key("acme/*"), await app.key("*/*", admin=True)
    await a_bit_of_everything(app.http, world.github, caller=caller, admin=admin)
    app.broker.watch.look()
    await app.broker.watch.look_at_keys()
    return await scrape(app.http)


async def test_a_run_with_a_bit_of_everything(any_world: World) -> None:
    async with any_world.inside(github_webhook_secret=WEBHOOK_SECRET) as app:
        found = await run(any_world, app)
    token = "/v1/github/token"
    assert found.value("broker_http_requests_total", route=token, status="200") == 5
    assert found.value("broker_http_requests_total", route=token, status="403") == 3
    assert found.value("broker_http_requests_total", route=token, status="401") == 3
    assert found.value("broker_http_requests_total", route=token, status="502") == 1
    assert found.value("broker_http_requests_total", route="/v1/admin/keys/{key_id}", status="401") == 1
    assert found.value("broker_http_requests_total", route="other", status="404") == 2
    assert found.value("broker_http_request_duration_seconds_count", route=token) == 12
    assert found.value("broker_http_problems_total", code="invalid_api_key") == 4
    assert found.value("broker_http_problems_total", code="invalid_signature") == 1
    assert found.value("broker_tokens_issued_total", source="minted") == 1
    assert found.value("broker_tokens_issued_total", source="cached") == 4
    assert found.value("broker_tokens_denied_total", code="forbidden") == 3
    assert found.value("broker_tokens_denied_total", code="github_unavailable") == 1
    assert found.value("broker_tokens_denied_total", code="invalid_api_key") == 0  # strangers are no keys
    assert found.value("broker_mints_total", why="asked", result="ok") == 1
    assert found.value("broker_mints_total", why="asked", result="github_unavailable") == 1
    assert found.value("broker_mint_duration_seconds_count", why="asked") == 2
    assert found.value("broker_github_requests_total", endpoint="mint", result="ok") == 1
    assert found.value("broker_github_requests_total", endpoint="mint", result="github_unavailable") >= 1
    assert found.value("broker_github_requests_total", endpoint="revoke", result="ok") == 1
    assert found.value("broker_github_request_duration_seconds_count", endpoint="mint") >= 2
    assert found.value("broker_store_step_duration_seconds_count", step="read") > 10
    assert found.value("broker_revocations_total", result="revoked") == 1
    assert found.value("broker_webhooks_total", event="installation", result="accepted") == 1
    assert found.value("broker_webhooks_total", event="installation", result="duplicate") == 1
    assert found.value("broker_webhooks_total", event="unverified", result="invalid_signature") == 1
    assert found.value("broker_store_state", state="ok") == 1
    assert found.value("broker_api_keys_active") == 2
    assert found.value("broker_build_info", version="0.1.0") == 1
    assert abs(found.value("broker_github_clock_skew_seconds")) < 30
    assert found.value("process_resident_memory_bytes") > 10_000_000


async def test_no_name_of_anybody_is_told(world: World) -> None:
    """Who may scrape is not who may know which repositories, owners and keys there are."""
    async with world.inside(github_webhook_secret=WEBHOOK_SECRET) as app:
        found = await run(world, app)
        page = await app.broker.store.list_keys(cursor=None, limit=10)
    for word in ("acme", "widgets", "gadgets", "stranger", "wp-login", "ghbk_", "ghs_", "nobody"):
        assert word not in found.text
    for entry in page.items:
        assert entry.record.id not in found.text
    assert str(world.installation.id) not in found.text


async def test_metrics_with_a_port_of_their_own_are_not_here(world: World) -> None:
    async with world.inside(metrics_port=9) as app:
        assert (await app.http.get("/metrics")).status_code == 404


async def test_the_two_ports_differ(world: World) -> None:
    with pytest.raises(Exception, match="BROKER_METRICS_PORT must not be BROKER_PORT"):
        load(github_client_id="a", github_private_key=world.pem, port=8080, metrics_port=8080)


async def test_a_refresh_ahead_is_told_apart(world: World) -> None:
    async with world.inside(token_refresh_ahead=3300) as app:
        key = await app.key("acme/*")
        assert (await app.token(key, "acme/widgets")).status_code == 200
        seen = app.broker.issuer._settings
        app.broker.issuer._settings = replace(seen, refresh_ahead_s=4000)  # it is due at once
        assert (await app.token(key, "acme/widgets")).status_code == 200
        await until(lambda: world.github.count("mint") == 2)
        await until(lambda: not app.broker.minter._flights)
        found = await scrape(app.http)
        assert found.value("broker_mints_total", why="ahead", result="ok") == 1
        assert found.value("broker_mints_total", why="asked", result="ok") == 1


async def test_waiters_are_told_while_they_wait(world: World) -> None:
    async with world.inside() as app:
        key = await app.key("acme/*")
        held = threading.Event()
        world.github.faults.add(Fault(route="mint", times=1, hold=held))
        asking = [asyncio.create_task(app.token(key, "acme/widgets")) for _ in range(7)]
        await until(lambda: app.broker.minter.waiting == 7)
        app.broker.watch.look()
        assert (await scrape(app.http)).value("broker_mint_waiters") == 7
        held.set()
        assert {answer.status_code for answer in await asyncio.gather(*asking)} == {200}
        app.broker.watch.look()
        assert app.broker.minter.waiting == 0


async def test_a_store_that_is_away_is_told(world: World) -> None:
    async with world.inside() as app:
        key = await app.key("acme/*")
        await until(lambda: app.broker.about.app is not None)

        app.broker.store._backend._inner = _Away(app.broker.store._backend._inner)  # type: ignore[attr-defined]
        app.broker.store._backend.__dict__.pop("read", None)
        assert (await app.token(key, "acme/widgets")).status_code == 503
        app.broker.watch.look()
        found = await scrape(app.http)
        assert found.value("broker_store_state", state="down") == 1
        assert found.value("broker_store_state", state="ok") == 0
        assert found.value("broker_store_errors_total", step="read", kind="unavailable") >= 1
        assert found.value("broker_http_problems_total", code="store_unavailable") == 1


class _Away:
    def __init__(self, inner: object) -> None:
        self._real = inner

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    async def read(self, want: object) -> None:
        raise StoreUnavailableError("away")


async def test_audit_events_that_the_store_did_not_take_are_told(world: World) -> None:
    async with world.inside() as app:
        key = await app.key("acme/*")

        async def away(*_: object) -> bool:
            raise StoreUnavailableError("away")

        wrap_backend(app, append=away)
        assert (await app.token(key, "stranger/secrets")).status_code == 403
        assert (await scrape(app.http)).value("broker_audit_failures_total", what="late") == 1
    assert Scrape(app.broker.meter.text().decode()).value("broker_audit_failures_total", what="lost") == 1


async def test_only_keys_in_use_that_still_live_count_as_expiring(world: World) -> None:
    clock = HandClock()
    async with world.inside(clock=clock) as app:
        keys = {
            "soon, never used": await app.key("acme/*", expires_in_s=3600),
            "soon, used long ago": await app.key("acme/*", expires_in_s=7200),
            "later, in use": await app.key("acme/*", expires_in_s=86400),
            "never, in use": await app.key("acme/*"),
            "dead": await app.key("acme/*", expires_in_s=-1),
        }
        for name in ("later, in use", "never, in use"):
            assert (await app.http.get("/v1/whoami", headers=bearer(keys[name]))).status_code == 200
        await app.broker.auditor.flush(everything=True)
        long_ago = int(clock.at) - 8 * 86400
        await app.broker.store.touch_keys({keys["soon, used long ago"][5:17]: long_ago})
        await app.broker.watch.look_at_keys()
        found = await scrape(app.http)
        assert found.value("broker_api_keys_active") == 4
        told = found.value("broker_api_key_next_expiry_timestamp_seconds")
        assert told == pytest.approx(clock.at + 86400, abs=60)


async def test_lines_of_all_rooms_carry_the_request_id(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """What issuing and the GitHub client log while they serve a request can be found by its id."""
    lines: list[dict[str, object]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(JsonFormatter().format(record)))

    handler = Keep()
    caplog.set_level(logging.DEBUG, "broker")
    logging.getLogger("broker").addHandler(handler)
    try:
        async with world.inside() as app:
            await until(lambda: app.broker.about.app is not None)
            key = await app.key("acme/*")
            world.github.faults.add(Fault(route="mint", status=500))
            headers = {**bearer(key), "X-Request-Id": "the-one"}
            body = {"repositories": ["acme/widgets"]}
            await app.http.post("/v1/github/token", json=body, headers=headers)
            page = await app.broker.store.audit(AuditFilter(request_id="the-one"), cursor=None, limit=9)
    finally:
        logging.getLogger("broker").removeHandler(handler)
    by_logger = {line["logger"]: line.get("request_id") for line in lines}
    assert by_logger["broker.issuing.minting"] == "the-one"
    assert by_logger["broker.audit"] == "the-one"
    assert page.items
    outside = [line for line in lines if re.match("serving as app|store ", str(line["message"]))]
    assert outside
    assert all("request_id" not in line for line in outside)


async def test_a_look_that_swallows_its_cancellation_does_not_keep_the_process(world: World) -> None:
    """Python 3.11's ``wait_for`` does so when the store's answer comes in that very moment."""
    counting, swallowed = asyncio.Event(), asyncio.Event()

    async def counts() -> Counts:
        counting.set()
        if not swallowed.is_set():
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                swallowed.set()
        return Counts(0, 0, 0)

    broker = build(world.settings())
    broker.watch._store = Wrapped(broker.store, counts=counts)
    async with asyncio.timeout(20):
        async with broker.running():
            await counting.wait()
    assert swallowed.is_set()
