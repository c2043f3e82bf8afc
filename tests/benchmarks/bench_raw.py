"""The raw store read of a warm request, one after the other, without the product; prints JSON.

``bench_raw.py STORE_URL HOST KEY_ID SECONDS``
"""

import json
import sqlite3
import sys
import time
from collections.abc import Sequence

import redis.asyncio
import uvloop

from broker.model import DEFAULT_PERMISSIONS, RepositoryName, Scope
from broker.store.backend import STATE_FIELDS
from broker.store.sealed import _Reach


def tell(took: list[float], elapsed: float) -> None:
    took.sort()
    print(
        json.dumps(
            {
                "rate": len(took) / elapsed,
                "p50_ms": took[len(took) // 2] * 1000,
                "p99_ms": took[int(len(took) * 0.99)] * 1000,
            }
        )
    )


async def on_redis(
    url: str, fields: Sequence[str], key_id: str, strings: Sequence[str], seconds: float
) -> None:
    took: list[float] = []
    async with redis.asyncio.Redis.from_url(url) as client:
        found = [name async for name in client.scan_iter(match="*:S")]
        tag = found[0].decode()[:-1]
        begin = time.perf_counter()
        while (at := time.perf_counter()) - begin < seconds:
            async with client.pipeline(transaction=True) as pipe:
                pipe.hmget(f"{tag}S", list(fields))
                pipe.hmget(f"{tag}K", ["!", key_id])
                pipe.mget([tag + name for name in strings])
                pipe.time()
                reply = await pipe.execute()
            took.append(time.perf_counter() - at)
        assert reply[1][1] is not None
        assert reply[2][0] is not None
    tell(took, time.perf_counter() - begin)


def on_sqlite(path: str, fields: Sequence[str], key_id: str, strings: Sequence[str], seconds: float) -> None:
    took: list[float] = []
    marks = ",".join("?" * len(fields))
    names = [name.partition(":")[2] for name in strings]
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
    begin = time.perf_counter()
    now = time.time()
    while (at := time.perf_counter()) - begin < seconds:
        db.execute("BEGIN")
        db.execute(f"SELECT name, value FROM state WHERE name IN ({marks})", fields).fetchall()  # noqa: S608 - marks only
        db.execute("SELECT value FROM key_state WHERE name = '!'").fetchone()
        key = db.execute("SELECT id, blob FROM keys WHERE id = ?", (key_id,)).fetchone()
        token = db.execute(
            "SELECT blob FROM tokens WHERE expires_at > ? AND scope = ?", (now, names[0])
        ).fetchone()
        db.execute(
            "SELECT name, value FROM failures WHERE until > ? AND name IN (?, ?)", (now, *names[1:3])
        ).fetchall()
        db.execute("SELECT blob FROM owners WHERE until > ? AND owner = ?", (now, names[3])).fetchone()
        db.execute("COMMIT")
        took.append(time.perf_counter() - at)
    assert key is not None
    assert token is not None
    tell(took, time.perf_counter() - begin)


def main(url: str, host: str, key_id: str, seconds: str) -> None:
    scope = Scope.of_repositories(host, [RepositoryName.parse("acme/widgets")], DEFAULT_PERMISSIONS)
    reach = _Reach.of(scope)
    fields = (*STATE_FIELDS, *reach.fields)
    if url.startswith("redis"):
        uvloop.run(on_redis(url, fields, key_id, reach.strings, float(seconds)))
    else:
        on_sqlite(url.removeprefix("sqlite:///"), fields, key_id, reach.strings, float(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:5])
