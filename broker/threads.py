"""Work that would hold up the loop, on threads of the broker's own."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_OWN: Final = ThreadPoolExecutor(8, thread_name_prefix="broker")


async def in_thread(call: Callable[P, T], /, *args: P.args, **named: P.kwargs) -> T:
    """Return what ``call`` returns on a thread; as ``asyncio.to_thread``, but not on one of the loop's.

    Those resolve names. While the machine's resolver is silent, each attempt to connect leaves one of them
    waiting there, soon all of them, and what else needs a thread would wait with them.
    """
    run = partial(copy_context().run, call, *args, **named)
    return await asyncio.get_running_loop().run_in_executor(_OWN, run)
