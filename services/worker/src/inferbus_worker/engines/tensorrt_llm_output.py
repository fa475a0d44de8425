"""What the engine's results say, read with cursors of our own: it hands out one object again and again, grown."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from inferbus_worker.engine import UNKNOWN_LOGPROB, Alternative, Finish, TokenLogprob
from inferbus_worker.engines.tensorrt_llm_text import Vocabulary

# Others ("timeout", "cancelled" by somebody else, none at all) are failures.
FINISHES = {"stop": Finish.STOP, "length": Finish.LENGTH}


@dataclass(frozen=True, slots=True)
class News:
    """``ids``: since last time, to be delivered. ``ended``: the model ended its turn behind them.

    ``logprobs``: the engine's entries of ``ids``.
    """

    ids: list[int]
    ended: bool
    logprobs: Sequence[Any]
    finish: str | None


class Cursor:
    """Where in one result we are."""

    __slots__ = ("_at", "_end_ids")

    def __init__(self, end_ids: Collection[int]) -> None:
        self._at = 0
        self._end_ids = end_ids

    def read(self, completion: Any) -> News:
        """What ``completion`` (of ``result.outputs``) has more than last time.

        The token that ends a turn is in it or not, by version and by which one it is; here it never is.
        """
        at = self._at
        ids = list((completion.token_ids or [])[at:])
        self._at += len(ids)
        end = next((number for number, token in enumerate(ids) if token in self._end_ids), None)
        if end is not None:
            del ids[end:]
        finish = completion.finish_reason
        entries = (completion.logprobs or [])[at : at + len(ids)]
        return News(ids, end is not None or finish == "stop", entries, finish)


def logprobs_of(ids: Sequence[int], entries: Sequence[Any], alternatives: int, words: Vocabulary) -> list[TokenLogprob]:
    """One a token. An entry is a dict by token id, or a bare number, by version."""
    listed = [*entries, *[None] * (len(ids) - len(entries))]
    return [_logprob(token, entry, alternatives, words) for token, entry in zip(ids, listed, strict=True)]


def _logprob(token: int, entry: Any, alternatives: int, words: Vocabulary) -> TokenLogprob:
    if entry is None:
        return TokenLogprob(token, words.texts[token], UNKNOWN_LOGPROB)
    if not isinstance(entry, dict):
        return TokenLogprob(token, words.texts[token], float(entry))
    values = {other: float(one.logprob if hasattr(one, "logprob") else one) for other, one in entry.items()}
    best = sorted(values.items(), key=lambda pair: -pair[1])[:alternatives]
    top = tuple(Alternative(other, words.texts[other], value) for other, value in best)
    return TokenLogprob(token, words.texts[token], values.get(token, UNKNOWN_LOGPROB), top)


def cached_of(result: Any, completion: Any, block_tokens: int) -> int:
    """Input tokens that came from the KV cache, as far as the engine says it."""
    told = int(getattr(result, "cached_tokens", 0) or 0)
    metrics = getattr(getattr(completion, "request_perf_metrics", None), "kv_cache_metrics", None)
    blocks = int(getattr(metrics, "num_reused_blocks", 0) or 0)
    return max(told, blocks * block_tokens)
