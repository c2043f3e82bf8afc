"""An event loop of virtual time, and machines on it that stop and die like processes."""

import asyncio
import heapq
import math
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from enum import Enum
from typing import Any

MOST_STEPS = 400_000
"""More callbacks than any story needs: two of them wait for each other in circles."""

TICK_S = 2.0**-20
"""Time goes in whole ticks: so it stays exact, to the last bit, when Unix seconds are made of it and back."""


class StuckError(Exception):
    """Nothing is left to happen, or things happen for ever."""


class State(Enum):
    """Of a machine."""

    UP = 0
    PAUSED = 1
    DEAD = 2
    BURIED = 3
    """Dead, and its tasks are let run into their ends so that Python can collect them."""


_MACHINE: ContextVar["Machine | None"] = ContextVar("machine", default=None)


class Machine:
    """What a process is to the simulation: all that runs in its context."""

    def __init__(self, loop: "VirtualLoop", name: str) -> None:
        self.name = name
        self.state = State.UP
        self._loop = loop
        self._context = copy_context()
        self._context.run(_MACHINE.set, self)
        self.held: list[asyncio.Handle] = []
        self.gone: asyncio.Future[None] = loop.create_future()
        """Done when it is dead: who is connected to it notices."""

    @property
    def talks(self) -> bool:
        """Whether what it sends still reaches the network."""
        return self.state in {State.UP, State.PAUSED}

    def spawn(self, work: Coroutine[Any, Any, Any], *, name: str) -> "asyncio.Task[Any]":
        return self._loop.create_task(work, name=name, context=self._context.copy())

    def pause(self) -> None:
        """As SIGSTOP: nothing of it runs, time goes on."""
        if self.state is State.UP:
            self.state = State.PAUSED

    def go_on(self) -> None:
        """As SIGCONT: all that has become due meanwhile happens now."""
        if self.state is State.PAUSED:
            self.state = State.UP
            self._loop.take_back(self)

    def kill(self) -> None:
        """As SIGKILL: nothing of it ever runs again."""
        self.state = State.DEAD
        self.gone.set_result(None)

    def bury(self) -> None:
        self.state = State.BURIED
        self._loop.take_back(self)


class VirtualLoop(asyncio.BaseEventLoop):
    """Time passes only when nothing is left to do, and then at once. No file, no socket, no thread."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._made = 0
        self.steps = 0

    def time(self) -> float:
        return self._now

    def leap(self, seconds: float) -> None:
        """Let time pass without anything happening in it; what has become due happens at its end."""
        self._now = _on_tick(self._now + seconds)

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        when = _on_tick(when)
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._made += 1  # what is due at the same time happens in the order in which it was asked for
        heapq.heappush(self._timers, (when, self._made, handle))
        return handle

    def take_back(self, machine: Machine) -> None:
        self._ready.extend(machine.held)
        machine.held.clear()

    def run_in_executor(self, executor: object, func: Callable[..., Any], *args: object) -> Any:
        raise StuckError(f"a thread's time is not virtual: {func}")

    def _write_to_self(self) -> None:
        """Nothing sleeps here that would have to be woken."""

    def _run_once(self) -> None:
        timers, ready = self._timers, self._ready
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
        if not ready and not self._stopping:
            if not timers:
                raise StuckError("everybody waits and nothing is due")
            self._now = max(self._now, timers[0][0])
        now = self._now
        while timers and timers[0][0] <= now:
            ready.append(heapq.heappop(timers)[2])
        self.steps += len(ready)
        if self.steps > MOST_STEPS:
            raise StuckError(f"more than {MOST_STEPS} steps")
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            machine = handle._context.get(_MACHINE)
            if machine is None or machine.state is State.UP or machine.state is State.BURIED:
                handle._run()
            elif machine.talks or machine.state is State.DEAD:
                machine.held.append(handle)


def _on_tick(when: float) -> float:
    """Return the first tick that is not before ``when``."""
    return math.ceil(when / TICK_S) * TICK_S
