"""`GET /v1/git/askpass`: what git-sync reads, with its own way to show the key."""

import base64
import socket
import threading

import httpx
import pytest
from harness import Inside, World, bearer, unknown_key
from stage import events, until

from broker.build import build, build_app
from broker.sandbox.faults import Fault
from broker.sandbox.server import ThreadedServer


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


async def ask(app: Inside, headers: dict[str, str], repository: str = "acme/widgets") -> httpx.Response:
    return await app.http.get("/v1/git/askpass", params={"repository": repository}, headers=headers)


def git_sync_reads(body: bytes) -> dict[str, str]:
    """Return what git-sync makes of an answer: lines cut at newlines, names cut at the first ``=``."""
    lines = body.decode().split("\n")
    return {line.partition("=")[0]: line.partition("=")[2] for line in lines if line}


async def test_two_lines_for_whichever_way_the_key_is_shown(world: World) -> None:
    async with world.inside() as app:
        key = await app.key("acme/*")
        ways = [bearer(key), basic("", key), basic("git-sync", key), basic("x-access-token", key)]
        answers = [await ask(app, way) for way in ways]
        for answer in answers:
            assert answer.status_code == 200, answer.text
            assert answer.headers["content-type"].partition(";")[0] == "text/plain"
            assert answer.headers["cache-control"] == "no-store"
            assert b"\r" not in answer.content
            read = git_sync_reads(answer.content)
            assert read["username"] == "x-access-token"
            minted = world.github.tokens[read["password"]]
            assert list(minted.repositories or []) == [world.github.find_repository("acme/widgets").id]
        assert len({answer.content for answer in answers}) == 1
        assert world.github.count("mint") == 1


async def test_it_is_issued_by_the_same_rules_as_any_token(world: World) -> None:
    """Policy before the cache, blocks, and the audit: there is no second way to a token."""
    async with world.inside() as app:
        wide, narrow = await app.key("acme/*"), await app.key("acme/gadgets")
        admin = await app.key(admin=True)
        assert (await ask(app, basic("", wide))).status_code == 200
        refused = await ask(app, basic("", narrow))
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
        blocked = await app.http.put(
            "/v1/admin/blocks/acme/widgets", json={"reason": "incident"}, headers=bearer(admin)
        )
        assert blocked.status_code == 200
        refused = await ask(app, basic("", wide))
        assert (refused.status_code, refused.json()["code"]) == (403, "blocked")
        await app.broker.auditor.flush()
        denied = [(event["key_id"], event["code"]) for event in await events(app, "token.denied")]
        assert denied == [(narrow[5:17], "forbidden"), (wide[5:17], "blocked")]
        issued = await events(app, "token.issued")
        assert [event["key_id"] for event in issued] == [wide[5:17]]


@pytest.mark.parametrize(
    "value",
    [
        "Basic",
        "Basic !!!",
        "Basic " + base64.b64encode(b"no colon").decode(),
        "Basic " + base64.b64encode(b"user:\xff\xfe").decode(),
        pytest.param("Basic " + base64.b64encode(f"{unknown_key()}:".encode()).decode(), id="key as user"),
        "Digest abc",
        "Bearer",
        "",
    ],
)
async def test_what_is_no_key_is_401_and_short(world: World, value: str) -> None:
    """git-sync prints the body of a refusal: one short line, nothing of the request in it."""
    async with world.inside() as app:
        answer = await ask(app, {"Authorization": value})
        assert (answer.status_code, answer.json()["code"]) == (401, "invalid_api_key")
        assert len(answer.content) < 400
        assert b"\n" not in answer.content
        last = value.rpartition(" ")[2]
        assert not last or last not in answer.text


async def test_refusals_hold_no_secret_and_no_redirect(world: World) -> None:
    async with world.inside() as app:
        key = await app.key("acme/*")
        for repository, status in (
            ("acme/nothing", 404),
            ("stranger/secrets", 403),
            ("", 422),
            ("acme", 422),
            (key, 422),
            ("acme/" + "a" * 200, 422),
        ):
            answer = await ask(app, basic("", key), repository)
            assert answer.status_code == status, answer.text
            assert len(answer.content) < 600
            assert key[17:] not in answer.text
        for query in ("", "repository=acme/widgets&repository=acme/gadgets", "repository=acme/widgets&x=1"):
            answer = await app.http.get(f"/v1/git/askpass?{query}", headers=basic("", key))
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
        answer = await ask(app, basic("", unknown_key()))
        assert answer.status_code == 401
        two = [("Authorization", basic("", key)["Authorization"]), ("Authorization", f"Bearer {key}")]
        both = await app.http.get("/v1/git/askpass?repository=acme/widgets", headers=two)
        assert both.status_code == 401


LEAVERS = {
    "git-sync": "GET /v1/git/askpass?repository=acme/widgets HTTP/1.1\r\n",
    "prefect-cloud": (
        "POST /api/accounts/1/integrations/github/token HTTP/1.1\r\n"
        "Content-Type: application/json\r\nContent-Length: 40\r\n"
    ),
}


@pytest.mark.parametrize("who", LEAVERS)
async def test_a_cold_mint_goes_on_after_the_caller_has_left(world: World, who: str) -> None:
    """git-sync waits 1 s and prefect-cloud 5 s; GitHub may take longer. The next try finds the token."""
    async with world.inside() as app:
        key = await app.key("acme/*")
    hold = threading.Event()
    world.github.faults.add(Fault(route="mint", hold=hold, times=1))
    body = '{"owner":"acme", "repository":"widgets"}' if "POST" in LEAVERS[who] else ""
    asked = f"{LEAVERS[who]}Host: broker\r\nAuthorization: Bearer {key}\r\n\r\n{body}"
    broker = build(world.settings())
    with ThreadedServer(build_app(broker)) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as caller:
            caller.sendall(asked.encode())
            await until(lambda: world.github.count("mint") == 1)
        hold.set()
        async with httpx.AsyncClient(base_url=server.url) as http:
            again = {"repositories": ["acme/widgets"]}
            answer = await http.post("/v1/github/token", json=again, headers=bearer(key))
            assert answer.status_code == 200, answer.text
    assert world.github.count("mint") == 1
