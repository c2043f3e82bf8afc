"""What the `prefect-cloud` client speaks, as it speaks it; `tests/e2e/test_e2e_prefect_cloud.py` runs it."""

import pytest
from harness import World, bearer, unknown_key
from stage import events

ACCOUNT = "/api/accounts/5f0c1a0e-6d0b-4c39-8d2f-0a1f6d1d6f10/integrations/github"


async def test_a_token_by_the_same_rules_as_any_token(world: World) -> None:
    async with world.inside() as app:
        wide, narrow = await app.key("acme/*"), await app.key("acme/gadgets")
        body = {"owner": "acme", "repository": "widgets"}
        answer = await app.http.post(f"{ACCOUNT}/token", json=body, headers=bearer(wide))
        assert answer.status_code == 200, answer.text
        assert answer.headers["cache-control"] == "no-store"
        assert set(answer.json()) == {"token"}
        minted = world.github.tokens[answer.json()["token"]]
        assert list(minted.repositories or []) == [world.github.find_repository("acme/widgets").id]
        assert dict(minted.permissions) == {"contents": "read", "metadata": "read"}

        refused = await app.http.post(f"{ACCOUNT}/token", json=body, headers=bearer(narrow))
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
        refused = await app.http.post(f"{ACCOUNT}/token", json=body, headers=bearer(unknown_key()))
        assert (refused.status_code, refused.json()["code"]) == (401, "invalid_api_key")
        assert (await app.http.post(f"{ACCOUNT}/token", json=body)).status_code == 401
        again = await app.token(wide, "acme/widgets")
        assert again.json()["token"] == answer.json()["token"]
        assert world.github.count("mint") == 1

        await app.broker.auditor.flush()
        assert [event["key_id"] for event in await events(app, "token.issued")] == [wide[5:17]]
        assert [event["code"] for event in await events(app, "token.denied")] == ["forbidden"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"owner": "acme"},
        {"owner": "acme", "repository": ""},
        {"owner": "acme", "repository": "widgets", "permissions": {"contents": "write"}},
        {"owner": "acme", "repository": "../widgets"},
        {"owner": "acme/widgets", "repository": "x"},
        {"owner": "", "repository": "acme/widgets"},
        {"owner": "*", "repository": "*"},
        {"owner": 1, "repository": "widgets"},
        [],
    ],
)
async def test_other_bodies_are_refused(world: World, body: object) -> None:
    async with world.inside() as app:
        key = await app.key("*/*")
        answer = await app.http.post(f"{ACCOUNT}/token", json=body, headers=bearer(key))
        assert (answer.status_code, answer.json()["code"]) == (
            400 if body == [] else 422,
            "invalid_request",
        ), answer.text
        await app.broker.auditor.flush()
        assert [event["key_id"] for event in await events(app, "token.denied")] == [key[5:17]]


async def test_the_whole_list_whatever_the_number_of_pages(world: World) -> None:
    """That client knows no pages, so it gets all of them at once; and no more than its key may read."""
    for number in range(230):
        world.github.add_repository(f"acme/many-{number:03}")
    async with world.inside() as app:
        wide, narrow = await app.key("acme/*"), await app.key("acme/gadgets")
        answer = await app.http.get(f"{ACCOUNT}/repositories", headers=bearer(wide))
        assert answer.status_code == 200, answer.text
        names = answer.json()["repositories"]
        assert len(names) == len(set(names)) == 232
        assert {"acme/widgets", "acme/gadgets", "acme/many-229"} <= set(names)
        few = await app.http.get(f"{ACCOUNT}/repositories", headers=bearer(narrow))
        assert few.json() == {"repositories": ["acme/gadgets"]}
        assert (await app.http.get(f"{ACCOUNT}/repositories")).status_code == 401
        odd = await app.http.get(f"{ACCOUNT}/repositories?limit=2", headers=bearer(wide))
        assert odd.status_code == 422
