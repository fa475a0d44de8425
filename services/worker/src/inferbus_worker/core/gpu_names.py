"""Which GPUs a worker computes on, as the operator or CUDA's own variable names them."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Wanted:
    """``names``: indices, UUIDs or beginnings of them (``GPU-…``, ``MIG-…``), or ``GPU:INSTANCE``; None: every GPU.

    ``until_unknown``: a name that is none hides all that follow, as for CUDA; else it is passed over.
    """

    names: tuple[str, ...] | None
    until_unknown: bool = False


NOTHING = Wanted(())


def wanted(setting: Sequence[str], visible: str | None, computes_here: bool) -> Wanted:
    """``setting``: names, ``none`` or ``auto``. ``visible``: CUDA_VISIBLE_DEVICES, None if unset.

    ``computes_here``: the engine is one that runs on this machine's GPUs, so that what it sees is what it uses.
    """
    if list(setting) == ["none"]:
        return NOTHING
    if list(setting) != ["auto"]:
        return Wanted(tuple(dict.fromkeys(setting)))
    if not computes_here:
        return NOTHING
    if visible is None:
        return Wanted(None)
    names: list[str] = []
    for name in (part.strip() for part in visible.split(",")):
        if not name or name.startswith("-"):
            break
        names.append(name)
    return Wanted(tuple(dict.fromkeys(names)), until_unknown=True)


def same_device(name: str, index: int, uuid: str) -> bool:
    """Whether ``name`` means the GPU of that index and UUID; CUDA takes the beginning of a UUID, too."""
    if name.isdecimal():
        return int(name) == index
    return name.startswith(("GPU-", "MIG-")) and uuid.startswith(name)


def instance_of(name: str) -> tuple[int, int] | None:
    """``0:1`` -> instance 1 of GPU 0; None if ``name`` is no such name."""
    gpu, separator, instance = name.partition(":")
    return (int(gpu), int(instance)) if separator and gpu.isdecimal() and instance.isdecimal() else None
