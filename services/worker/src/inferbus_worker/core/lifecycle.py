"""A worker's states and the moves between them."""

from enum import Enum

from inferbus.bus.v1.registry_pb2 import WorkerState


class State(Enum):
    STARTING = "starting"
    ACTIVE = "active"
    RESTING = "resting"
    """It takes nothing for a while: its engine is about to be started again."""
    DRAINING = "draining"
    DRAINED = "drained"


MOVES: dict[State, frozenset[State]] = {
    State.STARTING: frozenset({State.ACTIVE, State.DRAINING}),
    State.ACTIVE: frozenset({State.RESTING, State.DRAINING}),
    State.RESTING: frozenset({State.ACTIVE, State.DRAINING}),
    State.DRAINING: frozenset({State.DRAINED}),
    State.DRAINED: frozenset(),
}

WIRE_STATES: dict[State, WorkerState.ValueType] = {
    State.STARTING: WorkerState.WORKER_STATE_STARTING,
    State.ACTIVE: WorkerState.WORKER_STATE_ACTIVE,
    # The fleet sees no difference: none of them takes work.
    State.RESTING: WorkerState.WORKER_STATE_DRAINING,
    State.DRAINING: WorkerState.WORKER_STATE_DRAINING,
    State.DRAINED: WorkerState.WORKER_STATE_DRAINING,
}


def advance(state: State, to: State) -> State:
    """``to`` if that move is allowed. Raises ValueError."""
    if to not in MOVES[state]:
        raise ValueError(f"a worker does not go from {state.value} to {to.value}")
    return to
