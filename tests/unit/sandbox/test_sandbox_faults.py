from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from sandbox_world import as_token

from broker.sandbox.github import Fault

if TYPE_CHECKING:
    from sandbox_world import World

    from broker.sandbox.journal import Call


def test_a_fault_is_limited_to_a_route_and_a_number_of_calls(world: World) -> None:
    world.github.faults.add(Fault(route="mint", times=2, skip=1, status=502))
    assert world.http.get("/meta").status_code == 200
    assert [world.mint().status_code for _ in range(4)] == [201, 502, 502, 201]
    assert len(world.github.tokens) == 2
    assert [c.status for c in world.github.calls if c.route == "mint"] == [201, 502, 502, 201]


def test_faults_can_be_removed(world: World) -> None:
    fault = world.github.faults.add(Fault(status=500))
    assert world.http.get("/meta").status_code == 500
    assert world.http.get("/meta").json()["status"] == "500"
    world.github.faults.remove(fault)
    assert world.http.get("/meta").status_code == 200
    world.github.faults.add(Fault(status=500, route="m*"))
    world.github.faults.clear()
    assert world.http.get("/meta").status_code == 200


def test_limits_in_all_their_forms(world: World) -> None:
    add = world.github.faults.add
    add(Fault.primary_limit(times=1, status=429, installation_id=world.installation.id, reset_in_s=30))
    reply = world.mint()
    assert reply.status_code == 429
    assert reply.headers["x-ratelimit-remaining"] == "0"
    assert reply.headers["x-ratelimit-reset"] == str(int(world.clock.at) + 30)
    assert "retry-after" not in reply.headers
    add(Fault.secondary_limit(times=1, retry_after_s=7))
    reply = world.mint()
    assert (reply.status_code, reply.headers["retry-after"]) == (403, "7")
    assert "secondary rate limit" in reply.json()["message"]
    add(Fault.secondary_limit(times=1, retry_after_s=None, status=429))
    assert "retry-after" not in world.mint().headers
    add(Fault.abuse(times=1, retry_after_s=None))
    reply = world.mint()
    assert (reply.status_code, reply.headers["x-ratelimit-remaining"]) == (422, "0")
    assert "spammed" in reply.json()["message"]
    add(Fault.suspended(times=1))
    assert world.mint().json()["message"] == "This installation has been suspended"
    assert world.github.tokens == {}


def test_pages_and_raw_bodies(world: World) -> None:
    world.github.faults.add(Fault.unicorn(times=1))
    reply = world.mint()
    assert reply.status_code == 502
    assert reply.headers["content-type"].startswith("text/html")
    world.github.faults.add(Fault(times=1, status=201, body=b"{broken"))
    assert world.mint().content == b"{broken"
    world.github.faults.add(Fault(times=1, status=200, body="plain"))
    assert world.mint().headers["content-type"].startswith("text/plain")
    world.github.faults.add(Fault(times=1, body={"message": "odd", "errors": ["text"]}, status=422))
    assert world.mint().json() == {"message": "odd", "errors": ["text"]}


def test_a_reset_connection(world: World) -> None:
    world.github.faults.add(Fault(times=1, reset=True))
    with pytest.raises(httpx.TransportError):
        world.mint()
    assert world.github.tokens == {}
    assert world.github.calls[-1].status is None
    world.github.faults.add(Fault.lost_reply(times=1))
    with pytest.raises(httpx.TransportError):
        world.mint()
    assert len(world.github.live_tokens()) == 1
    assert world.mint().status_code == 201


def test_a_truncated_reply(world: World) -> None:
    world.github.faults.add(Fault(times=1, truncate=True))
    with pytest.raises(httpx.TransportError):
        world.mint()
    assert len(world.github.live_tokens()) == 1


def test_work_done_and_failed_all_the_same(world: World) -> None:
    world.github.faults.add(Fault(route="mint", times=1, after_effect=True, status=504))
    assert world.mint().status_code == 504
    assert len(world.github.live_tokens()) == 1
    world.github.faults.add(Fault(route="mint", times=1, after_effect=True, delay_s=0.5))
    with pytest.raises(httpx.ReadTimeout):
        world.http.post(
            f"/app/installations/{world.installation.id}/access_tokens", headers=world.as_app(), timeout=0.2
        )
    assert len(world.github.live_tokens()) == 2


def test_latency(world: World) -> None:
    world.github.latency_s = 0.05
    world.github.route_latency_s["meta"] = 0.05
    begun = time.perf_counter()
    world.http.get("/meta")
    assert time.perf_counter() - begun >= 0.1


def test_a_call_can_be_held(world: World) -> None:
    gate = threading.Event()
    world.github.faults.add(Fault(route="mint", times=1, hold=gate))
    replies = []
    thread = threading.Thread(target=lambda: replies.append(world.mint()))
    thread.start()
    deadline = time.monotonic() + 5
    while world.github.count("mint") < 1 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert world.github.tokens == {}
    assert world.github.calls[-1].status is None
    gate.set()
    thread.join(5)
    assert replies[0].status_code == 201


def test_replies_can_be_rewritten_and_given_headers(world: World) -> None:
    def forget_expiry(body: Any) -> Any:
        del body["expires_at"]
        return body

    world.github.faults.add(Fault(times=1, rewrite=forget_expiry, headers={"Sunset": "soon"}))
    reply = world.mint()
    assert reply.status_code == 201
    assert "expires_at" not in reply.json()
    assert reply.headers["sunset"] == "soon"
    world.github.faults.add(Fault(when=lambda call: call.authorization == "token", status=500))
    token = world.token()
    assert world.http.get("/installation/repositories", headers=as_token(token)).status_code == 500


def test_observers_change_the_world_between_pages(world: World) -> None:
    for number in range(30):
        world.github.add_repository(f"acme/r{number}")
    token = as_token(world.token())
    first = world.http.get("/installation/repositories", headers=token)

    def delete_one(call: Call) -> None:
        world.github.observers.clear()
        world.github.delete_repository("acme/widgets")

    world.github.observers.append(delete_one)
    second = world.http.get(first.links["next"]["url"], headers=token)
    assert first.json()["total_count"] == 34
    assert second.json()["total_count"] == 33
    assert len(second.json()["repositories"]) == 3
