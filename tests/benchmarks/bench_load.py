"""The load generator, a process of its own: keep-alive HTTP/1.1 on raw transports; prints JSON.

``bench_load.py PORT CONNECTIONS SECONDS [KEY REPOSITORY [COUNT]]``: with a key it asks for tokens, else
``GET /``. With a count, ``{}`` in the repository's name is a random number below it.
"""

import asyncio
import itertools
import json
import random
import resource
import sys
import time
from collections.abc import Iterator
from typing import cast

import uvloop


class Connection(asyncio.Protocol):
    """Sends one request, waits for the whole answer, sends the next."""

    def __init__(
        self, requests: Iterator[bytes], until: float, took: list[float], done: asyncio.Event
    ) -> None:
        self._requests = requests
        self._until = until
        self._took = took
        self._done = done
        self._buffer = b""
        self._whole = 0
        self._sent_at = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def _send(self) -> None:
        assert self._transport is not None
        self._sent_at = time.perf_counter()
        self._transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        if len(self._buffer) != self._whole and not self._ends():
            return
        if not self._buffer.startswith(b"HTTP/1.1 200"):
            sys.exit(f"answer: {self._buffer[:300]!r}")
        self._buffer = b""
        now = time.perf_counter()
        self._took.append(now - self._sent_at)
        if now < self._until:
            self._send()
        else:
            assert self._transport is not None
            self._transport.close()
            self._done.set()

    def _ends(self) -> bool:
        head, found, _ = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return False
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                self._whole = len(head) + 4 + int(value)
        return len(self._buffer) >= self._whole

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.is_set():
            sys.exit("the server closed a connection")


def asking(key: str, repository: str) -> bytes:
    body = json.dumps({"repositories": [repository]}).encode()
    return (
        f"POST /v1/github/token HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


async def main(port: int, connections: int, seconds: float, *, key: str, repository: str, count: int) -> None:
    requests = itertools.repeat(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")
    if key:
        asked = [asking(key, repository.format(number)) for number in range(count)]
        # Made before the clock runs: the generator must not be what is measured.
        requests = itertools.cycle(random.Random(1).choices(asked, k=max(count, 20_000)))
    took: list[float] = []
    begin = time.perf_counter()
    done = [asyncio.Event() for _ in range(connections)]
    loop = asyncio.get_running_loop()
    for one in done:
        await loop.create_connection(
            lambda one=one: Connection(requests, begin + seconds, took, one), "127.0.0.1", port
        )
    for one in done:
        await one.wait()
    elapsed = time.perf_counter() - begin
    took.sort()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "requests": len(took),
                "rate": len(took) / elapsed,
                "p50_ms": took[len(took) // 2] * 1000,
                "p99_ms": took[int(len(took) * 0.99)] * 1000,
                "cpu": (usage.ru_utime + usage.ru_stime) / elapsed,
            }
        )
    )


if __name__ == "__main__":
    key, repository, count = (*sys.argv[4:7], *("", "", "1")[len(sys.argv[4:7]) :])
    uvloop.run(
        main(
            int(sys.argv[1]),
            int(sys.argv[2]),
            float(sys.argv[3]),
            key=key,
            repository=repository,
            count=int(count),
        )
    )
