"""The life of a job: which move follows which."""

from inferbus.bus.v1.batch_pb2 import JobRecordState as State

_V, _A, _F = State.JOB_RECORD_STATE_VALIDATING, State.JOB_RECORD_STATE_ACTIVE, State.JOB_RECORD_STATE_FINALIZING
_CANCELLING, _CANCELLED = State.JOB_RECORD_STATE_CANCELLING, State.JOB_RECORD_STATE_CANCELLED
_COMPLETED, _FAILED = State.JOB_RECORD_STATE_COMPLETED, State.JOB_RECORD_STATE_FAILED
_EXPIRED = State.JOB_RECORD_STATE_EXPIRED

# A job that is cancelled while it is validated has nothing to keep.
MOVES: dict[State.ValueType, frozenset[State.ValueType]] = {
    _V: frozenset({_A, _FAILED, _CANCELLED, _EXPIRED}),
    _A: frozenset({_F, _CANCELLING}),
    _F: frozenset({_COMPLETED, _EXPIRED}),
    _CANCELLING: frozenset({_CANCELLED}),
    _COMPLETED: frozenset(),
    _CANCELLED: frozenset(),
    _FAILED: frozenset(),
    _EXPIRED: frozenset(),
}
ENDED = frozenset(state for state, moves in MOVES.items() if not moves)
# What may be cancelled: later there is nothing left to stop.
CANCELLABLE = frozenset({_V, _A})


def may_move(before: State.ValueType, after: State.ValueType) -> bool:
    return after in MOVES.get(before, frozenset())
