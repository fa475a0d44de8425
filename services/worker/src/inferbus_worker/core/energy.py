"""Whose the energy of the GPUs is: measured over an interval, shared by the tokens that were got in it.

A generation ends between two readings of the meter, and its Close does not wait for the next one. So what it gets of
the interval that is still open is worked out from the power of the interval before, and taken out of the measured
energy when that comes. Then, at every reading::

    given to requests + idle + held == measured + owed

``owed`` is 0 while the power does not fall; else it is what was given out too early, and the next intervals pay it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from inferbus.bus.v1.request_pb2 import GenerateRequest

from inferbus_worker.engine import Finish, Finished

# A power as old as this says nothing about now.
_POWER_AGE_SECONDS = 5.0
# Bytes of a request's text that make a token, about: the engine says the count only at the end.
_TOKEN_BYTES = 4


@dataclass(frozen=True, slots=True)
class Meter:
    """What one GPU says of its energy. ``joules``: a counter. ``watts``: its power now. None: it does not say."""

    joules: float | None = None
    watts: float | None = None


def drawn(before: Sequence[Meter], after: Sequence[Meter], seconds: float) -> float | None:
    """Joules of all GPUs between two readings; None if that is not known of each: a part would pass for the whole.

    A GPU without a counter, or whose counter began anew, has drawn the mean of its two powers.
    """
    total = 0.0
    for old, new in zip(before, after, strict=True):
        if old.joules is not None and new.joules is not None and new.joules >= old.joules:
            total += new.joules - old.joules
        elif old.watts is not None and new.watts is not None:
            total += (old.watts + new.watts) / 2 * seconds
        else:
            return None
    return total if after else None


def power(meters: Sequence[Meter]) -> float | None:
    """Watts of all GPUs now; None if one does not say."""
    watts = [meter.watts for meter in meters]
    known = [one for one in watts if one is not None]
    return sum(known) if known and len(known) == len(watts) else None


def input_weight(request: GenerateRequest, resumed: int = 0) -> int:
    """About how many tokens a prefill of it reads, ``resumed`` ones of an earlier attempt included. At least 1."""
    match request.WhichOneof("input"):
        case "prompt" if request.prompt.WhichOneof("prompt") == "tokens":
            size = len(request.prompt.tokens.ids)
        case "chat" | "prompt" | "embedding" as name:
            size = getattr(request, name).ByteSize() // _TOKEN_BYTES
        case _:
            size = 0
    return max(1, size + resumed)


def read_weight(finished: Finished) -> int:
    """How many tokens of input the engine has read for what ends; a call that has none at all weighs as one."""
    if finished.reason is Finish.STOP and not finished.input_tokens:
        return 1
    return finished.input_tokens - finished.cached_input_tokens


@dataclass(slots=True)
class _Account:
    """``tokens``: got since the last reading. ``unread``: of the input, before the first token. ``guessed``: of the
    input, in ``tokens``. ``measured``: so were all its intervals."""

    unread: int
    measured: bool
    joules: float = 0.0
    tokens: int = 0
    guessed: int = 0


class EnergyLedger:
    """Times are monotonic seconds. ``idle``: joules that are nobody's; ``held``: measured while something ran and
    nobody got a token, such as a long prefill: for who gets the next ones."""

    def __init__(self) -> None:
        self.idle = 0.0
        self.held = 0.0
        self.owed = 0.0
        self._accounts: dict[bytes, _Account] = {}
        self._tokens = 0  # of everybody since the last reading, less those of who ended with its share
        self._strangers = 0  # the part of them that has no account: it makes idle
        self._advanced = 0.0  # given since the last reading
        self._read_at: float | None = None
        self._watts: float | None = None

    def begin(self, key: bytes, weight: int) -> None:
        """The engine has it, or has it again: it reads ``weight`` tokens before the next one."""
        account = self._accounts.get(key)
        if account is None:
            self._accounts[key] = _Account(weight, measured=self._read_at is not None)
        else:
            account.unread = weight

    def got(self, keys: Iterable[bytes], counts: Iterable[int]) -> None:
        """Output tokens, as the columns of a step. The first ones say that the input has been read."""
        accounts = self._accounts
        for key, count in zip(keys, counts, strict=True):
            account = accounts.get(key)
            if account is None:
                self._strangers += count
            elif count:
                if account.unread:
                    account.guessed += account.unread
                    count += account.unread
                    account.unread = 0
                account.tokens += count
            self._tokens += count

    def end(self, ended: Mapping[bytes, int], now: float) -> dict[bytes, float]:
        """The joules of those that end now, as far as they are known. ``ended``: each with the input tokens that the
        engine has read, as it counts them."""
        accounts = {key: self._accounts.pop(key) for key in ended if key in self._accounts}
        for key, account in accounts.items():
            if ended[key] and (account.guessed or account.unread):
                more = ended[key] - account.guessed
                account.tokens += more
                self._tokens += more
        known = {}
        for key, account in accounts.items():
            share = self._share(account.tokens, now)
            if share is None:
                self._strangers += account.tokens
                self.idle += account.joules
                continue
            self._tokens -= account.tokens
            self._advanced += share
            if account.measured:
                known[key] = account.joules + share
            else:
                self.idle += account.joules + share
        return known

    def drop(self, keys: Iterable[bytes], now: float) -> None:
        """They end here without an end of their own: what was drawn for them is nobody's."""
        self.idle += sum(self.end(dict.fromkeys(keys, 0), now).values())

    def reading(self, at: float, joules: float | None, watts: float | None) -> None:
        """``joules`` since the last reading, None if not known, as the first time; ``watts`` that are drawn now."""
        if joules is None:
            for account in self._accounts.values():
                account.measured = False
                account.tokens = account.guessed = 0
        else:
            self._settle(joules)
            if watts is None and self._read_at is not None and at > self._read_at:
                watts = joules / (at - self._read_at)
        self._read_at, self._watts = at, watts
        self._tokens = self._strangers = 0
        self._advanced = 0.0

    def _settle(self, joules: float) -> None:
        pool = self.held + joules - self._advanced - self.owed
        pool, self.owed, self.held = max(pool, 0.0), max(-pool, 0.0), 0.0
        if self._tokens > 0:
            each = pool / self._tokens
            self.idle += each * self._strangers
            for account in self._accounts.values():
                account.joules += each * account.tokens
                account.tokens = account.guessed = 0
        elif self._accounts:
            self.held = pool
        else:
            self.idle += pool

    def _share(self, tokens: int, now: float) -> float | None:
        """Of what has been drawn since the last reading, as far as that is known."""
        if not tokens:
            return 0.0
        if self._read_at is None or self._watts is None or now - self._read_at > _POWER_AGE_SECONDS:
            return None
        drawn_since = self._watts * max(0.0, now - self._read_at)
        pool = max(0.0, self.held + drawn_since - self._advanced - self.owed)
        return pool * tokens / self._tokens
