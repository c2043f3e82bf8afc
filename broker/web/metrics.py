"""``GET /metrics``: beside the other routes, or on a listener of its own."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from broker.threads import in_thread
from broker.web.middleware import Edge, not_found

PATH: Final = "/metrics"
_FRESH_S: Final = 0.25


class MetricsPage:
    """The page.

    Made outside the loop, by one thread at a time, and shown again for a moment: anybody may ask, and
    whoever asks all the time is not to keep the service from its work.

    Args:
        text: makes the page.
        content_type: of the page.
    """

    def __init__(self, text: Callable[[], bytes], content_type: str) -> None:
        self._text = text
        self._content_type = content_type
        self._making = asyncio.Lock()
        self._made = b""
        self._made_at = float("-inf")

    def routes(self) -> list[Route]:
        """Return the route."""
        return [Route(PATH, self.page, methods=["GET"])]

    async def page(self, request: Request) -> Response:
        """``GET /metrics``."""
        del request
        async with self._making:
            if time.monotonic() - self._made_at >= _FRESH_S:
                self._made = await in_thread(self._text)
                self._made_at = time.monotonic()
        headers = {"cache-control": "no-store"}
        return Response(self._made, headers=headers, media_type=self._content_type)

    def alone(self) -> ASGIApp:
        """Return an app that has this page and nothing else."""
        return Edge(Router(routes=self.routes(), redirect_slashes=False, default=not_found), [])
