"""The GPUs' readings as Prometheus has them: what is not said has no series, so that nobody takes it for zero."""

from inferbus_runtime import metrics
from prometheus_client import Gauge

from inferbus_worker.core.gpu import THROTTLE_REASONS, Gpu, Reading
from inferbus_worker.core.gpu_health import Fault, GpuHealth


def show(gpu: Gpu, reading: Reading, health: GpuHealth) -> None:
    values: tuple[tuple[Gauge, float | None, tuple[str, ...]], ...] = (
        (metrics.GPU_UTILIZATION, reading.utilization, ()),
        (metrics.GPU_MEMORY_USED, reading.memory_used, ()),
        (metrics.GPU_MEMORY_TOTAL, reading.memory_total, ()),
        (metrics.GPU_POWER, reading.power, ()),
        (metrics.GPU_TEMPERATURE, reading.temperature, ()),
        (metrics.GPU_SLOWDOWN_TEMPERATURE, reading.slowdown, ()),
        (metrics.GPU_ECC_UNCORRECTED, reading.ecc_volatile, ("volatile",)),
        (metrics.GPU_ECC_UNCORRECTED, reading.ecc_aggregate, ("aggregate",)),
        *((metrics.GPU_THROTTLED, _holds(reading, reason), (reason,)) for reason in THROTTLE_REASONS),
    )
    for gauge, value, labels in values:
        if value is None:
            gauge.remove(gpu.uuid, *labels)
        else:
            gauge.labels(gpu.uuid, *labels).set(value)
    for fault in Fault:
        metrics.GPU_SICK.labels(gpu.uuid, fault.value).set(health.fault is fault)


def _holds(reading: Reading, reason: str) -> bool | None:
    return None if reading.throttles is None else reason in reading.throttles
