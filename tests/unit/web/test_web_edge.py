"""The edge: who the client is, which request id is believed, what becomes of an unexpected error."""

import asyncio
import ipaddress
import json
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from broker.errors import BrokerError, ForbiddenError
from broker.web import middleware
from broker.web.middleware import Edge, client_address

PROXIES = [ipaddress.ip_network(one) for one in ("10.0.0.0/8", "fd00::/8", "192.0.2.1")]


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("198.51.100.9", ["203.0.113.5"], "198.51.100.9"),  # the peer is no proxy of ours: not believed
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.5"], "203.0.113.5"),
        ("10.0.0.1", ["1.1.1.1, 203.0.113.5"], "203.0.113.5"),  # what the client wrote itself is to the left
        ("10.0.0.1", ["1.1.1.1, 203.0.113.5, 10.9.9.9"], "203.0.113.5"),
        ("10.0.0.1", ["1.1.1.1", "203.0.113.5"], "203.0.113.5"),  # two headers are one list
        ("10.0.0.1", ["10.1.1.1, 10.2.2.2"], "10.1.1.1"),
        ("10.0.0.1", ["203.0.113.5, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["unknown, 203.0.113.5"], "203.0.113.5"),
        ("10.0.0.1", ["203.0.113.5, not an address, 10.2.2.2"], "10.2.2.2"),
        ("10.0.0.1", [",, 203.0.113.5 ,"], "203.0.113.5"),
        ("10.0.0.1", ["203.0.113.5, fe80::1%anything"], "10.0.0.1"),  # a zone is free text
        ("10.0.0.1", ["\xff\xfe"], "10.0.0.1"),
        ("::ffff:10.0.0.1", ["203.0.113.5"], "203.0.113.5"),
        ("fd00::1", ["2001:db8::7"], "2001:db8::7"),
        ("192.0.2.1", ["203.0.113.5"], "203.0.113.5"),
        ("192.0.2.2", ["203.0.113.5"], "192.0.2.2"),
        (None, ["203.0.113.5"], None),
        ("not-an-ip", ["203.0.113.5"], "not-an-ip"),
    ],
)
def test_client_address(peer: str | None, forwarded: list[str], client: str | None) -> None:
    assert client_address(peer, [value.encode("latin-1") for value in forwarded], PROXIES) == client


async def ask(
    app: Any, headers: list[tuple[bytes, bytes]] | dict[str, str] | None = None, trusted: Any = ()
) -> httpx.Response:
    transport = httpx.ASGITransport(Edge(app, trusted), client=("10.0.0.1", 1), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://t") as http:
        return await http.get("/x", headers=headers)


async def show(scope: Scope, receive: Receive, send: Send) -> None:
    body = json.dumps([scope["state"]["request_id"], scope["state"]["client_ip"]]).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


@pytest.mark.parametrize("given", ["a", "A.b_c-9", "x" * 128])
async def test_a_decent_request_id_is_kept(given: str) -> None:
    answer = await ask(show, {"x-request-id": given})
    assert answer.headers.get_list("x-request-id") == [given]
    assert answer.json()[0] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\tb", "é", "a/b", '"', "a;b"])
async def test_any_other_is_replaced(given: str) -> None:
    answer = await ask(show, [(b"x-request-id", given.encode())])
    assert answer.json()[0] == answer.headers["x-request-id"] != given
    assert len(answer.headers["x-request-id"]) == 32


async def test_without_trusted_proxies_nobody_is_believed() -> None:
    assert (await ask(show, {"x-forwarded-for": "203.0.113.5"})).json()[1] == "10.0.0.1"
    assert (await ask(show, {"x-forwarded-for": "203.0.113.5"}, PROXIES)).json()[1] == "203.0.113.5"


async def test_an_unexpected_error_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("inside detail")

    answer = await ask(broken)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "inside detail" not in answer.text
    assert answer.headers["x-request-id"] == answer.json()["request_id"]
    assert "inside detail" in caplog.text


async def test_an_error_is_a_problem() -> None:
    async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
        raise ForbiddenError("for the operator")

    answer = await ask(refusing, {"x-request-id": "r7"})
    assert (answer.status_code, answer.json()["request_id"]) == (403, "r7")
    assert answer.headers["x-request-id"] == "r7"


async def test_after_the_answer_has_begun_there_is_no_second_one() -> None:
    sent: list[Any] = []

    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ForbiddenError

    async def send(message: Any) -> None:
        sent.append(message["type"])

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "client": None}
    with pytest.raises(BrokerError):
        await Edge(late, [])(scope, receive, send)
    assert sent == ["http.response.start"]


async def test_so_many_at_once_and_probes_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in work is bounded; the one that is too many is told to come again, a probe is answered."""
    monkeypatch.setattr(middleware, "MAX_AT_ONCE", 2)
    free = asyncio.Event()

    async def work(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/work":
            await free.wait()
        raise ForbiddenError

    transport = httpx.ASGITransport(Edge(work, []))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        running = [asyncio.create_task(http.get("/work")) for _ in range(2)]
        await asyncio.sleep(0.05)
        refused = await http.get("/work")
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert refused.headers["retry-after"] == "1"
        for probe in ("/livez", "/readyz"):
            assert (await http.get(probe)).status_code == 403, "it got through to the routes"
        free.set()
        assert [(await one).status_code for one in running] == [403, 403]
        assert (await http.get("/work")).status_code == 403


async def test_who_keeps_us_waiting_takes_nobodys_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anyone can begin a body, or leave an answer unread; those who are ready are served all the same."""
    monkeypatch.setattr(middleware, "MAX_AT_ONCE", 2)
    never = asyncio.Event()

    async def work(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.request"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    edge = Edge(work, [])
    scope = {"type": "http", "method": "POST", "path": "/work", "headers": [], "client": None}

    async def sends_no_body() -> Any:
        await never.wait()

    async def sends_all() -> Any:
        return {"type": "http.request", "body": b""}

    async def reads_nothing(message: Any) -> None:
        await never.wait()

    async def reads_all(message: Any) -> None:
        pass

    slow = [asyncio.create_task(edge(dict(scope), sends_no_body, reads_all)) for _ in range(5)]
    slow += [asyncio.create_task(edge(dict(scope), sends_all, reads_nothing)) for _ in range(5)]
    await asyncio.sleep(0.01)
    told: list[Any] = []

    async def note(message: Any) -> None:
        told.append(message)

    await edge(dict(scope), sends_all, note)
    assert told[0]["status"] == 200
    for one in slow:
        one.cancel()
    await asyncio.gather(*slow, return_exceptions=True)
