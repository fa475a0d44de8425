"""What is made of what NVML says: names, readings, health. No GPU is needed, but for the last test."""

import asyncio
import logging
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus_worker.core.energy import Meter, drawn
from inferbus_worker.core.gpu import Gpu, Reading, status_of, throttles_of
from inferbus_worker.core.gpu_health import Fault, GpuHealth
from inferbus_worker.core.gpu_names import Wanted, wanted
from inferbus_worker.telemetry import watching
from inferbus_worker.telemetry_nvml import Device, NvmlProbe, open_nvml


def driver() -> bool:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    pynvml.nvmlShutdown()
    return True


HAS_DRIVER = driver()
needs_no_driver = pytest.mark.skipif(HAS_DRIVER, reason="this machine has NVIDIA's driver")
READ = {
    "nvmlDeviceGetMemoryInfo": (SimpleNamespace(used=3 << 30, total=80 << 30), ("memory_used", "memory_total")),
    "nvmlDeviceGetUtilizationRates": (SimpleNamespace(gpu=87, memory=40), ("utilization",)),
    "nvmlDeviceGetPowerUsage": (412_500, ("power",)),
    "nvmlDeviceGetTotalEnergyConsumption": (7_000_250, ("energy",)),
    "nvmlDeviceGetTemperatureV": (64, ("temperature",)),
    "nvmlDeviceGetTemperatureThreshold": (87, ("slowdown",)),
    "nvmlDeviceGetTotalEccErrors": (2, ("ecc_volatile", "ecc_aggregate")),
    "nvmlDeviceGetCurrentClocksEventReasons": (0x4 | 0x1, ("throttles",)),
}
WHOLE = Reading(0.87, 3 << 30, 80 << 30, 412.5, 7000.25, 64.0, 87.0, 2, 2, ("sw_power_cap",))
ERRORS = (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_NO_PERMISSION, pynvml.NVML_ERROR_UNKNOWN,
          pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_TIMEOUT)  # fmt: skip


class Answering:
    """The real module in front of no GPU: what has no answer here fails as it does without a driver."""

    def __init__(self, **answers: Any) -> None:
        self._answers = answers

    def __getattr__(self, name: str) -> Any:
        if name not in self._answers:
            return getattr(pynvml, name)
        answer = self._answers[name]
        return answer if callable(answer) else lambda *_: answer


def failing(code: int) -> Any:
    def fail(*_: Any) -> None:
        raise pynvml.NVMLError(code)

    return fail


def reading(nvml: Any, **changes: Any) -> Reading:
    probe = NvmlProbe(nvml, Wanted(()))
    device = Device(**({"gpu": Gpu("GPU-a", 0), "handle": 1, "whole": 1, "whole_uuid": "GPU-a"} | changes))
    probe._devices = [device]
    return probe.read()[0]


@given(st.dictionaries(st.sampled_from(sorted(READ)), st.sampled_from(ERRORS)))
def test_each_call_that_fails_leaves_out_what_it_alone_says(failed: dict[str, int]) -> None:
    answers = {name: answer for name, (answer, _) in READ.items()} | {n: failing(code) for n, code in failed.items()}
    absent = {field for name in failed for field in READ[name][1]}
    found = reading(Answering(**answers))
    for name in Reading.__slots__:
        assert getattr(found, name) == (None if name in absent else getattr(WHOLE, name)), name


@needs_no_driver
def test_without_a_driver_everything_is_absent(caplog: pytest.LogCaptureFixture) -> None:
    assert reading(pynvml) == Reading()
    assert NvmlProbe(pynvml, Wanted(None)).gpus == ()
    assert NvmlProbe(pynvml, Wanted(("0", "GPU-1", "0:1"))).gpus == ()
    with caplog.at_level(logging.WARNING):
        assert open_nvml(Wanted(None)) is None
    assert "NVML does not start" in caplog.text
    caplog.clear()
    assert open_nvml(Wanted(())) is None
    assert not caplog.records, "a worker without a GPU has nothing to say of it"


@needs_no_driver
async def test_a_worker_where_there_is_no_gpu_watches_none() -> None:
    async with watching(lambda: open_nvml(Wanted(None)), ignored_xids=(), hot_for=1.0) as telemetry:
        assert telemetry is None

    def broken() -> None:
        raise OSError("what a driver may do")

    async with watching(broken, ignored_xids=(), hot_for=1.0) as telemetry:
        assert telemetry is None
    await asyncio.sleep(0)


def test_a_lost_gpu_is_lost_whichever_call_says_so() -> None:
    answers = {name: answer for name, (answer, _) in READ.items()}
    for name in READ:
        for code in (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED):
            found = reading(Answering(**answers | {name: failing(code)}))
            assert found == Reading(lost=str(pynvml.NVMLError(code))), name


def test_what_newer_and_older_drivers_say_otherwise() -> None:
    answers = {name: answer for name, (answer, _) in READ.items()}
    not_supported = failing(pynvml.NVML_ERROR_NOT_SUPPORTED)
    older = {"nvmlDeviceGetTemperatureV": not_supported, "nvmlDeviceGetCurrentClocksEventReasons": not_supported,
             "nvmlDeviceGetTemperature": 65, "nvmlDeviceGetCurrentClocksThrottleReasons": 0x40}  # fmt: skip
    found = reading(Answering(**answers | older))
    assert (found.temperature, found.throttles) == (65.0, ("hw_thermal_slowdown",))
    for threshold in (not_supported, 0):
        newer = {"nvmlDeviceGetTemperatureThreshold": threshold, "nvmlDeviceGetMarginTemperature": 23}
        assert reading(Answering(**answers | newer)).slowdown == 87.0


def test_an_instance_says_its_memory_and_of_its_gpu_what_is_the_gpus() -> None:
    asked: list[tuple[str, Any]] = []

    def answering(name: str, answer: Any) -> Any:
        return lambda handle, *_: (asked.append((name, handle)), answer)[1]

    nvml = Answering(**{name: answering(name, answer) for name, (answer, _) in READ.items()})
    found = reading(nvml, handle="part", whole="whole", instance=(3, 0))
    assert (found.memory_used, found.temperature, found.ecc_volatile) == (3 << 30, 64.0, 2)
    assert (found.utilization, found.power, found.energy) == (None, None, None), "others draw from the same GPU"
    assert {handle for name, handle in asked if name != "nvmlDeviceGetMemoryInfo"} == {"whole"}


# --- which GPUs ---------------------------------------------------------------------------------------------------

UUIDS = ("GPU-aa11", "GPU-aa22", "GPU-bb33")


def machine(divided: tuple[int, ...] = ()) -> Answering:
    """Three GPUs with handles 0, 1, 2; those ``divided`` have two instances, with handles ``(gpu, instance)``."""

    def instance(gpu: int, number: int) -> tuple[int, int]:
        if gpu not in divided or number > 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return gpu, number

    def uuid(handle: Any) -> str:
        return f"MIG-{handle[0]}{handle[1]}" if isinstance(handle, tuple) else UUIDS[handle]

    return Answering(
        nvmlDeviceGetCount=3,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUUID=uuid,
        nvmlDeviceGetName="NVIDIA H100",
        nvmlDeviceGetMigMode=lambda gpu: [int(gpu in divided), 0],
        nvmlDeviceGetMaxMigDeviceCount=lambda gpu: 7,
        nvmlDeviceGetMigDeviceHandleByIndex=instance,
        nvmlDeviceGetGpuInstanceId=lambda handle: handle[1] + 7,
        nvmlDeviceGetComputeInstanceId=0,
    )


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (None, ["GPU-aa11", "GPU-aa22", "MIG-20"]),
        (("1",), ["GPU-aa22"]),
        (("GPU-bb33", "0"), ["MIG-20", "GPU-aa11"]),
        (("0", "GPU-aa1", "0"), ["GPU-aa11"]),
        (("GPU-aa", "1"), ["GPU-aa22"]),  # says which of two
        (("2:1", "MIG-20", "2:9", "1:0"), ["MIG-21", "MIG-20"]),
        (("7", "GPU-cc", "x", "1"), ["GPU-aa22"]),
        ((), []),
    ],
)
def test_gpus_are_found_by_index_uuid_and_instance(names: tuple[str, ...] | None, found: list[str]) -> None:
    gpus = NvmlProbe(machine(divided=(2,)), Wanted(names)).gpus
    assert [gpu.uuid for gpu in gpus] == found
    assert all(gpu.name == "NVIDIA H100" and gpu.index in (0, 1, 2) for gpu in gpus)


def test_for_cuda_a_name_that_is_none_hides_what_follows() -> None:
    assert [gpu.index for gpu in NvmlProbe(machine(), Wanted(("2", "9", "0"), until_unknown=True)).gpus] == [2]


@pytest.mark.parametrize(
    ("setting", "visible", "computes_here", "result"),
    [
        (("auto",), None, True, Wanted(None)),
        (("auto",), None, False, Wanted(())),
        (("auto",), "0,1", False, Wanted(())),
        (("auto",), "0, GPU-a,0", True, Wanted(("0", "GPU-a"), until_unknown=True)),
        (("auto",), "1,-1,0", True, Wanted(("1",), until_unknown=True)),
        (("auto",), "", True, Wanted((), until_unknown=True)),
        (("none",), None, True, Wanted(())),
        (("3", "MIG-b"), "0", False, Wanted(("3", "MIG-b"))),
    ],
)
def test_the_setting_goes_before_cudas_variable(setting, visible, computes_here, result) -> None:
    assert wanted(setting, visible, computes_here) == result


# --- faults -------------------------------------------------------------------------------------------------------


def event(uuid: str, xid: int, instance: int = 0xFFFFFFFF) -> Any:
    return SimpleNamespace(device=UUIDS.index(uuid), eventData=xid, gpuInstanceId=instance, computeInstanceId=0)


def listening(nvml: Answering, events: Iterator[Any], names: tuple[str, ...] | None) -> NvmlProbe:
    def wait(*_: Any) -> Any:
        found = next(events, None)
        if found is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT)
        return found

    nvml._answers |= {
        "nvmlEventSetCreate": "set",
        "nvmlDeviceGetSupportedEventTypes": pynvml.nvmlEventTypeXidCriticalError,
        "nvmlDeviceRegisterEvents": None,
        "nvmlEventSetWait_v2": wait,
    }
    return NvmlProbe(nvml, Wanted(names))


def test_a_fault_is_of_the_gpu_that_has_it_and_of_the_instance_if_it_says_so() -> None:
    events = iter([event("GPU-bb33", 79), event("GPU-bb33", 94, 8), event("GPU-aa11", 48), event("GPU-aa22", 48)])
    probe = listening(machine(divided=(2,)), events, ("0", "2:0", "2:1"))
    hit = [[(gpu.uuid, xid) for gpu, xid in probe.wait(0.0)] for _ in range(5)]
    assert hit == [[("MIG-20", 79), ("MIG-21", 79)], [("MIG-21", 94)], [("GPU-aa11", 48)], [], []]


def test_a_gpu_that_tells_no_faults_is_read_all_the_same() -> None:
    nvml = machine()
    nvml._answers |= {"nvmlEventSetCreate": "set", "nvmlEventSetFree": None}
    probe = NvmlProbe(nvml, Wanted(None))  # which events it supports fails as without a driver
    assert len(probe.gpus) == 3
    assert probe.wait(0.01) == []
    probe.close()


HEALTHY = Reading(temperature=60.0, slowdown=87.0, ecc_volatile=3, ecc_aggregate=40)


def health() -> GpuHealth:
    return GpuHealth(ignored_xids=(13, 31), hot_for=5.0)


@given(st.lists(st.integers(0, 9), min_size=1), st.booleans())
def test_new_memory_errors_are_a_fault_and_old_ones_are_not(counts: list[int], volatile: bool) -> None:
    one = health()
    for at, count in enumerate(counts):
        one.read(Reading(ecc_volatile=count) if volatile else Reading(ecc_aggregate=count), float(at))
    grew = any(after > before for before, after in pairwise(counts))
    assert (one.fault is Fault.ECC) == grew


@given(st.lists(st.tuples(st.floats(0.1, 3), st.sampled_from([60.0, 86.9, 87.0, 99.0, None]))))
def test_only_lasting_heat_is_a_fault(course: list[tuple[float, float | None]]) -> None:
    one, now, hot_since, hot = health(), 0.0, None, False
    for seconds, temperature in course:
        now += seconds
        one.read(Reading(temperature=temperature, slowdown=87.0), now)
        hot_since = (now if hot_since is None else hot_since) if (temperature or 0) >= 87 else None
        hot |= hot_since is not None and now - hot_since >= 5.0
    assert (one.fault is Fault.HOT) == hot


def test_faults_of_programs_are_none_of_the_gpu_and_a_fault_stays() -> None:
    one = health()
    one.xid(13)
    one.xid(13)
    assert (one.fault, one.xids) == (None, [13])
    one.read(Reading(), 0.0)
    one.read(HEALTHY, 1.0)
    assert one.fault is None
    one.xid(79)
    one.read(Reading(lost="GPU is lost"), 2.0)
    one.read(HEALTHY, 3.0)
    assert (one.fault, one.detail, one.xids) == (Fault.XID, "Xid 79", [13, 79])
    other = health()
    other.read(Reading(lost="GPU is lost"), 0.0)
    assert other.fault is Fault.LOST


@given(st.integers(0, 0xFFFF))
def test_every_reason_that_holds_clocks_down_has_a_name(bits: int) -> None:
    assert len(throttles_of(bits)) == (bits & ~1).bit_count()


def test_what_is_not_known_is_absent_in_the_heartbeat() -> None:
    bare = status_of(Gpu("GPU-a"), Reading(), (), "")
    assert [field.name for field, _ in bare.ListFields()] == ["uuid"]
    zero = status_of(Gpu("GPU-a", 0, "H100"), Reading(utilization=0.0, ecc_volatile=0), (79,), "xid")
    assert zero.HasField("utilization")
    assert zero.HasField("index")
    assert zero.HasField("ecc_uncorrected_volatile")
    assert not zero.HasField("power_watts")


# --- a real one ---------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_DRIVER, reason="NVIDIA's driver is not there")
async def test_a_real_gpu() -> None:
    probe = open_nvml(Wanted(None))
    assert probe is not None
    try:
        first, meters = probe.read(), probe.meters()
        assert probe.wait(1.0) == []
        second = probe.meters()
    finally:
        probe.close()
    for gpu, one in zip(probe.gpus, first, strict=True):
        print(gpu, one)
        assert gpu.uuid.startswith(("GPU-", "MIG-"))
        assert one.memory_total is None or 0 <= (one.memory_used or 0) <= one.memory_total
        assert one.temperature is None or 0 < one.temperature < 130
        assert one.power is None or 1 < one.power < 3000
    joules = drawn(meters, second, 1.0)
    if meters != [Meter()] * len(meters):
        assert joules is not None
        assert joules > 1
