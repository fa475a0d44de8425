"""A frame's columns, decoded to be walked once: the inside of the hot path, so no object per token is kept."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, repeat

from inferbus.bus.v1.frame_pb2 import Frame, TokenLogprob
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_contracts.ids import REQUEST_ID_BYTES
from inferbus_runtime.errors import InferBusError

from inferbus_dialect.sse import escape, needs_escape

# request id, index into the frame's contexts, attempt, first index, token count, text, text escaped for JSON,
# log-probabilities (one a token, or none)
Delta = tuple[bytes, int, int, int, int, bytes, bytes, Sequence[TokenLogprob]]
_NONE: tuple[TokenLogprob, ...] = ()


def deltas(frame: Frame) -> Iterator[Delta]:
    """The deltas of ``frame``, in order. Raises InferBusError INTERNAL ``broken_frame`` if the columns do not agree."""
    first_index = list(frame.first_index)
    total = len(first_index)
    sizes = list(frame.text_size)
    ids, text = frame.request_ids, frame.text
    contexts = _column(list(frame.context_index), total, 0)
    attempts = _column(list(frame.attempt), total, 1)
    counts = _column(list(frame.token_count), total, 1)
    if (
        len(ids) != total * REQUEST_ID_BYTES
        or len(sizes) != total
        or sum(sizes) != len(text)
        or not len(contexts) == len(attempts) == len(counts) == total
        or 0 in attempts  # an attempt counts from 1; only an end may have none
        or max(contexts, default=-1) >= len(frame.contexts)
        or any(close.context_index >= len(frame.contexts) for close in frame.closes)
        or any(one.context_index >= len(frame.contexts) for one in frame.opens)
    ):
        raise _broken(frame)
    ends = list(accumulate(sizes))
    texts = [text[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    escaped = [escape(one) for one in texts] if needs_escape(text) else texts
    logprobs: Iterable[Sequence[TokenLogprob]] = repeat(_NONE, total)
    if frame.logprobs:
        known = {one.delta: one.tokens for one in frame.logprobs}
        logprobs = [known.get(at, _NONE) for at in range(total)]
    names = [ids[at : at + REQUEST_ID_BYTES] for at in range(0, len(ids), REQUEST_ID_BYTES)]
    return zip(names, contexts, attempts, first_index, counts, texts, escaped, logprobs, strict=True)


def opening_context(frame: Frame, request_id: bytes) -> RequestContext:
    """What runs the attempt that ``frame`` opens; empty if its opening is not here: its end says it, too."""
    indices = (one.context_index for one in frame.opens if one.request_id == request_id)
    index = next(indices, None)
    return RequestContext() if index is None else frame.contexts[index]


def _broken(frame: Frame) -> InferBusError:
    name = f"{frame.worker}-{frame.boot}-{frame.sequence}"
    return InferBusError(
        ErrorClass.ERROR_CLASS_INTERNAL,
        "broken_frame",
        "The server had an error; retry.",
        diagnostic=f"the columns of frame {name} do not agree",
    )


def _column(values: list[int], total: int, default: int) -> list[int]:
    """A column that may be left out when all its values are the default."""
    return values or list(repeat(default, total))
