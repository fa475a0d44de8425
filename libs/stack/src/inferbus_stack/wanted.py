"""How many workers of what the scheduler wants, from its decisions. Pure."""

from collections.abc import Iterable

from inferbus.bus.v1.decision_pb2 import ScalingDecision

from inferbus_stack.slots import Unit

# Of a model: each of its revisions has a decision of its own.
BY_REVISION = "revisions"


class Wanted:
    """The last decision about each model and revision, as they come."""

    def __init__(self) -> None:
        self._decisions: dict[Unit, ScalingDecision] = {}

    def note(self, decisions: Iterable[ScalingDecision]) -> list[ScalingDecision]:
        """Those that say something else than before."""
        fresh = []
        for one in decisions:
            unit = one.model, one.revision
            before = self._decisions.get(unit)
            self._decisions[unit] = one
            if before is None or (before.replicas, before.reason == BY_REVISION) != (
                one.replicas,
                one.reason == BY_REVISION,
            ):
                fresh.append(one)
        return fresh

    def units(self) -> dict[Unit, int]:
        """Workers of each model, or of each of its revisions where those are decided one by one. A revision that is not
        named is left as it is."""
        wanted: dict[Unit, int] = {}
        for (model, revision), one in self._decisions.items():
            whole = self._decisions.get((model, ""))
            divided = whole is not None and whole.reason == BY_REVISION
            if bool(revision) == divided:
                wanted[model, revision] = one.replicas
        return wanted
