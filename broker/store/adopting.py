"""``broker store adopt``: look at a store that running processes refuse, mend what can be, say so in it.

A process that has seen a store takes no other, no emptied one and no old copy, until an operator says
that it is meant. What says so lies in the store itself, sealed by each configured key-encryption key, so
that who can only write to the store cannot say it. Running processes find it within seconds. I/O through
the backend.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from broker.errors import StoreLostError
from broker.ports import AuditEvent, Event
from broker.store.backend import Backend, EndArgs, Identities, State, Want
from broker.store.seal import WRAP_PREFIX, KeyEncryptionKey, SealError, open_data_keys
from broker.store.sealed import DATA_KEYS, SCHEMA, audit_row, check_schema, create, outbox_note

_REASON: Final = "store adopted without its state"


@dataclass(frozen=True, slots=True)
class Survey:
    """What a store is found to be.

    Attributes:
        found: its identities.
        store_id: the id under which its data keys open; None: there is nothing in it at all.
        keys: how many API keys are in it, counted up to ``_COUNTED``.
        state_lost: marks, blocks and the epoch are gone.
    """

    found: Identities
    store_id: bytes | None
    keys: int
    state_lost: bool = False
    wraps: tuple[tuple[str, bytes], ...] = ()

    @property
    def empty(self) -> bool:
        """Return whether there is nothing to adopt."""
        return self.store_id is None

    def tell(self) -> list[str]:
        """Return, in lines, what there is and what is lost."""
        if self.store_id is None:
            return ["The store is empty: no API key, no block, no audit."]
        lines = [f"store {self.store_id.decode('ascii', 'replace')}, {self.keys} API key(s)"]
        if self.state_lost:
            lines.append("LOST: its state. Blocks are gone: set them again. Cached tokens will be revoked.")
        if self.found[1] is None:
            lines.append("LOST: the mark of the key register. API keys that are not in it any more get 401.")
        if not self.keys:
            lines.append("It holds no API key: every caller gets 401 until there are new ones.")
        if not self.state_lost:
            lines.append(
                "What was revoked, blocked or changed after this copy was made is not in it. Look at "
                "`broker keys list` and `broker-cli admin block` before callers do."
            )
        return lines


async def survey(
    backend: Backend, keks: Sequence[KeyEncryptionKey], *, store_id: bytes | None = None
) -> Survey:
    """Look at a store without changing it.

    Args:
        backend: connected.
        keks: the configured ones.
        store_id: what the store was called, for one that has lost both places where that stood (the log of
            every start tells it).

    Raises:
        StoreLostError: it cannot be adopted; the text says why, and what would help.
    """
    state = await backend.load()
    found = state.fields.get("id"), state.keys_id
    if not state.fields and state.keys_id is None and not state.holds_keys:
        return Survey(found, None, 0)
    check_schema(state)
    named = {one for one in (*found, store_id) if one is not None}
    if len(named) > 1:
        listed = ", ".join(sorted(one.decode("ascii", "replace") for one in named))
        raise StoreLostError(f"its parts belong to different stores ({listed}): restore both from one backup")
    if not named:
        raise StoreLostError(
            "it does not say which store it is. The log of the broker's last start does (store attached, "
            "store_id): give that with --store-id"
        )
    (identity,) = named
    try:
        open_data_keys((state.fields, state.key_wraps), identity, keks)
    except SealError as error:
        raise StoreLostError(
            f"no configured key opens store {identity.decode('ascii', 'replace')}: {error}"
        ) from error
    return Survey(
        found,
        identity,
        await _count(backend),
        state_lost="epoch" not in state.fields,
        wraps=tuple(sorted(_wraps(state).items())),
    )


def _wraps(state: State) -> dict[str, bytes]:
    both = {**state.key_wraps, **state.fields}
    return {name: value for name, value in both.items() if name.startswith(WRAP_PREFIX)}


async def _count(backend: Backend) -> int:
    count, cursor = 0, None
    while True:
        page = await backend.list_keys(cursor=cursor, limit=200)
        count, cursor = count + len(page.rows), page.cursor
        if cursor is None:
            return count


async def adopt(backend: Backend, keks: Sequence[KeyEncryptionKey], seen: Survey) -> bytes:
    """Make the store whole again and have running processes accept it; return its id.

    An empty one begins anew.

    Raises:
        StoreLostError: it changed since it was looked at.
        StoreUnavailableError: it does not answer.
    """
    found, store_id = seen.found, seen.store_id
    if store_id is None:
        await create(backend, keks)
        seen = await survey(backend, keks)
        if seen.store_id is None:
            raise StoreLostError("the store did not keep what was written")
        found, store_id = seen.found, seen.store_id
    now = (await backend.read(Want())).now
    fields = {kek.adoption: kek.adopt(store_id, now) for kek in keks}
    if seen.state_lost:
        # Above every epoch there ever was: they begin at 1, and a decision raises it by one.
        fields |= {"schema": SCHEMA, "epoch": b"%d" % now, **dict(seen.wraps)}
        numbers = sorted({name.split(":")[1] for name, _ in seen.wraps}, key=int)
        fields[DATA_KEYS] = ",".join(numbers).encode()
    if not await backend.mend(found, store_id, fields):
        raise StoreLostError("the store changed while it was looked at: look again")
    if seen.state_lost:
        event = AuditEvent(Event.TOKEN_REVOKED, reason=_REASON)
        await backend.end(
            EndArgs(
                store_id=store_id,
                marks=("m:all",),
                reach="all",
                note=outbox_note("", _REASON, None),
                audit=audit_row(event),
            )
        )
    return store_id
