"""A made-up trace: Poisson arrivals with bursts, chats that share system prompts, lognormal lengths, weighted tenants.

The draws come from the caller, so equal seeds give equal traces.
"""

from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from math import exp, log
from typing import Protocol

from inferbus_contracts.prefixes import CHUNK_TOKENS, MAX_CHUNKS

from inferbus_scheduler.core.request import Priority
from inferbus_scheduler.core.simulate.trace import Arrival, group_prefix

MAX_TOKENS = 100_000
# Chats of a tenant that may still get a turn; then the oldest is over.
_OPEN_CHATS = 512


class Draws(Protocol):
    """What is used of ``random.Random``."""

    def random(self) -> float: ...
    def expovariate(self, lambd: float, /) -> float: ...
    def gauss(self, mu: float, sigma: float, /) -> float: ...


@dataclass(frozen=True, slots=True)
class Tenant:
    """``demand``: its part of all requests, beside those of the others. ``weight``: what it is entitled to."""

    name: str
    demand: float = 1.0
    weight: int = 1
    projects: int = 1


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests a second on average, for ``seconds``; token counts are means of lognormal lengths.

    In a burst arrivals come ``burst_factor`` times as fast as between bursts; bursts last ``burst_seconds`` on average
    and take ``burst_share`` of the time. ``chat_share`` of the requests are turns of chats: the system prompt of one of
    the tenant's ``system_prompts``, what was said before, then the new input.
    """

    rate: float
    seconds: float
    tenants: tuple[Tenant, ...] = (Tenant("tenant-0"),)
    models: tuple[str, ...] = ("synthetic",)
    input_tokens: float = 512.0
    output_tokens: float = 128.0
    spread: float = 0.8
    burst_factor: float = 1.0
    burst_share: float = 0.2
    burst_seconds: float = 10.0
    chat_share: float = 0.5
    system_prompts: int = 4
    system_tokens: int = 1024
    turns: float = 3.0
    background_share: float = 0.0
    batch_share: float = 0.0


@dataclass(slots=True)
class _Chat:
    system: int
    group: int
    tokens: int
    model: str


class _Prompts:
    """What inputs begin with. Groups of chunks are numbered: first the system prompts, then each chat and each input of
    its own."""

    def __init__(self, workload: Workload, draws: Draws) -> None:
        self._workload = workload
        self._draws = draws
        self._chats: list[list[_Chat]] = [[] for _ in workload.tenants]
        self._groups = len(workload.tenants) * workload.system_prompts

    def alone(self, input_tokens: int) -> tuple[int, ...]:
        """Nobody else's: it shares nothing, and takes its place in a cache all the same."""
        return group_prefix(self._group(), min(MAX_CHUNKS, input_tokens // CHUNK_TOKENS))

    def turn(self, tenant: int, model: str) -> _Chat:
        """Of a chat of that tenant: an open one, or a new one."""
        workload, draws, chats = self._workload, self._draws, self._chats[tenant]
        if chats and draws.random() >= 1 / max(1.0, workload.turns):
            return chats[int(draws.random() * len(chats))]
        system = tenant * workload.system_prompts + int(draws.random() * workload.system_prompts)
        chat = _Chat(system, self._group(), workload.system_tokens, model)
        chats.append(chat)
        if len(chats) > _OPEN_CHATS:
            del chats[0]
        return chat

    def of(self, chat: _Chat, input_tokens: int) -> tuple[int, ...]:
        """The chunks of the system prompt, which all chats with it share, then those of this chat alone."""
        whole = min(MAX_CHUNKS, input_tokens // CHUNK_TOKENS)
        shared = min(whole, self._workload.system_tokens // CHUNK_TOKENS)
        return group_prefix(chat.system, shared) + group_prefix(chat.group, whole)[shared:]

    def _group(self) -> int:
        self._groups += 1
        return self._groups - 1


def generate(workload: Workload, draws: Draws) -> Iterator[Arrival]:
    """Arrivals in order of time."""
    totals = list(accumulate(tenant.demand for tenant in workload.tenants))
    prompts = _Prompts(workload, draws)
    for time in _times(workload, draws):
        number = min(bisect(totals, draws.random() * totals[-1]), len(totals) - 1)
        tenant = workload.tenants[number]
        input_tokens = _length(workload.input_tokens, workload.spread, draws)
        output_tokens = _length(workload.output_tokens, workload.spread, draws)
        model = workload.models[int(draws.random() * len(workload.models))]
        if draws.random() < workload.chat_share:
            chat = prompts.turn(number, model)
            model, input_tokens = chat.model, min(MAX_TOKENS, chat.tokens + input_tokens)
            prefix = prompts.of(chat, input_tokens)
            chat.tokens = min(MAX_TOKENS, input_tokens + output_tokens)
        else:
            prefix = prompts.alone(input_tokens)
        yield Arrival(
            time=time,
            tenant=tenant.name,
            project=f"{tenant.name}-{int(draws.random() * tenant.projects)}" if tenant.projects > 1 else "",
            priority=_priority(workload, draws),
            model=model,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            prefix=prefix,
        )


def _times(workload: Workload, draws: Draws) -> Iterator[float]:
    """Poisson, in bursts at a higher rate: a two-state chain whose mean rate is the stated one."""
    share = workload.burst_share if workload.burst_factor > 1 else 0.0
    calm = workload.rate / (1 - share + share * workload.burst_factor)
    time, bursting = 0.0, False
    changes_at = _stay(workload, share, bursting, draws)
    while True:
        rate = calm * (workload.burst_factor if bursting else 1.0)
        step = draws.expovariate(rate)
        if time + step > changes_at:
            # Memoryless: begin anew at the change.
            time, bursting = changes_at, not bursting
            changes_at += _stay(workload, share, bursting, draws)
        else:
            time += step
            if time >= workload.seconds:
                return
            yield time
        if time >= workload.seconds:
            return


def _stay(workload: Workload, share: float, bursting: bool, draws: Draws) -> float:
    if share <= 0:
        return float("inf")
    mean = workload.burst_seconds if bursting else workload.burst_seconds * (1 - share) / share
    return draws.expovariate(1 / mean)


def _length(mean: float, spread: float, draws: Draws) -> int:
    """Lognormal with that mean; 1 or more."""
    return min(MAX_TOKENS, max(1, round(exp(log(mean) - spread * spread / 2 + spread * draws.gauss(0.0, 1.0)))))


def _priority(workload: Workload, draws: Draws) -> Priority:
    at = draws.random()
    if at < workload.batch_share:
        return Priority.BATCH
    return Priority.BACKGROUND if at < workload.batch_share + workload.background_share else Priority.INTERACTIVE
