"""Engine steps into frames: columns, one frame for each edge concerned."""

from collections.abc import Mapping, Sequence

from inferbus.bus.v1 import frame_pb2 as wire
from inferbus.bus.v1.frame_pb2 import Close, Frame
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus.common.v1.usage_pb2 import FinishReason, Usage

from inferbus_worker.core.running import Running
from inferbus_worker.core.timing import gap_us, timestamp
from inferbus_worker.engine import Finish, Finished, Step, TokenLogprob

WIRE_FINISH: dict[Finish, FinishReason.ValueType] = {
    Finish.STOP: FinishReason.FINISH_REASON_STOP,
    Finish.LENGTH: FinishReason.FINISH_REASON_LENGTH,
    Finish.CANCELLED: FinishReason.FINISH_REASON_CANCELLED,
    Finish.ERROR: FinishReason.FINISH_REASON_ERROR,
}


class EdgeColumns:
    """What one edge gets of one step. Plain lists: this runs for every token."""

    __slots__ = (
        "attempts", "closes", "context_index", "contexts", "counts", "embeddings", "first_index", "gaps", "keys",
        "logprobs", "opens", "sizes", "texts", "token_ids",
    )  # fmt: skip

    def __init__(self) -> None:
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

    def add(self, running: Running, ids: Sequence[int], text: bytes, gap: int) -> None:
        """One delta that follows what ``running`` has so far."""
        if not running.opened:
            self.open(running)
        self.keys.append(running.key)
        self.context_index.append(self.context_of(running))
        self.attempts.append(running.attempt)
        self.first_index.append(len(running.ids))
        self.counts.append(len(ids))
        self.gaps.append(gap)
        self.sizes.append(len(text))
        self.texts.append(text)
        self.token_ids.extend(ids)

    def open(self, running: Running) -> None:
        """What an edge needs to write its answer: in the first frame that holds something of the attempt."""
        running.opened = True
        opens = wire.Open(request_id=running.key, context_index=self.context_of(running), reply=running.request.reply)
        self.opens.append(opens)

    def context_of(self, running: Running) -> int:
        """Index of the request's context in this frame."""
        entry = self.contexts.get(running.context_key)
        if entry is None:
            entry = self.contexts[running.context_key] = (len(self.contexts), running.context)
        return entry[0]

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
        )


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
            one.ids += ids
        if step.logprobs:
            self._add_logprobs(step, running)
        for vector in step.embeddings:
            if (one := running.get(vector.key)) is not None:
                self._add_embedding(one, vector.index, vector.values)
        return total

    def _add_logprobs(self, step: Step, running: Mapping[bytes, Running]) -> None:
        for number, tokens in step.logprobs.items():
            key = step.keys[number]
            if (one := running.get(key)) is not None:
                columns = self.of(one.edge)
                columns.logprobs.append(
                    wire.DeltaLogprobs(delta=columns.keys.index(key), tokens=[_wire_logprob(token) for token in tokens])
                )

    def _add_embedding(self, running: Running, index: int, values: bytes) -> None:
        columns = self.of(running.edge)
        if not running.opened:
            columns.open(running)
        columns.embeddings.append(wire.Embedding(request_id=running.key, index=index, values=values))

    def open_attempt(self, running: Running) -> None:
        """A delta without token: names the index at which a new attempt resumes, before its first token is there."""
        self.of(running.edge).add(running, (), b"", 0)

    def add_close(self, running: Running, finished: Finished, engine: str) -> Close:
        columns = self.of(running.edge)
        if not running.opened:
            columns.open(running)
        close = close_of(running, finished, engine, self._time_us)
        close.context_index = columns.context_of(running)
        columns.closes.append(close)
        return close

    def frames(self) -> list[Frame]:
        return [columns.frame(edge, self._time_us) for edge, columns in self._edges.items()]


def _wire_logprob(token: TokenLogprob) -> wire.TokenLogprob:
    return wire.TokenLogprob(
        token_id=token.token_id,
        text=token.text,
        logprob=token.logprob,
        top=[wire.Alternative(token_id=one.token_id, text=one.text, logprob=one.logprob) for one in token.top],
    )


def close_of(running: Running, finished: Finished, engine: str, now_us: int) -> Close:
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
        ),
        priority_class=running.request.priority_class,
        accepted_time=timestamp(running.accepted_us),
        end_time=timestamp(now_us),
        engine=engine,
    )
    if finished.stop_index is not None:
        close.stop_index = finished.stop_index
    if error is not None:
        close.error.CopyFrom(error.to_proto())
    if running.placed_us:
        close.placed_time.CopyFrom(timestamp(running.placed_us))
    if running.started_us:
        close.started_time.CopyFrom(timestamp(running.started_us))
    if running.ids:
        close.first_token_time.CopyFrom(timestamp(running.first_us))
        close.last_token_time.CopyFrom(timestamp(running.last_us))
    return close
