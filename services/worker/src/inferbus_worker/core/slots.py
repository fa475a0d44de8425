"""Which of the engine's slots a generation takes: the prefix cache, and the wall between tenants in it.

A slot keeps the KV cells of what it last read. A generation reads on from there only where both have the same salt, so
that nobody can tell from the time of an answer, or from its count of cached tokens, what another tenant asked.
"""

from dataclasses import dataclass

Content = str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Lease:
    """``reuse``: what the slot holds may be read on from; otherwise it must be dropped."""

    slot: int
    reuse: bool


@dataclass(slots=True)
class _Slot:
    """``content`` None: nothing, or nothing that is known for sure. ``cells``: what it holds while idle."""

    salt: bytes = b""
    content: Content | None = None
    cells: int = 0
    used: int = 0
    busy: bool = False
    free_at: float = 0.0


class SlotTable:
    """Times are monotonic seconds, given by the caller."""

    def __init__(self, count: int) -> None:
        self._slots = [_Slot() for _ in range(count)]
        self._uses = 0

    def take(self, salt: bytes, content: Content, now: float) -> Lease:
        """A free slot: of those with the same salt the one with the longest common prefix, if at least half of what it
        holds is common; else the one that was not used for the longest time. Raises IndexError if all are taken.

        A slot that a cancelled generation has yet to leave comes last: the engine would wait for it.
        """
        free = [number for number, slot in enumerate(self._slots) if not slot.busy]
        ready = [number for number in free if self._slots[number].free_at <= now]
        common = {number: self._common(self._slots[number], salt, content) for number in ready}
        if ready and any(common.values()):
            chosen = max(ready, key=common.__getitem__)
        elif ready:
            chosen = min(ready, key=lambda number: (self._slots[number].cells > 0, self._slots[number].used))
        else:
            chosen = sorted(free, key=lambda number: self._slots[number].free_at)[0]
        slot = self._slots[chosen]
        self._uses += 1
        slot.used, slot.busy = self._uses, True
        return Lease(chosen, slot.content is not None and slot.salt == salt)

    def release(self, lease: Lease, salt: bytes, content: Content | None, cells: int, free_at: float) -> None:
        """``content``: what the engine has read for sure, with ``salt``; None: it did not come to that.

        Without it the slot may still hold what was in it before, or what came, and nobody may read on from either.
        """
        slot = self._slots[lease.slot]
        slot.busy, slot.free_at = False, free_at
        if content is not None:
            slot.salt, slot.content, slot.cells = salt, content, cells
        elif not lease.reuse:
            slot.content, slot.cells = None, max(slot.cells, cells)

    def busy(self, slot: int) -> bool:
        return self._slots[slot].busy

    @property
    def idle_cells(self) -> int:
        """What idle slots hold."""
        return sum(slot.cells for slot in self._slots if not slot.busy)

    def evict(self, allowed: int, now: float, keep_newest: bool = True) -> list[int]:
        """Idle slots to empty, the oldest first, so that no more than ``allowed`` cells stay in use by idle ones.

        The newest stays whatever it holds: if nothing else runs it is in nobody's way, else it is soon not the newest.
        It goes, too, without ``keep_newest``.
        """
        idle = [slot for slot in self._slots if not slot.busy and slot.cells]
        excess = sum(slot.cells for slot in idle) - allowed
        out: list[int] = []
        for slot in sorted(idle, key=lambda one: one.used)[: -1 if keep_newest else None]:
            if excess <= 0:
                break
            if slot.free_at > now:
                continue
            excess -= slot.cells
            slot.content, slot.cells = None, 0
            out.append(self._slots.index(slot))
        return out

    @staticmethod
    def _common(slot: _Slot, salt: bytes, content: Content) -> int:
        """Length of a common prefix that is worth its slot; 0: none."""
        held = slot.content
        if held is None or slot.salt != salt or isinstance(held, str) is not isinstance(content, str):
            return 0
        length = common_length(held, content)
        return length if 2 * length >= len(held) else 0


def common_length(one: Content, other: Content) -> int:
    """Length of the longest common prefix, found by halving: each element is compared about twice."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
