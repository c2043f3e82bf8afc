"""A reference: the service, but each request reads by a redis-py call of its own, from its own pool.

Run as ``broker serve`` is: settings from the environment.
"""

import asyncio
import sys

from redis.asyncio import BlockingConnectionPool, Redis

from broker import settings as broker_settings
from broker.build import build
from broker.observe import configure_logging
from broker.serving import serve
from broker.store.backend import STATE_FIELDS, View, Want


class OneCall:
    """READ as redis-py users write it."""

    def __init__(self, url: str, tag: str) -> None:
        self._redis = Redis(connection_pool=BlockingConnectionPool.from_url(url, max_connections=64))
        self._tag = tag

    async def read(self, want: Want) -> View:
        sent_at = asyncio.get_running_loop().time()
        fields, keys = (*STATE_FIELDS, *want.fields), ("!", *want.keys)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hmget(f"{self._tag}S", list(fields))
            pipe.hmget(f"{self._tag}K", list(keys))
            pipe.time()
            if want.strings:
                pipe.mget([self._tag + name for name in want.strings])
            state, records, (seconds, micros), *strings = await pipe.execute()
        found = {name: value for name, value in zip(fields, state, strict=True) if value is not None}
        known = {name: value for name, value in zip(keys, records, strict=True) if value is not None}
        held = zip(want.strings, strings[0], strict=True) if strings else ()
        return View(
            sent_at=sent_at,
            now=seconds + micros / 1e6,
            store_id=found.get("id"),
            keys_id=known.pop("!", None),
            epoch=int(found.get("epoch", b"0")),
            gh_offset=float(found.get("gh_offset", b"0")),
            fields=found,
            keys=known,
            strings={name: value for name, value in held if value is not None},
        )


def main() -> int:
    settings = broker_settings.load()
    configure_logging(form=settings.log_format, level=settings.log_level)
    broker = build(settings)
    backend = broker.store._backend
    one = OneCall(settings.store_url.get_secret_value(), backend._tag)  # type: ignore[attr-defined]
    backend.read = one.read  # type: ignore[method-assign]
    return serve(settings, broker)


if __name__ == "__main__":
    sys.exit(main())
