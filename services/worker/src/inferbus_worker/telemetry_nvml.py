"""What NVML says of this worker's GPUs. The only file that knows it; each call may be refused by itself.

A call may block for as long as a broken driver does, so all of this belongs into a thread of its own.
"""

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from inferbus_worker.core.energy import Meter
from inferbus_worker.core.gpu import Gpu, Reading, throttles_of
from inferbus_worker.core.gpu_names import Wanted, instance_of, same_device

log = logging.getLogger(__name__)


class LostError(Exception):
    """The GPU does not answer any more, or only after a reset."""


@dataclass(frozen=True, slots=True)
class Device:
    """``handle``: NVML's. ``whole``: of the GPU that an instance is a part of, else the same. ``instance``: the ids of
    its GPU and compute instance, if it is one."""

    gpu: Gpu
    handle: Any
    whole: Any
    whole_uuid: str
    instance: tuple[int | None, int | None] | None = None


def open_nvml(wanted: Wanted) -> "NvmlProbe | None":
    """None, with the reason in the log, where there is no such GPU, no driver or no package to ask it with."""
    if wanted.names == ():
        return None
    try:
        nvml = import_module("pynvml")
    except ImportError:
        log.warning("no GPU telemetry: nvidia-ml-py is not installed (extra nvml)")
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        log.warning("no GPU telemetry: NVML does not start", extra={"error": str(error)})
        return None
    probe = NvmlProbe(nvml, wanted)
    if probe.gpus:
        return probe
    log.warning("no GPU telemetry: there is no such GPU", extra={"wanted": wanted.names})
    probe.close()
    return None


class NvmlProbe:
    """``gpus``: what there is of those ``wanted``, in the order of all answers. ``nvml``: the module, initialised."""

    def __init__(self, nvml: Any, wanted: Wanted) -> None:
        self._nvml = nvml
        self._closed = threading.Event()
        self._devices = list(self._found(wanted))
        self.gpus = tuple(device.gpu for device in self._devices)
        self._events = self._listen()

    def meters(self) -> list[Meter]:
        """The energy of each GPU. An instance has none of its own: NVML says that of the whole GPU only."""
        return [self._meter_of(device) for device in self._devices]

    def read(self) -> list[Reading]:
        return [self._read(device) for device in self._devices]

    def wait(self, seconds: float) -> list[tuple[Gpu, int]]:
        """The next Xid fault, with each GPU that it is of; none if there was none for so long."""
        if self._events is not None:
            try:
                event = self._nvml.nvmlEventSetWait_v2(self._events, round(seconds * 1000))
            except self._nvml.NVMLError_Timeout:
                return []
            except self._nvml.NVMLError:  # of a lost GPU it comes at once, each time
                pass
            else:
                return [(device.gpu, int(event.eventData)) for device in self._hit(event)]
        self._closed.wait(seconds)
        return []

    def close(self) -> None:
        self._closed.set()
        try:
            if self._events is not None:
                self._nvml.nvmlEventSetFree(self._events)
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError as error:
            log.info("NVML did not close", extra={"error": str(error)})

    # --- readings ----------------------------------------------------------------------------------------------

    def _ask(self, call: str, *arguments: Any) -> Any:
        """None: this GPU, this driver or this version of the package does not say it. Raises LostError."""
        function = getattr(self._nvml, call, None)
        if function is None:
            return None
        try:
            return function(*arguments)
        except (self._nvml.NVMLError_GpuIsLost, self._nvml.NVMLError_ResetRequired) as error:
            raise LostError(str(error)) from error
        except self._nvml.NVMLError:
            return None

    def _meter_of(self, device: Device) -> Meter:
        try:
            return Meter() if device.instance else self._meter(device.handle)
        except LostError:
            return Meter()

    def _meter(self, handle: Any) -> Meter:
        joules = _thousandth(self._ask("nvmlDeviceGetTotalEnergyConsumption", handle))
        return Meter(joules, _thousandth(self._ask("nvmlDeviceGetPowerUsage", handle)))

    def _read(self, device: Device) -> Reading:
        nvml, handle, whole = self._nvml, device.handle, device.whole
        try:
            memory = self._ask("nvmlDeviceGetMemoryInfo", handle)
            used = None if device.instance else self._ask("nvmlDeviceGetUtilizationRates", handle)
            meter = Meter() if device.instance else self._meter(handle)
            temperature = self._temperature(whole)
            uncorrected = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
            return Reading(
                utilization=None if used is None else used.gpu / 100,
                memory_used=None if memory is None else int(memory.used),
                memory_total=None if memory is None else int(memory.total),
                power=meter.watts,
                energy=meter.joules,
                temperature=temperature,
                slowdown=self._slowdown(whole, temperature),
                ecc_volatile=self._ask("nvmlDeviceGetTotalEccErrors", whole, uncorrected, nvml.NVML_VOLATILE_ECC),
                ecc_aggregate=self._ask("nvmlDeviceGetTotalEccErrors", whole, uncorrected, nvml.NVML_AGGREGATE_ECC),
                throttles=self._throttles(whole),
            )
        except LostError as error:
            return Reading(lost=str(error))

    def _temperature(self, handle: Any) -> float | None:
        for call in ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature"):  # the former is newer
            degrees = self._ask(call, handle, self._nvml.NVML_TEMPERATURE_GPU)
            if degrees is not None:
                return float(degrees)
        return None

    def _slowdown(self, handle: Any, temperature: float | None) -> float | None:
        """Newer GPUs do not say the threshold but how far it is."""
        threshold = self._ask(
            "nvmlDeviceGetTemperatureThreshold", handle, self._nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
        )
        if threshold:  # 0 is said where there is none
            return float(threshold)
        margin = self._ask("nvmlDeviceGetMarginTemperature", handle)
        return None if margin is None or temperature is None else temperature + margin

    def _throttles(self, handle: Any) -> tuple[str, ...] | None:
        for call in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
            bits = self._ask(call, handle)
            if bits is not None:
                return throttles_of(int(bits))
        return None

    # --- faults ------------------------------------------------------------------------------------------------

    def _listen(self) -> Any:
        """An event set of the GPUs that tell their Xid faults; None if none does."""
        nvml, listening = self._nvml, False
        try:
            events = nvml.nvmlEventSetCreate()
        except nvml.NVMLError:
            return None
        for device in {device.whole_uuid: device for device in self._devices}.values():
            try:
                if nvml.nvmlDeviceGetSupportedEventTypes(device.whole) & nvml.nvmlEventTypeXidCriticalError:
                    nvml.nvmlDeviceRegisterEvents(device.whole, nvml.nvmlEventTypeXidCriticalError, events)
                    listening = True
            except nvml.NVMLError as error:
                log.info("no Xid faults of this GPU", extra={"gpu": device.gpu.uuid, "error": str(error)})
        if listening:
            return events
        nvml.nvmlEventSetFree(events)
        return None

    def _hit(self, event: Any) -> Iterator[Device]:
        """Of an instance a fault may be another one's. One of a GPU that does not say its name may be of any."""
        try:
            uuid = self._ask("nvmlDeviceGetUUID", event.device)
        except LostError:
            uuid = None
        anybody = self._nvml.NVML_GPU_INSTANCE_ID_ANY
        for device in self._devices:
            if uuid is not None and uuid != device.whole_uuid:
                continue
            theirs = (event.gpuInstanceId, event.computeInstanceId)
            if device.instance is None or anybody in theirs or theirs == device.instance:
                yield device

    # --- which -------------------------------------------------------------------------------------------------

    def _found(self, wanted: Wanted) -> Iterator[Device]:
        every = list(self._every())
        if wanted.names is None:
            yield from (self._as_cuda_sees(device) for device in every)
            return
        seen: set[str] = set()
        for name in wanted.names:
            device = self._named(name, every)
            if device is None:
                log.warning("there is no such GPU", extra={"wanted": name})
                if wanted.until_unknown:
                    return
            elif device.gpu.uuid not in seen:
                seen.add(device.gpu.uuid)
                yield device

    def _every(self) -> Iterator[Device]:
        for index in range(self._said("nvmlDeviceGetCount") or 0):
            handle = self._said("nvmlDeviceGetHandleByIndex", index)
            uuid = self._said("nvmlDeviceGetUUID", handle) if handle is not None else None
            if uuid is not None:
                yield Device(Gpu(uuid, index, self._said("nvmlDeviceGetName", handle) or ""), handle, handle, uuid)

    def _named(self, name: str, every: list[Device]) -> Device | None:
        place = instance_of(name)
        if place is not None:
            whole = next((device for device in every if device.gpu.index == place[0]), None)
            return None if whole is None else self._instance(whole, place[1])
        found = [device for device in every if same_device(name, device.gpu.index or 0, device.gpu.uuid)]
        if found:
            return self._as_cuda_sees(found[0]) if len(found) == 1 else None
        for whole in every:
            for number in range(self._said("nvmlDeviceGetMaxMigDeviceCount", whole.handle) or 0):
                device = self._instance(whole, number)
                if device is not None and same_device(name, -1, device.gpu.uuid):
                    return device
        return None

    def _as_cuda_sees(self, device: Device) -> Device:
        """Of a GPU that is divided CUDA sees the first instance."""
        mode = self._said("nvmlDeviceGetMigMode", device.handle)
        divided = mode is not None and mode[0] == self._nvml.NVML_DEVICE_MIG_ENABLE
        return (self._instance(device, 0) or device) if divided else device

    def _instance(self, whole: Device, number: int) -> Device | None:
        handle = self._said("nvmlDeviceGetMigDeviceHandleByIndex", whole.handle, number)
        uuid = self._said("nvmlDeviceGetUUID", handle) if handle is not None else None
        if uuid is None:
            return None
        ids = tuple(self._said(f"nvmlDeviceGet{kind}InstanceId", handle) for kind in ("Gpu", "Compute"))
        gpu = Gpu(uuid, whole.gpu.index, self._said("nvmlDeviceGetName", handle) or whole.gpu.name)
        return Device(gpu, handle, whole.handle, whole.whole_uuid, (ids[0], ids[1]))

    def _said(self, call: str, *arguments: Any) -> Any:
        """:meth:`_ask`, of a GPU that may be lost already."""
        try:
            return self._ask(call, *arguments)
        except LostError:
            return None


def _thousandth(value: int | None) -> float | None:
    return None if value is None else value / 1000
