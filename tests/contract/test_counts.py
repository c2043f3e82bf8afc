"""How much a store holds, over every implementation of ``Backend``."""

import time

from test_backend import ID, row, started
from test_ending import ending, mint_some

from broker.ports import Counts
from broker.store.backend import Backend


async def test_counts(backend: Backend) -> None:
    await started(backend)
    assert await backend.counts() == Counts(0, 0, 0)
    await mint_some(backend, "one", "two", "three")
    await mint_some(backend, "dead", expires_at=time.time() - 1)
    assert await backend.counts() == Counts(live_tokens=3, to_revoke=0, webhooks=0)
    ended = await backend.end(ending(reach="t:sha-one"))
    assert ended.shas == ("sha-one",)
    assert await backend.hook(ID, body_sha="b" * 64, guid="g-1", blob=b"sealed") == "ok"
    # A token that is to be revoked lives until it is.
    assert await backend.counts() == Counts(live_tokens=3, to_revoke=1, webhooks=1)
    await backend.settle(ID, [("sha-one", "", row("token.revoked"))])
    ((place, _),) = await backend.hooks(limit=10)
    await backend.hooks_done([place])
    assert await backend.counts() == Counts(live_tokens=2, to_revoke=0, webhooks=0)
