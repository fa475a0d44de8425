"""One generation in the child, from its request to its end."""

import asyncio
import logging
from collections.abc import Sequence

import aiohttp
from inferbus_runtime.errors import InferBusError, invalid

from inferbus_worker.core.ends import engine_failed
from inferbus_worker.core.sampling import context_exceeded
from inferbus_worker.engine import Finish
from inferbus_worker.engines.follower import Follower
from inferbus_worker.engines.llama_cpp_http import ServerHttp
from inferbus_worker.engines.llama_cpp_places import Places
from inferbus_worker.engines.llama_cpp_process import ServerProcess
from inferbus_worker.engines.llama_cpp_run import Run
from inferbus_worker.engines.llama_cpp_stream import (
    CompletionError,
    Delta,
    Ended,
    Logprobs,
    Prefill,
    completion,
    request_body,
)
from inferbus_worker.engines.outbox import Outbox
from inferbus_worker.engines.runs import End, differs, left_form

log = logging.getLogger(__name__)

# A broken connection almost always means a dead child, which is known within this time.
_DEATH_SECONDS = 2.0


class Generating:
    """Runs generations in one child. ``vocabulary``: what each of its token ids stands for."""

    def __init__(
        self, server: ServerProcess, http: ServerHttp, vocabulary: Sequence[bytes], outbox: Outbox, places: Places
    ) -> None:
        self._server = server
        self._http = http
        self._vocabulary = vocabulary
        self._outbox = outbox
        self._places = places

    async def generate(self, run: Run) -> End | None:
        """Until its end; what it says goes into the outbox meanwhile. None: it was closed, or has stepped back, or the
        child is dead, which ends nobody."""
        try:
            if (end := await self._ended_before(run)) is not None:
                return end
            sampling = run.generation.sampling
            logprobs = None if sampling.logprobs is None else Logprobs(sampling.logprobs, self._vocabulary)
            async with self._http.session.post("/completion", data=request_body(run.task_of())) as response:
                end = await self._read(run, response, logprobs)
                response.close()
                return end
        except CompletionError as error:
            return _refused(run, error)
        except (aiohttp.ClientError, TimeoutError) as error:
            return await self._broken(error)
        except Exception as error:  # an answer of the server that we do not understand ends this generation only
            log.exception("a generation failed")
            return End(Finish.ERROR, engine_failed(repr(error)))

    async def _ended_before(self, run: Run) -> End | None:
        """How it ends if there is nothing to generate: refused, or complete already."""
        if run.grammar is not None and run.follower is None:
            try:
                run.follower = await asyncio.to_thread(Follower, run.grammar)
            except InferBusError as fault:
                return End(Finish.ERROR, fault)
        if run.stopped_before(self._vocabulary):
            return End(Finish.STOP)
        max_tokens = run.generation.sampling.max_tokens
        if max_tokens is not None and max_tokens <= len(run.ids):
            return End(Finish.LENGTH)
        return None

    async def _read(self, run: Run, response: aiohttp.ClientResponse, logprobs: Logprobs | None) -> End | None:
        places, room = self._places, self._outbox.room
        async for item in completion(response, self._http.spell, logprobs):
            if not places.runs.has(run):
                return None  # closed or stepped back while this item was already here
            if not run.read and not isinstance(item, Prefill):
                places.read(run)
            match item:
                case Delta(text=text) if not run.fits(text):
                    return left_form(run.follower, len(run.ids))
                case Prefill():
                    run.prefill(item)
                    self._outbox.beat()
                    places.make_room()
                case Delta(ids) if run.repeats:
                    if not run.repeated(ids):
                        return differs()
                    self._outbox.beat()
                    places.make_room()
                case Delta():
                    if self._deliver(run, item):
                        return End(Finish.STOP)
                    if not room.is_set():
                        await room.wait()
                case Ended(Finish.STOP) if run.follower is not None and not run.follower.complete():
                    return left_form(run.follower, len(run.ids))
                case Ended(reason):
                    run.ended_there = True
                    return differs() if run.repeats else End(reason)
        return None

    def _deliver(self, run: Run, delta: Delta) -> bool:
        """True if a stop string was found."""
        cut = run.filter.feed(delta.text)
        run.ids += delta.token_ids
        run.held += len(delta.token_ids)
        self._outbox.add(run.key, delta.token_ids, cut.text, delta.logprobs)
        if not cut.stopped:  # who ends now must not wait to come back
            self._places.make_room()
        return cut.stopped

    async def _broken(self, error: Exception) -> End | None:
        """A broken connection almost always means a dead child: then steps() says so, once for all."""
        try:
            async with asyncio.timeout(_DEATH_SECONDS):
                await self._server.dead.wait()
        except TimeoutError:
            return End(Finish.ERROR, engine_failed(repr(error)))
        return None


def _refused(run: Run, error: CompletionError) -> End:
    log.info("engine refused", extra={"kind": error.kind})
    if error.kind == "exceed_context_size_error":
        if run.ids:  # it fitted when it began: what has grown too long is its output
            return End(Finish.LENGTH)
        return End(Finish.ERROR, context_exceeded(run.generation.input, error.prompt_tokens))
    if error.kind == "invalid_request_error":
        refusal = invalid("The engine cannot run this request.")
        refusal.diagnostic = str(error)
        return End(Finish.ERROR, refusal)
    return End(Finish.ERROR, engine_failed(str(error)))
