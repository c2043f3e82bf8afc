"""GitHub's web pages of the App manifest flow and of installing, judged strictly; no I/O.

"Registering a GitHub App from a manifest" in GitHub's docs tells the steps: a form with the field
``manifest`` is posted by the browser, its user presses one button, the browser is sent back with a code,
and the code is exchanged once, within an hour, for what GitHub shows only then.
"""

from __future__ import annotations

import html
import ipaddress
import json
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import parse_qs, urlencode, urlsplit

from broker.sandbox import shapes
from broker.sandbox.exchange import RefusalError, Reply, Route
from broker.sandbox.state import LEVELS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.sandbox.exchange import Exchange
    from broker.sandbox.github import EmulatedGitHub
    from broker.sandbox.state import EmulatedAccount, EmulatedApp

CODE_LIFE_S = 3600
LONGEST_NAME = 34
_FORM = "application/x-www-form-urlencoded"
_KNOWN = {
    "name": str,
    "url": str,
    "hook_attributes": dict,
    "redirect_url": str,
    "callback_urls": list,
    "setup_url": str,
    "description": str,
    "public": bool,
    "default_events": list,
    "default_permissions": dict,
    "request_oauth_on_install": bool,
    "setup_on_update": bool,
}
# An app gets these whether it wants or not; asking for them is an error.
_UNASKED = frozenset({"installation", "installation_repositories", "github_app_authorization"})
# Which permission (at least read) an event needs; only those that tests ask for.
_NEEDED = {"repository": "metadata", "push": "contents", "organization": "members", "issues": "issues"}
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>
<body><main><h1>{title}</h1>
{body}
</main></body></html>
"""


@dataclass(eq=False)
class _Draft:
    """A manifest that was posted and waits for its user's click."""

    manifest: dict[str, Any]
    owner: EmulatedAccount
    state: str | None


@dataclass(eq=False)
class _Made:
    """An app that was made from a manifest, until its code is exchanged."""

    app: EmulatedApp
    pem: str
    webhook_secret: str | None
    until: float


class Manifests:
    """The manifest flow and the install page of one emulated GitHub.

    Attributes:
        signed_in: login of the person at the browser, an owner of every organization.
        without_webhook_secret: whether ``webhook_secret`` is null although there is a webhook.
        install_page_lag_s: seconds after its making in which the app's install page is 404.
    """

    def __init__(self, github: EmulatedGitHub) -> None:
        self._github = github
        self._drafts: dict[str, _Draft] = {}
        self._made: dict[str, _Made] = {}
        self._setup_urls: dict[int, str] = {}
        self.signed_in = "octocat"
        self.without_webhook_secret = False
        self.install_page_lag_s = 0.0

    def routes(self) -> list[Route]:
        """Return the web's routes, and the one of the API."""
        found = [
            Route(
                "convert_manifest",
                "POST",
                "/app-manifests/{code}/conversions",
                self._convert,
                credential="own",
            )
        ]
        pages = [
            ("new_app", "POST", "/settings/apps/new", self._posted),
            ("new_app", "POST", "/organizations/{org}/settings/apps/new", self._posted),
            ("create_app", "POST", "/emulated/apps/{draft}", self._created),
            ("installed_page", "GET", "/emulated/installed", self._installed),
        ]
        for folder in ("apps", "github-apps"):
            page = f"/{folder}/{{slug}}/installations/new"
            pages += [
                ("install_page", "GET", page, self._install_page),
                ("install", "POST", page, self._install),
            ]
        found += [
            Route(name, method, template, handler, credential="own", surface="web")
            for name, method, template, handler in pages
        ]
        return found

    # the flow, step by step

    def _posted(self, exchange: Exchange) -> Reply:
        owner = self._owner(exchange)
        manifest = _parsed(_form(exchange).get("manifest"))
        _judge(manifest)
        name = manifest.get("name", "")
        if any(app.slug == _slug(name) for app in self._github.apps.values()):
            _invalid("Name is already taken")
        draft = secrets.token_urlsafe(12)
        self._drafts[draft] = _Draft(manifest, owner, exchange.query("state"))
        return _page(
            "Create GitHub App",
            f'<form method="post" action="/emulated/apps/{draft}">'
            f'<p><label>GitHub App name: <input name="name" value="{html.escape(name)}"></label></p>'
            f'<button type="submit">Create GitHub App for {html.escape(owner.login)}</button></form>',
        )

    def _created(self, exchange: Exchange) -> Reply:
        draft = self._drafts.pop(exchange.parameters["draft"], None)
        if draft is None:
            return _missing()
        manifest = draft.manifest
        name = _form(exchange).get("name") or manifest.get("name") or ""
        hook = manifest.get("hook_attributes")
        app = self._github.add_app(
            slug=_slug(name),
            owner=draft.owner.login,
            permissions=manifest.get("default_permissions", {}),
            events=manifest.get("default_events", []),
            public=manifest.get("public", False),
        )
        secret = None
        if hook is not None and hook.get("active", True):
            secret = None if self.without_webhook_secret else secrets.token_hex(20)
            # the address may be made up: what is told stays in the journal
            self._github.add_hook(app, hook["url"], secret).losing = True
        if "setup_url" in manifest:
            self._setup_urls[app.app_id] = manifest["setup_url"]
        code = secrets.token_hex(20)
        until = self._github.now() + CODE_LIFE_S
        self._made[code] = _Made(app, app.new_private_key(), secret, until)
        query = {"code": code} | ({} if draft.state is None else {"state": draft.state})
        redirect = manifest.get("redirect_url")
        if redirect is None:
            return _page("GitHub App created", f"<p>{html.escape(app.slug)}</p>")
        return Reply(302, b"", {"location": f"{redirect}?{urlencode(query)}"})

    def _convert(self, exchange: Exchange) -> Reply:
        made = self._made.pop(exchange.parameters["code"], None)
        if made is None or made.until <= self._github.now():
            raise RefusalError(404, "Not Found")
        shown = shapes.app(made.app, exchange.urls, installations=0)
        return Reply.of_json(
            201,
            shown
            | {
                "client_secret": secrets.token_hex(20),
                "webhook_secret": made.webhook_secret,
                "pem": made.pem,
            },
        )

    # installing

    def _install_page(self, exchange: Exchange) -> Reply:
        app = self._app(exchange)
        if app is None or self._github.now() < app.created_at + self.install_page_lag_s:
            return _missing()
        owned = [r for r in self._github.repositories.values() if r.owner is app.owner]
        boxes = "".join(
            f'<p><label><input type="checkbox" name="repository" value="{r.name}">{r.full_name}</label></p>'
            for r in owned
        )
        return _page(
            f"Install {app.slug}",
            f'<form method="post"><p>On {html.escape(app.owner.login)}: the repositories that are ticked, '
            f'or all of them if none is.</p>{boxes}<button type="submit">Install</button></form>',
        )

    def _install(self, exchange: Exchange) -> Reply:
        app = self._app(exchange)
        if app is None:
            return _missing()
        chosen = parse_qs(exchange.body.decode()).get("repository")
        installation = self._github.install(app, app.owner, repositories=chosen)
        query = urlencode({"installation_id": installation.id, "setup_action": "install"})
        location = f"{self._setup_urls.get(app.app_id, '/emulated/installed')}?{query}"
        return Reply(302, b"", {"location": location})

    def _installed(self, exchange: Exchange) -> Reply:
        del exchange
        return _page("Installed", "<p>Okay, the app was installed.</p>")

    # who

    def _owner(self, exchange: Exchange) -> EmulatedAccount:
        org = exchange.parameters.get("org")
        if org is None:
            person = self._github.find_account(self.signed_in)
            return person or self._github.add_account(self.signed_in, kind="User")
        found = self._github.find_account(org)
        if found is None or found.kind != "Organization":
            raise RefusalError(404, "Not Found")
        return found

    def _app(self, exchange: Exchange) -> EmulatedApp | None:
        # Enterprise Server has the page in another folder
        folder = "apps" if exchange.urls.api == exchange.urls.web else "github-apps"
        if not exchange.call.path.startswith(f"/{folder}/"):
            return None
        slug = exchange.parameters["slug"]
        return next((app for app in self._github.apps.values() if app.slug == slug), None)


def _form(exchange: Exchange) -> dict[str, str]:
    if exchange.call.headers.get("content-type", "").partition(";")[0] != _FORM:
        raise RefusalError(422, "The browser's form was expected.")
    fields = parse_qs(exchange.body.decode(), keep_blank_values=True)
    return {name: values[-1] for name, values in fields.items()}


def _parsed(text: str | None) -> dict[str, Any]:
    try:
        manifest = json.loads(text or "")
    except ValueError:
        _invalid("the manifest is not valid JSON")
    if not isinstance(manifest, dict):
        _invalid("the manifest is not an object")
    return manifest


def _judge(manifest: Mapping[str, Any]) -> None:
    for name, value in manifest.items():
        if name not in _KNOWN:
            _invalid(f"{name} is not a permitted key.")
        if not isinstance(value, _KNOWN[name]):
            _invalid(f"{name} is of a wrong type")
    if not manifest.get("url"):
        _invalid('"url" wasn\'t supplied.')
    if len(manifest.get("name", "")) > LONGEST_NAME:
        _invalid(f"Name is too long (maximum is {LONGEST_NAME} characters)")
    redirect = urlsplit(manifest.get("redirect_url", "https://example.com/"))
    if redirect.scheme not in {"http", "https"} or not redirect.hostname:
        _invalid("Redirect url must be a valid URL")
    _judge_hook(manifest.get("hook_attributes"))
    _judge_rights(manifest.get("default_permissions", {}), manifest.get("default_events", []))


def _judge_hook(hook: Mapping[str, Any] | None) -> None:
    if hook is None:
        return
    if not hook.get("url"):  # GitHub names the field without its parent, even if it is not active
        _invalid('"url" wasn\'t supplied.')
    if not _public(hook["url"]):
        _invalid("Hook url is not supported because it isn't reachable over the public Internet")


def _judge_rights(permissions: Mapping[str, str], events: list[str]) -> None:
    for permission, level in permissions.items():
        if level not in LEVELS:
            _invalid(f"Default permission records resource is not included in the list: {permission}")
    for event in events:
        if event in _UNASKED or event not in _NEEDED:
            _invalid(f"Default events unsupported: {event}")
        if _NEEDED[event] not in {*permissions, "metadata"}:
            _invalid(f"Default events are not supported by permissions: {event}")


def _public(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return "." in host and not host.endswith((".localhost", ".local", ".internal"))


def _invalid(what: str) -> NoReturn:
    raise RefusalError(422, f"Invalid GitHub App configuration: {what}")


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "app"


def _missing() -> Reply:
    reply = _page("Page not found", "<p>This is not the page you are looking for.</p>")
    reply.status = 404
    return reply


def _page(title: str, body: str) -> Reply:
    text = _PAGE.format(title=html.escape(title), body=body)
    return Reply(200, text.encode(), {"content-type": "text/html; charset=utf-8"})
