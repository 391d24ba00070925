"""An event loop that is held up, as by a garbage collection or a thread with Python's lock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


@asynccontextmanager
async def stalled(stall_s: float) -> AsyncIterator[None]:
    """Each turn of the loop takes `stall_s` longer within this block."""

    async def hold_up() -> None:
        while True:
            time.sleep(stall_s)  # noqa: ASYNC251  that is what it is for
            await asyncio.sleep(0)

    task = asyncio.create_task(hold_up())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
