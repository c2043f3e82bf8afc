"""The client's own index: PEP 503 and 691 pages, the wheels, and their PEP 658 metadata. Open to all.

Names on the public index belong to others, so installers have to find the client here. Anything but the
client is 404: that, and only that, lets an installer ask its next index (for click).
"""

import asyncio
import html
import logging
import re
from collections.abc import Callable, Sequence
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.client_wheels import ClientWheel
from broker.errors import ClientWheelsError, NotFoundError
from broker.threads import in_thread
from broker.web.tokens import json_response

_log = logging.getLogger(__name__)

PROJECT: Final = "broker-cli"
_MAX_AGE: Final = "max-age=600"
_JSON: Final = "application/vnd.pypi.simple.v1+json"
_SEPARATORS: Final = re.compile(r"[-_.]+")
_METADATA: Final = ".metadata"
_API: Final = {"api-version": "1.1"}


class SimpleIndex:
    """``/simple/…``.

    Args:
        load: returns the wheels; may block. It is asked once, when the first installer comes, and again
            only if it failed.
    """

    def __init__(self, load: Callable[[], Sequence[ClientWheel]]) -> None:
        self._load = load
        self._loading = asyncio.Lock()
        self._wheels: Sequence[ClientWheel] = ()

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/simple/", self.projects, methods=["GET"]),
            Route("/simple/{project}/", self.project, methods=["GET"]),
            Route("/simple/{project}/{file}", self.file, methods=["GET"]),
            Route(f"/{PROJECT}/", self.astray, methods=["GET"]),
        ]

    async def projects(self, request: Request) -> Response:
        """``GET /simple/``."""
        if _wants_json(request):
            return _json_page({"meta": _API, "projects": [{"name": PROJECT}]})
        return _html_page("Simple index", [f'<a href="{PROJECT}/">{PROJECT}</a>'])

    async def project(self, request: Request) -> Response:
        """``GET /simple/broker-cli/``."""
        wheels = await self._wheels_of(request)
        if _wants_json(request):
            return _json_page(
                {
                    "meta": _API,
                    "name": PROJECT,
                    "versions": [wheel.version for wheel in wheels],
                    "files": [_described(wheel) for wheel in wheels],
                }
            )
        return _html_page(f"Links for {PROJECT}", [_link(wheel) for wheel in wheels])

    async def file(self, request: Request) -> Response:
        """``GET /simple/broker-cli/…whl``, and the same with ``.metadata`` behind it."""
        wanted = request.path_params["file"]
        for wheel in await self._wheels_of(request):
            if wanted == wheel.filename:
                return _file(request, wheel.content, wheel.sha256, "application/octet-stream")
            if wanted == wheel.filename + _METADATA:
                return _file(request, wheel.metadata, wheel.metadata_sha256, "text/plain; charset=utf-8")
        raise NotFoundError

    async def astray(self, request: Request) -> Response:
        """``GET /broker-cli/``: the address of the index was given without ``/simple/``.

        With 404 the installer would go on to the public index and take somebody else's ``broker-cli``.
        """
        del request
        # Relative: what stands before the broker may serve it under another scheme, host or path.
        headers = {"location": f"../simple/{PROJECT}/", "cache-control": _MAX_AGE}
        return Response(status_code=301, headers=headers)

    async def _wheels_of(self, request: Request) -> Sequence[ClientWheel]:
        """Return the wheels, if the client is what is asked for, however its name is written (PEP 503)."""
        if _SEPARATORS.sub("-", request.path_params["project"]).lower() != PROJECT:
            raise NotFoundError
        async with self._loading:
            if not self._wheels:
                try:
                    self._wheels = await in_thread(self._load)
                except ClientWheelsError as error:
                    _log.error("there is no client to give out", extra={"cause": str(error)})
                    raise
        return self._wheels


def _wants_json(request: Request) -> bool:
    """Return whether the JSON form is accepted (PEP 691); who accepts anything gets HTML."""
    for accepted in ",".join(request.headers.getlist("accept")).split(","):
        kind, _, parameters = accepted.partition(";")
        if kind.strip().lower() in {_JSON, _JSON.replace(".v1", ".latest")}:
            return parameters.replace(" ", "").lower() not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return False


def _json_page(value: dict[str, object]) -> Response:
    answer = json_response(value, headers={"cache-control": _MAX_AGE, "vary": "accept"})
    answer.headers["content-type"] = _JSON
    return answer


def _html_page(title: str, links: list[str]) -> Response:
    body = "".join(f"    {link}<br>\n" for link in links)
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n  <head>\n'
        '    <meta charset="utf-8">\n'
        f'    <meta name="pypi:repository-version" content="{_API["api-version"]}">\n'
        f"    <title>{title}</title>\n  </head>\n  <body>\n{body}  </body>\n</html>\n"
    )
    headers = {"cache-control": _MAX_AGE, "vary": "accept"}
    return Response(page, headers=headers, media_type="text/html")


def _described(wheel: ClientWheel) -> dict[str, object]:
    return {
        "filename": wheel.filename,
        "url": wheel.filename,
        "hashes": {"sha256": wheel.sha256},
        "requires-python": wheel.requires_python,
        "size": len(wheel.content),
        "core-metadata": {"sha256": wheel.metadata_sha256},
        "yanked": False,
    }


def _link(wheel: ClientWheel) -> str:
    """Return the anchor; the older name of ``data-core-metadata`` is for installers before 2023."""
    requires = html.escape(wheel.requires_python, quote=True)
    digest = f"sha256={wheel.metadata_sha256}"
    return (
        f'<a href="{wheel.filename}#sha256={wheel.sha256}" data-requires-python="{requires}" '
        f'data-core-metadata="{digest}" data-dist-info-metadata="{digest}">{wheel.filename}</a>'
    )


def _file(request: Request, content: bytes, sha256: str, kind: str) -> Response:
    """Return a file whole (a range that is asked for may be left unheeded), or 304 to who has it."""
    tag = f'"{sha256}"'
    headers = {"cache-control": _MAX_AGE, "etag": tag, "x-content-type-options": "nosniff"}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=kind)
