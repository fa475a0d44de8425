"""Deltas that come request by request, gathered into steps: the one place where this is done."""

from inferbus_worker.engine import Finished, Step, TokenLogprob


class StepBuilder:
    """Gathers deltas until :meth:`take`. Two deltas of one generation become one, in order."""

    __slots__ = ("_finished", "_ids", "_logprobs", "_texts", "tokens")

    def __init__(self) -> None:
        self._ids: dict[bytes, list[int]] = {}
        self._texts: dict[bytes, list[bytes]] = {}
        self._logprobs: dict[bytes, list[TokenLogprob]] = {}
        self._finished: list[Finished] = []
        self.tokens = 0
        """Tokens gathered and not yet taken."""

    def __bool__(self) -> bool:
        return bool(self._ids or self._finished)

    def moved(self) -> int:
        """How many generations have a delta here."""
        return len(self._ids)

    def add(self, key: bytes, token_ids: list[int], text: bytes, logprobs: list[TokenLogprob] | None = None) -> None:
        """One delta; ``text`` is valid UTF-8 by itself. ``logprobs``: one a token, if they were asked for."""
        if key in self._ids:
            self._ids[key].extend(token_ids)
            self._texts[key].append(text)
        else:
            self._ids[key] = list(token_ids)
            self._texts[key] = [text]
        self.tokens += len(token_ids)
        if logprobs:
            self._logprobs.setdefault(key, []).extend(logprobs)

    def finish(self, finished: Finished) -> None:
        self._finished.append(finished)

    def take(self, time_us: int) -> Step:
        """All that was gathered, as the step that ended at ``time_us`` (Unix microseconds); empty afterwards."""
        step = Step(
            time_us=time_us,
            keys=list(self._ids),
            counts=[len(ids) for ids in self._ids.values()],
            token_ids=[token for ids in self._ids.values() for token in ids],
            texts=[b"".join(texts) for texts in self._texts.values()],
            finished=self._finished,
        )
        if self._logprobs:
            places = {key: number for number, key in enumerate(step.keys)}
            step.logprobs = {places[key]: tokens for key, tokens in self._logprobs.items()}
            self._logprobs = {}
        self._ids, self._texts, self._finished, self.tokens = {}, {}, [], 0
        return step
