"""Requests and tokens a minute and requests at once, of keys, projects and tenants, held by several edges together.

No edge asks another before it lets a request pass. Each says every TICK_MS what it has let pass itself, and counts
against a limit its own window and what it last heard of the others' windows. So in any rolling minute

    accepted <= limit + what the other edges accept within the last D,    D = TICK_MS + the bus's delay

and never more than limit x edges; tokens also by what requests use beyond their estimates. An edge that just came up
knows the others' last minute after 1 s (which is D until then); a lost message makes D 1 s longer. The minute of an
edge that was killed is kept by the others, not by its successor. Requests at once have the same bound; those of an edge
that is not heard any more count for SILENT_MS.

A Spend says the sender's whole window, so that a lost message, a late joiner, a new boot and a pause of the bus need no
history. The totals tell an overtaken message (fewer requests) from a newer one.

Times are milliseconds of a monotonic clock of the caller's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

from inferbus.bus.v1.control_pb2 import ScopeSpend, Spend

from inferbus_edge.core.window import SLOT_MS, WINDOW_MS, Level, Quantity

TICK_MS = 100
SILENT_MS = 3000
# Each scope's turn to be said again, and looked through, comes once in so many ticks.
_TICKS_A_TURN = 10
# A window that got empty is said for some turns: then a lost one of these messages does no harm.
_SAID_MS = WINDOW_MS + 4000
# Totals may begin anew only when no edge holds older ones: they hold a last non-empty window for WINDOW_MS.
_FORGET_MS = 2 * WINDOW_MS + 8000
# A message of so many scopes is far below the broker's largest.
_SCOPES_A_MESSAGE = 500

Dimension = Literal["requests", "tokens", "concurrent"]
Source = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Limits:
    """None: no limit of its own; 0: none allowed. ``requests`` and ``tokens`` are per minute."""

    requests: int | None = None
    tokens: int | None = None
    concurrent: int | None = None


Scoped = Sequence[tuple[str, Limits]]


@dataclass(frozen=True, slots=True)
class Refusal:
    """The limit that stands longest in the way. ``wait_ms``: until it lets this pass if nothing else comes; None: it
    never does. Of a concurrent limit it is a guess."""

    scope: str
    dimension: Dimension
    limit: int
    used: int
    requested: int
    wait_ms: int | None


@dataclass(frozen=True, slots=True)
class Spent:
    """What was set aside for a request: needed to settle it."""

    scopes: tuple[str, ...]
    tokens: int
    second: int


@dataclass(frozen=True, slots=True)
class _Heard:
    """The last word of one boot of another edge on one scope: totals and windows."""

    requests_total: int
    tokens_total: int
    requests: int
    tokens: int
    concurrent: int
    heard_ms: int

    def is_nothing(self) -> bool:
        return not (self.requests or self.tokens or self.concurrent)


_NOTHING = _Heard(0, 0, 0, 0, 0, 0)


class _Scope:
    """One tenant, project or key. ``used_ms``: last used at this edge; None: never."""

    __slots__ = ("concurrent", "concurrent_elsewhere", "others", "requests", "tokens", "used_ms")

    def __init__(self) -> None:
        self.requests = Quantity()
        self.tokens = Quantity()
        self.concurrent = 0
        self.concurrent_elsewhere = 0
        self.others: dict[Source, _Heard] = {}
        self.used_ms: int | None = None

    def hear(self, source: Source, heard: _Heard) -> None:
        last = self.others.get(source)
        if last is not None and heard.requests_total < last.requests_total:
            return
        second = heard.heard_ms // SLOT_MS
        # Of an edge not heard before, all of its window may be new; of a known one, what it adds to its totals.
        new_requests = heard.requests if last is None else heard.requests_total - last.requests_total
        new_tokens = heard.tokens if last is None else max(0, heard.tokens_total - last.tokens_total)
        self.requests.arrivals.add(second, new_requests)
        self.tokens.arrivals.add(second, new_tokens)
        self._replace(source, heard)

    def silence(self, now: int) -> None:
        """Let go of what was heard too long ago."""
        for source, heard in list(self.others.items()):
            age = now - heard.heard_ms
            if age > WINDOW_MS:
                self._replace(source, _NOTHING)
            elif age > SILENT_MS and heard.concurrent:
                self._replace(source, replace(heard, concurrent=0))

    def _replace(self, source: Source, heard: _Heard) -> None:
        last = self.others.pop(source, _NOTHING)
        self.requests.elsewhere += heard.requests - last.requests
        self.tokens.elsewhere += heard.tokens - last.tokens
        self.concurrent_elsewhere += heard.concurrent - last.concurrent
        if not heard.is_nothing():
            self.others[source] = heard

    def is_said(self, now: int) -> bool:
        return self.used_ms is not None and (self.concurrent > 0 or now - self.used_ms < _SAID_MS)

    def is_over(self, now: int) -> bool:
        idle = self.used_ms is None or now - self.used_ms > _FORGET_MS
        return idle and not self.concurrent and not self.others

    def refusals(self, name: str, limits: Limits, requests: int, tokens: int, now: int) -> Iterator[Refusal]:
        second = now // SLOT_MS
        if limits.requests is not None:
            used = self.requests.used(second)
            if used + requests > limits.requests:
                wait = _wait(self.requests, limits.requests, used, requests, now)
                yield Refusal(name, "requests", limits.requests, used, requests, wait)
        if limits.tokens is not None:
            used = self.tokens.used(second)
            # Nothing is answered without a token: so 0 of an uncertain caller does not pass a limit that is reached.
            if used + max(tokens, 1) > limits.tokens:
                wait = _wait(self.tokens, limits.tokens, used, max(tokens, 1), now)
                yield Refusal(name, "tokens", limits.tokens, used, tokens, wait)
        if limits.concurrent is not None and self.concurrent + self.concurrent_elsewhere >= limits.concurrent:
            self.silence(now)
            used = self.concurrent + self.concurrent_elsewhere
            if used >= limits.concurrent:
                yield Refusal(name, "concurrent", limits.concurrent, used, 1, SLOT_MS if limits.concurrent else None)


def _wait(quantity: Quantity, limit: int, used: int, amount: int, now: int) -> int | None:
    return None if amount > limit else quantity.wait_ms(now, used + amount - limit)


class Ledger:
    """What this edge has let pass and what it heard of the others. ``boot`` tells two lives of one edge apart.

    Memory: 2 KB a scope (4 KB if other edges use it as well), for about two minutes after its last use at any edge.
    """

    def __init__(self, edge: str, boot: int) -> None:
        self._me = (edge, boot)
        self._scopes: dict[str, _Scope] = {}
        self._changed: set[str] = set()
        self._tick = 0

    def __len__(self) -> int:
        """Scopes held."""
        return len(self._scopes)

    def check(self, scopes: Scoped, requests: int, tokens: int, now: int) -> Refusal | None:
        """Whether all ``scopes`` have room; counts nothing."""
        worst: Refusal | None = None
        for name, limits in scopes:
            scope = self._scopes.get(name) or _Scope()
            for refusal in scope.refusals(name, limits, requests, tokens, now):
                if worst is None or _wait_key(refusal) > _wait_key(worst):
                    worst = refusal
        return worst

    def spend(self, scopes: Scoped, requests: int, tokens: int, now: int) -> Spent:
        """Count one call that begins now. It must be settled, or it is running for ever."""
        second = now // SLOT_MS
        names = tuple(name for name, _ in scopes)
        for name in names:
            scope = self._scopes.get(name)
            if scope is None:
                scope = self._scopes[name] = _Scope()
            scope.requests.spend(second, requests)
            scope.tokens.spend(second, tokens)
            scope.concurrent += 1
            scope.used_ms = now
        self._changed.update(names)
        return Spent(names, tokens, second)

    def settle(self, spent: Spent, tokens: int, now: int) -> None:
        """The call has ended and used ``tokens``. To be called once."""
        for name in spent.scopes:
            scope = self._scopes[name]  # kept as long as a call of it runs
            scope.tokens.correct(spent.second, now // SLOT_MS, tokens - spent.tokens)
            scope.concurrent -= 1
            scope.used_ms = now
        self._changed.update(spent.scopes)

    def levels(self, scopes: Scoped, now: int) -> tuple[Level | None, Level | None]:
        """Of requests and of tokens, the scope that has least left; None: no scope has a limit."""
        requests: list[Level] = []
        tokens: list[Level] = []
        for name, limits in scopes:
            scope = self._scopes.get(name) or _Scope()
            if limits.requests is not None:
                requests.append(scope.requests.level(limits.requests, now))
            if limits.tokens is not None:
                tokens.append(scope.tokens.level(limits.tokens, now))
        return min(requests, key=_tightness, default=None), min(tokens, key=_tightness, default=None)

    def heard(self, spend: Spend, now: int) -> None:
        """Another edge's word; own ones come back and are ignored."""
        source = (spend.edge, spend.boot)
        if source == self._me:
            return
        for said in spend.scopes:
            heard = _Heard(
                requests_total=said.requests_total,
                tokens_total=said.tokens_total,
                requests=said.requests,
                tokens=said.tokens,
                concurrent=said.concurrent,
                heard_ms=now,
            )
            scope = self._scopes.get(said.scope)
            if scope is None:
                if heard.is_nothing():
                    continue
                scope = self._scopes[said.scope] = _Scope()
            scope.hear(source, heard)

    def report(self, now: int) -> list[Spend]:
        """What to tell the other edges; to be called every TICK_MS. Also lets go of what is over."""
        names = self._changed | self._next_turn(now)
        self._changed = set()
        entries = [_entry(name, self._scopes[name], now // SLOT_MS) for name in names]
        size = _SCOPES_A_MESSAGE
        edge, boot = self._me
        return [
            Spend(edge=edge, boot=boot, scopes=entries[start : start + size]) for start in range(0, len(entries), size)
        ]

    def _next_turn(self, now: int) -> set[str]:
        """The scopes in use among the next part of all, which go to the end of the line."""
        self._tick = self._tick % _TICKS_A_TURN + 1
        held = len(self._scopes)
        part = held * self._tick // _TICKS_A_TURN - held * (self._tick - 1) // _TICKS_A_TURN
        said = set()
        for name in list(islice(self._scopes, part)):
            scope = self._scopes.pop(name)
            scope.silence(now)
            if scope.is_over(now):
                continue
            self._scopes[name] = scope
            if scope.is_said(now):
                said.add(name)
        return said


def _entry(name: str, scope: _Scope, second: int) -> ScopeSpend:
    requests, tokens = scope.requests, scope.tokens
    requests.own.advance(second)
    tokens.own.advance(second)
    return ScopeSpend(
        scope=name,
        requests_total=requests.spent,
        tokens_total=tokens.spent,
        concurrent=scope.concurrent,
        requests=requests.own.total,
        tokens=tokens.own.total,
    )


def _wait_key(refusal: Refusal) -> float:
    return float("inf") if refusal.wait_ms is None else refusal.wait_ms


def _tightness(level: Level) -> tuple[int, int]:
    return level.remaining, level.limit
