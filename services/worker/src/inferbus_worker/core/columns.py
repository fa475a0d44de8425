"""Engine steps into frames: columns, one frame for each edge concerned; several if it would be a large one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from inferbus.bus.v1 import frame_pb2 as wire
from inferbus.bus.v1.frame_pb2 import Close, Frame
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus.common.v1.usage_pb2 import FinishReason, Usage
from inferbus_contracts.operations import operation_of
from inferbus_runtime.errors import InferBusError, invalid

from inferbus_worker.core.captured import captured_input
from inferbus_worker.core.running import Running
from inferbus_worker.core.timing import gap_us, timestamp
from inferbus_worker.engine import Finish, Finished, Step, TokenLogprob

WIRE_FINISH: dict[Finish, FinishReason.ValueType] = {
    Finish.STOP: FinishReason.FINISH_REASON_STOP,
    Finish.LENGTH: FinishReason.FINISH_REASON_LENGTH,
    Finish.CANCELLED: FinishReason.FINISH_REASON_CANCELLED,
    Finish.ERROR: FinishReason.FINISH_REASON_ERROR,
}

# The broker takes no message above 8 MiB, and a publisher that sends one is cut off. The step's frame for an edge is
# divided above this, so that only a reply makes a larger one: it cannot be divided, and comes as large as a request.
_FRAME_BYTES = 1 << 20
# A delta above this becomes several: one must fit into a frame beside the largest reply.
_DELTA_BYTES = 1 << 18
# Above it a reply is in no frame. An edge takes bodies up to 7 MiB, so none of an edge is.
MAX_REPLY_BYTES = (7 << 20) + (1 << 18)
# The most that a delta's entries take in the columns, and a token's id, and the ids and tags around what has a length.
_ENTRIES, _TOKEN, _FIELDS = 48, 5, 64


class EdgeColumns:
    """What one edge gets of one step. Plain lists: this runs for every token."""

    __slots__ = (
        "attempts", "closes", "context_index", "contexts", "counts", "embeddings", "extra", "first_index", "gaps",
        "keys", "logprobs", "opens", "outputs", "sizes", "texts", "token_ids",
    )  # fmt: skip

    def __init__(self) -> None:
        self.extra = 0  # bytes of all but deltas
        self.contexts: dict[bytes, tuple[int, RequestContext]] = {}
        self.keys: list[bytes] = []
        self.context_index: list[int] = []
        self.attempts: list[int] = []
        self.first_index: list[int] = []
        self.counts: list[int] = []
        self.gaps: list[int] = []
        self.sizes: list[int] = []
        self.texts: list[bytes] = []
        self.token_ids: list[int] = []
        self.closes: list[Close] = []
        self.opens: list[wire.Open] = []
        self.logprobs: list[wire.DeltaLogprobs] = []
        self.embeddings: list[wire.Embedding] = []
        self.outputs: list[wire.Output] = []

    def add(self, running: Running, ids: Sequence[int], text: bytes, gap: int) -> None:
        """One delta that follows what ``running`` has so far, and belongs to it from now on."""
        if not running.opened and not self.open(running):
            return
        self.keys.append(running.key)
        self.context_index.append(self.context_of(running))
        self.attempts.append(running.attempt)
        self.first_index.append(len(running.ids))
        self.counts.append(len(ids))
        self.gaps.append(gap)
        self.sizes.append(len(text))
        self.texts.append(text)
        self.token_ids.extend(ids)
        running.ids += ids
        if running.texts is not None:
            running.texts.append(text)

    def open(self, running: Running) -> bool:
        """What an edge needs to write its answer: in the first frame that holds something of the attempt. False: the
        reply fits into no frame, so nothing but the request's end may."""
        reply = running.request.reply
        if len(reply) > MAX_REPLY_BYTES:
            return False
        self.add_open(running, reply)
        return True

    def add_open(self, running: Running, reply: bytes) -> None:
        running.opened = True
        index = self.context_of(running)
        asked, truncated = captured_input(running.request) if running.context.captured else ("", False)
        opens = wire.Open(
            request_id=running.key, context_index=index, reply=reply, captured_input=asked,
            captured_input_truncated=truncated,
        )  # fmt: skip
        if running.first_started_us:
            opens.first_started_time.CopyFrom(timestamp(running.first_started_us))
        self.opens.append(opens)
        self.extra += _open_bytes(opens)

    def add_logprobs(self, logprobs: wire.DeltaLogprobs) -> None:
        self.logprobs.append(logprobs)
        self.extra += logprobs.ByteSize() + _FIELDS

    def add_embedding(self, embedding: wire.Embedding) -> None:
        self.embeddings.append(embedding)
        self.extra += len(embedding.values) + _FIELDS

    def add_output(self, output: wire.Output) -> None:
        self.outputs.append(output)
        self.extra += len(output.data) + _FIELDS

    def add_close(self, close: Close) -> None:
        self.closes.append(close)
        self.extra += close.ByteSize() + _FIELDS

    def context_of(self, running: Running) -> int:
        """Index of the request's context in this frame."""
        entry = self.contexts.get(running.context_key)
        return self.add_context(running.context_key, running.context) if entry is None else entry[0]

    def add_context(self, key: bytes, context: RequestContext) -> int:
        """Its index, if it is there already. ``key``: the same, serialized."""
        if key not in self.contexts:
            self.contexts[key] = (len(self.contexts), context)
            self.extra += len(key) + _FIELDS
        return self.contexts[key][0]

    def frames(self, edge: str, time_us: int) -> list[Frame]:
        """One, or several in the order in which they are to be published."""
        size = self.extra + sum(self.sizes) + _ENTRIES * len(self.keys) + _TOKEN * len(self.token_ids)
        parts = [self] if size <= _FRAME_BYTES else _Parts(self).columns
        return [part.frame(edge, time_us) for part in parts]

    def frame(self, edge: str, time_us: int) -> Frame:
        """A column that holds only its default stays empty."""
        return Frame(
            edge=edge,
            time_us=time_us,
            contexts=[context for _, context in self.contexts.values()],
            request_ids=b"".join(self.keys),
            context_index=self.context_index if any(self.context_index) else (),
            attempt=self.attempts if self.attempts.count(1) != len(self.attempts) else (),
            first_index=self.first_index,
            token_count=self.counts if self.counts.count(1) != len(self.counts) else (),
            gap_us=self.gaps,
            text_size=self.sizes,
            token_id=self.token_ids,
            text=b"".join(self.texts),
            closes=self.closes,
            opens=self.opens,
            logprobs=self.logprobs,
            embeddings=self.embeddings,
            outputs=self.outputs,
        )


class _Parts:
    """``whole``, which is used up, over several frames.

    By the laws of a frame: an Open goes where the first of its request goes, deltas stay in order, and nothing of a
    request follows its Close. That goes with the last delta, so that who resumes after a death between two of the
    frames finds both or none.
    """

    __slots__ = ("_context_bytes", "_contexts", "_opens", "_room", "columns")

    def __init__(self, whole: EdgeColumns) -> None:
        self.columns: list[EdgeColumns] = []
        self._room = 0  # in the last of them
        self._contexts = [(key, context) for key, (_, context) in whole.contexts.items()]
        self._context_bytes = max(map(len, whole.contexts), default=0) + _FIELDS
        self._opens = {opens.request_id: opens for opens in whole.opens}
        closes = {close.request_id: close for close in whole.closes}
        self._add_deltas(whole, closes)
        for embedding in whole.embeddings:
            self._place(embedding.request_id, len(embedding.values) + _FIELDS).embeddings.append(embedding)
        for output in whole.outputs:
            self._place(output.request_id, len(output.data) + _FIELDS).outputs.append(output)
        for close in closes.values():
            self._add_close(self._place(close.request_id, close.ByteSize() + _FIELDS), close)

    def _add_deltas(self, whole: EdgeColumns, closes: dict[bytes, Close]) -> None:
        """With the ``closes`` of requests that end with a delta, which are taken out."""
        ending = {key: number for number, key in enumerate(whole.keys) if key in closes}
        parts: list[wire.Embedding | wire.Output] = [*whole.embeddings, *whole.outputs]
        for part in parts:
            ending.pop(part.request_id, None)
        logprobs = {one.delta: one.tokens for one in whole.logprobs}
        position = 0
        for number, key in enumerate(whole.keys):
            ids = whole.token_ids[position : position + whole.counts[number]]
            position += len(ids)
            context = self._contexts[whole.context_index[number]]
            first, gap = whole.first_index[number], whole.gaps[number]
            close = closes.pop(key) if ending.get(key) == number else None
            left = close.ByteSize() + _FIELDS if close is not None else 0
            pieces = _pieces(ids, whole.texts[number], logprobs.get(number, ()))
            for at, (some, text, said) in enumerate(pieces, 1):
                size = _ENTRIES + _TOKEN * len(some) + len(text) + said.ByteSize() + _FIELDS
                columns = self._place(key, size + left if at == len(pieces) else size)
                if said.tokens:
                    said.delta = len(columns.keys)
                    columns.logprobs.append(said)
                columns.keys.append(key)
                columns.context_index.append(columns.add_context(*context))
                columns.attempts.append(whole.attempts[number])
                columns.first_index.append(first)
                columns.counts.append(len(some))
                columns.gaps.append(gap if some else 0)
                columns.sizes.append(len(text))
                columns.texts.append(text)
                columns.token_ids.extend(some)
                if some:
                    first, gap = first + len(some), 0
            if close is not None:
                self._add_close(columns, close)

    def _place(self, key: bytes, size: int) -> EdgeColumns:
        """Where so many bytes of the request go, behind its Open."""
        opens = self._opens.pop(key, None)
        size += self._context_bytes
        if opens is not None:
            size += _open_bytes(opens)
        if size > self._room:
            self.columns.append(EdgeColumns())
            self._room = _FRAME_BYTES
        self._room -= size
        columns = self.columns[-1]
        if opens is not None:
            opens.context_index = columns.add_context(*self._contexts[opens.context_index])
            columns.opens.append(opens)
        return columns

    def _add_close(self, columns: EdgeColumns, close: Close) -> None:
        close.context_index = columns.add_context(*self._contexts[close.context_index])
        columns.closes.append(close)


def _open_bytes(opens: wire.Open) -> int:
    return len(opens.reply) + len(opens.captured_input.encode()) + _FIELDS


def _pieces(
    ids: list[int], text: bytes, logprobs: Sequence[wire.TokenLogprob]
) -> list[tuple[list[int], bytes, wire.DeltaLogprobs]]:
    """A delta in deltas of about ``_DELTA_BYTES`` at most, each with its share of tokens and text."""
    size = len(text) + _TOKEN * len(ids) + sum(one.ByteSize() for one in logprobs)
    count = size // _DELTA_BYTES + 1
    pieces, at, cut = [], 0, 0
    for piece in range(1, count + 1):
        end, until = len(ids) * piece // count, len(text) * piece // count
        while until < len(text) and text[until] & 0xC0 == 0x80:  # inside a character
            until += 1
        pieces.append((ids[at:end], text[cut:until], wire.DeltaLogprobs(tokens=logprobs[at:end])))
        at, cut = end, until
    return pieces


class StepFrames:
    """The frames of one step in the making."""

    __slots__ = ("_edges", "_time_us")

    def __init__(self, time_us: int) -> None:
        self._time_us = time_us
        self._edges: dict[str, EdgeColumns] = {}

    def of(self, edge: str) -> EdgeColumns:
        columns = self._edges.get(edge)
        if columns is None:
            columns = self._edges[edge] = EdgeColumns()
        return columns

    def add_deltas(self, step: Step, running: Mapping[bytes, Running]) -> int:
        """Takes the deltas of ``running`` generations (others are passed over) and moves those on; counts tokens."""
        position = total = 0
        now = step.time_us
        for key, count, text in zip(step.keys, step.counts, step.texts, strict=True):
            ids = step.token_ids[position : position + count]
            position += count
            one = running.get(key)
            if one is None:
                continue
            gap = 0
            if count:
                gap = gap_us(now, one.last_us)
                one.last_us = now
                total += count
                if not one.first_us:
                    one.first_us = now
            self.of(one.edge).add(one, ids, text, gap)
        if step.logprobs:
            self._add_logprobs(step, running)
        for vector in step.embeddings:
            if (one := running.get(vector.key)) is not None:
                self._add_embedding(one, vector.index, vector.values)
        for output in step.outputs:
            if (one := running.get(output.key)) is not None:
                self._add_output(one, output.index, output.data)
        return total

    def _add_logprobs(self, step: Step, running: Mapping[bytes, Running]) -> None:
        for number, tokens in step.logprobs.items():
            key = step.keys[number]
            if (one := running.get(key)) is not None and one.opened:
                columns = self.of(one.edge)
                columns.add_logprobs(
                    wire.DeltaLogprobs(delta=columns.keys.index(key), tokens=[_wire_logprob(token) for token in tokens])
                )

    def _add_embedding(self, running: Running, index: int, values: bytes) -> None:
        columns = self.of(running.edge)
        if running.opened or columns.open(running):
            columns.add_embedding(
                wire.Embedding(request_id=running.key, index=index, values=values, attempt=running.attempt)
            )

    def _add_output(self, running: Running, index: int, data: bytes) -> None:
        columns = self.of(running.edge)
        if running.opened or columns.open(running):
            columns.add_output(wire.Output(request_id=running.key, index=index, data=data, attempt=running.attempt))

    def open_attempt(self, running: Running) -> None:
        """A delta without token: names the index at which a new attempt resumes, before its first token is there."""
        self.of(running.edge).add(running, (), b"", 0)

    def add_close(self, running: Running, finished: Finished, engine: str, joules: float | None = None) -> Close:
        columns = self.of(running.edge)
        if not running.opened and not columns.open(running):
            columns.add_open(running, b"")
            if finished.reason in (Finish.STOP, Finish.LENGTH):
                finished = replace(finished, reason=Finish.ERROR, error=reply_too_large())
        close = close_of(running, finished, engine, self._time_us, joules)
        close.context_index = columns.context_of(running)
        columns.add_close(close)
        return close

    def frames(self) -> list[Frame]:
        """In the order in which they are to be published."""
        return [frame for edge, columns in self._edges.items() for frame in columns.frames(edge, self._time_us)]


def _wire_logprob(token: TokenLogprob) -> wire.TokenLogprob:
    return wire.TokenLogprob(
        token_id=token.token_id,
        text=token.text,
        logprob=token.logprob,
        top=[wire.Alternative(token_id=one.token_id, text=one.text, logprob=one.logprob) for one in token.top],
    )


def reply_too_large() -> InferBusError:
    """No frame can hold what says how its answer is written."""
    return invalid("What the answer repeats of the request is too long; send less.", reason="request_too_large")


def close_of(running: Running, finished: Finished, engine: str, now_us: int, joules: float | None = None) -> Close:
    """The end of a generation. What we closed for a reason of our own is an error, the client's cancel is not."""
    reason, error = finished.reason, finished.error
    if reason is Finish.CANCELLED and running.verdict is not None:
        reason, error = Finish.ERROR, running.verdict
    elsewhere = running.request.input_counted_elsewhere
    close = Close(
        request_id=running.key,
        attempt=running.attempt,
        finish_reason=WIRE_FINISH[reason],
        usage=Usage(
            input_tokens=0 if elsewhere else finished.input_tokens,
            cached_input_tokens=0 if elsewhere else finished.cached_input_tokens,
            output_tokens=len(running.ids),
            estimated=finished.estimated,
        ),
        priority_class=running.request.priority_class,
        accepted_time=timestamp(running.accepted_us),
        end_time=timestamp(now_us),
        engine=engine,
        energy_joules=joules,
        operation=operation_of(running.request),
    )
    if running.request.HasField("labels"):
        close.labels.CopyFrom(running.request.labels)
    if finished.stop_index is not None:
        close.stop_index = finished.stop_index
    if error is not None:
        close.error.CopyFrom(error.to_proto())
    if running.placed_us:
        close.placed_time.CopyFrom(timestamp(running.placed_us))
    if running.started_us:
        close.started_time.CopyFrom(timestamp(running.started_us))
    if running.first_started_us:
        close.first_started_time.CopyFrom(timestamp(running.first_started_us))
    close.failed_revisions.extend(running.request.resume.failed_revisions)
    close.cold_start_us = running.cold_start_us
    if running.ids:
        close.first_token_time.CopyFrom(timestamp(running.first_us))
        close.last_token_time.CopyFrom(timestamp(running.last_us))
    return close
