"""What became of the tokens that a revocation, a block or the end of a key reached."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker_cli.output import say, write_json, write_result
from broker_cli.tables import text_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker_cli.api import Broker

COUNTS = ("revoked", "failed", "pending")


def check_outcome(broker: Broker, answer: Mapping[str, object]) -> None:
    """Refuse an answer that does not tell what became of the tokens.

    Raises:
        UnreachableError: it does not.
    """
    if not all(isinstance(answer.get(name), int) for name in COUNTS):
        raise broker.unexpected("it does not tell what became of the tokens")


def write_outcome(answer: Mapping[str, object], *, as_json: bool) -> None:
    """Write the counts to stdout, and which tokens still live to stderr."""
    if as_json:
        write_json(answer)
        return
    write_result(", ".join(f"{name} {text_of(answer[name])}" for name in COUNTS))
    remaining = answer.get("remaining")
    for one in remaining if isinstance(remaining, list) else []:
        if isinstance(one, dict):
            say(
                f"still alive: token {text_of(one.get('token_sha256'))}, until"
                f" {text_of(one.get('expires_at'))} at the latest; the broker keeps trying"
            )
