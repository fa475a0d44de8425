"""What commands make of an answer, without a stack behind it."""

from inferbus.bus.v1.control_pb2 import GpuStatus
from inferbus.bus.v1.registry_pb2 import WorkerRecord
from inferbus.meter.v1.meter_pb2 import GetUsageResponse, UsageRow
from inferbus.scheduler.v1.scheduler_pb2 import FleetWorker, WatchFleetResponse
from inferbus_cli.commands.top import View, render
from inferbus_cli.commands.usage import _table
from rich.console import Console, RenderableType


def shown(what: RenderableType) -> str:
    console = Console(width=200, highlight=False)
    with console.capture() as capture:
        console.print(what)
    return capture.get()


def fleet(*gpus: GpuStatus) -> str:
    worker = FleetWorker(record=WorkerRecord(worker="worker-0"), gpus=gpus)
    return shown(render(View(None, WatchFleetResponse(workers=[worker]), ()), "http://edge"))


def test_gpus_where_there_are_some_and_only_what_they_say() -> None:
    assert "GPU" not in fleet()
    text = fleet(
        GpuStatus(
            uuid="GPU-a", index=3, name="NVIDIA H100", utilization=0.87, memory_used_bytes=60 << 30,
            memory_total_bytes=80 << 30, power_watts=412.4, temperature_celsius=64, throttle_reasons=["sw_power_cap"],
        ),
        GpuStatus(uuid="MIG-b", name="NVIDIA H100", fault="lost"),
    )  # fmt: skip
    second, first = [line for line in text.splitlines() if "H100" in line]
    assert first.split() == [
        "worker-0", "3", "NVIDIA", "H100", "87%", "60.0/80.0", "GiB", "412", "W", "64", "°C", "sw_power_cap",
    ]  # fmt: skip
    assert second.split() == ["worker-0", "MIG-b", "NVIDIA", "H100", "-", "-", "-", "-", "lost"]


def test_estimated_usage_is_a_row_of_its_own_that_says_so() -> None:
    counted = UsageRow(tenant_id="t", model="m", output_tokens=5, cost="1", currency="USD")
    estimate = UsageRow(tenant_id="t", model="m", output_tokens=3, cost="1", currency="USD", estimated=True)
    assert "tokens are" not in shown(_table(GetUsageResponse(rows=[counted])))
    text = shown(_table(GetUsageResponse(rows=[counted, estimate])))
    assert [line.split()[-1] for line in text.splitlines() if "USD" in line] == ["counted", "estimated"]
