"""The broker's API as the commands use it: one deadline, several tries, checked answers."""

from __future__ import annotations

import gc
import json
import os
import time
from typing import TYPE_CHECKING

from broker_cli import __version__
from broker_cli.errors import TransientError, UnreachableError
from broker_cli.output import say
from broker_cli.retry import TRANSIENT_STATUSES, pause_s
from broker_cli.settings import load_settings
from broker_cli.transport import Transport

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Self

    from broker_cli.settings import Flags, GivenKey, Settings
    from broker_cli.transport import Reply

PAGE_SIZE = 100
OK = 200
CREATED = 201
NO_CONTENT = 204
TOO_MANY_REQUESTS = 429


def open_broker(flags: Flags, *, key: GivenKey | None = None) -> Broker:
    """Return the broker that flags, environment and profile name; nothing is sent yet.

    Args:
        flags: what the command line says.
        key: a key to use in place of the one from environment or profile.

    Raises:
        BrokerCliError: a setting is missing or wrong.
    """
    settings = load_settings(flags, key=key)
    if settings.verbose:
        proxy = f", proxy {settings.proxy.host}:{settings.proxy.port}" if settings.proxy else ""
        say(
            f"broker {settings.endpoint.url} (from {settings.endpoint_source}),"
            f" key {settings.key.id} (from {settings.key_source}){proxy}"
        )
    return Broker(settings)


class Broker:
    """The broker, for the length of one command."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._transport = self._connection()
        self._deadline = time.monotonic() + settings.timeout_s
        # One id for the whole command: every try and page of it is found in the broker's audit by this.
        self._request_id = os.urandom(12).hex()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._transport.close()

    def get(self, path: str) -> dict[str, object]:
        """Return the JSON object that a path answers with.

        Raises:
            BrokerCliError: any of its kinds, with a text for the user.
        """
        return self._call("GET", path, None)

    def post(self, path: str, document: Mapping[str, object]) -> dict[str, object]:
        """Send a JSON document, again if need be, and return the JSON object that comes back.

        For calls that may be made twice: one that got no answer is sent again.

        Raises:
            BrokerCliError: any of its kinds, with a text for the user.
        """
        return self._call("POST", path, json.dumps(document).encode())

    def change(
        self, method: str, path: str, document: Mapping[str, object] | None, *, status: int = OK
    ) -> dict[str, object]:
        """As `post`, with another method; an answer without content (204) is an empty object.

        Raises:
            BrokerCliError: any of its kinds, with a text for the user.
        """
        body = None if document is None else json.dumps(document).encode()
        return self._call(method, path, body, status=status)

    def post_once(self, path: str, document: Mapping[str, object], *, doubt: str) -> dict[str, object]:
        """As `post`, for what creates something: sent again only if that can't have been done.

        Args:
            path: below the broker's address.
            document: what to send.
            doubt: what the user is told if it may have been done all the same.

        Raises:
            BrokerCliError: any of its kinds, with a text for the user.
        """
        return self._call("POST", path, json.dumps(document).encode(), status=CREATED, doubt=doubt)

    def pages(self, path: str, noun: str, *, size: int = PAGE_SIZE) -> Iterator[dict[str, object]]:
        """Yield the entries of a list, following its cursor to the end.

        Raises:
            BrokerCliError: any of its kinds; some entries may have been yielded before.
        """
        cursor: str | None = None
        seen = set[str]()
        while True:
            entries, cursor = self.page(path, noun, {"limit": str(size)}, cursor)
            yield from entries
            if cursor is None:
                return
            if cursor in seen:
                raise self.unexpected("a cursor that leads nowhere")
            seen.add(cursor)

    def page(
        self, path: str, noun: str, query: Mapping[str, str], cursor: str | None
    ) -> tuple[list[dict[str, object]], str | None]:
        """Return the entries of one page and the cursor to the next.

        Raises:
            BrokerCliError: any of its kinds, with a text for the user.
        """
        from urllib.parse import quote, urlencode  # noqa: PLC0415

        values = {**query} if cursor is None else {**query, "cursor": cursor}
        page = self.get(f"{path}?{urlencode(values, safe='', quote_via=quote)}")
        entries, following = page.get(noun), page.get("next_cursor")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise self.unexpected(f"no list of {noun}")
        if following is not None and (
            not isinstance(following, str) or not following or not following.isprintable()
        ):
            raise self.unexpected("a cursor that leads nowhere")
        return entries, following

    def renew(self) -> None:
        """Begin anew, for commands that go on for long: all the time there is, another connection."""
        gc.enable()  # off for commands that end at once
        self._transport.close()
        self._transport = self._connection()
        self._deadline = time.monotonic() + self._settings.timeout_s

    def unexpected(self, what: str) -> UnreachableError:
        """Return the error for an answer of 200 that is not as promised."""
        settings = self._settings
        return UnreachableError(
            f"unexpected answer from {settings.endpoint.url} ({what}): check {settings.endpoint_source},"
            f" and that client and broker are of one version [HTTP {OK}, request id {self._request_id}]"
        )

    @property
    def settings(self) -> Settings:
        """What this broker was found with."""
        return self._settings

    def _connection(self) -> Transport:
        settings = self._settings
        return Transport(settings.endpoint, proxy=settings.proxy, ca_file=settings.ca_file)

    def _call(
        self, method: str, path: str, body: bytes | None, *, status: int = OK, doubt: str | None = None
    ) -> dict[str, object]:
        """Return the object of the first answer that counts."""
        reply = self._exchange(method, path, body, doubt)
        if reply.status != status:
            from broker_cli.refusals import problem_of  # noqa: PLC0415

            error = problem_of(reply, self._settings, self._request_id)
            if doubt is not None and isinstance(error, UnreachableError):
                raise UnreachableError(f"{error}; {doubt}")
            raise error
        if status == NO_CONTENT:
            return {}
        try:
            document = json.loads(reply.body)
        except (ValueError, RecursionError):
            raise self.unexpected("it is not JSON") from None
        if not isinstance(document, dict):
            raise self.unexpected("it is no JSON object")
        return document

    def _exchange(self, method: str, path: str, body: bytes | None, doubt: str | None) -> Reply:
        """Return the first reply that is not transient; raise once there is no time for another try.

        With a doubt, raise as well once the broker may have done what it was asked for.
        """
        headers = self._headers(body)
        failures = 0
        while True:
            started = time.monotonic()
            asked_s = None
            try:
                # The floor gives a page that comes late in a command the chance to say what failed.
                limit_s = max(self._deadline - started, 0.01)
                reply = self._transport.exchange(method, path, headers=headers, body=body, limit_s=limit_s)
            except TransientError as error:
                failure: UnreachableError | TransientError = error
                done = not error.unsent
                self._trace(f"{method} {path}: {error} ({time.monotonic() - started:.3f} s)")
            else:
                self._trace(f"{method} {path}: HTTP {reply.status} ({time.monotonic() - started:.3f} s)")
                if reply.status not in TRANSIENT_STATUSES:
                    return reply
                from broker_cli.refusals import problem_of  # noqa: PLC0415
                from broker_cli.retry import retry_after_s  # noqa: PLC0415

                failure = UnreachableError(str(problem_of(reply, self._settings, self._request_id)))
                asked_s = retry_after_s(reply.headers)
                done = reply.status != TOO_MANY_REQUESTS
            if doubt is not None and done:
                raise UnreachableError(f"{failure}; {doubt}")
            failures += 1
            left_s = self._deadline - time.monotonic()
            wait_s = pause_s(failures=failures, asked_s=asked_s, left_s=left_s)
            if wait_s is None:
                raise self._given_up(failure, failures, asked_s, left_s)
            self._trace(f"trying again in {wait_s:.1f} s")
            time.sleep(wait_s)

    def _given_up(
        self, failure: UnreachableError, failures: int, asked_s: float | None, left_s: float
    ) -> UnreachableError:
        """Return the last failure with the reason for not trying again."""
        tries = f"{failures} {'try' if failures == 1 else 'tries'}"
        allowed = f"--timeout {self._settings.timeout_s:g} s"
        if asked_s is None or left_s <= 0:
            why = f"gave up after {tries} ({allowed})"
        else:
            why = f"gave up after {tries}: it asks to wait {asked_s:.0f} s, {allowed} leaves {left_s:.0f} s"
        if isinstance(failure, TransientError):
            why += f" (request id {self._request_id})"
        return UnreachableError(f"{failure}; {why}")

    def _headers(self, body: bytes | None) -> dict[str, str]:
        """Return the request's headers; the one place where the key's text is used."""
        headers = {
            "Accept": "application/json",
            "Authorization": f"Bearer {self._settings.key.reveal()}",
            "User-Agent": f"broker-cli/{__version__}",
            "X-Request-Id": self._request_id,
        }
        if body is not None:
            headers["Content-Type"] = "application/json"
        return headers

    def _trace(self, message: str) -> None:
        """Tell what happens, with --verbose."""
        if self._settings.verbose:
            say(message)
