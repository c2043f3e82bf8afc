"""The emulator's webhooks: headers, signatures and payloads as GitHub's, and what goes wrong with them."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import pytest
from starlette.requests import Request

from broker.sandbox.server import ThreadedServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox_world import World
    from starlette.types import Receive, Scope, Send

    from broker.sandbox.webhooks import Hook

SECRET = "s3cret"


class Receiver:
    """Writes down what arrives and answers with ``status``."""

    def __init__(self) -> None:
        self.status = 202
        self.got: list[tuple[dict[str, str], bytes]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for word in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{word}.complete"})
            return
        request = Request(scope, receive)
        self.got.append((dict(request.headers), await request.body()))
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b"thanks"})

    @property
    def guids(self) -> list[str]:
        return [headers["x-github-delivery"] for headers, _ in self.got]

    @property
    def payloads(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.got]


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def hook(world: World, receiver: Receiver) -> Iterator[Hook]:
    world.app.events += ["repository", "organization", "public"]
    with ThreadedServer(receiver) as server:
        yield world.github.add_hook(world.app, f"{server.url}/hook", SECRET)


@pytest.fixture
def written(world: World) -> Hook:
    """A hook that only writes down."""
    world.app.events += ["repository", "organization", "public"]
    return world.github.add_hook(world.app, None, SECRET)


def payload(hook: Hook, index: int = -1) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(hook.deliveries[index].body)
    return found


def names(hook: Hook) -> list[str]:
    found = [delivery.name for delivery in hook.deliveries]
    hook.deliveries.clear()
    return found


# -- deliveries ------------------------------------------------------------------------------------


def test_headers_and_signature(world: World, hook: Hook, receiver: Receiver) -> None:
    world.github.suspend(world.installation)
    hook.wait()
    ((headers, body),) = receiver.got
    (delivery,) = hook.deliveries
    assert body == delivery.body
    assert headers["x-github-event"] == "installation"
    assert headers["x-github-delivery"] == delivery.guid
    assert headers["x-github-hook-id"] == str(hook.hook_id)
    assert headers["x-github-hook-installation-target-type"] == "integration"
    assert headers["x-github-hook-installation-target-id"] == str(world.app.app_id)
    assert headers["user-agent"].startswith("GitHub-Hookshot/")
    assert headers["content-type"] == "application/json"
    assert headers["x-hub-signature-256"] == "sha256=" + hmac.digest(SECRET.encode(), body, "sha256").hex()
    assert headers["x-hub-signature"].startswith("sha1=")
    assert (delivery.status, delivery.attempts[0].answer, delivery.attempts[0].redelivery) == (
        202,
        "thanks",
        False,
    )
    assert delivery.duration_s is not None


def test_githubs_test_vector(world: World) -> None:
    hook = world.github.add_hook(world.app, None, "It's a Secret to Everybody")
    found = hook._headers("ping", "guid", b"Hello, World!", "text/plain")["X-Hub-Signature-256"]
    assert found == "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"


def test_without_a_secret_nothing_is_signed(world: World) -> None:
    hook = world.github.add_hook(world.app)
    assert not [name for name in hook.ping().headers if "Signature" in name]


def test_ping(world: World) -> None:
    hook = world.github.add_hook(world.app, None, SECRET, ping=True)
    (delivery,) = hook.deliveries
    assert (delivery.event, delivery.action) == ("ping", None)
    found = payload(hook)
    assert found["hook"]["app_id"] == world.app.app_id
    assert "installation" not in found


def test_forms(world: World, hook: Hook, receiver: Receiver) -> None:
    hook.content_type = "form"
    world.github.suspend(world.installation)
    hook.wait()
    ((headers, body),) = receiver.got
    assert headers["content-type"] == "application/x-www-form-urlencoded"
    (text,) = parse_qs(body.decode())["payload"]
    assert json.loads(text)["action"] == "suspend"
    expected = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    assert headers["x-hub-signature-256"] == f"sha256={expected}"


def test_redelivery_keeps_the_guid_and_a_replay_does_not(
    world: World, hook: Hook, receiver: Receiver
) -> None:
    receiver.status = 503
    world.github.suspend(world.installation)
    hook.wait()
    (delivery,) = hook.deliveries
    assert delivery.status == 503
    receiver.status = 202
    hook.redeliver(delivery)
    again = hook.replay(delivery)
    hook.wait()
    assert [attempt.status for attempt in delivery.attempts] == [503, 202]
    assert [attempt.redelivery for attempt in delivery.attempts] == [False, True]
    assert receiver.guids == [delivery.guid, delivery.guid, again.guid]
    assert len({body for _, body in receiver.got}) == 1
    assert again.guid != delivery.guid


def test_redelivery_is_signed_with_the_secret_of_now(world: World, written: Hook) -> None:
    world.github.suspend(world.installation)
    (delivery,) = written.deliveries
    before = delivery.headers["X-Hub-Signature-256"]
    written.secret = "another"
    written.redeliver(delivery)
    assert delivery.headers["X-Hub-Signature-256"] != before


def test_doubled_lost_and_out_of_order(world: World, hook: Hook, receiver: Receiver) -> None:
    hook.copies = 2
    world.github.suspend(world.installation)
    hook.copies = 1
    hook.losing = True
    world.github.unsuspend(world.installation)
    hook.losing = False
    hook.wait()
    assert receiver.guids == [hook.deliveries[0].guid] * 2
    assert hook.deliveries[1].attempts == []

    hook.holding = True
    world.github.suspend(world.installation)
    world.github.unsuspend(world.installation)
    hook.wait()
    assert len(receiver.got) == 2
    hook.release(reversed)
    hook.wait()
    assert [one["action"] for one in receiver.payloads[2:]] == ["unsuspend", "suspend"]
    world.github.suspend(world.installation)
    hook.wait()
    assert len(receiver.got) == 5


def test_nobody_listens(world: World) -> None:
    hook = world.github.add_hook(world.app, "http://127.0.0.1:9/nobody", SECRET)
    world.github.suspend(world.installation)
    hook.wait()
    assert hook.deliveries[0].status is None
    assert hook.deliveries[0].attempts[0].answer == "ConnectError"
    world.github.close()


# -- what is told ----------------------------------------------------------------------------------


@pytest.mark.parametrize("times", ["iso", "epoch"])
def test_installations(world: World, written: Hook, times: Any) -> None:
    written.times = times
    github = world.github
    github.suspend(world.installation)
    found = payload(written)
    assert "repositories" not in found
    assert found["installation"]["suspended_at"] is not None
    assert found["installation"]["account"]["login"] == "acme"
    assert isinstance(found["installation"]["updated_at"], int if times == "epoch" else str)
    assert found["sender"]["login"]
    github.unsuspend(world.installation)
    github.set_permissions(world.installation)
    assert len(payload(written)["repositories"]) == 4
    assert set(payload(written)["repositories"][0]) == {"id", "node_id", "name", "full_name", "private"}
    github.uninstall(world.installation)
    github.install(world.app, "acme")
    assert "requester" in payload(written)
    assert names(written) == [
        "installation.suspend",
        "installation.unsuspend",
        "installation.new_permissions_accepted",
        "installation.deleted",
        "installation.created",
    ]


def test_selections(world: World, written: Hook) -> None:
    github = world.github
    github.set_selection(world.installation, ["widgets", "gadgets"])
    found = payload(written)
    assert (found["action"], found["repository_selection"]) == ("removed", "selected")
    assert (found["repositories_added"], found["repositories_removed"]) == ([], [])
    github.set_selection(world.installation, ["widgets", "Docs"])
    added, removed = payload(written, -2), payload(written, -1)
    assert [one["full_name"] for one in added["repositories_added"]] == ["acme/Docs"]
    assert added["repositories_removed"] == []
    assert [one["full_name"] for one in removed["repositories_removed"]] == ["acme/gadgets"]
    github.set_selection(world.installation, None)
    assert payload(written)["repository_selection"] == "all"


def test_repositories(world: World, written: Hook) -> None:
    github = world.github
    github.rename_repository("acme/widgets", "gizmos")
    found = payload(written)
    assert found["changes"] == {"repository": {"name": {"from": "widgets"}}}
    assert found["repository"]["full_name"] == "acme/gizmos"
    assert set(found["installation"]) == {"id", "node_id"}
    assert found["organization"]["login"] == "acme"
    github.set_private("acme/gizmos", False)
    github.set_private("acme/gizmos", True)
    github.set_archived("acme/gizmos", True)
    github.set_archived("acme/gizmos", False)
    github.delete_repository("acme/gizmos")
    assert names(written) == [
        "repository.renamed",
        "repository.publicized",
        "public",
        "repository.privatized",
        "repository.archived",
        "repository.unarchived",
        "repository.deleted",
    ]


def test_a_transfer_is_told_to_the_new_owner_only(world: World, written: Hook) -> None:
    world.github.transfer_repository("acme/widgets", "stranger")
    assert written.deliveries == []  # the app is not installed there
    world.github.transfer_repository("stranger/widgets", "acme")
    found = payload(written)
    assert found["changes"]["owner"]["from"]["organization"]["login"] == "stranger"
    assert found["repository"]["full_name"] == "acme/widgets"


def test_accounts(world: World, written: Hook) -> None:
    world.github.rename_account("acme", "acme-inc")
    target, organization = payload(written, -2), payload(written, -1)
    assert target["changes"] == organization["changes"] == {"login": {"from": "acme"}}
    assert target["account"]["login"] == organization["organization"]["login"] == "acme-inc"
    assert target["target_type"] == "Organization"
    assert "account" not in organization
    world.github.delete_account("acme-inc")
    assert names(written) == [
        "installation_target.renamed",
        "organization.renamed",
        "organization.deleted",
        "installation.deleted",
    ]


def test_what_is_not_told(world: World) -> None:
    """No subscription, suspended, another app's, an enterprise's, out of reach."""
    github = world.github
    plain = github.add_hook(world.app, None, SECRET)
    github.rename_repository("acme/widgets", "gizmos")
    assert plain.deliveries == []
    world.app.events += ["repository"]
    github.set_selection(world.installation, ["gadgets"])
    plain.deliveries.clear()
    github.rename_repository("acme/gizmos", "widgets")
    assert plain.deliveries == []
    github.suspend(world.installation)
    github.set_permissions(world.installation)
    github.rename_repository("acme/gadgets", "gears")
    assert names(plain) == ["installation.suspend"]
    other = github.add_app(slug="other")
    github.install(other, "acme")
    enterprise = github.add_account("big-corp", kind="Enterprise")
    github.install(world.app, enterprise)
    github.rename_repository("stranger/secrets", "hidden")
    assert plain.deliveries == []
