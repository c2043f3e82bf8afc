"""Errors on the wire: RFC 9457 problems, one table from error to status; pure."""

import itertools
import json
import math
import secrets
from typing import Final

from broker import errors
from broker.errors import BrokerError
from broker.redaction import redact

_STATUS: Final[dict[type[BrokerError], int]] = {
    errors.RequestError: 400,
    errors.MalformedRequestError: 400,
    errors.InvalidRequestError: 422,
    errors.NotReadOnlyError: 422,
    errors.UnknownHostError: 404,
    errors.PayloadTooLargeError: 413,
    errors.UnsupportedMediaTypeError: 415,
    errors.NotFoundError: 404,
    errors.MethodNotAllowedError: 405,
    errors.ConflictError: 409,
    errors.RefusedError: 403,
    errors.InvalidApiKeyError: 401,
    errors.InvalidSignatureError: 401,
    errors.ForbiddenError: 403,
    errors.BlockedError: 403,
    errors.RateLimitedError: 429,
    errors.GitHubError: 502,
    errors.NotInstalledError: 404,
    errors.InstallationSuspendedError: 403,
    errors.PermissionNotGrantedError: 403,
    errors.GitHubRateLimitedError: 503,
    errors.GitHubRejectedAppError: 502,
    errors.GitHubUnavailableError: 502,
    errors.GitHubTimeoutError: 504,
    errors.StoreError: 503,
    BrokerError: 500,
}

TITLES: Final = {
    "invalid_request": "The request is not valid",
    "not_read_only": "Only read access is given",
    "invalid_api_key": "The API key was refused",
    "invalid_signature": "The signature was refused",
    "forbidden": "Not allowed",
    "blocked": "Blocked",
    "installation_suspended": "The installation is suspended",
    "permission_not_granted": "Permission not granted",
    "not_installed": "Not installed",
    "rate_limited": "Too many requests",
    "github_rate_limited": "GitHub asks to wait",
    "github_unavailable": "GitHub is not available",
    "github_rejected_app": "GitHub refused the app",
    "store_unavailable": "The store is not available",
    "unknown_host": "Unknown host",
    "not_found": "Not found",
    "method_not_allowed": "Method not allowed",
    "payload_too_large": "Payload too large",
    "unsupported_media_type": "Unsupported media type",
    "conflict": "Conflict",
    "internal_error": "Internal error",
}


_PROCESS: Final = secrets.token_hex(10)
_REQUESTS: Final = itertools.count(1)


def status_of(error: BrokerError) -> int:
    """Return the HTTP status of an error: that of the nearest class in the table."""
    return next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)


def problem(error: BrokerError, request_id: str) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of an error's answer."""
    status = status_of(error)
    code = error.code if error.code in TITLES else BrokerError.code
    body = {
        "type": f"urn:github-token-broker:problem:{code}",
        "title": TITLES[code],
        "status": status,
        "detail": redact(error.public),  # it may quote the request
        "code": code,
        "request_id": request_id,
    }
    headers = {"content-type": "application/problem+json", "cache-control": "no-store"}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, errors.InvalidApiKeyError):
        headers["www-authenticate"] = "Bearer"
    return status, headers, json.dumps(body).encode()


def new_request_id() -> str:
    """Return a request id of our own."""
    return f"{_PROCESS}{next(_REQUESTS):012x}"
