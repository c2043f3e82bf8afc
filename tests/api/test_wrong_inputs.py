# ruff: noqa: E501 - a table of wrong inputs
"""Wrong inputs: each has the contract's code and status, and nothing is minted for any of them."""

import json
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
from harness import World, bearer, unknown_key
from stage import verdict

from broker.issuing.keys import KeyRegister

GOOD = {"repositories": ["acme/widgets"]}
TOKEN = "/v1/github/token"
JSON = "application/json"
INVALID, MALFORMED = (422, "invalid_request"), (400, "invalid_request")
NO_KEY = (401, "invalid_api_key")
ME = "<key>"


@dataclass(frozen=True)
class Wrong:
    expected: tuple[int, str]
    body: Any = None
    raw: bytes | None = None
    method: str = "POST"
    path: str = TOKEN
    key: str | None = ME
    headers: tuple[tuple[str, str], ...] = ()
    content_type: str | None = JSON
    chunked: bool = False
    detail: str = ""


def names(*values: Any, **more: Any) -> dict[str, Any]:
    return {"repositories": list(values), **more}


def wants(permissions: Any) -> dict[str, Any]:
    return {**GOOD, "permissions": permissions}


def values(wrong: Any) -> dict[str, Any]:
    return {**GOOD, **wrong}


CASES: dict[str, Wrong] = {
    # -- names
    **{
        f"name {text!r}": Wrong(INVALID, names(text), detail="repositories" if not text else "")
        for text in (
            "", "acme", "acme/", "/widgets", "acme/widgets/x", "acme//widgets", "acme/widgets.git", "acme/x.WIKI",
            "acme/.", "acme/..", "acme/../stranger/secrets", "acme/%2e%2e", "acme/wid gets", " acme/widgets",
            "acme/widgets\n", "acme/widgets\x00", "-acme/widgets", "acme_/widgets", "a_b_c/widgets", "acmé/widgets",
            "acme/w\u0131dgets", "a" * 40 + "/x", "acme/" + "x" * 101, "acme/*", "*/*", "acme/widgets?x=1",
            "acme/widgets#a", "https://github.com/acme/widgets", "acme\\widgets", "acme\uff0fwidgets", "acme/\ud800",
        )
    },
    **{
        f"name of type {json.dumps(value)}": Wrong(INVALID, names(value), detail="repositories.0")
        for value in (None, 1, True, ["acme/widgets"], {"full_name": "acme/widgets"})
    },
    "one wrong of several": Wrong(INVALID, names("acme/widgets", "acme/..")),
    "two owners": Wrong(INVALID, names("acme/widgets", "stranger/secrets"), detail="one owner"),
    "two owners by case": Wrong(INVALID, names("acme/widgets", "acme2/widgets")),
    "501 repositories": Wrong(INVALID, names(*(f"acme/r{number}" for number in range(501))), detail="500"),
    "501 times the same": Wrong(INVALID, names(*["acme/widgets"] * 501)),
    "no repositories": Wrong(INVALID, names(), detail="repositories"),
    "nothing asked for": Wrong(INVALID, {}),
    "owner and repositories": Wrong(INVALID, {**GOOD, "owner": "acme"}),
    "owner and no repositories": Wrong(INVALID, {"owner": "acme", "repositories": []}),
    "empty owner": Wrong(INVALID, {"owner": ""}),
    "owner is a pattern": Wrong(INVALID, {"owner": "*"}),
    "owner is a repository": Wrong(INVALID, {"owner": "acme/widgets"}),
    "owner null": Wrong(INVALID, {"owner": None}, detail="owner"),
    "repositories null": Wrong(INVALID, {"repositories": None}, detail="repositories"),
    "repositories is a text": Wrong(INVALID, {"repositories": "acme/widgets"}),
    "repositories is a map": Wrong(INVALID, {"repositories": {"acme/widgets": True}}),
    **{
        f"a key as {name}": Wrong(INVALID, body)
        for name, body in (
            ("repository", names(ME)),
            ("repository's name", names(f"acme/{ME}")),
            ("owner", {"owner": ME}),
            ("field", values({ME: 1})),
            ("permission", wants({ME: "read"})),
        )
    },
    "a key as level": Wrong((422, "not_read_only"), wants({"contents": ME})),
    "a key as host": Wrong((404, "unknown_host"), values({"host": ME})),
    "a key as parameter": Wrong(INVALID, method="GET", path=f"/v1/whoami?{ME}=1"),
    "a key as path": Wrong((404, "not_found"), method="GET", path=f"/v1/{ME}"),
    "only host": Wrong(INVALID, {"host": "github.com"}),
    # -- permissions
    **{
        f"permissions {json.dumps(value)}": Wrong(code, wants(value))
        for value, code in (
            ({}, INVALID),
            (None, INVALID),
            ([], INVALID),
            ("contents", INVALID),
            ({"contents": None}, INVALID),
            ({"contents": True}, INVALID),
            ({"contents": 1}, INVALID),
            ({"contents": ["read"]}, INVALID),
            ({"": "read"}, INVALID),
            ({"Contents": "read"}, INVALID),
            ({"con tents": "read"}, INVALID),
            ({"contents\n": "read"}, INVALID),
            ({"a" * 65: "read"}, INVALID),
            ({f"p{number}": "read" for number in range(101)}, INVALID),
            ({"contents": "write"}, (422, "not_read_only")),
            ({"contents": "admin"}, (422, "not_read_only")),
            ({"contents": "none"}, (422, "not_read_only")),
            ({"contents": "READ"}, (422, "not_read_only")),
            ({"contents": "read "}, (422, "not_read_only")),
            ({"contents": ""}, (422, "not_read_only")),
            ({"contents": "read", "issues": "write"}, (422, "not_read_only")),
            ({"metadata": "write"}, (422, "not_read_only")),
        )
    },
    # -- the other fields
    **{
        f"{name} {json.dumps(value)}": Wrong(INVALID, values({name: value}), detail=name)
        for name, wrong in (
            ("min_ttl", (-1, 3301, 1.5, 300.0, "300", True, None, 10**30, -(10**30), [])),
            ("refresh", (1, 0, "true", None, [])),
            ("host", (None, 1, ["github.com"])),
            ("unknown_field", ("x",)),
            ("Repositories", (["acme/widgets"],)),
            ("repository", ("acme/widgets",)),
            ("repository_ids", ([1],)),
            ("__proto__", ({},)),
        )
        for value in wrong
    },
    "host of somebody else": Wrong((404, "unknown_host"), values({"host": "gitlab.com"})),
    "no host": Wrong((404, "unknown_host"), values({"host": ""})),
    "host without its port": Wrong((404, "unknown_host"), values({"host": "127.0.0.1"})),
    # -- what is not JSON, or not ours
    **{
        f"raw {number} {raw[:30]!r}": Wrong(MALFORMED, raw=raw)
        for number, raw in enumerate((
            b"",
            b" ",
            b"null",
            b"[]",
            b'["acme/widgets"]',
            b'"acme/widgets"',
            b"1",
            b"{",
            b"{}{}",
            b"{'repositories': ['acme/widgets']}",
            b'{"repositories": ["acme/widgets"],}',
            b'{"repositories": ["acme/widgets"]} x',
            b'{"repositories": ["acme/widgets"], "repositories": ["acme/gadgets"]}',
            b'{"repositories": ["acme/widgets"], "permissions": {"contents": "read", "contents": "read"}}',
            b'{"repositories": ["acme/widgets"], "repositorie\\u0073": ["acme/gadgets"]}',
            b'{"repositories": ["acme/widgets"], "min_ttl": NaN}',
            b'{"repositories": ["acme/widgets"], "min_ttl": Infinity}',
            b'{"repositories": ["acme/widgets"], "min_ttl": -Infinity}',
            b'{"repositories": ["acme/widgets"], "min_ttl": ' + b"9" * 5000 + b"}",
            b'{"repositories": ["acme/\xff"]}',
            json.dumps(GOOD).encode("utf-16"),
            json.dumps(GOOD).encode("utf-32-le"),
            b"\xef\xbb\xbf" + json.dumps(GOOD).encode(),
            b"[" * 30_000,
            b'{"a":' * 10_000,
            b'{"repositories": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
            b"repositories=acme/widgets",
        ))
    },
    "a float beyond all": Wrong(INVALID, raw=b'{"repositories": ["acme/widgets"], "min_ttl": 1e400}'),
    # -- headers
    "no content type": Wrong((415, "unsupported_media_type"), GOOD, content_type=None),
    **{
        f"content type {kind}": Wrong((415, "unsupported_media_type"), GOOD, content_type=kind)
        for kind in (
            "text/plain", "text/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
            "application/json; charset=utf-16", "application/json; charset=latin-1", "application/jsonp", "json",
            "application/problem+json",
        )
    },
    **{
        f"content encoding {kind}": Wrong(
            (415, "unsupported_media_type"), GOOD, headers=(("content-encoding", kind),)
        )
        for kind in ("gzip", "br", "gzip, identity", "x")
    },
    "65 KiB": Wrong((413, "payload_too_large"), raw=b" " * (65 * 1024)),
    "65 KiB in chunks": Wrong((413, "payload_too_large"), raw=b" " * (65 * 1024), chunked=True),
    "64 KiB and a byte": Wrong((413, "payload_too_large"), raw=b" " * (64 * 1024 + 1), chunked=True),
    "64 KiB is read": Wrong(MALFORMED, raw=b" " * (64 * 1024), chunked=True),
    # -- who asks
    "no key": Wrong(NO_KEY, GOOD, key=None),
    **{
        f"Authorization: {text}": Wrong(NO_KEY, GOOD, key=None, headers=(("authorization", text),))
        for text in (
            "", "Bearer", "Bearer ", ME, f"Basic {ME}", f"Token {ME}", f"Bearer  x{ME}", f"Bearer {ME},{ME}",
            f"Bearer {ME} {ME}", f"Bearer{ME}", "Bearer ghbk_short", "Bearer é",
        )
    },
    "two Authorization headers": Wrong(NO_KEY, GOOD, headers=(("authorization", f"Bearer {ME}"),)),
    "an empty second Authorization": Wrong(NO_KEY, GOOD, headers=(("authorization", ""),)),
    "unknown key": Wrong(NO_KEY, GOOD, key="<unknown>"),
    "revoked key": Wrong(NO_KEY, GOOD, key="<revoked>"),
    "expired key": Wrong(NO_KEY, GOOD, key="<expired>"),
    "another secret of a known id": Wrong(NO_KEY, GOOD, key="<forged>"),
    "wrong check digits": Wrong(NO_KEY, GOOD, key="<mistyped>"),
    "unknown key and a wrong body": Wrong(NO_KEY, {}, key="<unknown>"),
    "no key and no JSON": Wrong(NO_KEY, raw=b"{", key=None),
    "unknown key and another host": Wrong(NO_KEY, values({"host": "x"}), key="<unknown>"),
    "no key for whoami": Wrong(NO_KEY, method="GET", path="/v1/whoami", key=None),
    "unknown key for whoami, wrong query": Wrong(NO_KEY, method="GET", path="/v1/whoami?x=1", key="<unknown>"),
    "unknown key for the list": Wrong(NO_KEY, method="GET", path="/v1/github/repositories?limit=0", key="<unknown>"),
    # -- policy
    "another owner": Wrong((403, "forbidden"), names("stranger/secrets")),
    "an owner that is nowhere": Wrong((403, "forbidden"), names("nobody/nothing")),
    "beyond the key's permissions": Wrong((403, "forbidden"), wants({"issues": "read"})),
    "all of another owner": Wrong((403, "forbidden"), {"owner": "stranger"}),
    "no such repository": Wrong((404, "not_installed"), names("acme/nothing")),
    # -- paths, methods, queries
    "unknown path": Wrong((404, "not_found"), GOOD, path="/v1/github/tokens"),
    "trailing slash": Wrong((404, "not_found"), GOOD, path="/v1/github/token/"),
    "root": Wrong((404, "not_found"), method="GET", path="/"),
    "dots in the path": Wrong((404, "not_found"), GOOD, path="/v1/x/../github/token/.."),
    "GET": Wrong((405, "method_not_allowed"), method="GET"),
    "PUT": Wrong((405, "method_not_allowed"), GOOD, method="PUT"),
    "DELETE": Wrong((405, "method_not_allowed"), method="DELETE", path="/v1/whoami"),
    "POST whoami": Wrong((405, "method_not_allowed"), GOOD, path="/v1/whoami"),
    "unknown parameter": Wrong(INVALID, method="GET", path="/v1/whoami?verbose=1", detail="verbose"),
    **{
        f"list {query}": Wrong(INVALID, method="GET", path=f"/v1/github/repositories?{query}")
        for query in (
            "page=1", "limit=1&limit=2", "cursor=a&cursor=a", "limit=0", "limit=201", "limit=-1", "limit=", "limit=ten",
            "limit=1.0", "limit=%D9%A1", "limit=0001", "cursor=x", "cursor=%00", "cursor=W10", "cursor=WyJhIiwwLDBd",
            "cursor=WyJhIiwxLC0xXQ", "cursor=bnVsbA", "cursor=%C3%A9", "Limit=5", "cursor=WyJhIix0cnVlLHRydWVd",
        )
    },
    "a query on the token": Wrong(INVALID, GOOD, path=f"{TOKEN}?refresh=1"),
}  # fmt: skip

QUIET = {name for name in CASES if name != "no such repository"}


async def send(http: httpx.AsyncClient, wrong: Wrong, keys: dict[str, str]) -> httpx.Response:
    def filled(text: str) -> str:
        for name, value in keys.items():
            text = text.replace(name, value)
        return text

    headers = [(name.encode(), filled(value).encode()) for name, value in wrong.headers]
    if wrong.key is not None:
        headers.append((b"authorization", f"Bearer {keys[wrong.key]}".encode()))
    if wrong.content_type is not None and wrong.method in {"POST", "PUT"}:
        headers.append((b"content-type", wrong.content_type.encode()))
    content: Any = wrong.raw
    if content is None and wrong.body is not None:
        content = filled(json.dumps(wrong.body)).encode()
    if wrong.chunked:
        whole: bytes = content

        async def chunks() -> Any:
            for start in range(0, len(whole), 5000):
                yield whole[start : start + 5000]

        content = chunks()
    return await http.request(wrong.method, filled(wrong.path), content=content, headers=headers)


async def test_wrong_inputs(world: World) -> None:
    """More than a hundred of them on one app: one answer each, no call to GitHub, and all at once."""
    async with world.inside(mint_budget=100_000) as app:
        key = await app.key("acme/*")
        other = await app.key("acme/*")
        revoked = await app.key("acme/*")
        await KeyRegister(app.broker.store).revoke(revoked[5:17], by="test")
        secret = other[18:61]
        body = f"{key[:18]}{secret}"
        from broker.access.keys import checksum  # noqa: PLC0415

        keys = {
            ME: key,
            "<unknown>": unknown_key(),
            "<revoked>": revoked,
            "<expired>": await app.key("acme/*", expires_in_s=-1),
            "<forged>": body + checksum(body),
            "<mistyped>": key[:-1] + ("0" if key[-1] != "0" else "1"),
        }
        assert len(CASES) > 200
        world.github.clear_calls()
        bad = []
        for name, wrong in CASES.items():
            answer = await send(app.http, wrong, keys)
            found = verdict(answer)
            document = answer.json()
            problems = []
            if found != wrong.expected:
                problems.append(f"{found} instead of {wrong.expected}: {answer.text[:150]}")
            if answer.headers["content-type"] != "application/problem+json":
                problems.append(answer.headers["content-type"])
            if answer.headers.get("x-request-id") != document.get("request_id"):
                problems.append("request id")
            if wrong.detail not in document.get("detail", ""):
                problems.append(f"{wrong.detail!r} is not in {document!r}")
            if answer.status_code == 405 and not answer.headers.get("allow"):
                problems.append("no Allow")
            if answer.status_code == 401 and answer.headers.get("www-authenticate") != "Bearer":
                problems.append("no WWW-Authenticate")
            if answer.status_code == 401 and document["detail"] != (
                "The API key is missing, malformed, unknown, expired or revoked."
            ):
                problems.append("a 401 of its own")
            if any(held[18:] in answer.text for held in keys.values()):
                problems.append("a key in the answer")
            calls = world.github.count()
            if calls and name in QUIET:
                problems.append(f"{calls} calls to GitHub")
            world.github.clear_calls()
            bad += [f"{name}: {problem}" for problem in problems]
        assert not bad, "\n".join(bad)
        assert not world.github.tokens
        assert verdict(await send(app.http, replace(CASES["no key"], key=ME), keys)) == (200, "ok")


@pytest.mark.parametrize(
    ("path", "allowed"), [(TOKEN, {"POST"}), ("/v1/whoami", {"GET", "HEAD"}), ("/livez", {"GET", "HEAD"})]
)
async def test_a_405_says_what_is_allowed(world: World, path: str, allowed: set[str]) -> None:
    async with world.inside() as app:
        answer = await app.http.request("PATCH", path)
        assert answer.status_code == 405
        assert {part.strip() for part in answer.headers["allow"].split(",")} == allowed


@pytest.mark.parametrize(
    "body",
    [
        {"repositories": ["acme/widgets"]},
        {"repositories": ["ACME/WIDGETS", "acme/widgets"]},
        {"repositories": ["acme/widgets"], "min_ttl": 0},
        {"repositories": ["acme/widgets"], "min_ttl": 3300},
        {"repositories": ["acme/widgets"], "refresh": False},
        {"repositories": ["acme/widgets"], "permissions": {"contents": "read"}},
        {"repositories": ["acme/widgets"], "permissions": {"metadata": "read"}},
        {"owner": "acme"},
    ],
)
async def test_right_inputs(world: World, body: dict[str, Any]) -> None:
    async with world.inside() as app:
        key = await app.key("acme/*")
        for kind in (JSON, "application/json; charset=utf-8", 'Application/JSON; charset="UTF-8"'):
            answer = await app.http.post(
                TOKEN,
                content=json.dumps(body).encode(),
                headers={**bearer(key), "content-type": kind, "content-encoding": "identity"},
            )
            assert answer.status_code == 200, answer.text
        body["host"] = world.server.url.removeprefix("http://").upper()
        assert (await app.token(key, **body)).status_code == 200
