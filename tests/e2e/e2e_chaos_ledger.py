"""What a chaos run holds the broker to: what was acknowledged, what was handed out, and what may never be."""

import fnmatch
import hashlib
import math
import re
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, TypeVar

import httpx
from harness import World

Value = TypeVar("Value")
Scope = tuple[str, tuple[str, ...] | None, tuple[str, ...]]
"""Owner, repositories (None: all), permissions."""

TOKEN_TTL_S = 3310
"""The emulator's tokens: after 10 s too old for the largest ``min_ttl``, after 40 s replaced ahead."""
REFRESH_AHEAD_S = 3270
MOST_MIN_TTL_S = 3300
LEASE_S = 5
INSTALLATION_TTL_S = 5
COOLDOWN_S = 3
MIN_TTL_S = 300
_LIFE_SLACK_S = 4.0
"""GitHub's times are whole seconds, and an offset below 2 s is not noted."""
_SETTLES_S = 20.0
"""How long after a fault callers may be told of it: cool-down, retries, a request's own time."""
_FLIGHT_S = 10.0
"""A mint may take so long, retries and a busy machine included."""
_REPLACED_S = TOKEN_TTL_S - MOST_MIN_TTL_S - _LIFE_SLACK_S
"""A token of this age may be replaced: too old for somebody, later ahead of need."""
_ROUTES_OF_CHANGE = 3
"""A change at GitHub may end a scope by its webhook, by the look of a replica, and by a stale id."""

_STATUS_OF = {
    "invalid_api_key": {401},
    "forbidden": {403},
    "blocked": {403},
    "installation_suspended": {403},
    "permission_not_granted": {403},
    "not_installed": {404},
    "github_rate_limited": {503},
    "github_unavailable": {502, 504},
    "github_rejected_app": {502},
    "store_unavailable": {503},
}
"""All that a well-formed request with a known key may be refused with."""
_SECRET_RUN = re.compile(r"[A-Za-z0-9+/]{24,}")
_SECRET_FORM = re.compile(
    r"ghs_[A-Za-z0-9._-]{20,}|ghbk_[0-9A-Za-z]{12}_[0-9A-Za-z]{20,}|eyJ[\w-]{20,}\.|PRIVATE KEY"
)
_PIECE = 16


def sha256_of(token: str) -> str:
    return b64encode(hashlib.sha256(token.encode()).digest()).decode()


class History(Generic[Value]):
    """One thing that one writer changes, a step at a time.

    A step that is not acknowledged yet may have been done or not; the one before it may hold as long.
    """

    def __init__(self, value: Value) -> None:
        self._steps: list[tuple[Value, float, float]] = [(value, -math.inf, -math.inf)]

    @property
    def last(self) -> Value:
        return self._steps[-1][0]

    def begin(self, value: Value) -> None:
        self._steps.append((value, time.monotonic(), math.inf))

    def done(self) -> None:
        value, sent, _ = self._steps[-1]
        self._steps[-1] = (value, sent, time.monotonic())

    def possible(self, sent: float, received: float) -> set[Value]:
        """Return what may have held at some moment of a request."""
        ends = [*(acknowledged for _, _, acknowledged in self._steps[1:]), math.inf]
        return {
            value
            for (value, begun, _), end in zip(self._steps, ends, strict=True)
            if begun <= received and end >= sent
        }


@dataclass(frozen=True)
class Ask:
    """A request for a token."""

    owner: str
    repositories: tuple[str, ...] | None
    permissions: tuple[str, ...]
    min_ttl_s: int = 0
    refresh: bool = False

    def body(self) -> dict[str, Any]:
        what: dict[str, Any] = (
            {"owner": self.owner} if self.repositories is None else {"repositories": list(self.repositories)}
        )
        what["permissions"] = dict.fromkeys(self.permissions, "read")
        if self.min_ttl_s:
            what["min_ttl"] = self.min_ttl_s
        if self.refresh:
            what["refresh"] = True
        return what

    def allowed(self, patterns: Iterable[str]) -> bool:
        names = (f"{self.owner}/*",) if self.repositories is None else self.repositories
        return all(any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns) for name in names)

    @property
    def scope(self) -> Scope:
        names = None if self.repositories is None else tuple(sorted(self.repositories))
        return self.owner, names, tuple(sorted({*self.permissions, "metadata"}))

    def reaches(self, owner: str, repository: str | None) -> bool:
        if owner != self.owner:
            return False
        return repository is None or self.repositories is None or repository in self.repositories


@dataclass(eq=False)
class Key:
    """A caller's key.

    Attributes:
        killing: its revocation takes its tokens with it.
    """

    id: str
    text: str = field(repr=False)
    permissions: tuple[str, ...]
    patterns: History[tuple[str, ...]]
    alive: History[bool]
    killing: bool = False

    def may(self, ask: Ask) -> bool:
        """Return whether the policy allows it, if nothing changes meanwhile."""
        return set(ask.permissions) <= set(self.permissions) and ask.allowed(self.patterns.last)


@dataclass
class Handed:
    """A token that left the broker.

    Attributes:
        sent: when the first request was sent that was given it.
        received: when it came.
        keys: ids of all keys that it was given to.
    """

    ask: Ask
    sent: float
    received: float
    keys: set[str] = field(default_factory=set)


@dataclass
class End:
    """Something that ends tokens: an admin's revocation or block, a change at GitHub.

    Attributes:
        owner: None: of any owner.
        kills: tokens handed out before die at GitHub.
        text: only this token.
        times: how often it may end a scope.
    """

    owner: str | None
    repository: str | None
    kills: bool
    begun: float
    acknowledged: float = math.inf
    text: str | None = None
    times: int = 1

    def reaches(self, ask: Ask) -> bool:
        return self.owner is None or ask.reaches(self.owner, self.repository)

    def dooms(self, text: str, handed: Handed) -> bool:
        """Return whether a token that was handed out has to die of it."""
        named = self.text is None or self.text == text
        return self.kills and named and self.reaches(handed.ask) and handed.received < self.begun


@dataclass
class Window:
    """A fault while it lasts.

    Attributes:
        kind: ``process``, ``store``, ``github``, ``change`` or ``rotation``.
        owner: whose installation changes.
        leases: how many leases, or results of them, it may cost one scope.
    """

    name: str
    kind: str
    owner: str | None
    leases: int
    begun: float
    ended: float = math.inf


class Ledger:
    """Judges answers as they come, and the whole at the end."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.began = time.monotonic()
        self.keys: dict[str, Key] = {}
        self.blocks: dict[str, History[bool]] = {}
        self.ends: list[End] = []
        self.windows: list[Window] = []
        self.handed: dict[str, Handed] = {}
        self.issued: set[tuple[str, str]] = set()
        self.events: list[tuple[str, str]] = []
        self.refreshes: dict[Scope, list[float]] = {}
        self.cut_replies: dict[Scope, list[tuple[float, float]]] = {}
        self.answers: Counter[str] = Counter()
        self.violations: list[str] = []
        self.secrets: set[str] = set()
        self._died: dict[str, float] = {}
        self._mints: dict[Scope, list[tuple[Any, float, bool]]] = {}
        world.github.observers.append(self._observe)

    # -- the emulator's side ---------------------------------------------------------------------

    def _observe(self, call: Any) -> None:
        if call.route == "revoke":
            self._died.setdefault(call.credential, time.monotonic())
        elif call.route == "mint" and (scope := self.scope_of(call)) is not None:
            self._observe_mint(call, scope)

    def scope_of(self, call: Any) -> Scope | None:
        """Return the scope that a mint is for; None if the installation is gone."""
        known = self.world.github.installations.get(int(call.path.split("/")[3]))
        if known is None:
            return None
        owner, names = known.account.login, call.body.get("repositories")
        repositories = None if names is None else tuple(f"{owner}/{name}" for name in names)
        return Ask(owner, repositories, tuple(call.body["permissions"])).scope

    def _observe_mint(self, call: Any, scope: Scope) -> None:
        """No mint begins while another one of its scope waits for its answer, unless a lease was lost."""
        now = time.monotonic()
        waiting = [one for one in self._mints.get(scope, ()) if one[0].status is None and not one[2]]
        for _, since, _ in waiting:
            lost = any(
                one.begun <= now and one.ended >= since - LEASE_S
                for one in self.windows
                if one.leases and one.kind in {"process", "store"}
            )
            if now - since < LEASE_S - 1 and not lost:
                self.violated(f"two mints of {scope} at once, {now - since:.2f} s apart")
        self._mints[scope] = [*waiting, (call, now, False)]

    def cut(self, call: Any) -> None:
        """Note that a mint's reply is cut off, whether or not its work is done: it is asked for again."""
        scope, now = self.scope_of(call), time.monotonic()
        if scope is not None:
            self.cut_replies.setdefault(scope, []).append((now - 1, now + 2))
            self._mints[scope] = [
                (one, since, gone or one is call) for one, since, gone in self._mints.get(scope, ())
            ]

    def cut_all(self) -> None:
        """Note that GitHub is gone, and all that waited for its answer know it."""
        for open_ones in list(self._mints.values()):
            for call, _, _ in list(open_ones):
                if call.status is None:
                    self.cut(call)

    # -- one answer ------------------------------------------------------------------------------

    def violated(self, text: str) -> None:
        self.violations.append(f"{time.monotonic() - self.began:.1f} s: {text}")

    def judge(self, key: Key, ask: Ask, answer: httpx.Response, *, sent: float, asked_at: float) -> None:
        """Hold one answer to the contract; ``asked_at`` is GitHub's time when it was sent."""
        received = time.monotonic()
        body = answer.json()
        code = "ok" if answer.status_code == 200 else str(body.get("code"))
        self.answers[code] += 1
        wrong = self._wrong(key, ask, answer, code, span=(sent, received))
        if wrong is None and code == "ok":
            wrong = self._wrong_token(key, ask, body, span=(sent, received), asked_at=asked_at)
        if wrong is not None:
            shown = {name: value for name, value in body.items() if name != "token"}
            self.violated(f"{wrong}: {answer.status_code} {shown} to {key.id} for {ask}")

    def _wrong(  # noqa: PLR0911 - a list of what may be wrong
        self, key: Key, ask: Ask, answer: httpx.Response, code: str, *, span: tuple[float, float]
    ) -> str | None:
        """Return what is wrong about the verdict."""
        given = code == "ok"
        if not given:
            if answer.status_code not in _STATUS_OF.get(code, set()):
                return "an answer that the contract does not know"
            if answer.headers["content-type"] != "application/problem+json":
                return "no problem answer"
            if answer.status_code == 503 and int(answer.headers.get("retry-after", "0")) < 1:
                return "503 without Retry-After"
        alive = key.alive.possible(*span)
        if given and True not in alive:
            return "a revoked key was given a token"
        if code == "invalid_api_key" and False not in alive:
            return "401 for a good key"
        verdicts = {
            set(ask.permissions) <= set(key.permissions) and ask.allowed(patterns)
            for patterns in key.patterns.possible(*span)
        }
        if given and True not in verdicts:
            return "the key's policy forbids it"
        if code == "forbidden" and False not in verdicts:
            return "the key's policy allows it"
        blocks = [
            history.possible(*span)
            for name, history in self.blocks.items()
            if ask.reaches(name.partition("/")[0], name)
        ]
        if given and {True} in blocks:
            return "a token in spite of a block"
        if code == "blocked" and not any(True in states for states in blocks):
            return "there is no block"
        excuses = {
            "installation_suspended": "change",
            "permission_not_granted": "change",
            "not_installed": "change",
            "github_rate_limited": "github",
            "github_unavailable": "github",
            "github_rejected_app": "rotation",
        }
        if code in excuses and not self.troubled(excuses[code], *span, owner=ask.owner):
            return f"no fault that excuses it ({excuses[code]})"
        return None

    def troubled(self, kind: str, sent: float, received: float, *, owner: str) -> bool:
        """Return whether a fault of that kind may tell on a request.

        What changed at GitHub, by a lost webhook, is noticed while GitHub and the store answer: faults of
        these that follow within ``_SETTLES_S`` prolong it.
        """
        for one in self.windows:
            if one.kind != kind or one.owner not in {None, owner} or one.begun > received:
                continue
            until = one.ended + _SETTLES_S
            for other in sorted(self.windows, key=lambda each: each.begun):
                if other.begun < until:
                    until = max(until, other.ended + _SETTLES_S)
            if sent <= until:
                return True
        return False

    def _wrong_token(  # noqa: PLR0911 - a list of what may be wrong
        self, key: Key, ask: Ask, body: dict[str, Any], *, span: tuple[float, float], asked_at: float
    ) -> str | None:
        """Return what is wrong about a token that was handed out."""
        sent, received = span
        text = str(body["token"])
        first = self.handed.setdefault(text, Handed(ask, sent, received))
        first.keys.add(key.id)
        first.sent = min(first.sent, sent)
        self.issued.add((key.id, sha256_of(text)))
        github = self.world.github
        with github.lock:
            token = github.tokens.get(text)
            if token is None:
                return "GitHub does not know the token"
            ids = token.repositories
            names = None if ids is None else sorted(github.repositories[number].full_name for number in ids)
            owner, permissions = token.installation.account.login, dict(token.permissions)
            expires_at = token.expires_at
        if owner != ask.owner or names != (ask.repositories and sorted(ask.repositories)):
            return f"the token is for {owner} {names}"
        if permissions != dict.fromkeys({*ask.permissions, "metadata"}, "read"):
            return f"the token may {permissions}"
        if set(body["repositories"] or ()) != set(names or ()):
            return "the answer does not say what the token reaches"
        least = max(MIN_TTL_S, ask.min_ttl_s)
        if expires_at - asked_at < least - _LIFE_SLACK_S:
            return f"the token had {expires_at - asked_at:.1f} s left, {least} were promised"
        for end in self.ends:
            if end.acknowledged < sent and end.dooms(text, first):
                return "a token that was revoked"
        if self._died.get(text, math.inf) < sent - 2:
            return "a token that the broker had killed at GitHub"
        return None

    # -- the whole -------------------------------------------------------------------------------

    def doomed(self) -> set[str]:
        """Return the tokens that must be dead by now at GitHub."""
        killing = {key.id for key in self.keys.values() if key.killing}
        found = {text for text, one in self.handed.items() if one.keys & killing}
        for end in self.ends:
            found.update(text for text, one in self.handed.items() if end.dooms(text, one))
        return found

    def alive_in_spite(self) -> set[str]:
        """Return the doomed that live."""
        with self.world.github.lock:
            living = [token.text for token in self.world.github.live_tokens()]
        return self.doomed() & set(living)

    def check_audit(self, audit: Sequence[dict[str, Any]]) -> None:
        """Every hand-out and every acknowledged change is there; every token handed out was a kept one."""
        held = {_event(one) for one in audit}
        for key_id, sha in self.issued:
            if ("token.issued", f"{key_id} {sha}") not in held:
                self.violated(f"no audit record of a token given to {key_id}")
        for one in self.events:
            if one not in held:
                self.violated(f"an acknowledged change has no audit record: {one}")
        kept = {str(one["token_sha256"]) for one in audit if one["event"] == "token.minted"}
        for text in self.handed:
            if sha256_of(text) not in kept:
                self.violated("a token was handed out whose mint was not kept")
        killing = {key.id for key in self.keys.values() if key.killing}
        with self.world.github.lock:
            living = {sha256_of(token.text) for token in self.world.github.live_tokens()}
        for one in audit:
            if one["event"] == "token.issued" and one["key_id"] in killing and one["token_sha256"] in living:
                self.violated(f"a token of {one['key_id']}, revoked with its tokens, lives")

    def check_mints(self, audit: Sequence[dict[str, Any]]) -> str:
        """Every mint has a reason of its own; return a summary.

        One that was not kept: a fault that took its lease or its result (``Window.leases`` for each scope), a
        reply that was cut after the work was done, or an end in reach that overtook it. One that was kept
        though another was kept before: that one was old enough to be replaced, a refresh was asked for, or
        an end or a fault took it.
        """
        kept = {str(one["token_sha256"]) for one in audit if one["event"] == "token.minted"}
        with self.world.github.lock:
            tokens = list(self.world.github.tokens.values())
            names = {number: one.full_name for number, one in self.world.github.repositories.items()}
            ahead_s = self.world.github.now() - time.monotonic()
        stored: dict[Scope, list[float]] = {}
        lost: dict[Scope, list[float]] = {}
        for token in sorted(tokens, key=lambda each: each.minted_at):
            ids = token.repositories
            repositories = None if ids is None else tuple(sorted(names[number] for number in ids))
            scope = (token.installation.account.login, repositories, tuple(sorted(token.permissions)))
            where = stored if sha256_of(token.text) in kept else lost
            where.setdefault(scope, []).append(token.minted_at - ahead_s)
        for scope, times in lost.items():
            reasons = self._reasons(scope) + self.cut_replies.get(scope, [])
            for at in _without_reason(times, reasons):
                self.violated(f"a mint of {scope} at {at - self.began:.1f} s was not kept, without a reason")
        for scope, times in stored.items():
            reasons = [(begun, math.inf) for begun, _ in self._reasons(scope)]
            reasons += [(at, math.inf) for at in self.refreshes.get(scope, ())]
            again = [later for earlier, later in pairwise(times) if later - earlier < _REPLACED_S]
            for at in _without_reason(again, reasons):
                self.violated(f"a mint of {scope} at {at - self.began:.1f} s was kept, without a reason")
        wasted = sum(len(times) for times in lost.values())
        return f"{len(tokens)} mints in {len(stored)} scopes, {wasted} of them not kept"

    def _reasons(self, scope: Scope) -> list[tuple[float, float]]:
        """Return from when until when each fault or end may cost a mint of that scope, one for each."""
        owner, repositories, permissions = scope
        ask = Ask(owner, repositories, permissions)
        found = []
        for window in self.windows:
            found += [(window.begun - _FLIGHT_S, window.ended + _FLIGHT_S)] * window.leases
        for end in self.ends:
            if end.reaches(ask):
                found += [(end.begun - _FLIGHT_S, end.acknowledged + _FLIGHT_S)] * end.times
        return found

    def check_logs(self, paths: Iterable[Path]) -> None:
        """No key, token, app JWT or private key is in any log, nor any long piece of one."""
        texts = {*self.secrets, *self.world.github.tokens, *(key.text for key in self.keys.values())}
        pieces = {
            run[at : at + _PIECE]
            for text in texts
            for run in re.findall(r"[A-Za-z0-9+/]{16,}", text)
            for at in range(0, len(run) - _PIECE + 1, _PIECE)
        }
        header = "eyJhbGciOiAiRVMy"  # every stateless token begins its JWT like this
        for path in paths:
            with path.open(errors="replace") as lines:
                for line in lines:
                    if (form := _SECRET_FORM.search(line)) is not None:
                        self.violated(f"{path.name} holds a secret: {form.group()[:12]}…")
                        break
                    runs = _SECRET_RUN.findall(line)
                    found = {run[at : at + _PIECE] for run in runs for at in range(len(run) - _PIECE + 1)}
                    if leaked := (found & pieces) - {header}:
                        self.violated(f"{path.name} holds a piece of a secret: {min(leaked)[:6]}…")
                        break
                    if "Traceback" in line:
                        self.violated(f"{path.name} holds a traceback: {line[:2000]}")
                        break


def _without_reason(times: Iterable[float], reasons: Iterable[tuple[float, float]]) -> list[float]:
    """Give each moment a reason of its own, the one that ends first; return those that are left."""
    free, left = sorted(reasons, key=lambda each: each[1]), []
    for at in times:
        found = next((one for one in free if one[0] <= at <= one[1]), None)
        if found is None:
            left.append(at)
        else:
            free.remove(found)
    return left


def _event(one: dict[str, Any]) -> tuple[str, str]:
    name = str(one["event"])
    if name == "token.issued":
        return name, f"{one['key_id']} {one['token_sha256']}"
    if name.startswith("block."):
        return name, "".join(one["repositories"])
    return name, str(one.get("key_id"))


def change_at_github(owner: str) -> End:
    begun = time.monotonic()
    until = begun + INSTALLATION_TTL_S + 2 * _SETTLES_S
    return End(owner, None, kills=False, begun=begun, acknowledged=until, times=_ROUTES_OF_CHANGE)
