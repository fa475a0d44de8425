"""How a model's workers are divided among its revisions. Pure."""

from collections.abc import Sequence

WHOLE = 1000
Shares = Sequence[tuple[str, int]]
"""(revision, thousandths of the requests that it should get)."""


def divide(total: int, shares: Shares) -> dict[str, int]:
    """Workers of each revision; none at all where ``total`` is 0 and only one is named.

    Each gets its part of ``total`` rounded up, the one with the most what the others leave; everyone at least one.
    Parts that come to more than a whole (old and new side by side, each able to carry all) are not taken from each
    other.
    """
    if not shares or (total <= 0 and len(shares) == 1):
        return {revision: 0 for revision, _ in shares}
    total = max(total, 1)
    parts = {revision: max(1, -(-total * permille // WHOLE)) for revision, permille in shares}
    if sum(permille for _, permille in shares) <= WHOLE:
        most = max(shares, key=lambda one: one[1])[0]
        parts[most] = max(1, total - sum(parts[one] for one, _ in shares if one != most))
    return parts
