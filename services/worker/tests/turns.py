"""Soon, by turns of the event loop: a machine that stands still meanwhile takes none."""

import asyncio
from collections.abc import Callable

_TURNS = 100


async def at_once(condition: Callable[[], object]) -> None:
    """Within a hundred turns of a millisecond, a tenth of a second where nothing else is done. Else AssertionError."""
    for _ in range(_TURNS):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("not at once")
