"""A backend that tells how long each step took and what kept an answer away; no I/O of its own."""

import asyncio
import inspect
import time
from collections.abc import Callable, Coroutine
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
        if name.startswith("_") or not inspect.iscoroutinefunction(found):
            return found
        step = self._measured(name, found)
        setattr(self, name, step)  # the next time it is found without coming here
        return step

    def _measured(
        self, name: str, step: Callable[..., Coroutine[Any, Any, Any]]
    ) -> Callable[..., Coroutine[Any, Any, Any]]:
        told, now = self._told, time.perf_counter

        async def measured(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - as the step has it
            began = now()
            try:
                answer = await step(*arguments, **named)
            except StoreError:
                told(name, now() - began, UNAVAILABLE)
                raise
            except (BrokerError, asyncio.CancelledError):
                raise  # what was asked makes no sense, or who asked has gone: not the store's trouble
            except Exception:
                told(name, now() - began, UNEXPECTED)
                raise
            told(name, now() - began, None)
            return answer

        return measured


def metered(backend: Backend, told: OnStep) -> Backend:
    """Return ``backend``, with ``told`` called after each of its steps."""
    return cast("Backend", _Metered(backend, told))
