"""Engine ``minilm``: vectors of texts from a small model on the CPU, and nothing else.

Tokenizer and forward pass run in threads. Each thread of the model takes one small batch after the other out of what
all running generations still need, in turn, so that one with thousands of texts does not hold up one with a single one.
"""

import asyncio
import hashlib
import logging
from array import array
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar, TypeVarTuple

from inferbus_runtime.errors import InferBusError, invalid

from inferbus_worker.config import Config, usable_cores
from inferbus_worker.core.ends import engine_failed
from inferbus_worker.engine import (
    Chat,
    Embed,
    EngineInfo,
    EngineStatistics,
    Finish,
    Finished,
    Generation,
    Prompt,
    Step,
    Tokens,
    Vector,
)
from inferbus_worker.engines.minilm_batches import Input, batch_bound, next_batch, queue_of
from inferbus_worker.engines.minilm_bert import Floats
from inferbus_worker.engines.minilm_model import PUBLIC_NAME, Model, load
from inferbus_worker.engines.outbox import Outbox
from inferbus_worker.engines.runs import End, Runs

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

log = logging.getLogger(__name__)

DEFAULT_CAPACITY = 64


@dataclass(slots=True, eq=False)
class _Run:
    """A submitted generation. ``queue``: inputs not yet in a batch. ``left``: inputs without a vector. ``task``: reads
    them."""

    key: bytes
    inputs: tuple[Prompt, ...]
    left: int
    queue: deque[Input] = field(default_factory=deque)
    embedded_tokens: int = 0
    task: asyncio.Task[None] | None = None


class MiniLm:
    """Engine ``minilm``."""

    def __init__(self, model: str, capacity: int, threads: int, context_length: int | None) -> None:
        self._name = model
        self._capacity = capacity
        self._threads = threads
        self._wanted_context = context_length
        self._reset()

    @classmethod
    def from_config(cls, config: Config) -> "MiniLm":
        return cls(
            config.model or PUBLIC_NAME,
            config.capacity or DEFAULT_CAPACITY,
            config.threads or usable_cores(),
            config.context_length,
        )

    def _reset(self) -> None:
        self._runs: Runs[_Run] = Runs(self._capacity)
        self._outbox = Outbox(self._runs.running)
        self._queues: deque[deque[Input]] = deque()
        self._work = asyncio.Event()
        self._model: Model | None = None
        self._context = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._pools: list[ThreadPoolExecutor] = []

    async def start(self) -> EngineInfo:
        """Reads the weights (0.2 s). Raises InferBusError if their package is not installed."""
        model = self._model = await asyncio.to_thread(load)
        self._context = min(self._wanted_context or model.context_length, model.context_length)
        # The tokenizer has a thread of its own: it is quick, and must not wait until a batch is over.
        reader, forward = ThreadPoolExecutor(1, "minilm-read"), ThreadPoolExecutor(self._threads, "minilm-forward")
        self._pools = [reader, forward]
        self._tasks = [asyncio.create_task(self._forward(model), name="minilm") for _ in range(self._threads)]
        for task in self._tasks:
            task.add_done_callback(self._died)
        self._outbox.open()
        revision = hashlib.sha256(f"{model.digest} {self._context}".encode()).hexdigest()[:12]
        return EngineInfo(
            engine="minilm",
            model=self._name,
            revision=revision,
            capacity=self._capacity,
            context_length=self._context,
            capabilities=("embeddings",),
            embedding_dimensions=model.dimensions,
        )

    def submit(self, generation: Generation) -> None:
        if not isinstance(generation.input, Embed):
            self._outbox.finish(Finished(generation.key, Finish.ERROR, 0, error=_no_text()))
        elif not generation.input.inputs:
            fault = invalid("Send at least one input.", param="input")
            self._outbox.finish(Finished(generation.key, Finish.ERROR, 0, error=fault))
        else:
            self._runs.waiting.append(_Run(generation.key, generation.input.inputs, len(generation.input.inputs)))
            self._admit()

    def close(self, key: bytes) -> None:
        if (run := self._runs.take(key)) is not None:
            self._end(run, End(Finish.CANCELLED))

    def steps(self) -> AsyncIterator[Step]:
        return self._outbox.steps()

    def statistics(self) -> EngineStatistics:
        return self._runs.statistics()

    async def tokenize(
        self, source: Prompt | Chat, *, parse_special: bool = True, add_special: bool = True, open_turn: bool = True
    ) -> Tokens:
        if isinstance(source, Chat):
            raise _no_text()
        model = self._started()
        [ids] = await self._in_reader(_tokenized, model, (source,), parse_special, add_special)
        _check_ids(ids, model.vocabulary, "prompt")
        return Tokens(list(ids), [piece.encode() for piece in model.pieces(ids)])

    async def detokenize(self, ids: Sequence[int]) -> bytes:
        model = self._started()
        _check_ids(ids, model.vocabulary, "tokens")
        text = await self._in_reader(model.detokenize, ids)
        return text.encode()

    async def stop(self) -> None:
        tasks = [*self._tasks, *self._runs.tasks()]
        pools = self._pools
        self._outbox.close()
        self._reset()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for pool in pools:
            await asyncio.to_thread(pool.shutdown, cancel_futures=True)

    # --- who runs ---------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        while (run := self._runs.next()) is not None:
            self._runs.begin(run, self._read(run))

    def _end(self, run: _Run, end: End) -> None:
        """The one end of a generation, whatever ended it. What is in a batch right now comes out for nobody."""
        self._runs.leave(run)
        self._queues = deque(queue for queue in self._queues if queue is not run.queue)
        self._outbox.finish(Finished(run.key, end.reason, run.embedded_tokens, error=end.error))
        self._admit()

    # --- from texts to vectors --------------------------------------------------------------------------------------

    async def _read(self, run: _Run) -> None:
        """Inputs into token ids, and these into the queues."""
        model = self._started()
        try:
            run.queue = await self._in_reader(_read_inputs, model, run.key, run.inputs, self._context)
        except InferBusError as error:
            self._end(run, End(Finish.ERROR, error))
            return
        except Exception as error:
            log.exception("the tokenizer failed")
            self._end(run, End(Finish.ERROR, engine_failed(repr(error))))
            return
        run.inputs = ()  # nobody needs the texts any more
        self._queues.append(run.queue)
        self._work.set()

    async def _forward(self, model: Model) -> None:
        """One thread's work: batch after batch, as long as somebody takes the vectors."""
        loop = asyncio.get_running_loop()
        while True:
            if not self._queues:
                self._work.clear()
                await self._work.wait()
                continue
            if not self._outbox.room.is_set():
                await self._outbox.room.wait()
                continue
            batch = next_batch(self._queues, batch_bound(self._queues, self._threads))
            try:
                ids = [one.ids for one in batch]
                vectors = await loop.run_in_executor(self._pools[1], model.embed, ids)
            except Exception as error:  # what the machine cannot do for these inputs ends their generations only
                log.exception("the model failed")
                running = self._runs.running
                for run in [running[key] for key in {one.key for one in batch} if key in running]:
                    self._end(run, End(Finish.ERROR, engine_failed(repr(error))))
                continue
            self._deliver(batch, vectors)

    def _deliver(self, batch: list[Input], vectors: Floats) -> None:
        rows, made = vectors.astype("<f4", copy=False), []
        ended: list[_Run] = []
        for one, row in zip(batch, rows, strict=True):
            run = self._runs.running.get(one.key)
            if run is None:
                continue  # closed meanwhile
            made.append(Vector(one.key, one.index, row.tobytes()))
            run.left -= 1
            run.embedded_tokens += len(one.ids)
            if not run.left:
                ended.append(run)
        self._outbox.add_vectors(made)
        for run in ended:
            self._end(run, End(Finish.STOP))

    def _died(self, task: asyncio.Task[None]) -> None:
        """A thread's loop ends only by :meth:`stop`, else by a fault of ours: then the worker starts us again."""
        if not task.cancelled() and task in self._tasks:
            self._outbox.die(repr(task.exception()))

    # --- the model --------------------------------------------------------------------------------------------------

    def _started(self) -> Model:
        if self._model is None:
            raise RuntimeError("the engine is not started")
        return self._model

    async def _in_reader(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pools[0], function, *args)


def _read_inputs(model: Model, key: bytes, sources: Sequence[Prompt], context: int) -> deque[Input]:
    """All that is to be done with a generation's inputs before the model; thousands of them take a while."""
    inputs = _tokenized(model, sources)
    _check_inputs(inputs, model.vocabulary, context)
    return queue_of(key, inputs)


def _tokenized(
    model: Model, sources: Sequence[Prompt], parse_special: bool = True, add_special: bool = True
) -> list[Sequence[int]]:
    """Ids of each input, kept small: a generation may have half a million. Ids that were sent are taken as they are."""
    return [
        array("I", model.tokenize(source.content, parse_special=parse_special, add_special=add_special))
        if isinstance(source.content, str)
        else source.content
        for source in sources
    ]


def _check_inputs(inputs: Sequence[Sequence[int]], vocabulary: int, context: int) -> None:
    for number, ids in enumerate(inputs):
        name = "The input" if len(inputs) == 1 else f"Input {number}"
        if len(ids) > context:
            raise invalid(
                f"{name} has {len(ids)} tokens, but the model reads at most {context}. Send it in shorter parts.",
                param="input",
                reason="context_length_exceeded",
            )
        if not ids:
            raise invalid(f"{name} has no tokens. Send at least one.", param="input")
        _check_ids(ids, vocabulary, "input")


def _check_ids(ids: Sequence[int], vocabulary: int, param: str) -> None:
    if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
        raise invalid(f"The model's token ids are from 0 to {vocabulary - 1}.", param=param)


def _no_text() -> InferBusError:
    return invalid("This model makes vectors and writes no text. Use it for embeddings.", param="model")
