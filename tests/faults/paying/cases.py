"""The list of cases, and what their stack is started with."""

from collections.abc import Awaitable, Callable

from tests.harness.paying import World

# How many may wait for one model: more than all cases ask of the usual one at a time, should its scheduler be slow.
QUEUE = 24
VARIABLES = {
    "INFERBUS_WORKER_SYNTHETIC__ITL": "5ms",
    "INFERBUS_WORKER_CONTEXT_LENGTH": "8192",
    "INFERBUS_SCHEDULER_MAX_QUEUED": str(QUEUE),
    "INFERBUS_SCHEDULER_QUEUE_TIMEOUT": "8s",
}
# Tokens that nobody waits for.
ENDLESS = 8000
Case = Callable[[World], Awaitable[None]]
CASES: dict[str, Case] = {}


async def brief_edge(world: World) -> None:
    """``edge-brief``: another edge, where a request may take eight seconds in all."""
    await world.add("edge", "edge-brief", REQUEST_TIMEOUT="8s")


def case(act: Case) -> Case:
    CASES[act.__name__] = act
    return act
