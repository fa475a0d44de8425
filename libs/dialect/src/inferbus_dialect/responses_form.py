"""A response as it comes off the log: the whole family of stream events, and the response object at any moment."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson
from inferbus.bus.v1.frame_pb2 import Close, TokenLogprob
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import FinishReason, Usage
from inferbus_contracts.pieces import CallArguments, CallEnd, CallStart, Piece, Pieces, Reasoning, Text
from inferbus_runtime.errors import InferBusError

from inferbus_dialect.form import event
from inferbus_dialect.responses_objects import in_words_of_responses, response_object
from inferbus_dialect.responses_output import (
    COMPLETED,
    IN_PROGRESS,
    INCOMPLETE,
    CallItem,
    MessageItem,
    OutputItem,
    Payload,
    ThoughtItem,
    logprob_objects,
)

# These are this edge's own troubles: the response is not failed by them, and can be asked for again.
_OF_THE_EDGE = frozenset(("draining", "bus_unavailable"))


class ResponsesForm:
    """See :class:`.form.Form`. ``sequence_number`` counts from 0 what the events' numbers count from 1."""

    __slots__ = (
        "_accepted", "_begun", "_completed", "_ending", "_error", "_first", "_hex", "_incomplete", "_items",
        "_logprobs", "_model", "_number", "_open", "_pieces", "_reply", "_status", "_stream", "_usage",
    )  # fmt: skip

    def __init__(self, first: bytes, reply: Mapping[str, Any], stream: bool) -> None:
        """``reply``: echo; background; tools and reasoning: what is looked for in the text; logprobs."""
        self._first = first
        self._hex = first.hex()
        self._reply = reply
        self._model: str = reply["model"]
        self._stream = stream
        self._number = 0  # events made
        self._accepted = self._begun = False
        self._status = "queued" if reply["background"] else IN_PROGRESS
        self._items: list[dict[str, Any]] = []  # those that have ended
        self._open: OutputItem | None = None
        tools, reasoning = reply["tools"], reply["reasoning"]
        must_call = reply.get("must_call", False)
        self._pieces = Pieces(tools=tools, reasoning=reasoning, must_call=must_call) if tools or reasoning else None
        self._logprobs: list[dict[str, Any]] = []  # of text that is held back
        self._ending: list[bytes] = []
        self._usage: Usage | None = None
        self._completed: int | None = None
        self._incomplete: str | None = None
        self._error: InferBusError | None = None

    # --- what the log says ------------------------------------------------------------------------------------------

    def accept(self) -> Sequence[bytes]:
        """What can be said as soon as the request is accepted, before anything of it is on the log."""
        if self._accepted:
            return ()
        self._accepted = True
        payloads: list[Payload] = [("response.created", {"response": self._object()})]
        if self._status == "queued":
            payloads.append(("response.queued", {"response": self._object()}))
        return self._events(payloads)

    def open(self, choice: int, revision: str, model: str = "") -> Sequence[bytes]:
        """The beginning, once: a later attempt goes on where the one before it was. ``response.created`` names the
        model that was asked, as it does where it is said before anybody knows which one answers."""
        if self._begun:
            return ()
        accepted = self.accept()
        self._model = model or self._model
        self._begun, self._status = True, IN_PROGRESS
        return [*accepted, *self._events([("response.in_progress", {"response": self._object()})])]

    def delta(self, choice: int, text: str, tokens: int, logprobs: Sequence[TokenLogprob]) -> Sequence[bytes]:
        said = logprob_objects(logprobs) if self._reply["logprobs"] else []
        if self._pieces is None:
            return self._events(self._text(text, said)) if text or said else ()
        self._logprobs += said
        payloads = self._piece(self._pieces.feed(text))
        if self._pieces.silent:  # what comes is no text, and does not get what a call or a thought had
            self._logprobs.clear()
        return self._events(payloads)

    def binary(self, index: int, data: bytes) -> None:
        """A response has none."""

    def close(self, choice: int, revision: str, close: Close, model: str = "") -> Sequence[bytes]:
        """Said with :meth:`finish`: there is one choice, and so one write for all of the end."""
        ending = list(self.open(choice, revision, model))
        self._usage = close.usage
        cut = close.finish_reason == FinishReason.FINISH_REASON_LENGTH
        if cut:
            self._incomplete = "max_output_tokens"
        elif close.HasField("end_time"):
            self._completed = close.end_time.seconds
        payloads = [] if self._pieces is None else self._piece(self._pieces.end())
        if not self._items and self._open is None:
            payloads += self._begin(MessageItem(self._hex, 0))  # it said nothing, and that is its answer
        payloads += self._end(INCOMPLETE if cut else COMPLETED)
        self._status = INCOMPLETE if cut else COMPLETED
        payloads.append((f"response.{self._status}", {"response": self._object()}))
        self._ending = [*ending, *self._events(payloads)]
        return ()

    def finish(self) -> Sequence[bytes]:
        return self._ending

    def fail(self, error: InferBusError) -> Sequence[bytes]:
        """``response.failed``, also for a cancelled one, which OpenAI has no event for: its status tells."""
        error = in_words_of_responses(error)
        if error.reason in _OF_THE_EDGE:
            said = {"code": error.reason, "message": error.message, "param": error.param or None}
            return self._events([("error", said)])
        events = list(self.open(0, ""))
        if error.error_class == ErrorClass.ERROR_CLASS_CANCELLED:
            self._status = "cancelled"
        else:
            self._status, self._error = "failed", error
        if self._pieces is not None:
            self._piece(self._pieces.end())
        self._end(INCOMPLETE)
        return [*events, *self._events([("response.failed", {"response": self._object()})])]

    def body(self) -> bytes:
        return orjson.dumps(self._object())

    # --- parts ------------------------------------------------------------------------------------------------------

    def _piece(self, pieces: Iterable[Piece]) -> list[Payload]:
        payloads: list[Payload] = []
        for piece in pieces:
            match piece:
                case Text(text):
                    payloads += self._text(text, self._take_logprobs())
                case Reasoning(text):
                    self._logprobs.clear()  # they belong to what is said, not to what is thought
                    payloads += self._thought(text)
                case CallStart(_, name):
                    self._logprobs.clear()
                    payloads += self._end(COMPLETED)
                    payloads += self._begin(CallItem(self._hex, len(self._items), name))
                case CallArguments(_, fragment) if isinstance(self._open, CallItem):
                    self._logprobs.clear()
                    payloads.append(self._open.grow(fragment))
                case CallEnd() if isinstance(self._open, CallItem):
                    self._open.whole = True
                    payloads += self._end(COMPLETED)
                case _:
                    raise ValueError("arguments outside of a call")
        return payloads

    def _text(self, text: str, logprobs: list[dict[str, Any]]) -> list[Payload]:
        payloads: list[Payload] = []
        item = self._open
        if not isinstance(item, MessageItem):
            payloads += self._end(COMPLETED)
            item = MessageItem(self._hex, len(self._items))
            payloads += self._begin(item)
        payloads.append(item.grow(text, logprobs))
        return payloads

    def _thought(self, text: str) -> list[Payload]:
        payloads: list[Payload] = []
        item = self._open
        if not isinstance(item, ThoughtItem):
            payloads += self._end(COMPLETED)
            item = ThoughtItem(self._hex, len(self._items))
            payloads += self._begin(item)
        payloads.append(item.grow(text))
        return payloads

    def _take_logprobs(self) -> list[dict[str, Any]]:
        taken, self._logprobs = self._logprobs, []
        return taken

    def _begin(self, item: OutputItem) -> list[Payload]:
        self._open = item
        return item.begun()

    def _end(self, status: str) -> list[Payload]:
        """Of the item that grows, if there is one."""
        item, self._open = self._open, None
        if item is None:
            return []
        self._items.append(item.item(status))
        return item.ended(status)

    def _object(self) -> dict[str, Any]:
        growing = [] if self._open is None else [self._open.item(IN_PROGRESS)]
        return response_object(
            self._first,
            self._reply,
            self._status,
            [*self._items, *growing],
            model=self._model,
            usage=self._usage,
            completed=self._completed,
            incomplete=self._incomplete,
            error=self._error,
        )

    def _events(self, payloads: Iterable[Payload]) -> list[bytes]:
        if not self._stream:
            return []
        events = []
        for name, fields in payloads:
            events.append(event({"type": name, "sequence_number": self._number, **fields}, name))
            self._number += 1
        return events
