"""One generation at the server, from its request to its end."""

import asyncio
import logging
from contextlib import aclosing

import grpc
from inferbus_runtime.errors import InferBusError

from inferbus_worker.core.ends import engine_failed
from inferbus_worker.engine import UNKNOWN_TOKEN, Finish
from inferbus_worker.engines.follower import Follower
from inferbus_worker.engines.outbox import Outbox
from inferbus_worker.engines.runs import End, Runs, differs, left_form
from inferbus_worker.engines.triton_errors import Trouble, error_of, trouble_of
from inferbus_worker.engines.triton_health import Health, described
from inferbus_worker.engines.triton_prompt import Prompts
from inferbus_worker.engines.triton_run import Run
from inferbus_worker.engines.triton_service import Service
from inferbus_worker.engines.triton_stream import Delta, Reader

log = logging.getLogger(__name__)


class Generating:
    """Runs generations of the model of one service."""

    def __init__(self, service: Service, prompts: Prompts, runs: Runs[Run], outbox: Outbox, health: Health) -> None:
        self._service = service
        self._prompts = prompts
        self._runs = runs
        self._outbox = outbox
        self._health = health

    async def generate(self, run: Run) -> End | None:
        """Until its end; what it says goes into the outbox meanwhile. None: it was closed, or the model is dead, which
        ends nobody."""
        try:
            if (end := await _ended_before(run)) is not None:
                return end
            task = await self._prompts.task_of(run)
            if task is None:
                return End(Finish.LENGTH)
            reader = self._service.reader(task.max_new, run.ids if run.grammar is None else [])
            room = self._outbox.room
            async with aclosing(self._service.stream(task)) as responses:
                async for response in responses:
                    run.moved_at = self._health.moved()
                    if not self._runs.has(run):
                        return None  # closed while this response was already here
                    if response.error_message:
                        return await self._failed(run, response.error_message)
                    delta = reader.feed(response.infer_response)
                    self._measure(run, reader)
                    if delta is not None and (end := self._take(run, delta)) is not None:
                        return end
                    if reader.done:
                        break
                    if not room.is_set():
                        await room.wait()
            return self._complete(run, reader)
        except InferBusError as error:
            return End(Finish.ERROR, error)
        except grpc.RpcError as error:
            return await self._suspected(described(error))
        except Exception as error:  # an answer of the server that we do not understand ends this generation only
            log.exception("a generation failed")
            return End(Finish.ERROR, engine_failed(repr(error)))

    def _take(self, run: Run, delta: Delta) -> End | None:
        """Its end, if it has one with this."""
        if not run.fits(delta.text):
            return left_form(run.follower, len(run.ids))
        fresh = run.fresh(delta)
        if fresh is None:
            return differs()
        if fresh.token_ids or fresh.text:
            cut = run.filter.feed(fresh.text)
            run.ids += fresh.token_ids
            run.text.append(fresh.text)
            self._outbox.add(run.key, fresh.token_ids, cut.text)
            if cut.stopped:
                return End(Finish.STOP)
        else:
            self._outbox.beat()
        return None

    def _measure(self, run: Run, reader: Reader) -> None:
        """What the server counts is right; but it counts what it was given, with what an earlier attempt had said."""
        run.counted = reader.counted
        if reader.input_tokens is not None:
            given = len(run.generation.resume_ids) if run.goes_on else 0
            run.input_tokens = reader.input_tokens - given
            run.estimated = bool(given)
        if reader.reused_blocks:
            block_tokens = self._service.settings.kv_block_tokens
            run.cached_tokens = min(run.input_tokens, reader.reused_blocks * block_tokens)

    def _complete(self, run: Run, reader: Reader) -> End:
        """The server has ended it."""
        rest, reason = reader.end()
        if rest is not None and (end := self._take(run, rest)) is not None:
            return end
        if run.repeats or run.repeats_text:
            return differs()
        if reason is Finish.STOP and run.follower is not None and not run.follower.complete():
            return left_form(run.follower, len(run.ids))
        if not reader.counted and (more := run.uncounted()):
            self._outbox.add(run.key, [UNKNOWN_TOKEN] * more, "")
        return End(reason)

    async def _failed(self, run: Run, text: str) -> End | None:
        """The server says an error instead of a response."""
        trouble = trouble_of(text)
        log.info("engine refused", extra={"trouble": trouble.value, "error": text})
        if trouble is Trouble.GONE:
            return await self._suspected(text)
        if trouble is Trouble.TOO_LONG and run.ids:
            return End(Finish.LENGTH)  # it fitted when it began: what has grown too long is its output
        return End(Finish.ERROR, error_of(trouble, text, run.generation.input, run.input_tokens))

    async def _suspected(self, text: str) -> End | None:
        """A broken stream mostly means a dead model: then steps() says so, once for all."""
        return End(Finish.ERROR, engine_failed(text)) if await self._health.check() else None


async def _ended_before(run: Run) -> End | None:
    """How it ends if there is nothing to generate: complete already. Raises InferBusError for one that is refused."""
    if run.grammar is not None:
        run.follower = await asyncio.to_thread(Follower, run.grammar)
    # A stop string may have begun, or ended, in what an earlier attempt delivered.
    if run.generation.resume_ids and run.filter.feed(run.given_text()).stopped:
        return End(Finish.STOP)
    max_tokens = run.generation.sampling.max_tokens
    if max_tokens is not None and max_tokens <= len(run.ids):
        return End(Finish.LENGTH)
    return None
