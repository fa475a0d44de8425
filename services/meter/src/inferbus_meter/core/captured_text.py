"""Text of captured requests, gathered from frames."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.common.v1.context_pb2 import RequestContext

INPUT, OUTPUT = "input", "output"
# What follows is not kept.
MAX_OUTPUT_TOKENS = 32_768
# So many bytes of text count like a row when a block is cut: they wait in memory like one.
_BYTES_A_ROW = 256


@dataclass(slots=True)
class Stretch:
    """What one block of frames says of one attempt: its prompt, or some of its output."""

    request_id: bytes
    context: RequestContext
    attempt: int
    kind: str
    time_us: int
    sequence: int
    truncated: bool = False
    first_index: "array[int]" = field(default_factory=lambda: array("I"))
    token_count: "array[int]" = field(default_factory=lambda: array("I"))
    text_size: "array[int]" = field(default_factory=lambda: array("I"))
    text: bytearray = field(default_factory=bytearray)


class CapturedText:
    """Collects the text of captured requests from frames, in stream order. Of all others it looks at nothing."""

    def __init__(self) -> None:
        self._stretches: dict[tuple[bytes, int, str], Stretch] = {}
        self._bytes = 0

    @property
    def size(self) -> int:
        """As rows."""
        return self._bytes // _BYTES_A_ROW

    @property
    def stretches(self) -> tuple[Stretch, ...]:
        return tuple(self._stretches.values())

    def take(self, frame: Frame, sequence: int, time_us: int) -> None:
        """A frame whose form was checked."""
        captured = [context.captured for context in frame.contexts]
        if not any(captured):
            return
        attempts = {}
        if len(frame.text_size) == len(frame.first_index) and sum(frame.text_size) == len(frame.text):
            attempts = self._take_deltas(frame, captured, sequence, time_us)
        for opens in frame.opens:
            if opens.context_index >= len(captured) or not captured[opens.context_index]:
                continue
            if not (opens.captured_input or opens.captured_input_truncated):
                continue
            attempt = attempts.get(opens.request_id, 1)
            stretch = self._stretch(opens.request_id, frame, opens.context_index, attempt, INPUT, sequence, time_us)
            stretch.truncated = opens.captured_input_truncated
            text = opens.captured_input.encode()
            stretch.text[:] = text
            self._bytes += len(text)

    def _take_deltas(self, frame: Frame, captured: Sequence[bool], sequence: int, time_us: int) -> dict[bytes, int]:
        """The attempts of its requests."""
        attempts: dict[bytes, int] = {}
        position = 0
        for number, size in enumerate(frame.text_size):
            begin, position = position, position + size
            context = frame.context_index[number] if frame.context_index else 0
            if not captured[context]:
                continue
            request_id = frame.request_ids[16 * number : 16 * number + 16]
            attempt = frame.attempt[number] if frame.attempt else 1
            attempts[request_id] = attempt
            index = frame.first_index[number]
            stretch = self._stretch(request_id, frame, context, attempt, OUTPUT, sequence, time_us)
            kept = index < MAX_OUTPUT_TOKENS
            stretch.truncated |= not kept and size > 0
            stretch.first_index.append(index)
            stretch.token_count.append(frame.token_count[number] if frame.token_count else 1)
            stretch.text_size.append(size if kept else 0)
            if kept:
                stretch.text += frame.text[begin:position]
                self._bytes += size
        return attempts

    def _stretch(
        self, request_id: bytes, frame: Frame, context: int, attempt: int, kind: str, sequence: int, time_us: int
    ) -> Stretch:
        known = self._stretches.get((request_id, attempt, kind))
        if known is None:
            of = RequestContext()
            of.CopyFrom(frame.contexts[context])
            known = Stretch(request_id, of, attempt, kind, time_us, sequence)
            self._stretches[request_id, attempt, kind] = known
        return known
