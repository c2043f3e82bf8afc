"""What a status and a problem body (RFC 9457) mean to the person who reads the log; no I/O."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from broker_cli.errors import ApiKeyError, BrokerCliError, RefusedError, UnreachableError, UsageError

if TYPE_CHECKING:
    from broker_cli.settings import Settings
    from broker_cli.transport import Reply

# What to do next, by the problem's code. `not_installed` has no line: its detail holds the install link.
NEXT_STEPS = {
    "invalid_request": "correct the arguments; if they look right, client and broker may differ in version",
    "not_read_only": "ask for read permissions only",
    "forbidden": "ask the broker's admin to let key {key_id} do this",
    "blocked": "ask the broker's admin, with the request id",
    "installation_suspended": "an owner of the GitHub account must unsuspend the app",
    "permission_not_granted": "an owner of the GitHub account must accept the permission for the app",
    "unknown_host": "this broker serves another GitHub host",
    "rate_limited": "start fewer runs at once, or ask the broker's admin for a higher limit for key {key_id}",
    "github_rate_limited": "GitHub asks to wait: try again later",
    "github_unavailable": "GitHub is not answering: see its status page, and try again later",
    "github_rejected_app": "tell the broker's operator: its GitHub App settings are wrong",
    "store_unavailable": "try again later, and tell the broker's operator if it lasts",
    "not_found": "check BROKER_API_URL, and that client and broker are of one version",
    "method_not_allowed": "check BROKER_API_URL, and that client and broker are of one version",
}

NO_SUCH_PATH = "There is nothing here."


def problem_of(reply: Reply, settings: Settings, request_id: str) -> BrokerCliError:
    """Return the error for a reply that is no success.

    4xx is a refusal (401 is about the key, 408 and 429 about the moment), 3xx a wrong address; all else
    means that the broker, or what stands before it, can't answer.
    """
    status = reply.status
    problem = _problem_body(reply)
    if 300 <= status < 400:  # noqa: PLR2004 - the redirects
        return UsageError(_redirect(reply, settings))
    code = problem.get("code", "")
    text = problem.get("detail") or problem.get("title") or _foreign_answer(reply, settings)
    if status == 401:  # noqa: PLR2004
        text = (
            f"{settings.endpoint.url} refused the API key {settings.key.id} from {settings.key_source}:"
            f" {_sentence(text)}; check that the key is for this broker, or ask its admin for a new one"
        )
    else:
        # A thing that is not there is told by name; a path that is not there hints at a wrong address.
        named = code == "not_found" and text != NO_SUCH_PATH
        step = "" if named else NEXT_STEPS.get(code, "")
        text = _sentence(text) + (f"; {step.format(key_id=settings.key.id)}" if step else "")
    text = f"{text} [{_facts(reply, problem, request_id)}]"
    if status == 401:  # noqa: PLR2004
        return ApiKeyError(text)
    if 400 <= status < 500 and status not in {408, 429}:  # noqa: PLR2004
        return RefusedError(text, code=code)
    return UnreachableError(text)


def _problem_body(reply: Reply) -> dict[str, str]:
    """Return the text members of a problem, or nothing if the body is something else."""
    try:
        document = json.loads(reply.body)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(document, dict) or not isinstance(document.get("code"), str):
        return {}
    return {name: value for name, value in document.items() if isinstance(value, str)}


def _foreign_answer(reply: Reply, settings: Settings) -> str:
    """Describe an answer that the broker did not write: a proxy's page, a gateway's error."""
    kind = reply.headers.get("content-type", "").partition(";")[0].strip() or "no content type"
    return (
        f"HTTP {reply.status} from {settings.endpoint.url} that is not the broker's own ({kind[:60]}):"
        f" check {settings.endpoint_source} and what stands between (proxy, gateway)"
    )


def _redirect(reply: Reply, settings: Settings) -> str:
    """Tell where a redirect points, without the parts that may hold a secret."""
    location = re.split(r"[?#]", reply.headers.get("location", ""), maxsplit=1)[0]
    location = re.sub(r"//[^/]*@", "//", location)[:200]
    return (
        f"{settings.endpoint.url} redirects ({reply.status}) to {location or 'nowhere'}, and the"
        f" API key does not follow redirects: correct the address in {settings.endpoint_source}"
    )


def _facts(reply: Reply, problem: dict[str, str], request_id: str) -> str:
    """Return code, status and the id by which the broker's audit knows the request."""
    answered = problem.get("request_id") or reply.headers.get("x-request-id", "")
    if re.fullmatch(r"[A-Za-z0-9._-]{1,128}", answered) is None:
        answered = request_id
    code = problem.get("code", "")
    shown = f"{code}, " if re.fullmatch(r"[a-z0-9_]{1,64}", code) else ""
    return f"{shown}HTTP {reply.status}, request id {answered}"


def _sentence(text: str) -> str:
    """Return a text of the broker's, cut to a bearable length, ready for a `;` behind it."""
    return text.strip()[:900].removesuffix(".")
