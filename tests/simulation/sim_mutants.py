"""The broker with one of its checks taken out: what the simulation has to find."""

import asyncio
import copy
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sim_replica import Parts
from sim_store import SimulatedSqlite

from broker.errors import BlockedError, ForbiddenError
from broker.issuing.minting import Minter
from broker.issuing.tokens import Issuer, IssueSettings
from broker.model import ApiKeyRecord, Grant, MintedToken, Scope
from broker.ports import HandResult, Snapshot
from broker.store.backend import AcquireArgs, AcquireReply, CommitArgs, KeyWriteArgs, View, Want


def _beginning_with(backend: SimulatedSqlite, first: Callable[[sqlite3.Connection, float], None]) -> Any:
    """Return a copy of a backend whose writes begin with ``first``, in the same transaction."""

    async def write(job: Any, *, durable: bool = True) -> Any:
        def both(db: sqlite3.Connection, now: float) -> Any:
            first(db, now)
            return job(db, now)

        return await backend._write(both, durable=durable)

    twin = copy.copy(backend)
    twin._write = write  # type: ignore[method-assign]
    return twin


class WithoutFence(SimulatedSqlite):
    """COMMIT takes a result from whoever comes: the lease is made his first."""

    async def commit(self, args: CommitArgs) -> str:
        def take(db: sqlite3.Connection, now: float) -> None:
            db.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", (args.scope, args.nonce, now + 1))

        return await SimulatedSqlite.commit(_beginning_with(self, take), args)


class WithoutMarks(SimulatedSqlite):
    """COMMIT does not ask whether something ended the scope since ACQUIRE."""

    async def commit(self, args: CommitArgs) -> str:
        return await super().commit(replace(args, marks=()))


class _AnyEpoch(int):
    """Equal to every number."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__


class WithoutEpoch(SimulatedSqlite):
    """HAND does not ask whether something narrowed since READ."""

    async def hand(self, *, epoch: int, **rest: Any) -> str:
        return await super().hand(epoch=_AnyEpoch(epoch), **rest)


class WithoutComparison(SimulatedSqlite):
    """KEY WRITE overwrites whatever is there: a change that crosses a revocation brings the key back."""

    async def write_key(self, args: KeyWriteArgs) -> tuple[str, tuple[str, ...]]:
        def put_back(db: sqlite3.Connection, now: float) -> None:
            if args.expected is not None:
                db.execute("UPDATE keys SET blob = ? WHERE id = ?", (args.expected, args.key_id))

        return await SimulatedSqlite.write_key(_beginning_with(self, put_back), args)


class CacheFirst(Issuer):
    """A token that is cached is served before policy and blocks are asked."""

    def _granted(self, caller: ApiKeyRecord, scope: Scope, seen: Snapshot) -> Grant:
        try:
            return super()._granted(caller, scope, seen)
        except (ForbiddenError, BlockedError):
            if seen.token() is None:
                raise
            return Grant(caller.id, caller.name, scope)


class WithoutLease(SimulatedSqlite):
    """ACQUIRE lets everybody lead."""

    async def acquire(self, args: AcquireArgs) -> AcquireReply:
        def forget(db: sqlite3.Connection, now: float) -> None:
            db.execute("DELETE FROM leases WHERE name = ?", (args.scope,))

        return await SimulatedSqlite.acquire(_beginning_with(self, forget), args)


class WithoutReadMarks(SimulatedSqlite):
    """READ finds no marks: a token is as good after a revocation as before."""

    async def read(self, want: Want) -> View:
        view = await super().read(want)
        left = {name: value for name, value in view.fields.items() if not name.startswith("m:")}
        return replace(view, fields=left)


class WithoutHand(Issuer):
    """A token is released without HAND."""

    async def _hand(self, *args: Any, **named: Any) -> HandResult:
        return HandResult.AGAIN


class WithoutLife(Issuer):
    """A token is served as long as it lives."""

    def __init__(self, *args: Any, settings: IssueSettings, **named: Any) -> None:
        super().__init__(*args, settings=replace(settings, min_ttl_s=0.0), **named)


class Credulous(Minter):
    """What GitHub returned is taken for what was asked."""

    async def _mint(self, scope: Scope, *args: Any) -> tuple[MintedToken, float]:
        minted, asked_at = await super()._mint(scope, *args)
        believed = replace(
            minted,
            permissions=dict.fromkeys(scope.permissions, "read"),
            repositories=scope.repositories,
            selection="selected" if scope.repositories else "all",
        )
        return believed, asked_at


class WithoutLimit(SimulatedSqlite):
    """Each replica counts for itself."""

    async def take(self, name: str, *, chunk: int, limit: int) -> tuple[int, float]:
        return await super().take(f"{name}:{id(self)}", chunk=chunk, limit=limit)


class LateClock(Minter):
    """GitHub's clock is compared with the store's when the token has been tried out, be it long after."""

    async def _mint(self, scope: Scope, *args: Any) -> tuple[MintedToken, float]:
        minted, _ = await super()._mint(scope, *args)
        await asyncio.sleep(5)
        return minted, self._store.now()


MUTANTS: Mapping[str, tuple[Parts, str, str]] = {
    "no fence": (Parts(backend=WithoutFence), "_ambush", "rule 3: two mints"),
    "no marks at commit": (Parts(backend=WithoutMarks), "_cold", "rule 6"),
    "no epoch at hand-out": (Parts(backend=WithoutEpoch), "_hand_over", "rule 6"),
    "cache before policy": (Parts(issuer=CacheFirst), "_race", "rule 6"),
    "no comparison of keys": (Parts(backend=WithoutComparison), "_clash", "rule 6"),
    "no lease": (Parts(backend=WithoutLease), "_ambush", "rule 3"),
    "no marks at read": (Parts(backend=WithoutReadMarks), "_race", "rule 6"),
    "no record of hand-outs": (Parts(issuer=WithoutHand), "_race", "audit"),
    "no least life": (Parts(issuer=WithoutLife), "_age", "rule 2"),
    "no common count of requests": (Parts(backend=WithoutLimit), "_flood", "limits"),
    "GitHub's clock read late": (Parts(minter=LateClock), "_age", "rule 2"),
    "no check of GitHub's reply": (Parts(minter=Credulous), "_cold", "rule 1"),
}
"""What was taken out, the scene that shows it soonest, and the promise that breaks then."""
