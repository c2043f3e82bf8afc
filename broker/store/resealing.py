"""``broker store reseal``: a new data key, and every entry sealed anew with it; I/O through the backend.

Brokers may run meanwhile: the new key is in the store before anything is sealed with it, each read tells
them that there is one, and each entry is replaced only if it is still what it was. Whoever is interrupted
begins again where this one left off: what is sealed by the older key is found by its number.
"""

import asyncio
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from broker.errors import ConflictError, StoreUnavailableError
from broker.store.backend import Backend, Entry, Place
from broker.store.seal import (
    WRAP_PREFIX,
    KeyEncryptionKey,
    Kind,
    Sealer,
    SealError,
    new_data_key,
    wrap_numbers,
)
from broker.store.sealed import DATA_KEYS, identity, open_all

_log = logging.getLogger(__name__)

GRACE_S: Final = 5.0
"""So long every broker that runs has to notice the new key; each looks once a second."""
_MOST_PASSES: Final = 100
_KINDS: Final = {
    Place.KEYS: Kind.KEY,
    Place.NAMES: Kind.NAME,
    Place.OWNERS: Kind.OWNER,
    Place.TOKENS: Kind.TOKEN,
    Place.BLOCKS: Kind.BLOCK,
    Place.HOOKS: Kind.HOOK,
}


@dataclass(slots=True)
class Resealed:
    """What was done.

    Attributes:
        number: of the data key that seals everything now.
        entries: sealed anew.
        refused: entries that do not open, so were not written by a broker with these keys; left as they are.
    """

    number: int
    entries: int = 0
    refused: int = 0


async def reseal(backend: Backend, keks: Sequence[KeyEncryptionKey], *, grace_s: float = GRACE_S) -> Resealed:
    """Make a data key, seal everything with it, drop the older ones.

    Args:
        backend: connected.
        keks: the configured ones.
        grace_s: how long brokers have to notice the new key.

    Raises:
        ConflictError: another one is at it.
        StoreLostError: this is no store of ours, or no configured key opens it.
        StoreUnavailableError: it does not answer; run it again.
    """
    state = await backend.load()
    store_id = identity(state)
    numbers = sorted(open_all(state, store_id, keks))
    if len(numbers) == 1 and state.fields.get(DATA_KEYS, b"%d" % numbers[0]) != b"%d" % numbers[0]:
        # Interrupted at the very end.
        await backend.mend((store_id, store_id), store_id, {DATA_KEYS: b"%d" % numbers[0]})
        return Resealed(numbers[0])
    if len(numbers) == 1:
        await _begin(backend, keks, store_id, numbers[0] + 1)
        state = await backend.load()
    data_keys = open_all(state, store_id, keks)
    done = Resealed(max(data_keys))
    await asyncio.sleep(grace_s)
    sealer = Sealer(store_id, data_keys)
    for _ in range(_MOST_PASSES):
        before, done.refused = done.entries, 0
        for place in Place:
            async for entries in backend.sealed(place):
                for entry in entries:
                    await _anew(backend, store_id, sealer, entry, done)
        if done.entries == before:
            break
    else:
        raise StoreUnavailableError("brokers that run still seal with the older key; run it again")
    state = await backend.load()  # a broker with a key of its own may have added wraps
    wraps = wrap_numbers({**state.fields, **state.key_wraps})
    older = [
        f"{WRAP_PREFIX}{number}:{fingerprint}"
        for number, fingerprints in wraps.items()
        if number < done.number
        for fingerprint in fingerprints
    ]
    if not await backend.drop_wraps(store_id, older):
        raise StoreUnavailableError("the store changed its identity meanwhile")
    await backend.mend((store_id, store_id), store_id, {DATA_KEYS: b"%d" % done.number})
    return done


async def _begin(backend: Backend, keks: Sequence[KeyEncryptionKey], store_id: bytes, number: int) -> None:
    """Put a new data key into the store; the lease keeps two who begin at once apart."""
    if not (await backend.lease(store_id, "job:reseal", secrets.token_hex(16)))[0]:
        raise ConflictError(public="Somebody else is resealing this store.")
    data_key = new_data_key()
    wraps = {kek.field(number): kek.wrap(number, data_key, store_id) for kek in keks}
    fields = {**wraps, DATA_KEYS: b"%d,%d" % (number - 1, number)}
    if not await backend.mend((store_id, store_id), store_id, fields):
        raise StoreUnavailableError("the store changed its identity meanwhile")


async def _anew(backend: Backend, store_id: bytes, sealer: Sealer, entry: Entry, done: Resealed) -> None:
    """Seal one entry with the newest key if it is not yet; count what was to be done."""
    prefix, kind = b"", _KINDS[entry.place]
    name, blob = entry.scope or entry.name, entry.blob
    if entry.place is Place.HOOKS:
        body_sha, _, blob = entry.blob.partition(b"|")
        prefix, name = body_sha + b"|", body_sha.decode("ascii", "replace")
    if sealer.newest(blob):
        return
    try:
        plain = sealer.open(kind, name, blob)
    except SealError as error:
        _log.critical("an entry does not open", extra={"place": str(entry.place), "cause": str(error)})
        done.refused += 1
        return
    await backend.reseal(store_id, entry, prefix + sealer.seal(kind, name, plain))
    done.entries += 1
