"""One generation in the engine, from its request to its end."""

import logging
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from inferbus_runtime.errors import InferBusError

from inferbus_worker.core.ends import engine_failed
from inferbus_worker.engine import EngineDiedError, Finish
from inferbus_worker.engines.outbox import Outbox
from inferbus_worker.engines.runs import End, Runs
from inferbus_worker.engines.tensorrt_llm_request import arguments_of
from inferbus_worker.engines.tensorrt_llm_results import RefusedError, read, refused, results_of
from inferbus_worker.engines.tensorrt_llm_run import Run
from inferbus_worker.engines.tensorrt_llm_served import Served

log = logging.getLogger(__name__)


async def generate(
    run: Run, served: Served, runs: Runs[Run], outbox: Outbox, on_read: Callable[[Run], None]
) -> End | None:
    """Until its end; what it says goes into the outbox meanwhile. None: it was closed, or the engine is dead, which
    ends nobody: what runs begins again elsewhere, or in the next start. ``on_read``: its prompt has been read."""
    try:
        arguments = await arguments_of(run, served)
        if isinstance(arguments, Finish):
            return End(arguments)
        return await _follow(run, served, arguments, runs, outbox, on_read)
    except InferBusError as fault:
        return End(Finish.ERROR, fault)
    except RefusedError as error:
        log.info("engine refused", extra={"error": str(error)})
        end = refused(run, str(error))
        return End(end) if isinstance(end, Finish) else End(Finish.ERROR, end)
    except EngineDiedError as error:
        outbox.die(str(error))
        return None
    except Exception as error:  # ours, or an answer that we do not understand: it ends this generation only
        log.exception("a generation failed")
        return End(Finish.ERROR, engine_failed(repr(error)))


async def _follow(
    run: Run,
    served: Served,
    arguments: dict[str, Any],
    runs: Runs[Run],
    outbox: Outbox,
    on_read: Callable[[Run], None],
) -> End | None:
    async with aclosing(results_of(run, served, arguments)) as results:
        async for result in results:
            if not runs.has(run):
                return None  # closed while this one was already here
            if not run.read:
                run.read = True
                on_read(run)
            delta = read(run, served, result)
            cut = run.filter.feed(delta.text)
            if delta.ids or cut.text:
                outbox.add(run.key, delta.ids, cut.text, delta.logprobs)
            else:
                outbox.beat()
            if cut.stopped:
                return End(Finish.STOP)
            if delta.finish is not None:
                return End(delta.finish)
            if not outbox.room.is_set():
                await outbox.room.wait()
    return End(Finish.ERROR, engine_failed("its results ended without a reason"))
