"""How fast a worker reads prompts, and since when it reads what it reads now: of what it was sent, and what it said."""

# Of the time a token takes: what the last reading says counts so much.
_NEWEST = 0.25
# What takes so many times as long as it should is not nearly read: the worker has something else to do.
_TOO_LONG = 2.0
# Of what it is thought to have read so much counts: one that has nothing to read for certain is worth more.
_SURE = 0.5


class Reading:
    """``changed`` whenever what is still to be read has. Times are monotonic seconds."""

    __slots__ = ("since", "token_seconds", "tokens")

    def __init__(self) -> None:
        self.tokens = 0
        # Since then it reads the first of them.
        self.since = 0.0
        # 0: not known.
        self.token_seconds = 0.0

    def changed(self, tokens: int, now: float, *, read: bool = False) -> None:
        """``read``: what it is less by was read, and did not go in another way."""
        read = read and tokens < self.tokens
        if read and now > self.since:
            measured = (now - self.since) / (self.tokens - tokens)
            known = self.token_seconds
            self.token_seconds = measured if not known else known + _NEWEST * (measured - known)
        if read or not self.tokens:
            self.since = now
        self.tokens = tokens


def unread(tokens: int, since: float, token_seconds: float, now: float) -> int:
    """How many of ``tokens`` count as still to be read, as far as the time since says; at least one of some."""
    if not tokens or not token_seconds:
        return tokens
    read = max(0.0, now - since) / token_seconds
    return tokens if read > _TOO_LONG * tokens else max(1, tokens - int(_SURE * read))
