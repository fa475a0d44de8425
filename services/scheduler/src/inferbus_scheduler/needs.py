"""How much memory a worker of each model needs: as its revision says, and as its workers were seen to hold."""

from collections.abc import Callable, Mapping

from inferbus.bus.v1.revision_pb2 import RevisionRecord, RevisionStage

from inferbus_scheduler.core.residency import Unit

Revisions = Callable[[], Mapping[str, RevisionRecord]]
"""All that are registered, by "model/revision"."""


def stable(records: Mapping[str, RevisionRecord], model: str) -> RevisionRecord | None:
    """The one that a worker of ``model`` is started from where nobody names one: of several stable ones the last."""
    found = [
        one for one in records.values()
        if one.model == model and one.stage == RevisionStage.REVISION_STAGE_STABLE
    ]  # fmt: skip
    return max(found, key=lambda one: (one.update_time.ToNanoseconds(), one.revision), default=None)


class Needs:
    """Bytes. What was seen only grows, as long as this process lives; decisions carry it on."""

    def __init__(self, revisions: Revisions) -> None:
        self._revisions = revisions
        self._seen: dict[Unit, int] = {}

    def seen(self, unit: Unit, held: int) -> None:
        """A worker of that model and revision holds so much now; 0: not known."""
        if held > self._seen.get(unit, 0):
            self._seen[unit] = held

    def of(self, unit: Unit, live: tuple[str, ...], before: int) -> int:
        """What one worker takes; 0: not known. ``live``: revisions of the model that have workers; ``before``: what it
        was taken for at the last decision."""
        model, revision = unit
        if revision:
            return max(self._of(unit), before)
        known = max((self._of((model, one)) for one in live), default=0)
        if known:
            return known
        record = stable(self._revisions(), model)
        return max(self._of((model, record.revision)), record.memory_bytes) if record is not None else before

    def _of(self, unit: Unit) -> int:
        model, revision = unit
        record = self._revisions().get(f"{model}/{revision}")
        return max(self._seen.get(unit, 0), record.memory_bytes if record is not None else 0)
