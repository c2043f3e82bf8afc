from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from sandbox_world import START, rsa_key

from broker.sandbox import app_jwt

if TYPE_CHECKING:
    import httpx
    from sandbox_world import World

NOW = int(START)


def ask(world: World, token: str, scheme: str = "Bearer") -> httpx.Response:
    return world.http.get("/app", headers={"Authorization": f"{scheme} {token}"})


def test_the_app_answers_for_itself(world: World) -> None:
    reply = world.http.get("/app", headers=world.as_app())
    assert reply.status_code == 200
    body = reply.json()
    assert body["id"] == world.app.app_id
    assert body["client_id"].startswith("Iv23")
    assert body["slug"] == "token-broker"
    assert body["permissions"] == {"contents": "read", "issues": "write", "metadata": "read"}
    assert body["events"] == ["push"]
    assert body["installations_count"] == 1
    assert not [name for name in reply.headers if name.startswith("x-ratelimit")]


@pytest.mark.parametrize("issuer", ["client_id", "text", "number"])
def test_every_form_of_issuer_is_taken(world: World, issuer: str) -> None:
    forms = {"client_id": world.app.client_id, "text": str(world.app.app_id), "number": world.app.app_id}
    assert ask(world, world.jwt(iss=forms[issuer])).status_code == 200


@pytest.mark.parametrize(
    ("claims", "status", "message"),
    [
        ({"iss": "omit"}, 401, app_jwt.NO_ISSUER),
        ({"iss": None}, 401, app_jwt.NO_ISSUER),
        ({"iss": "Iv23unknown"}, 401, app_jwt.ISSUER_NOT_INTEGER),
        ({"iss": "12 "}, 401, app_jwt.ISSUER_NOT_INTEGER),
        ({"iss": "1234501\n"}, 401, app_jwt.ISSUER_NOT_INTEGER),
        ({"iss": ["1"]}, 401, app_jwt.ISSUER_NOT_INTEGER),
        ({"iss": True}, 401, app_jwt.ISSUER_NOT_INTEGER),
        ({"iss": "77"}, 404, app_jwt.NO_SUCH_APP),
        ({"iss": 77}, 404, app_jwt.NO_SUCH_APP),
        ({"exp": "omit"}, 401, app_jwt.EXPIRED),
        ({"exp": NOW}, 401, app_jwt.EXPIRED),
        ({"exp": NOW - 1}, 401, app_jwt.EXPIRED),
        ({"exp": str(NOW + 60)}, 401, app_jwt.EXPIRED),
        ({"exp": NOW + 60.5}, 401, app_jwt.EXPIRED),
        ({"exp": NOW + 601}, 401, app_jwt.TOO_FAR),
        ({"iat": "omit"}, 401, app_jwt.BAD_ISSUED_AT),
        ({"iat": NOW + 1}, 401, app_jwt.BAD_ISSUED_AT),
        ({"iat": NOW - 0.5}, 401, app_jwt.BAD_ISSUED_AT),
    ],
)
def test_wrong_claims_get_their_own_message(
    world: World, claims: dict[str, Any], status: int, message: str
) -> None:
    reply = ask(world, world.jwt(**claims))
    assert reply.status_code == status
    assert reply.json() == {
        "message": message,
        "documentation_url": "https://docs.github.com/rest",
        "status": str(status),
    }


def test_the_window_is_measured_from_githubs_clock(world: World) -> None:
    assert ask(world, world.jwt(exp=NOW + 600, iat=NOW - 60)).status_code == 200
    world.github.clock_skew_s = -30
    late = ask(world, world.jwt(exp=NOW + 600))
    assert late.json()["message"] == app_jwt.TOO_FAR
    assert late.headers["date"] == "Fri, 15 Jan 2027 07:59:30 GMT"
    assert ask(world, world.jwt(iat=NOW)).json()["message"] == app_jwt.BAD_ISSUED_AT
    world.github.clock_skew_s = 900
    assert ask(world, world.jwt()).json()["message"] == app_jwt.EXPIRED


@pytest.mark.parametrize("scheme", ["token", "Basic", "Digest"])
def test_only_bearer_carries_a_jwt(world: World, scheme: str) -> None:
    reply = ask(world, world.jwt(), scheme)
    assert (reply.status_code, reply.json()["message"]) == (401, app_jwt.UNDECODABLE)


def test_what_is_no_jwt_cannot_be_decoded(world: World) -> None:
    good = world.jwt()
    head, payload, signature = good.split(".")
    none = base64.urlsafe_b64encode(json.dumps({"alg": "none"}).encode()).decode().rstrip("=")
    hmac = jwt.encode({"iss": world.app.client_id, "exp": NOW + 60, "iat": NOW}, "x" * 64, "HS256")
    curve = jwt.encode(
        {"iss": world.app.client_id, "exp": NOW + 60, "iat": NOW},
        ec.generate_private_key(ec.SECP256R1()),
        "ES256",
    )
    longer_hash = jwt.encode({"iss": world.app.client_id, "exp": NOW + 60, "iat": NOW}, rsa_key(0), "RS512")
    bad = [
        "garbage",
        "a.b.c",
        world.token(),
        f"{head}.{payload}",
        f"{head}.{payload}.",
        f"{head}.{payload}.{signature[:-8]}AAAAAAAA",
        f"{none}.{payload}.{signature}",
        f"{head}.{payload}=.{signature}",
        hmac,
        curve,
        longer_hash,
        world.jwt(key=rsa_key(9)),
    ]
    for text in bad:
        reply = ask(world, text)
        assert (reply.status_code, reply.json()["message"]) == (401, app_jwt.UNDECODABLE), text
    assert world.http.get("/app").json()["message"] == app_jwt.UNDECODABLE


def test_any_of_several_keys_verifies_and_a_new_one_must_propagate(world: World) -> None:
    second = world.app.new_private_key(rsa_key(1), propagated=False)
    assert second.startswith("-----BEGIN RSA PRIVATE KEY-----")
    assert ask(world, world.jwt(key=second)).json()["message"] == app_jwt.UNDECODABLE
    assert ask(world, world.jwt()).status_code == 200
    world.app.propagate_keys()
    assert ask(world, world.jwt(key=second)).status_code == 200
    world.app.remove_key(world.pem)
    assert ask(world, world.jwt()).json()["message"] == app_jwt.UNDECODABLE
    with pytest.raises(ValueError, match="last key"):
        world.app.remove_key(second)
    world.app.public_keys[0].propagated = False
    assert ask(world, world.jwt(key=second)).json()["message"] == app_jwt.NO_PUBLIC_KEY
    world.app.public_keys.clear()
    assert ask(world, world.jwt(key=second)).json()["message"] == app_jwt.NO_PUBLIC_KEY


def test_an_app_has_at_most_25_keys(world: World) -> None:
    for _ in range(24):
        world.app.new_private_key(rsa_key(0))
    with pytest.raises(ValueError, match="25"):
        world.app.new_private_key(rsa_key(0))


def test_an_old_enterprise_server_knows_no_client_ids(world: World) -> None:
    world.github.client_id_as_issuer = False
    assert ask(world, world.jwt()).json()["message"] == app_jwt.ISSUER_NOT_INTEGER
    assert ask(world, world.jwt(iss=str(world.app.app_id))).status_code == 200
