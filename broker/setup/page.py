"""The local page of setup: begins at a random path of a loopback port, and ends with the app; ASGI.

Only ``127.0.0.1`` and ``localhost`` with this very port are answered (so no name that a stranger points at
loopback is), only below the random path, and only to the browser that opened the page first: the address is
in the process list of whatever opened the browser.
"""

import asyncio
import hmac
import html
import json
import secrets
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from broker.errors import BrokerError
from broker.github.manifest import EVENTS, PERMISSIONS
from broker.setup.flow import Setup

COOKIE: Final = "broker_setup"
_REFRESH_S: Final = 3
_STYLE: Final = """
:root { color-scheme: light dark; --line: #d0d7de; --soft: #59636e; --go: #1a7f37; --bad: #b42318; }
@media (prefers-color-scheme: dark) {
  :root { --line: #3d444d; --soft: #9198a1; --go: #2ea043; --bad: #ff8272; }
}
* { box-sizing: border-box; }
body { font: 1rem/1.55 system-ui, sans-serif; margin: 0; padding: 4vh 1.25rem; }
main { max-width: 38rem; margin: 0 auto; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem; }
ol.steps { list-style: none; display: flex; flex-wrap: wrap; gap: .4rem 1.5rem; padding: 0; margin: 0 0 2rem;
  color: var(--soft); border-bottom: 1px solid var(--line); }
ol.steps li { padding: .3rem 0 .6rem; border-bottom: 3px solid transparent; margin-bottom: -1px; }
ol.steps [aria-current] { color: CanvasText; font-weight: 600; border-color: var(--go); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .55rem 1.5rem; margin: 1.5rem 0;
  padding: 1rem 1.25rem; border: 1px solid var(--line); border-radius: .5rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
button, a.go { display: inline-block; font: inherit; font-weight: 600; color: #fff; background: #1a7f37;
  border: 0; border-radius: .4rem; padding: .7rem 1.2rem; text-decoration: none; cursor: pointer; }
button:hover, a.go:hover { background: #116329; }
:focus-visible { outline: 3px solid #0969da; outline-offset: 2px; }
.soft { color: var(--soft); } .bad { color: var(--bad); } code { overflow-wrap: anywhere; }
"""


class SetupPage:
    """The page of one setup.

    Args:
        setup: what it drives.
        port: that it listens on.
        kept: where the secrets go, for the reader.

    Attributes:
        seen_to_the_end: set when the browser was told that all is done.
    """

    def __init__(self, setup: Setup, *, port: int, kept: str) -> None:
        self._setup = setup
        self._port = port
        self._kept = kept
        self._root = f"/{secrets.token_urlsafe(24)}"
        self._browser = ""
        self._claimed = False
        self.seen_to_the_end = asyncio.Event()

    @property
    def url(self) -> str:
        """Where a browser begins."""
        return f"http://127.0.0.1:{self._port}{self._root}/"

    def app(self) -> ASGIApp:
        """Return the ASGI app."""
        routes = [
            Route(f"{self._root}/", self._begin, methods=["GET"]),
            Route(f"{self._root}/made", self._made, methods=["GET"]),
            Route(f"{self._root}/install", self._install, methods=["GET"]),
        ]
        return _OnlyHere(Router(routes=routes, redirect_slashes=False), self._port)

    # -- the pages -------------------------------------------------------------------------------

    async def _begin(self, request: Request) -> Response:
        if self._setup.made.is_set():
            return self._to_install()
        if self._claimed and not self._is_ours(request):
            return _page(
                "Opened elsewhere already",
                '<p role="alert">Another browser has opened this page. Go on there. If that was not you, '
                "stop <code>broker setup</code> in the terminal and begin anew.</p>",
                status=403,
            )
        wish = self._setup.wish
        owner = f"the organization {wish.org}" if wish.org else "your own account"
        rights = ", ".join(f"{name}: {level}" for name, level in PERMISSIONS.items())
        hook = f"{wish.webhook_url} ({', '.join(EVENTS)})" if wish.webhook_url else "none"
        manifest = json.dumps(wish.manifest(f"{self.url}made"))
        facts = {
            "Name": wish.name,
            "Owner": owner,
            "May": rights,
            "Webhook": hook,
            "Visible to": "its owner only",
        }
        rows = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts.items())
        response = _page(
            "Make a GitHub App for the token broker",
            f"{_steps(1)}<p>GitHub makes an app that can read the repositories you choose later, and nothing "
            f"else.</p><dl>{rows}</dl>"
            f'<form method="post" action="{_text(wish.action)}?state={self._setup.state}">'
            f'<input type="hidden" name="manifest" value="{_text(manifest)}">'
            f"<button>Go on to {_text(_host(wish.action))}</button></form>"
            "<p class=soft>There you may change the name, and confirm. Its private key then goes from GitHub "
            f"straight to {_text(self._kept)} on the machine where <code>broker setup</code> runs.</p>",
        )
        if not self._claimed:
            self._claimed, self._browser = True, secrets.token_urlsafe(24)
        response.set_cookie(COOKIE, self._browser, path=f"{self._root}/", httponly=True, samesite="lax")
        return response

    async def _made(self, request: Request) -> Response:
        """GitHub sends the browser here; the address holds the code, so it is left at once."""
        query = request.query_params
        if not self._is_ours(request) or not self._setup.is_ours(query.get("state", "")):
            return _page(
                "This answer is not for us",
                '<p role="alert">It does not belong to this setup, or was used already. Nothing was done '
                "with it. Look into the terminal.</p>",
                status=403,
            )
        try:
            await self._setup.redeem(query.get("state", ""), query.get("code", ""))
        except BrokerError:
            return self._failed()
        return self._to_install()

    async def _install(self, request: Request) -> Response:
        setup = self._setup
        if not self._is_ours(request):
            return _page(
                "Opened elsewhere", '<p role="alert">Go on in the browser you began in.</p>', status=403
            )
        if setup.failed is not None:
            return self._failed()
        if setup.new is None:
            return RedirectResponse("./", status_code=303)
        app = setup.new.app
        if setup.done.is_set():
            self.seen_to_the_end.set()
            where = setup.installed.login if setup.installed else "nothing yet"
            return _page(
                "All done",
                f'{_steps(3)}<p role="status">The app <strong>{_text(app.slug)}</strong> is installed on '
                f"<strong>{_text(where)}</strong>. You may close this page: the terminal has the next "
                "commands.</p>",
            )
        if not setup.ready.is_set():
            return _page(
                "One moment",
                f'{_steps(2)}<p role="status">GitHub is making <strong>{_text(app.slug)}</strong> known to '
                "all of its servers. Its private key is kept already.</p>",
                refresh_s=1,
            )
        return _page(
            "Install it on repositories",
            f"{_steps(2)}<p><strong>{_text(app.slug)}</strong> is made, its private key is in "
            f"{_text(self._kept)}. Now choose what it may read:</p>"
            f'<p><a class=go href="{_text(setup.install_page)}" target="_blank" rel="noopener noreferrer">'
            "Choose repositories on GitHub</a> <span class=soft>(a new tab)</span></p>"
            '<p role="status" class=soft>This page waits until GitHub tells that it is installed. '
            "If GitHub says 404, try again after some seconds.</p>",
            refresh_s=_REFRESH_S,
        )

    def _failed(self) -> Response:
        return _page(
            "It did not work",
            f'<p role="alert" class=bad>{_text(str(self._setup.failed))}</p><p>The terminal says it too.</p>',
            status=502,
        )

    def _to_install(self) -> Response:
        return RedirectResponse(f"{self._root}/install", status_code=303)

    def _is_ours(self, request: Request) -> bool:
        sent = request.cookies.get(COOKIE, "").encode("utf-8", "replace")
        return self._claimed and hmac.compare_digest(self._browser.encode(), sent)


class _OnlyHere:
    """Answers what was sent to loopback by name or number, and to this port."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self._hosts = {f"{name}:{port}".encode() for name in ("127.0.0.1", "localhost")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) == 1 and hosts[0] in self._hosts:
            await self._app(scope, receive, send)
        else:
            await Response("Not found\n", status_code=404)(scope, receive, send)


def _page(title: str, body: str, *, status: int = 200, refresh_s: int | None = None) -> Response:
    nonce = secrets.token_urlsafe(16)
    refresh = "" if refresh_s is None else f'<meta http-equiv="refresh" content="{refresh_s}">'
    text = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'{refresh}<title>{_text(title)} · broker setup</title><style nonce="{nonce}">{_STYLE}</style></head>'
        f"</head><body><main><h1>{_text(title)}</h1>{body}</main></body></html>\n"
    )
    # form-action is any https: GitHub may send the browser on to a company's own sign-in.
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; form-action https: http://127.0.0.1:*; "
        "base-uri 'none'; frame-ancestors 'none'"
    )
    headers = {
        "content-security-policy": policy,
        "cache-control": "no-store",
        # The origin alone: a form without one may be refused, the path is nobody's business.
        "referrer-policy": "strict-origin",
        "x-content-type-options": "nosniff",
        "cross-origin-opener-policy": "same-origin",
    }
    return Response(text, status_code=status, media_type="text/html", headers=headers)


def _steps(current: int) -> str:
    names = ("Make the app", "Install it", "Done")
    items = "".join(
        f"<li{' aria-current=step' if number == current else ''}>{number}. {name}</li>"
        for number, name in enumerate(names, start=1)
    )
    return f'<ol class=steps aria-label="Steps">{items}</ol>'


def _text(text: str) -> str:
    return html.escape(text, quote=True)


def _host(url: str) -> str:
    return urlsplit(url).netloc


def page_to_carry(setup: Setup, redirect_url: str) -> str:
    """Return the first page as a file, for a browser on another machine."""
    manifest = json.dumps(setup.wish.manifest(redirect_url))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>broker setup</title>'
        "</head><body><main><h1>Make a GitHub App for the token broker</h1>"
        f'<form method="post" action="{_text(setup.wish.action)}?state={setup.state}">'
        f'<input type="hidden" name="manifest" value="{_text(manifest)}">'
        f"<button>Go on to {_text(_host(setup.wish.action))}</button></form>"
        "<p>Afterwards the browser is sent to an address on 127.0.0.1 that does not open. Copy that whole "
        "address from its address bar, and paste it where <code>broker setup</code> asks for it.</p>"
        "</main></body></html>\n"
    )
