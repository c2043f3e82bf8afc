"""Git over smart HTTP in front of ``git http-backend``, with GitHub's credential checks; starts processes."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import subprocess
from typing import TYPE_CHECKING

from broker.sandbox.bare import git_environment
from broker.sandbox.exchange import RefusalError, Reply, Route
from broker.sandbox.rest import BY_INTEGRATION, SUSPENDED
from broker.sandbox.state import Standing

if TYPE_CHECKING:
    from pathlib import Path

    from broker.sandbox.exchange import Deferred, Exchange
    from broker.sandbox.state import EmulatedRepository, EmulatedToken

UPLOAD, RECEIVE = "git-upload-pack", "git-receive-pack"

BAD_CREDENTIALS = "Invalid username or token. Password authentication is not supported for Git operations."
NO_CREDENTIALS = "No anonymous access."
NOT_FOUND = "Repository not found."
NO_CONTENTS = "Write access to repository not granted."
ARCHIVED = "This repository was archived so it is read-only."

_CHALLENGE = {"www-authenticate": 'Basic realm="GitHub"'}
_LFS_TYPE = "application/vnd.git-lfs+json"
_TIMEOUT_S = 60
_MOST_BYTES = 256 * 1024 * 1024


def routes() -> list[Route]:
    """Return the routes of the web host that git and git-lfs speak to, with ``.git`` and without."""
    found: list[Route] = []
    for root in ("/{owner}/{repo}.git", "/{owner}/{repo}"):
        found += [
            Route("git_refs", "GET", f"{root}/info/refs", _refs, credential="own", surface="web"),
            Route(
                "git_upload_pack", "POST", f"{root}/{UPLOAD}", _upload_pack, credential="own", surface="web"
            ),
            Route(
                "git_receive_pack",
                "POST",
                f"{root}/{RECEIVE}",
                _receive_pack,
                credential="own",
                surface="web",
            ),
            Route(
                "lfs_batch",
                "POST",
                f"{root}/info/lfs/objects/batch",
                _lfs_batch,
                credential="own",
                surface="web",
            ),
        ]
    return found


class GitRefusalError(RefusalError):
    """A "no" in plain text, which git prints behind ``remote:``."""


def _refs(exchange: Exchange) -> Reply | Deferred:
    service = exchange.query("service")
    if service not in {UPLOAD, RECEIVE}:
        raise GitRefusalError(403, "Please upgrade your git client.")
    return _serve(exchange, service, "/info/refs")


def _upload_pack(exchange: Exchange) -> Reply | Deferred:
    return _serve(exchange, UPLOAD, f"/{UPLOAD}")


def _receive_pack(exchange: Exchange) -> Reply | Deferred:
    return _serve(exchange, RECEIVE, f"/{RECEIVE}")


def _serve(exchange: Exchange, service: str, path: str) -> Reply | Deferred:
    token = _credential(exchange)
    repository, moved = _named(exchange)
    write = service == RECEIVE
    if token is None:
        if repository is None or repository.private or write:
            raise GitRefusalError(401, NO_CREDENTIALS, headers=_CHALLENGE)
    elif repository is None or not (token.covers(repository) or not repository.private):
        raise GitRefusalError(404, NOT_FOUND)
    else:
        _permit(exchange, token, repository, write=write)
    if moved and exchange.call.method != "POST":
        # git forgets a redirect that came after a 401, so the old name must take the POST itself
        query = f"?{exchange.call.query}" if exchange.call.query else ""
        location = f"{exchange.urls.web}/{repository.full_name}.git{path}{query}"
        return Reply(301, b"", {"location": location})
    return _backend(exchange, exchange.state.git_path(repository), path, write=write)


def _permit(exchange: Exchange, token: EmulatedToken, repository: EmulatedRepository, *, write: bool) -> None:
    if write:
        if repository.archived:
            raise GitRefusalError(403, ARCHIVED)
        if not token.covers(repository) or not token.allows("contents", "write"):
            bot = f"{token.installation.app.slug}[bot]"
            raise GitRefusalError(403, f"Permission to {repository.full_name}.git denied to {bot}.")
    elif repository.private and not token.allows("contents"):
        if exchange.state.git_without_contents_status == 403:
            raise GitRefusalError(403, NO_CONTENTS)
        raise GitRefusalError(404, NOT_FOUND)


def _named(exchange: Exchange) -> tuple[EmulatedRepository | None, bool]:
    name = "{owner}/{repo}".format_map(exchange.parameters)
    current = exchange.state.find_repository(name)
    if current is not None:
        return current, False
    return exchange.state.find_moved(name), True


def _credential(exchange: Exchange) -> EmulatedToken | None:
    """Return the token, or None for a call without any credential.

    Raises:
        GitRefusalError: 401 for what is no live token, 404 while it lags, 403 if suspended.
    """
    if exchange.call.authorization == "none":
        return None
    text = _password(exchange) if exchange.call.authorization == "basic" else None
    standing, token = (Standing.BAD, None) if text is None else exchange.state.present(text)
    if token is not None:
        exchange.call.installation_id = token.installation_id
    if standing is Standing.LAGGING:
        raise GitRefusalError(404, NOT_FOUND)
    if standing is Standing.SUSPENDED:
        raise GitRefusalError(403, SUSPENDED)
    if standing is Standing.BAD or token is None:
        raise GitRefusalError(401, BAD_CREDENTIALS, headers=_CHALLENGE)
    return token


def _password(exchange: Exchange) -> str | None:
    try:
        plain = base64.b64decode(exchange.call.credential, validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    user, colon, password = plain.partition(":")
    return password if colon and user == "x-access-token" else None


def _backend(exchange: Exchange, path: Path, below: str, *, write: bool) -> Deferred:
    call = exchange.call
    environment = git_environment() | {
        "GIT_PROJECT_ROOT": str(path.parent),
        "GIT_HTTP_EXPORT_ALL": "1",
        "PATH_INFO": f"/{path.name}{below}",
        "QUERY_STRING": call.query,
        "REQUEST_METHOD": "GET" if call.method == "HEAD" else call.method,
        "CONTENT_TYPE": call.headers.get("content-type", ""),
        "CONTENT_LENGTH": str(len(exchange.body)),
        "HTTP_CONTENT_ENCODING": call.headers.get("content-encoding", ""),
        "GIT_PROTOCOL": call.headers.get("git-protocol", ""),
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_USER": "x-access-token",
        # the folder may be of another user than this process
        "GIT_CONFIG_COUNT": "2",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
        "GIT_CONFIG_KEY_1": "http.receivepack",
        "GIT_CONFIG_VALUE_1": "true" if write else "false",
    }
    body = exchange.body

    async def run() -> Reply:
        return await asyncio.to_thread(_run, environment, body)  # noqa: TID251 - it resolves no names

    return run


def _run(environment: dict[str, str], body: bytes) -> Reply:
    try:
        done = subprocess.run(
            ["git", "http-backend"],
            input=body,
            env=environment,
            capture_output=True,
            check=True,
            timeout=_TIMEOUT_S,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        return Reply(500, f"git http-backend failed: {error}".encode(), {"content-type": "text/plain"})
    head, _, content = done.stdout.partition(b"\r\n\r\n")
    if len(content) > _MOST_BYTES:
        return Reply(500, b"the emulator serves small repositories", {"content-type": "text/plain"})
    headers = {}
    for line in head.decode("latin-1").split("\r\n"):
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    status = int(headers.pop("status", "200").split()[0])
    return Reply(status, content, headers)


def _lfs_batch(exchange: Exchange) -> Reply:
    try:
        token = _credential(exchange)
    except GitRefusalError as refusal:
        challenge = {"lfs-authenticate": 'Basic realm="GitHub"'} if refusal.status == 401 else {}
        return _lfs(refusal.status, {"message": refusal.message}, challenge)
    repository, _ = _named(exchange)
    if token is None and (repository is None or repository.private):
        return _lfs(401, {"message": "Credentials needed"}, {"lfs-authenticate": 'Basic realm="GitHub"'})
    if repository is None or (repository.private and token is not None and not token.covers(repository)):
        return _lfs(404, {"message": "Not Found"})
    try:
        asked = json.loads(exchange.body)
        upload = asked["operation"] == "upload"
        objects = [{"oid": each["oid"], "size": each["size"]} for each in asked["objects"]]
    except (ValueError, KeyError, TypeError):
        return _lfs(422, {"message": "Invalid batch request"})
    level = "write" if upload else "read"
    free = not repository.private and not upload
    if not free and (token is None or not token.covers(repository) or not token.allows("contents", level)):
        return _lfs(403, {"message": BY_INTEGRATION})
    missing = {"code": 404, "message": "Object does not exist"}
    return _lfs(200, {"transfer": "basic", "objects": [each | {"error": missing} for each in objects]})


def _lfs(status: int, body: object, headers: dict[str, str] | None = None) -> Reply:
    return Reply(status, json.dumps(body).encode(), {"content-type": _LFS_TYPE, **(headers or {})})
