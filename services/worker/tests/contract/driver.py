"""An engine under test with a reader of its steps, which checks what holds for every step of every engine."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from inferbus.bus.v1.request_pb2 import GenerateRequest
from inferbus_contracts.prefixes import hashes_of, prefix_of
from inferbus_worker.engine import (
    UNKNOWN_TOKEN,
    Chat,
    Embed,
    Finish,
    Finished,
    Generation,
    Infer,
    Message,
    Prompt,
    Sampling,
    Source,
    Step,
    TokenLogprob,
)

from services.worker.tests.contract.engines import has

GREEDY = Sampling(temperature=0.0, max_tokens=12)
SEA = "Tell me about the sea."
# Some of these come after their own end, when the machine is busy: a step is made, then read.
_CLOCK_SECONDS = 10.0


def said(content: str) -> Chat:
    return Chat((Message("user", content),))


def chunks_of(source: Source, salt: bytes = b"") -> tuple[int, ...]:
    """What an edge says that it begins with."""
    request = GenerateRequest(cache_salt=salt)
    request.context.model = "contract"
    match source:
        case Chat(messages):
            for message in messages:
                request.chat.messages.add(role=message.role, content=message.content)
        case Prompt(str() as text):
            request.prompt.text = text
        case Prompt(tuple() as ids):
            request.prompt.tokens.ids.extend(ids)
    return hashes_of(prefix_of(request))


@dataclass
class Answer:
    """What one generation yielded. ``deltas``: (tokens, text) of each, as they came."""

    ids: list[int] = field(default_factory=list)
    text: bytes = b""
    deltas: list[tuple[int, bytes]] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    vectors: list[bytes] = field(default_factory=list)
    end: Finished | None = None

    @property
    def reason(self) -> Finish | None:
        return self.end.reason if self.end else None

    @property
    def error(self) -> Any:
        return self.end.error if self.end else None

    def begun(self, tokens: int) -> dict[str, Any]:
        """How a generation is submitted that goes on after the first ``tokens`` of this one, or the next few where
        several came at once."""
        count, text = 0, b""
        for more, delta in self.deltas:
            if count >= tokens:
                break
            count, text = count + more, text + delta
        return {"resume_ids": tuple(self.ids[:count]), "resume_text": text.decode()}

    def is_after(self, begun: dict[str, Any], whole: "Answer") -> bool:
        """With what was delivered before it is the whole text, no token more or less."""
        text = begun["resume_text"].encode() + self.text
        return (text, len(begun["resume_ids"]) + len(self.ids)) == (whole.text, len(whole.ids))


class Driver:
    """``info``: once it is started. ``ids``: it says those of its tokens. ``asked``: chunks of all it was given."""

    def __init__(self, engine: Any, here: Any) -> None:
        self.engine = engine
        self.here = here
        self.has = has(here)
        self.ids = "ids" in self.has
        self.answers: dict[bytes, Answer] = {}
        self.asked: set[int] = set()
        self.reader: asyncio.Task[None] | None = None
        self._moved = asyncio.Condition()

    async def start(self) -> None:
        self.info = await self.engine.start()
        self.ids = not self.info.resumes_by_text
        self.reader = asyncio.create_task(self._read())

    async def stop(self) -> None:
        await self.engine.stop()
        if self.reader is not None:
            await asyncio.wait([self.reader], timeout=10)

    def submit(self, source: Source | str, sampling: Sampling = GREEDY, **more: Any) -> Answer:
        key = (len(self.answers) + 1).to_bytes(16, "big")
        answer = self.answers[key] = Answer()
        given = said(source) if isinstance(source, str) else source
        chunks = chunks_of(given, more.get("cache_salt", b""))
        self.asked.update(chunks)
        self.engine.submit(Generation(key, given, sampling, prefix=chunks, **more))
        return answer

    async def ask(self, source: Source | str, sampling: Sampling = GREEDY, **more: Any) -> Answer:
        answer = self.submit(source, sampling, **more)
        await self.ended(answer)
        return answer

    def close(self, answer: Answer) -> None:
        self.engine.close(next(key for key, value in self.answers.items() if value is answer))

    async def until(self, condition: Callable[[], bool], timeout: float = 120.0) -> None:
        async with asyncio.timeout(timeout), self._moved:
            while not condition():
                if self.reader is not None and self.reader.done():
                    self.reader.result()  # what it raised, a broken law or a death, and not a timeout
                await self._moved.wait()

    async def ended(self, *answers: Answer) -> None:
        await self.until(lambda: all(answer.end is not None for answer in answers))

    async def begun(self, answer: Answer, tokens: int = 1) -> None:
        """It has so many tokens."""
        await self.until(lambda: len(answer.ids) >= tokens)

    def same(self, one: Answer, other: Answer) -> bool:
        """By their token ids, where the engine says them."""
        return (one.text, len(one.ids)) == (other.text, len(other.ids)) and (not self.ids or one.ids == other.ids)

    async def _read(self) -> None:
        try:
            async for step in self.engine.steps():
                self._take(step)
                async with self._moved:
                    self._moved.notify_all()
        finally:
            async with self._moved:
                self._moved.notify_all()

    def _take(self, step: Step) -> None:
        assert abs(step.time_us / 1e6 - time.time()) < _CLOCK_SECONDS
        assert len(step.keys) == len(set(step.keys)) == len(step.counts) == len(step.texts)
        assert sum(step.counts) == len(step.token_ids)
        at = 0
        for number, (key, count, text) in enumerate(zip(step.keys, step.counts, step.texts, strict=True)):
            answer = self.answers[key]
            assert answer.end is None, "nothing may follow the end"
            text.decode()  # valid by itself
            answer.ids += step.token_ids[at : at + count]
            answer.text += text
            answer.deltas.append((count, text))
            at += count
            if number in step.logprobs:
                assert len(step.logprobs[number]) == count
                answer.logprobs += step.logprobs[number]
        assert not self.ids or UNKNOWN_TOKEN not in step.token_ids
        for vector in step.embeddings:
            assert vector.index == len(self.answers[vector.key].vectors)
            self.answers[vector.key].vectors.append(vector.values)
        for finished in step.finished:
            answer = self.answers[finished.key]
            assert answer.end is None, "one end"
            assert (finished.error is not None) == (finished.reason is Finish.ERROR)
            answer.end = finished


__all__ = ["GREEDY", "SEA", "Answer", "Driver", "Embed", "Infer", "Prompt", "chunks_of", "said"]
