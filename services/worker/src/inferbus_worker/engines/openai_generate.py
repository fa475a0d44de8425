"""One generation from its first request to its end: answers, what breaks off, what comes after."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from inferbus_runtime.errors import InferBusError

from inferbus_worker.core.ends import engine_failed
from inferbus_worker.engine import Chat, Embed, Finish, ToolMode
from inferbus_worker.engines.openai_answer import Answer, Times
from inferbus_worker.engines.openai_body import Asking, path_and_body, stops_there
from inferbus_worker.engines.openai_calls import CallError
from inferbus_worker.engines.openai_errors import (
    Kind,
    RefusedError,
    TooLongError,
    UpstreamError,
    content_filtered,
)
from inferbus_worker.engines.openai_events import Chunk
from inferbus_worker.engines.openai_health import Health
from inferbus_worker.engines.openai_http import UpstreamHttp
from inferbus_worker.engines.openai_run import DiffersError, LeftFormError, Run
from inferbus_worker.engines.openai_writer import Out
from inferbus_worker.engines.outbox import Outbox

log = logging.getLogger(__name__)

_FINISH = {"length": Finish.LENGTH, "max_tokens": Finish.LENGTH}
_ABORTED = ("abort", "aborted", "error", "cancelled")
# How often an input's size is guessed higher before it is taken for longer than the context.
_GUESSES = 3


@dataclass(frozen=True, slots=True)
class Ended:
    """How a generation ends. ``stop``: the stop string that the upstream names."""

    reason: Finish
    error: InferBusError | None = None
    stop: str | None = None


class Generating:
    """Runs generations against one upstream."""

    def __init__(self, http: UpstreamHttp, asking: Asking, times: Times, health: Health, outbox: Outbox) -> None:
        self._http = http
        self._asking = asking
        self._times = times
        self._health = health
        self._outbox = outbox

    async def generate(self, run: Run, input_tokens: int) -> Ended:
        """Until its end; what it says goes into the outbox meanwhile. ``input_tokens``: more or less."""
        self._health.request()
        try:
            while True:
                try:
                    await self._health.gate(urgent=run.tokens > 0)
                    return await self._answer(run, input_tokens)
                except UpstreamError as failure:
                    run.retries += 1
                    if not await self._health.failed(failure, run.retries):
                        return Ended(Finish.ERROR, failure.to_tenant())
                except TooLongError as refusal:
                    self._health.moved()
                    if run.tokens:  # it fitted when it began: what has grown too long is its output
                        return Ended(Finish.LENGTH)
                    if not self._smaller(run, input_tokens):
                        log.info("upstream refused", extra={"error": refusal.refusal.diagnostic})
                        return Ended(Finish.ERROR, refusal.refusal)
        except RefusedError as refusal:
            log.info("upstream refused", extra={"error": refusal.error.diagnostic})
            return Ended(Finish.ERROR, refusal.error)
        except LeftFormError as left:
            log.warning("an output left its form", extra={"tokens": run.tokens, "error": left.error.diagnostic})
            return Ended(Finish.ERROR, left.error)
        except (DiffersError, CallError) as fault:
            log.warning("a generation cannot go on", extra={"error": str(fault)})
            return Ended(Finish.ERROR, engine_failed(str(fault)))

    def _smaller(self, run: Run, input_tokens: int) -> bool:
        """Whether there is a smaller limit to try."""
        if isinstance(run.generation.input, Embed):
            return False
        if isinstance(run.generation.input, Chat):
            if run.tight or run.max_new is None:
                return False
        elif run.tight >= _GUESSES or input_tokens << run.tight >= self._asking.context_length:
            return False
        run.tight += 1
        return True

    async def _answer(self, run: Run, input_tokens: int) -> Ended:
        """One answer, from where the generation is to its end."""
        run.begin()
        path, body = path_and_body(self._asking, run, input_tokens)
        answer = Answer(self._http, self._times, run.generation, self._outbox.room, self._asking.events)
        if isinstance(run.generation.input, Embed):
            vectors, tokens = await answer.vectors(path, body)
            self._health.moved()
            run.input_tokens = tokens
            self._outbox.add_vectors(vectors)
            return Ended(Finish.STOP)
        there = bool(stops_there(self._asking, run.generation))
        reading = _Reading(run, answer, there, self._deliver, self._moved)
        if self._asking.streams:
            await answer.stream(path, body, reading.take)
        else:
            reading.take(await answer.whole(path, body))
        return self._ended(run, reading)

    def _ended(self, run: Run, reading: "_Reading") -> Ended:
        if reading.finish == "content_filter":
            return Ended(Finish.ERROR, content_filtered())
        if reading.finish in _ABORTED:
            raise UpstreamError(Kind.BROKEN, f"it ended with {reading.finish}")
        if not reading.stopped:
            self._deliver(run, run.end())
        if not reading.dropped:
            run.add_surplus()
            if run.overcounted:
                log.warning("more tokens were counted than the upstream says there are", extra={"counted": run.tokens})
        if reading.stopped:
            return Ended(Finish.STOP)
        reason = _FINISH.get(reading.finish or "", Finish.STOP)
        if reason is Finish.STOP and reading.stop is None:
            run.check_complete()
            chat = run.generation.input
            must_call = isinstance(chat, Chat) and chat.tool_mode is ToolMode.REQUIRED
            if must_call and "<tool_call>" not in run.so_far:
                return Ended(Finish.ERROR, engine_failed("the upstream made no call where one must be"))
        return Ended(reason, stop=reading.stop)

    def _deliver(self, run: Run, out: Out) -> None:
        if out.ids or out.text:
            self._outbox.add(run.key, out.ids, out.text, out.logprobs)
        else:
            self._outbox.beat()

    def _moved(self, run: Run) -> None:
        if not run.answered:
            run.answered = True
            self._health.moved()


class _Reading:
    """What is known of an answer while it comes. ``there``: the upstream looks for stop strings, too: it ends by itself
    where we find one, and says its usage."""

    def __init__(
        self, run: Run, answer: Answer, there: bool, deliver: Callable[[Run, Out], None], moved: Callable[[Run], None]
    ) -> None:
        self.finish: str | None = None
        self.stop: str | None = None
        self.stopped = False
        self.dropped = False
        self._run = run
        self._answer = answer
        self._there = there
        self._deliver = deliver
        self._moved = moved

    def take(self, chunk: Chunk) -> bool:
        """False: nothing more is wanted."""
        self._moved(self._run)
        if chunk.finish is not None:
            self.finish, self.stop = chunk.finish, chunk.stop
        if self.stopped:
            self._run.take_counts(chunk)
            return True
        out = self._run.take(chunk)
        self._deliver(self._run, out)
        if not out.stopped:
            return True
        self.stopped = True
        if not self._there and self.finish is None:
            self.dropped = True
            return False
        self._answer.complete()
        return True
