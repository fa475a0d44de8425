"""What an edge says that it has delivered, read from the stream; real edges on a real broker."""

import asyncio
import json
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from inferbus.bus.v1.delivery_pb2 import Deliveries, DeliveryEnd
from inferbus.bus.v1.registry_pb2 import KeyRecord
from inferbus.common.v1.error_pb2 import Error, ErrorClass
from inferbus.common.v1.usage_pb2 import FinishReason
from inferbus_bus.connection import BusConfig, connect
from inferbus_bus.log import FrameLog
from inferbus_bus.publish import Publisher
from inferbus_bus.streams import ensure_streams
from inferbus_edge.deliveries import DeliveryLog
from inferbus_edge.measure import Timing
from inferbus_edge.sinks import NOWHERE
from inferbus_edge.streaming import Answer
from inferbus_stack.nats import NatsServer

PATH = "/v1/chat/completions"
Told = tuple[str, str, int]
"""(edge, end, tokens)."""


async def told(bus: Any, request_id: bytes) -> list[Told]:
    """What all edges have told of one choice, in stream order."""
    log, found = FrameLog(bus, "DELIVERIES"), []
    first, last = await log.bounds()
    if last >= first:
        async for stored in log.read(first, last, subject="dlv.>"):
            for _, _, data in stored:
                message = Deliveries.FromString(data)
                for item, tokens in enumerate(message.tokens):
                    if message.request_ids[16 * item : 16 * item + 16] == request_id:
                        end = DeliveryEnd.Name(message.end[item]).removeprefix("DELIVERY_END_").lower()
                        found.append((message.edge, end, tokens))
                        assert message.contexts[message.context_index[item]].tenant_id == "acme"
                        assert message.time_us[item] > 0
    return found


async def told_at_last(bus: Any, request_id: bytes, count: int = 1) -> list[tuple[str, int]]:
    """The same without the edges, once there are ``count``."""
    async with asyncio.timeout(10):
        while len(found := await told(bus, request_id)) < count:
            await asyncio.sleep(0.1)
    return [(end, tokens) for _, end, tokens in found]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_whole_answer(http: Any, worker: Any, model: str, rig: Any, stream: bool) -> None:
    call = asyncio.create_task(http.post(PATH, json=rig.chat(model, stream=stream)))
    request = await worker.answer(model, ["a ", "b ", "c "])
    await (await call).read()
    assert await told_at_last(worker.bus, request.request_id) == [("complete", 3)]


async def test_each_choice_has_its_own(http: Any, worker: Any, model: str, rig: Any) -> None:
    call = asyncio.create_task(http.post(PATH, json=rig.chat(model, n=2)))
    one, two = await worker.answer(model, ["a "]), await worker.answer(model, ["a ", "b "])
    await (await call).read()
    assert await told_at_last(worker.bus, one.request_id) == [("complete", 1)]
    assert await told_at_last(worker.bus, two.request_id) == [("complete", 2)]


async def test_a_client_that_left_has_what_was_written_until_then(http: Any, worker: Any, model: str, rig: Any) -> None:
    call = asyncio.create_task(http.post(PATH, json=rig.chat(model, stream=True)))
    request = await worker.take(model)
    worker.say(request, ["a ", "b "])
    response = await call
    await response.content.readuntil(b"b ")
    response.close()
    await worker.cancel_of(request)
    worker.close(request, worker.say(request, ["c "], 2), reason=FinishReason.FINISH_REASON_CANCELLED)
    assert await told_at_last(worker.bus, request.request_id) == [("client_gone", 2)]


async def test_a_unary_client_that_left_has_nothing(http: Any, worker: Any, model: str, rig: Any) -> None:
    call = asyncio.create_task(http.post(PATH, json=rig.chat(model)))
    request = await worker.take(model)
    worker.say(request, ["a ", "b "])
    await asyncio.sleep(0.1)
    call.cancel()
    await worker.cancel_of(request)
    assert await told_at_last(worker.bus, request.request_id) == [("client_gone", 0)]


async def test_a_stream_that_was_held_and_resumed_is_told_by_both(http: Any, worker: Any, model: str, rig: Any) -> None:
    """Its client left, came back and has all of it; nobody tells of the time in between."""
    headers = {"x-inferbus-hold": "30"}
    call = asyncio.create_task(http.post(PATH, json=rig.chat(model, stream=True), headers=headers))
    request = await worker.take(model)
    worker.say(request, ["a ", "b "])
    response = await call
    seen = await response.content.readuntil(b"b ")
    last = seen.rsplit(b"id: ", 1)[1].split(b"\n")[0].decode()
    response.close()
    assert await told_at_last(worker.bus, request.request_id) == [("client_gone", 2)]
    worker.close(request, worker.say(request, ["c "], 2))
    async with http.post(PATH, json=rig.chat(model, stream=True), headers={**headers, "Last-Event-ID": last}) as again:
        assert b"c " in await again.read()
    assert await told_at_last(worker.bus, request.request_id, 2) == [("client_gone", 2), ("complete", 3)]


async def test_an_error_ends_it_where_it_was(http: Any, worker: Any, model: str, rig: Any) -> None:
    call = asyncio.create_task(http.post(PATH, json=rig.chat(model, stream=True)))
    request = await worker.take(model)
    worker.say(request, ["a "])
    error = Error(error_class=ErrorClass.ERROR_CLASS_INTERNAL, reason="engine_failed", message="It failed.")
    worker.close(request, 1, reason=FinishReason.FINISH_REASON_ERROR, error=error)
    await (await call).read()
    assert await told_at_last(worker.bus, request.request_id) == [("failed", 1)]


async def test_a_choice_that_fails_ends_the_others(http: Any, worker: Any, model: str, rig: Any) -> None:
    """The one on the log as an error, the others by a cancel; the client has what came until then."""
    call = asyncio.create_task(http.post(PATH, json=rig.chat(model, stream=True, n=2)))
    one, two = await worker.take(model), await worker.take(model)
    worker.say(one, ["a ", "b "])
    worker.say(two, ["a "])
    await (await call).content.readuntil(b"b ")
    error = Error(error_class=ErrorClass.ERROR_CLASS_INTERNAL, reason="engine_failed", message="It failed.")
    worker.close(one, 2, reason=FinishReason.FINISH_REASON_ERROR, error=error)
    assert (await worker.cancel_of(two))[1] == "choice_failed"
    assert await told_at_last(worker.bus, one.request_id) == [("failed", 2)]
    assert await told_at_last(worker.bus, two.request_id) == [("failed", 1)]


async def test_a_client_that_does_not_read_is_told_as_slow(edge: Any, worker: Any, model: str, rig: Any) -> None:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    address = urlsplit(edge.url)
    await asyncio.get_running_loop().sock_connect(sock, (address.hostname, address.port))
    _, writer = await asyncio.open_connection(sock=sock, limit=4096)
    body = json.dumps(rig.chat(model, stream=True)).encode()
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {rig.API_KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    request = await worker.take(model)
    said = 0
    while request.request_id not in worker.cancelled:
        said = worker.say(request, ["x" * 50_000], said)
        await asyncio.sleep(0.005)
    assert (await worker.cancel_of(request))[1] == "slow_client"
    ((end, tokens),) = await told_at_last(worker.bus, request.request_id)
    assert end == "slow_client"
    assert 0 < tokens <= said
    writer.close()


async def test_an_edge_that_stops_tells_the_last_of_them(
    nats_server: NatsServer, worker: Any, tmp_path: Path, rig: Any
) -> None:
    async with rig.run_edge(nats_server, tmp_path) as edge, rig.session(edge) as http:
        await worker.serve("model-of-a-stopping-edge", http)
        call = asyncio.create_task(http.post(PATH, json=rig.chat("model-of-a-stopping-edge", stream=True)))
        request = await worker.take("model-of-a-stopping-edge")
        worker.say(request, ["a "])
        await (await call).content.readuntil(b"a ")
        assert await edge.stop() == 0
        assert await told_at_last(worker.bus, request.request_id) == [("edge_stopped", 1)]


async def test_what_the_broker_did_not_take_is_told_when_it_is_back(tmp_path: Path) -> None:
    """Published again under the same id it is stored once."""
    async with NatsServer(tmp_path / "nats") as server, connect(BusConfig(server.url, "edge")) as bus:
        await ensure_streams(bus)
        publisher = Publisher(bus)
        await publisher.start()
        deliveries = DeliveryLog("edge-0", publisher)
        ids = [bytes([number]) * 15 + b"\0" for number in range(3)]
        for number in range(3):
            answer = Answer(ids[number], 1, NOWHERE, Timing("m", 0))
            answer.parts[0].index = 7
            deliveries.follow(answer, KeyRecord(tenant_id="acme", project_id="web", key_id="k"))
            assert answer.delivered is not None
            answer.delivered(answer, "")
            if number == 0:
                await deliveries.flush()
                await server.kill()
                while bus.connected:
                    await asyncio.sleep(0.01)
            else:
                await deliveries.flush()  # refused: it is kept
        await server.start()
        while not bus.connected:
            await asyncio.sleep(0.01)
        await deliveries.flush()
        await deliveries.flush()
        assert [await told(bus, request_id) for request_id in ids] == [[("edge-0", "complete", 7)]] * 3
