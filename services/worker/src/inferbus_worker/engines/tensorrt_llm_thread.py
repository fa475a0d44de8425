"""Minutes of work beside the event loop: building the engine, and taking it down."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

ResultT = TypeVar("ResultT")


async def in_thread(
    work: Callable[[], ResultT], timeout: float, abandon: Callable[[ResultT], object] = lambda _: None
) -> ResultT:
    """The result of ``work()``, from a thread of its own that holds up no exit of the process.

    Raises what it raises, and TimeoutError. A thread cannot be ended: a result that comes when nobody waits for it any
    more goes to ``abandon``, in a thread.
    """
    future: Future[ResultT] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  (handed over as it is)
            future.set_exception(error)

    def leave(done: Future[ResultT]) -> None:
        if done.exception() is None:
            threading.Thread(target=abandon, args=(done.result(),), name="engine-left", daemon=True).start()

    threading.Thread(target=run, name="engine", daemon=True).start()
    try:
        async with asyncio.timeout(timeout):
            # Shielded: who is cancelled here must not cancel what the thread will want to report.
            return await asyncio.shield(asyncio.wrap_future(future))
    except (TimeoutError, asyncio.CancelledError):
        future.add_done_callback(leave)
        raise
