"""``GET /metrics`` of real processes: one worker and several, beside the API and on a port of its own."""

import os
import signal
import socket
import stat
from functools import partial
from pathlib import Path

import httpx
import pytest
from harness import Service, World, bearer
from scrapes import WEBHOOK_SECRET, a_bit_of_everything, scrape
from servers import free_port
from stage import until

from broker.access.keys import generate

LIMITS = httpx.Limits(max_keepalive_connections=0)
"""A connection for each request, so that all workers have some."""


@pytest.mark.parametrize(
    ("workers", "own_port"),
    [
        ("1", True),
        pytest.param("2", False, marks=pytest.mark.slow),
        pytest.param("1", False, marks=pytest.mark.slow),
        pytest.param("2", True, marks=pytest.mark.slow),
    ],
)
async def test_all_workers_are_told(world: World, tmp_path: Path, workers: str, own_port: bool) -> None:
    port = free_port()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    more = {"BROKER_METRICS_PORT": str(port)} if own_port else {}
    admin = generate()[0].reveal()
    more |= {"BROKER_ADMIN_KEY": admin, "BROKER_GITHUB_WEBHOOK_SECRET": WEBHOOK_SECRET}
    service = world.service(BROKER_WORKERS=workers, TMPDIR=str(temporary), **more)
    caller = await world.quick_key("acme/*")
    async with httpx.AsyncClient(base_url=service.url, limits=LIMITS, timeout=30) as http:
        await a_bit_of_everything(http, world.github, caller=caller, admin=admin)
        for _ in range(20):
            assert (await http.get("/v1/whoami", headers=bearer(caller))).status_code == 200
        where = f"http://127.0.0.1:{port}/metrics" if own_port else "/metrics"

        async def all_is_told() -> bool:
            """Whether states, looked at each second, and the last requests have reached the page."""
            told = await scrape(http, where)
            asked = told.value("broker_http_requests_total", route="/v1/whoami")
            return told.value("broker_store_state", state="ok") == 1 and asked == 20

        await until(all_is_told, seconds=20)
        told = await scrape(http, where)
        if own_port:
            assert (await http.get("/metrics")).status_code == 404
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as there:
                assert (await there.get("/v1/whoami")).status_code == 404
                assert (await there.post("/metrics")).status_code == 405
    token = "/v1/github/token"
    assert told.value("broker_http_requests_total", route=token, status="200") == 5
    assert told.value("broker_http_requests_total", route=token) == 12
    assert told.value("broker_http_requests_total", route="/v1/whoami", status="200") == 20
    assert told.value("broker_tokens_issued_total") == 5
    assert told.value("broker_tokens_denied_total", code="forbidden") == 3
    assert told.value("broker_github_requests_total", endpoint="app", result="ok") == int(workers)
    assert told.value("broker_revocations_total", result="revoked") == 1
    assert told.value("broker_webhooks_total", event="installation", result="accepted") == 1
    assert told.value("broker_build_info", store="sqlite") == 1
    assert told.value("process_resident_memory_bytes") > 10_000_000 * int(workers)
    shared = list(temporary.glob("broker-metrics-*"))
    assert len(shared) == (1 if workers == "2" else 0)
    assert all(stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in shared)
    service.stop()
    assert list(temporary.glob("broker-metrics-*")) == []
    assert "Traceback" not in service.log()


def workers_of(service: Service) -> list[int]:
    assert service.process is not None
    parent = service.process.pid
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(one) for one in children if "spawn_main" in Path(f"/proc/{one}/cmdline").read_text()]


@pytest.mark.slow
async def test_a_worker_that_was_killed_is_replaced_and_its_counts_stay(world: World) -> None:
    port = free_port()
    service = world.service(BROKER_WORKERS="2", BROKER_METRICS_PORT=str(port))
    url = f"http://127.0.0.1:{port}/metrics"
    async with httpx.AsyncClient(base_url=service.url, limits=LIMITS, timeout=30) as http:
        for _ in range(10):
            await http.get("/livez")

        async def have_begun(number: int) -> bool:
            told = await scrape(http, url)
            return told.value("broker_github_requests_total", endpoint="app", result="ok") == number

        await until(partial(have_begun, 2), seconds=30)
        before = (await scrape(http, url)).value("broker_http_requests_total", route="/livez")
        assert before == 10
        workers = workers_of(service)
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)

        await until(partial(have_begun, 3), seconds=30)
        after = await scrape(http, url)
    assert after.value("broker_http_requests_total", route="/livez") == before
    assert after.value("broker_store_state", state="ok") == 1


async def test_a_metrics_port_that_is_taken_is_said_in_one_line(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = world.command("serve", BROKER_PORT=str(free_port()), BROKER_METRICS_PORT=str(port))
    assert done.returncode == 1
    assert f"BROKER_METRICS_PORT: cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr
