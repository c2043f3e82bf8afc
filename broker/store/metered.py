"""A backend that tells how long each step took and what kept an answer away; no I/O of its own."""

import asyncio
import inspect
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, cast

from broker.errors import BrokerError, StoreError
from broker.store.backend import Backend

OnStep = Callable[[str, float, str | None], None]
"""Called after each step: its name, seconds, and what kept the answer away (None if it came)."""

UNAVAILABLE: Final = "unavailable"
UNEXPECTED: Final = "unexpected"
TROUBLES: Final = (UNAVAILABLE, UNEXPECTED)


class _Metered:
    """Wraps a step when it is first asked for; everything else is the backend's own."""

    def __init__(self, inner: Backend, told: OnStep) -> None:
        self._inner = inner
        self._told = told

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the backend has
        found = getattr(self._inner, name)
        if name.startswith("_") or not callable(found):
            return found
        step = self._measured(name, found) if inspect.iscoroutinefunction(found) else found
        setattr(self, name, step)  # the next time it is found without coming here
        return step

    def _measured(
        self, name: str, step: Callable[..., Coroutine[Any, Any, Any]]
    ) -> Callable[..., Coroutine[Any, Any, Any]]:
        told, now = self._told, time.perf_counter

        async def measured(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - as the step has it
            began = now()
            trouble: BaseException | None = None
            try:
                return await step(*arguments, **named)
            except BaseException as error:
                trouble = error
                raise
            finally:
                _tell(told, name, now() - began, trouble)

        return measured


def _tell(told: OnStep, step: str, seconds: float, trouble: BaseException | None) -> None:
    match trouble:
        case None:
            told(step, seconds, None)
        case StoreError():
            told(step, seconds, UNAVAILABLE)
        case BrokerError() | asyncio.CancelledError():
            pass  # what was asked makes no sense, or who asked has gone: not the store's trouble
        case Exception():
            told(step, seconds, UNEXPECTED)


def metered(backend: Backend, told: OnStep) -> Backend:
    """Return ``backend``, with ``told`` called after each of its steps; reads are told by the batch."""
    backend.reads.told = partial(_tell, told, "read")
    return cast("Backend", _Metered(backend, told))
