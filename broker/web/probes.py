"""Probes: live, and ready; neither asks the store or GitHub."""

from collections.abc import Callable
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response

from broker.errors import GitHubRejectedAppError
from broker.ports import Store, StoreHealth
from broker.web.tokens import json_response


class GitHubState(Protocol):
    """What the GitHub client remembers of its last calls."""

    last_ok_at: float | None
    last_error_code: str | None


class Probes:
    """``/livez`` and ``/readyz``.

    Args:
        store: whose background state is told.
        github: whose last answer is told.
        can_sign: tells whether an app JWT can be signed.
        draining: tells whether the process is about to end, so that nothing new should be sent to it.
    """

    def __init__(
        self,
        store: Store,
        github: GitHubState,
        can_sign: Callable[[], bool],
        *,
        draining: Callable[[], bool] = lambda: False,
    ) -> None:
        self._store = store
        self._github = github
        self._can_sign = can_sign
        self._draining = draining

    async def live(self, request: Request) -> Response:
        """``GET /livez``: the process answers."""
        del request
        return json_response({"status": "ok"}, headers={"cache-control": "no-store"})

    async def ready(self, request: Request) -> Response:
        """``GET /readyz``: settings and key are good, the store has answered once, no end is near."""
        del request
        signs, draining = self._can_sign(), self._draining()
        github = "unknown" if self._github.last_ok_at is None else "ok"
        if self._github.last_error_code is not None:
            github = self._github.last_error_code
        checks = {
            "store": str(self._store.health),
            "github": github,
            "private_key": _key_state(github, signs=signs),
        }
        fine = signs and self._store.health is StoreHealth.OK and github in {"ok", "unknown"}
        return json_response(
            {"status": "draining" if draining else "ok" if fine else "degraded", "checks": checks},
            status=200 if signs and self._store.answered_once and not draining else 503,
            headers={"cache-control": "no-store"},
        )


def _key_state(github: str, *, signs: bool) -> str:
    if not signs:
        return "cannot sign"
    return "refused by GitHub" if github == GitHubRejectedAppError.code else "ok"
