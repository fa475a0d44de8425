"""A GPU as values: which one it is, and what it said last. None: the GPU, its driver or NVML does not say."""

from collections.abc import Iterable
from dataclasses import dataclass

from inferbus.bus.v1.control_pb2 import GpuStatus

# NVML's bits for why clocks are held down, which have not changed since there are any. Bit 0, idle, is no reason: a GPU
# without work slows down on purpose.
_THROTTLES = {
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}
THROTTLE_REASONS = tuple(_THROTTLES.values())


@dataclass(frozen=True, slots=True)
class Gpu:
    """``uuid``: ``GPU-…``, or ``MIG-…`` of an instance; ``index``: NVML's, of the whole GPU."""

    uuid: str
    index: int | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """``utilization``: in [0, 1]. Memory in bytes, power in watts, energy in joules since the driver was loaded,
    temperatures in °C. ``ecc_…``: errors that were not corrected, since the driver was loaded and ever. ``throttles``:
    why clocks are held down; empty: they are not. ``lost``: why the GPU cannot be asked any more."""

    utilization: float | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    power: float | None = None
    energy: float | None = None
    temperature: float | None = None
    slowdown: float | None = None
    ecc_volatile: int | None = None
    ecc_aggregate: int | None = None
    throttles: tuple[str, ...] | None = None
    lost: str = ""


def throttles_of(bits: int) -> tuple[str, ...]:
    """The reasons in NVML's mask; one that is not known here is called by its bit."""
    known = [name for bit, name in _THROTTLES.items() if bits & bit]
    others = bits & ~sum(_THROTTLES) & ~1
    return (*known, *(f"bit_{bit}" for bit in range(others.bit_length()) if others >> bit & 1))


def status_of(gpu: Gpu, reading: Reading, xids: Iterable[int], fault: str) -> GpuStatus:
    """What the fleet is told; what is None stays absent."""
    return GpuStatus(
        uuid=gpu.uuid,
        index=gpu.index,
        name=gpu.name,
        utilization=reading.utilization,
        memory_used_bytes=reading.memory_used,
        memory_total_bytes=reading.memory_total,
        power_watts=reading.power,
        energy_joules=reading.energy,
        temperature_celsius=reading.temperature,
        slowdown_celsius=reading.slowdown,
        ecc_uncorrected_volatile=reading.ecc_volatile,
        ecc_uncorrected_aggregate=reading.ecc_aggregate,
        throttle_reasons=reading.throttles or (),
        xids=xids,
        fault=fault,
    )
