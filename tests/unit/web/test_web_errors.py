"""Errors on the wire: every class of the tree has the contract's code and status, and a title."""

import json
from collections.abc import Iterator

import pytest

from broker import errors
from broker.errors import BrokerError
from broker.web.errors import TITLES, new_request_id, problem, status_of

CONTRACT = {
    "invalid_request": {400, 422},
    "not_read_only": {422},
    "invalid_api_key": {401},
    "invalid_signature": {401},  # beyond the contract: of webhook deliveries
    "forbidden": {403},
    "blocked": {403},
    "installation_suspended": {403},
    "permission_not_granted": {403},
    "not_installed": {404},
    "rate_limited": {429},
    "github_rate_limited": {503},
    "github_unavailable": {502, 504},
    "github_rejected_app": {502},
    "store_unavailable": {503},
    "unknown_host": {404},
    "not_found": {404},
    "method_not_allowed": {405},
    "payload_too_large": {413},
    "unsupported_media_type": {415},
    "conflict": {409},
}
OPERATORS_OWN = {
    errors.ClientWheelsError,
    errors.SettingsError,
    errors.SetupError,
    errors.PrivateKeyError,
    BrokerError,
}
"""What no caller can do anything about; most of them end the start."""


def tree(kind: type[BrokerError] = BrokerError) -> Iterator[type[BrokerError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from tree(child)


def made(kind: type[BrokerError]) -> BrokerError:
    return kind(["x"]) if kind is errors.SettingsError else kind()  # type: ignore[arg-type]


ALL = list(dict.fromkeys(tree()))


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_error_has_status_and_title(kind: type[BrokerError]) -> None:
    status, headers, body = problem(made(kind), "r1")
    found = json.loads(body)
    assert found["status"] == status
    assert found["title"]
    assert found["detail"]
    assert found["request_id"] == "r1"
    assert set(found) == {"type", "title", "status", "detail", "code", "request_id"}
    assert headers["content-type"] == "application/problem+json"
    if kind in OPERATORS_OWN:
        assert (status, found["code"]) == (500, "internal_error")
    else:
        assert status in CONTRACT[found["code"]]


def test_every_code_of_the_contract_is_raised_by_somebody() -> None:
    assert set(CONTRACT) == {kind.code for kind in ALL if kind not in OPERATORS_OWN}
    assert set(CONTRACT) | {"internal_error"} == set(TITLES)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (errors.MalformedRequestError, 400),
        (errors.InvalidRequestError, 422),
        (errors.GitHubTimeoutError, 504),
        (errors.UntrustedReplyError, 502),
        (errors.InstallationGoneError, 404),
        (errors.StoreLostError, 503),
        (errors.OvertakenError, 503),
    ],
)
def test_status_where_a_code_has_two(kind: type[BrokerError], status: int) -> None:
    assert status_of(kind()) == status


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.01, "2"), (59.9, "60")]
)
def test_retry_after_is_whole_seconds_and_never_zero(seconds: float, shown: str) -> None:
    _, headers, _ = problem(errors.RateLimitedError(retry_after_s=seconds), "r")
    assert headers["retry-after"] == shown


def test_a_store_that_is_away_always_says_when_to_come_back() -> None:
    for kind in (errors.StoreUnavailableError, errors.StoreLostError, errors.OvertakenError):
        assert "retry-after" in problem(kind("x"), "r")[1]


def test_the_operators_half_stays_here() -> None:
    _, _, body = problem(errors.ForbiddenError("operator's detail"), "r")
    assert b"operator" not in body


def test_a_401_names_its_scheme() -> None:
    assert problem(errors.InvalidApiKeyError(), "r")[1]["www-authenticate"] == "Bearer"


def test_request_ids_differ() -> None:
    assert len({new_request_id() for _ in range(100)}) == 100
