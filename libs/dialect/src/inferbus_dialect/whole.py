"""Answers in one piece, gathered from frames: for whoever waits for ends and shows nothing before them.

The laws of a frame are those of the edge's streams (:mod:`.order`): each index once, in order, of the last attempt.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from inferbus.bus.v1.frame_pb2 import Close, Embedding, Frame, Output
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import Usage
from inferbus_contracts.ids import choice_id
from inferbus_runtime.errors import InferBusError

from inferbus_dialect.form import Form
from inferbus_dialect.frames import deltas, opening_context
from inferbus_dialect.order import Verdict, judge
from inferbus_dialect.translate import add_usage, error_of


@dataclass(slots=True)
class _Choice:
    """``opened``: the attempt whose deltas the form gets; 0: none, or it was fenced off."""

    number: int
    whole: "Whole"
    attempt: int = 0
    opened: int = 0
    index: int = 0
    closed: bool = False


@dataclass(slots=True)
class Whole:
    """One client call. Once ``ended`` is true ``error`` says how, or ``form.body()`` is the answer; ``choices`` are the
    ids of all its choices, ``usage`` is that of those that have ended."""

    first: bytes
    form: Form
    choices: tuple[bytes, ...]
    error: InferBusError | None = None
    usage: Usage = field(default_factory=Usage)
    ended: bool = False


class Wholes:
    """Those that are waited for. Frames are given in the order of the stream."""

    def __init__(self) -> None:
        self._choices: dict[bytes, _Choice] = {}

    def __contains__(self, first: bytes) -> bool:
        return first in self._choices

    def __len__(self) -> int:
        """Choices that are waited for."""
        return len(self._choices)

    def add(self, first: bytes, choices: int, form: Form) -> Whole:
        """From now on. ``form``: fresh, not for a stream."""
        whole = Whole(first, form, tuple(choice_id(first, number) for number in range(choices)))
        for number, request_id in enumerate(whole.choices):
            self._choices[request_id] = _Choice(number, whole)
        return whole

    def begun(self, first: bytes) -> bool:
        """Something of it is on the log."""
        choice = self._choices.get(first)
        return choice is not None and any(self._choices[one].attempt for one in choice.whole.choices)

    def drop(self, first: bytes) -> None:
        """It is waited for no longer."""
        choice = self._choices.get(first)
        if choice is not None:
            self._end(choice.whole)

    def take(self, frame: Frame) -> Iterator[Whole]:
        """Those that end by ``frame``, and those that can come to no good end any more while other choices of theirs
        still run: these are to be cancelled by whoever waits. To be walked to its end. Raises InferBusError INTERNAL
        ``broken_frame``."""
        for fence in frame.fences:
            fenced = self._choices.get(fence.request_id)
            if fenced is not None and fence.attempt > fenced.attempt:
                fenced.attempt, fenced.opened = fence.attempt, 0
        for request_id, context, attempt, first_index, count, text, _, logprobs in deltas(frame):
            choice = self._choices.get(request_id)
            if choice is None:
                continue
            if attempt != choice.opened or first_index != choice.index:
                verdict = judge(choice.attempt, choice.index, attempt, first_index, count)
                if verdict is Verdict.GAP:
                    if choice.whole.error is None:
                        choice.whole.error = _gap()
                        yield choice.whole
                    continue
                if attempt >= choice.attempt and attempt != choice.opened:
                    _open(choice, attempt, frame.contexts[context])
                if verdict is Verdict.DROP:
                    continue
            choice.index = first_index + count
            choice.whole.form.delta(choice.number, text.decode(), count, logprobs)
        parts: list[Embedding | Output] = [*frame.embeddings, *frame.outputs]
        for part in parts:
            choice = self._choices.get(part.request_id)
            if choice is not None:
                _take_part(choice, part, frame)
        for close in frame.closes:
            choice = self._choices.get(close.request_id)
            if choice is not None and not choice.closed and close.attempt >= choice.attempt:
                yield from self._close(choice, close, frame.contexts[close.context_index])

    def _close(self, choice: _Choice, close: Close, context: RequestContext) -> Iterator[Whole]:
        whole = choice.whole
        add_usage(whole.usage, close.usage)
        choice.closed = True
        error = error_of(close)
        if error is None and close.usage.output_tokens > choice.index:
            error = _gap()
        failed = error is not None and whole.error is None
        if whole.error is None:
            whole.error = error
        if error is None:
            if close.attempt != choice.opened:
                _open(choice, close.attempt, context)  # one that made nothing: what an earlier one left is void
            whole.form.close(choice.number, context.revision, close, context.model)
        if all(self._choices[one].closed for one in whole.choices):
            if whole.error is None:
                whole.form.finish()
            whole.ended = True
            self._end(whole)
            yield whole
        elif failed:
            yield whole

    def _end(self, whole: Whole) -> None:
        for one in whole.choices:
            del self._choices[one]


def _take_part(choice: _Choice, part: Embedding | Output, frame: Frame) -> None:
    attempt = part.attempt or 1
    if attempt >= choice.attempt and attempt != choice.opened:
        _open(choice, attempt, opening_context(frame, part.request_id))
    if attempt == choice.attempt:
        choice.whole.form.binary(part.index, part.values if isinstance(part, Embedding) else part.data)


def _open(choice: _Choice, attempt: int, context: RequestContext) -> None:
    choice.attempt = choice.opened = attempt
    choice.whole.form.open(choice.number, context.revision, context.model)


def _gap() -> InferBusError:
    return InferBusError(ErrorClass.ERROR_CLASS_INTERNAL, "token_gap", "The answer was interrupted; retry.")
