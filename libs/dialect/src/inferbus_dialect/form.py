"""How an answer is written: one form for each API, from what the log says of a client call to the bytes of its answer.

A form is a pure function of the request's reply description and of what the log says, in the log's order: the same
calls give the same events, whoever reads. So a stream that broke is gone on with at any edge: the events are made
again from the first one, and those that the client has are not sent.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import orjson
from inferbus.bus.v1.frame_pb2 import Close, TokenLogprob
from inferbus_runtime.errors import InferBusError

DONE = b"data: [DONE]\n\n"


class Form(Protocol):
    """One answer. Each list holds whole server-sent events without their ``id:`` line, each ending in an empty line;
    with ``stream`` false at the form's making nothing needs to be returned, only kept for :meth:`body`."""

    def accept(self) -> Sequence[bytes]:
        """What can be said as soon as the request is accepted; :meth:`open` says it otherwise. The same events, and the
        same numbers, either way."""
        ...

    def open(self, choice: int, revision: str, model: str = "") -> Sequence[bytes]:
        """An attempt of this choice begins; again after a worker was lost. ``model``: which one answers, maybe a
        fallback of the one that was asked; empty: the one that was asked."""
        ...

    def delta(self, choice: int, text: str, tokens: int, logprobs: Sequence[TokenLogprob]) -> Sequence[bytes]:
        """``text`` may be empty, and so may ``tokens`` be 0. ``logprobs``: one a token, or none."""
        ...

    def binary(self, index: int, data: bytes) -> None:
        """What is no text: the vector of one input (float32, little-endian), or a part of what an inference call
        gives."""
        ...

    def close(self, choice: int, revision: str, close: Close, model: str = "") -> Sequence[bytes]:
        """The good end of one choice (stop or length). ``model``: as for :meth:`open`."""
        ...

    def finish(self) -> Sequence[bytes]:
        """All choices have ended."""
        ...

    def fail(self, error: InferBusError) -> Sequence[bytes]:
        """The bad end of the whole answer, inside a stream that has begun."""
        ...

    def body(self) -> bytes:
        """The answer in one piece: complete after :meth:`finish`; before, what is there so far where the API has a
        form for that (a response in progress)."""
        ...


@runtime_checkable
class Headed(Protocol):
    """A form whose body is not always JSON."""

    def fields(self) -> Mapping[str, str]:
        """Headers of the last :meth:`Form.body`, its Content-Type among them."""
        ...


def event(data: Mapping[str, Any], name: str | None = None) -> bytes:
    """One server-sent event."""
    head = b"" if name is None else b"event: %s\n" % name.encode()
    return b"%sdata: %s\n\n" % (head, safe_lines(orjson.dumps(data)))


def safe_lines(data: bytes) -> bytes:
    """``data`` (JSON) without the characters that only some readers of event streams take for line ends."""
    if b"\xc2\x85" in data or b"\xe2\x80" in data:
        data = data.replace(b"\xc2\x85", b"\\u0085").replace(b"\xe2\x80\xa8", b"\\u2028")
        data = data.replace(b"\xe2\x80\xa9", b"\\u2029")
    return data
