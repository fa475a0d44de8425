"""Which deltas of a request reach its client: each index once, in order, from the highest attempt seen."""

from enum import Enum


class Verdict(Enum):
    ACCEPT = "accept"
    # Void or seen already.
    DROP = "drop"
    # Tokens are missing between what was delivered and this: nothing after it can be delivered.
    GAP = "gap"


def judge(attempt: int, index: int, delta_attempt: int, first_index: int, token_count: int) -> Verdict:
    """What becomes of a delta when ``index`` tokens are delivered and ``attempt`` is the highest one seen.

    A higher attempt voids all lower ones from its first delta on, whatever the verdict on that delta is: whoever asks
    must remember ``max(attempt, delta_attempt)``.
    """
    if delta_attempt < attempt:
        return Verdict.DROP
    if first_index == index:
        return Verdict.ACCEPT
    if first_index < index and first_index + token_count <= index:
        return Verdict.DROP
    # Either tokens are missing, or the delta is half old: its text cannot be cut at a token, so it has no right end.
    return Verdict.GAP
