"""One connection against a real broker that cuts it off."""

import asyncio
import os
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import nkeys
import psutil
import pytest
from inferbus.bus.v1.control_pb2 import Heartbeat
from inferbus.bus.v1.registry_pb2 import ModelRecord
from inferbus_bus.connection import Bus, BusConfig, connect, open_client, send_now
from inferbus_bus.publish import Publisher
from inferbus_bus.registry import Registry
from inferbus_runtime.errors import InferBusError
from inferbus_stack.nats import NatsServer, free_port
from nats.aio.msg import Msg

# What the broker answers with -ERR before it closes the connection.
VIOLATIONS = {
    "maximum control line exceeded": b"PUB " + b"x" * 5000 + b" 0\r\n\r\n",
    "maximum payload violation": b"PUB x 99999999\r\n",
    "unknown protocol operation": b"GARBAGE\r\n",
}


async def until(condition, timeout: float = 30.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)


class Changes:
    """How often the connection was lost, and came back."""

    def __init__(self, bus: Bus) -> None:
        self.lost = self.back = 0
        bus.on_disconnect(self._lost)
        bus.on_reconnect(self._back)

    def _lost(self) -> None:
        self.lost += 1

    async def _back(self) -> None:
        self.back += 1


@pytest.mark.parametrize("said", VIOLATIONS)
async def test_who_is_cut_off_for_an_error_of_his_connects_again_and_goes_on(
    bus: Bus, caplog: pytest.LogCaptureFixture, said: str
) -> None:
    heard: list[bytes] = []

    async def hear(msg: Msg) -> None:
        heard.append(msg.data)

    subject = bus.inbox("heard")
    await bus.listen(subject, hear)
    models = Registry(bus, "models", ModelRecord)
    await models.start()
    changes = Changes(bus)
    for times in (1, 2):
        bus.nc._transport.write(VIOLATIONS[said])
        await until(lambda times=times: changes.back == times)
        assert changes.lost == times
        assert bus.connected
        await bus.nc.publish(subject, b"still here")
        await until(lambda times=times: len(heard) == times)
        await models.put("cut", ModelRecord(name="cut", revision=f"r{times}"))
        await until(lambda times=times: models.get("cut") == ModelRecord(name="cut", revision=f"r{times}"))
    assert any(said in getattr(record, "error", "") for record in caplog.records)


async def test_an_identity_that_is_taken_away_and_given_back_is_let_in_again(tmp_path: Path) -> None:
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER).decode()
    public = nkeys.from_seed(bytearray(seed.encode())).public_key.decode()
    port = free_port()

    def config(user: str) -> str:
        return f'listen: "127.0.0.1:{port}"\nauthorization {{ users: [ {{ nkey: {user} }} ] }}\n'

    stranger = nkeys.from_seed(bytearray(nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER))).public_key.decode()
    async with (
        NatsServer(tmp_path, port, config(public)) as server,
        connect(BusConfig(server.url, "revoked", seed)) as bus,
    ):
        changes = Changes(bus)
        for user in (stranger, public):
            (tmp_path / "nats.conf").write_text(config(user))
            os.kill(server.pid, signal.SIGHUP)
            if user is stranger:
                await until(lambda: changes.lost)
                await asyncio.sleep(1)
                assert not bus.connected
        await until(lambda: changes.back)
        await bus.nc.flush()


async def test_what_the_broker_refuses_each_time_is_tried_with_pauses(nats_server: NatsServer) -> None:
    async with connect(BusConfig(nats_server.url, "stubborn")) as bus:
        changes = Changes(bus)
        await bus.nc.subscribe("x" * 5000)  # beside Bus.listen, which would not take it
        await asyncio.sleep(1.5)
        assert changes.lost <= 16
        await until(lambda: changes.lost >= 3)


async def test_a_callback_that_fails_does_not_keep_the_connection_away(bus: Bus) -> None:
    def fail() -> None:
        raise ValueError("a fault")

    async def fail_too() -> None:
        raise ValueError("another")

    bus.on_disconnect(fail)
    bus.on_reconnect(fail_too)
    changes = Changes(bus)
    bus.nc._transport.write(b"GARBAGE\r\n")
    await until(lambda: changes.back == 1)
    assert changes.lost == 1


async def test_a_name_that_the_broker_would_not_take_is_refused_before_it_is_sent(bus: Bus) -> None:
    changes = Changes(bus)
    largest = "x" * (4096 - 32)
    await bus.nc.publish(largest, b"1234567890")
    await bus.nc.publish(largest[:-100], b"1234567890", "r" * 100, {"a": "b"})
    with pytest.raises(InferBusError) as refused:
        await bus.nc.publish(largest + "x")
    assert refused.value.reason == "name_too_long"
    with pytest.raises(InferBusError):
        await bus.nc.publish(largest, b"", "r")
    with pytest.raises(InferBusError):
        await bus.nc.publish("é" * 2040)
    with pytest.raises(InferBusError):
        await bus.nc.request("x" * 4000)
    with pytest.raises(InferBusError):
        await bus.api(f"STREAM.INFO.{'x' * 4096}")
    with pytest.raises(InferBusError):
        bus.send(Heartbeat(worker="w" * 4096))
    with pytest.raises(InferBusError):
        await bus.listen("x" * 5000, lambda _: asyncio.sleep(0))
    publisher = Publisher(bus)
    await publisher.start()
    with pytest.raises(InferBusError):
        await publisher.publish_raw("$KV.models." + "x" * 4096, b"", {})
    await bus.nc.flush()
    assert bus.nc._resp_map == {}
    assert changes.lost == 0
    assert bus.connected


async def turns_of_the_loop(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def ended_by_a_cancel(task: asyncio.Task[object]) -> None:
    assert task.cancel()
    done, _ = await asyncio.wait({task}, timeout=30)
    assert done, "it goes on"
    assert task.cancelled(), "it did not hear it"


@pytest.mark.parametrize("turns", range(3))
@pytest.mark.parametrize("what", ["request", "flush"])
async def test_a_cancel_that_comes_with_the_answer_is_heard(bus: Bus, what: str, turns: int) -> None:
    """nats-py's own time limits lose it in some turns of the loop."""
    await bus.api("INFO")
    asked: Coroutine[Any, Any, object] = bus.api("INFO") if what == "request" else bus.nc.flush()
    task = asyncio.create_task(asked)
    await asyncio.sleep(0)
    waits = bus.nc._resp_map if what == "request" else bus.nc._pongs
    assert len(waits) == 1
    while waits:
        await asyncio.sleep(0)
    await turns_of_the_loop(turns)
    if not task.done():
        await ended_by_a_cancel(task)
    assert (await bus.api("INFO"))["streams"]


@pytest.mark.parametrize("times", [1, 2])
async def test_a_start_that_is_cancelled_ends_and_leaves_no_connection(nats_server: NatsServer, times: int) -> None:
    def connections() -> int:
        here = psutil.Process().net_connections("tcp")
        return sum(each.raddr[1:] == (nats_server.port,) and each.status == "ESTABLISHED" for each in here)

    async def start() -> None:
        async with connect(BusConfig(nats_server.url, "starts")):
            await asyncio.sleep(30)

    before = connections()
    for turns in range(150):
        task = asyncio.create_task(start())
        await turns_of_the_loop(turns)
        for _ in range(times - 1):
            task.cancel()
            await turns_of_the_loop(1)
        if not task.done():
            await ended_by_a_cancel(task)
        assert task.cancelled()
    await until(lambda: connections() == before)


async def test_a_broker_that_no_longer_reads_is_left(tmp_path: Path) -> None:
    """What it did not read keeps nobody from connecting again."""
    async with NatsServer(tmp_path) as server, connect(BusConfig(server.url, "waits")) as bus:
        changes = Changes(bus)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            for _ in range(40):
                await bus.nc.publish("nobody.hears", b"x" * (1 << 20))
            await asyncio.sleep(0.5)  # the kernel's buffers are full now, and so is asyncio's
            await bus.nc.force_reconnect()
            await until(lambda: changes.lost == 1)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        await until(lambda: changes.back == 1)


async def test_a_service_ends_though_its_broker_no_longer_reads(tmp_path: Path) -> None:
    async with NatsServer(tmp_path) as server:
        try:
            async with asyncio.timeout(20), connect(BusConfig(server.url, "ends")) as bus:
                os.kill(server.pid, signal.SIGSTOP)
                for _ in range(40):
                    await bus.nc.publish("nobody.hears", b"x" * (1 << 20))
                await asyncio.sleep(0.5)
                await bus.nc.publish("nobody.hears", b"x" * (1 << 20))
        finally:
            os.kill(server.pid, signal.SIGCONT)


async def test_the_end_is_told_though_the_rest_cannot_be_sent_any_more(tmp_path: Path) -> None:
    ended = asyncio.Event()

    async def told() -> None:
        ended.set()

    async with NatsServer(tmp_path) as server:
        nc = await open_client(BusConfig(server.url, "ends"), allow_reconnect=False, closed_cb=told)
        os.kill(server.pid, signal.SIGSTOP)
        for _ in range(2):  # the first fills all buffers, the second waits for them
            for _ in range(20):
                send_now(nc.publish("nobody.hears", b"x" * (1 << 20)))
            await asyncio.sleep(0.5)
        os.kill(server.pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            await ended.wait()
