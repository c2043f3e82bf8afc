"""A rolling restart of three replicas behind a load balancer: no caller is refused anything."""

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Self

import httpx
import pytest
from e2e_callers import callers, start_together, until
from harness import Service, World, bearer

KEPT_ALIVE, ONE_OFF = 6, 2


@dataclass
class Balancer:
    """A TCP proxy in front of replicas, as a Service is: a connection stays where it was opened.

    Attributes:
        ports: replicas that new connections go to, in turn.
        refused: connections that no replica took.
    """

    ports: list[int]
    port: int = 0
    refused: int = 0
    _turn: int = 0
    _tasks: set["asyncio.Task[None]"] = field(default_factory=set)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._turn += 1
        try:
            far, forth = await asyncio.open_connection("127.0.0.1", self.ports[self._turn % len(self.ports)])
        except OSError:
            self.refused += 1
            back.close()
            return
        await asyncio.gather(_pump(near, forth), _pump(far, back))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(1 << 16):
                writer.write(chunk)
                await writer.drain()
    finally:
        writer.close()


@dataclass
class Load:
    """Callers that ask without pause; what they were told, and what was more than that."""

    url: str
    key: str
    told: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    ending: bool = False

    async def kept_alive(self) -> None:
        """Ask on one connection for as long as the other side keeps it."""
        async with callers() as http:
            while not self.ending:
                await self._ask(http)
                await asyncio.sleep(0.01)

    async def one_off(self) -> None:
        """Ask on a new connection each time."""
        while not self.ending:
            async with callers() as http:
                await self._ask(http)
            await asyncio.sleep(0.03)

    async def _ask(self, http: httpx.AsyncClient) -> None:
        try:
            answer = await http.post(
                f"{self.url}/v1/github/token",
                json={"repositories": ["acme/widgets"]},
                headers=bearer(self.key),
            )
        except httpx.TransportError as error:
            self.wrong.append(repr(error))
            return
        self.told[answer.status_code] += 1
        if answer.status_code != 200:
            self.wrong.append(answer.text)


async def _restarted(balancer: Balancer, service: Service, load: Load) -> None:
    """Do what a Deployment does with one replica: out of the Service, SIGTERM, anew, ready, back in."""
    balancer.ports.remove(service.port)
    await asyncio.sleep(0.2)  # those that were on their way when it was taken out
    await asyncio.to_thread(service.stop)
    assert service.process is not None
    assert service.process.returncode == 0
    assert "Traceback" not in service.log()
    await asyncio.to_thread(service.start)
    balancer.ports.append(service.port)
    before = load.told[200]
    await until(lambda: load.told[200] >= before + 20, what="answers after the restart")


@pytest.mark.parametrize("store", ["sqlite", pytest.param("redis", marks=pytest.mark.slow)])
async def test_a_rolling_restart_refuses_nobody(
    world: World, request: pytest.FixtureRequest, store: str
) -> None:
    """Kept-alive connections to a replica that ends are told so in an answer, and open elsewhere."""
    if store == "redis":
        world = request.getfixturevalue("redis_world")
    services = start_together(world, 3, BROKER_LOG_LEVEL="info")
    key = await world.quick_key("acme/*")
    async with Balancer([one.port for one in services]) as balancer:
        load = Load(f"http://127.0.0.1:{balancer.port}", key)
        tasks = [
            *(asyncio.create_task(load.kept_alive()) for _ in range(KEPT_ALIVE)),
            *(asyncio.create_task(load.one_off()) for _ in range(ONE_OFF)),
        ]
        try:
            for service in services:
                await _restarted(balancer, service, load)
        finally:
            load.ending = True
            await asyncio.gather(*tasks)
    assert load.wrong == []
    assert balancer.refused == 0
    assert load.told[200] > 100
    assert world.github.count("mint") == 1
