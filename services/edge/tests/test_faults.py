"""Who leaves, stalls or dies, and what the others see."""

import asyncio
import itertools
import json
import socket
import time
from typing import Any
from urllib.parse import urlsplit

import pytest
from inferbus_stack.nats import NatsServer

PATH = "/v1/chat/completions"


class Raw:
    """A client that says exactly what the test wants, on one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, url: str, receive_buffer: int | None = None) -> "Raw":
        address = urlsplit(url)
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (address.hostname, address.port))
        return cls(*await asyncio.open_connection(sock=sock, limit=4096 if receive_buffer else 1 << 20))

    def post(self, key: str, body: dict[str, Any], version: str = "1.1") -> None:
        data = json.dumps(body).encode()
        head = (
            f"POST {PATH} HTTP/{version}\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(data)}\r\n"
        )
        self.writer.write(head.encode() + b"\r\n" + data)

    async def until(self, mark: bytes) -> bytes:
        async with asyncio.timeout(5):
            return await self.reader.readuntil(mark)

    def cut(self) -> None:
        """As a crash does: RST, no FIN."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.writer.transport.abort()


async def started(edge: Any, worker: Any, model: str, rig: Any, **fields: Any) -> tuple[Raw, Any]:
    """A stream whose first token has arrived."""
    client = await Raw.connect(edge.url)
    client.post(rig.API_KEY, rig.chat(model, stream=True, **fields))
    request = await worker.take(model)
    worker.say(request, ["first"])
    await client.until(b"first")
    return client, request


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_leaves_cancels_its_stream(edge: Any, worker: Any, model: str, rig: Any, how: str) -> None:
    client, request = await started(edge, worker, model, rig)
    left = time.monotonic()
    client.cut() if how == "reset" else client.writer.close()
    at, reason = await worker.cancel_of(request)
    assert reason == "client_gone"
    assert at - left < 0.1


async def test_a_client_that_leaves_cancels_its_unary_request(edge: Any, worker: Any, model: str, rig: Any) -> None:
    client = await Raw.connect(edge.url)
    client.post(rig.API_KEY, rig.chat(model))
    request = await worker.take(model)
    left = time.monotonic()
    client.writer.close()
    at, reason = await worker.cancel_of(request)
    assert (reason, at - left < 0.1) == ("client_gone", True)


async def test_a_cancel_that_was_lost_is_said_again_but_not_for_each_token(
    edge: Any, worker: Any, model: str, rig: Any
) -> None:
    client, request = await started(edge, worker, model, rig)
    client.writer.close()
    await worker.cancel_of(request)
    before = worker.cancels
    deadline = time.monotonic() + 5
    for index in itertools.count(1):
        worker.step((request, index, "more"))
        await asyncio.sleep(0.01)
        if worker.cancels > before or time.monotonic() > deadline:
            break
    assert worker.cancels == before + 1


async def test_a_request_that_nobody_waits_for_is_cancelled(edge: Any, worker: Any, model: str, rig: Any) -> None:
    """As after a restart of the edge, when generations of the old one run on and no client comes back."""
    client, request = await started(edge, worker, model, rig)
    stranger = type(request)()
    stranger.CopyFrom(request)
    stranger.request_id = b"\x01" * 16
    worker.say(stranger, ["x"])
    _, reason = await worker.cancel_of(stranger)
    assert reason == "orphan"
    worker.close(request, 1)
    await client.until(b"0\r\n\r\n")


async def test_dead_clients_do_not_starve_the_others(edge: Any, worker: Any, model: str, rig: Any, http: Any) -> None:
    """Clients die in the middle of shared frames; every other stream still gets every token."""
    dying = [await started(edge, worker, model, rig) for _ in range(20)]
    calls = [asyncio.create_task(http.post(PATH, json=rig.chat(model, stream=True))) for _ in range(20)]
    living = [await worker.take(model) for _ in calls]
    mixed = [request for pair in zip([one for _, one in dying], living, strict=True) for request in pair]
    first = {request.request_id: 1 for _, request in dying}
    for step in range(60):
        worker.step(*((request, first.get(request.request_id, 0) + step, f"{step} ") for request in mixed))
        if 10 <= step < 30:
            dying[step - 10][0].cut()
        await asyncio.sleep(0.002)
    for request in living:
        worker.close(request, 60)
    whole = "".join(f"{step} " for step in range(60))
    for call in calls:
        stream = (await (await call).read()).decode()
        chunks = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
        assert "".join(one["choices"][0]["delta"].get("content") or "" for one in chunks) == whole
        assert stream.endswith("data: [DONE]\n\n")
    for _, request in dying:
        await worker.cancel_of(request)


async def test_a_client_that_does_not_read_is_cut_and_the_others_go_on(
    edge: Any, worker: Any, model: str, rig: Any
) -> None:
    slow = await Raw.connect(edge.url, receive_buffer=4096)
    slow.post(rig.API_KEY, rig.chat(model, stream=True))
    slow_request = await worker.take(model)
    client, request = await started(edge, worker, model, rig)
    text, total = "x" * 50_000, 0
    for step in range(400):
        worker.step((slow_request, step, text), (request, step + 1, "y"))
        total += 1
        if slow_request.request_id in worker.cancelled:
            break
        await asyncio.sleep(0.005)
    assert (await worker.cancel_of(slow_request))[1] == "slow_client"
    worker.close(request, total + 1)
    rest = await client.until(b"0\r\n\r\n")
    assert rest.count(b'"content":"y"') == total


async def test_a_connection_is_used_again_after_a_stream(edge: Any, worker: Any, model: str, rig: Any) -> None:
    client = await Raw.connect(edge.url)
    for stream in (True, True, False, True):
        client.post(rig.API_KEY, rig.chat(model, stream=stream))
        await worker.answer(model, ["a", "b"])
        end = b"0\r\n\r\n" if stream else b"}]}"
        answer = await client.until(end)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert (b"data: [DONE]\n\n" in answer) == stream


async def test_pipelined_requests_are_answered_in_order(edge: Any, worker: Any, model: str, rig: Any) -> None:
    client = await Raw.connect(edge.url)
    client.post(rig.API_KEY, rig.chat(model, stream=True))
    client.post(rig.API_KEY, rig.chat(model, stream=True))
    for word in (b"one", b"two"):
        await worker.answer(model, [word.decode()])
        assert word in await client.until(b"0\r\n\r\n")


async def test_http_1_0_gets_a_stream_that_ends_with_its_connection(
    edge: Any, worker: Any, model: str, rig: Any
) -> None:
    client = await Raw.connect(edge.url)
    client.post(rig.API_KEY, rig.chat(model, stream=True), version="1.0")
    await worker.answer(model, ["a"])
    async with asyncio.timeout(5):
        answer = await client.reader.read()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert b"Connection: close" in head
    assert body.startswith(b"id: ")
    assert body.endswith(b"data: [DONE]\n\n")


async def test_a_silent_stream_gets_comments(edge: Any, worker: Any, model: str, rig: Any) -> None:
    client = await Raw.connect(edge.url)
    client.post(rig.API_KEY, rig.chat(model, stream=True))
    request = await worker.take(model)
    head = await client.until(b": keep-alive\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    worker.say(request, ["a"])
    await client.until(b'"content":"a"')
    await client.until(b": keep-alive\n\r\n")
    worker.close(request, 1)
    assert b"data: [DONE]" in await client.until(b"0\r\n\r\n")


async def test_tokens_leave_at_once(edge: Any, worker: Any, model: str, rig: Any) -> None:
    """TCP_NODELAY: with Nagle against delayed acks each small event would wait 40 ms."""
    client, request = await started(edge, worker, model, rig)
    waits = []
    for index in range(1, 30):
        began = time.monotonic()
        worker.step((request, index, f"t{index} "))
        await client.until(f"t{index} ".encode())
        waits.append(time.monotonic() - began)
    worker.close(request, 30)
    assert sorted(waits)[len(waits) // 2] < 0.02


async def test_a_request_that_takes_too_long_ends_and_is_cancelled(
    nats_server: NatsServer, worker: Any, model: str, rig: Any, tmp_path: Any
) -> None:
    async with rig.run_edge(nats_server, tmp_path, REQUEST_TIMEOUT="300ms") as edge, rig.session(edge) as http:
        response = await http.post(PATH, json=rig.chat(model))
        assert (response.status, (await response.json())["error"]["code"]) == (504, "request_deadline")
        request = await worker.take(model)
        assert (await worker.cancel_of(request))[1] == "deadline"
        assert request.expire_time.ToMicroseconds() - request.accepted_time.ToMicroseconds() == 300_000
        call = asyncio.create_task(http.post(PATH, json=rig.chat(model, stream=True)))
        request = await worker.take(model)
        worker.say(request, ["a"])
        assert b'"code":"request_deadline"' in (await (await call).read()).split(b"\n\n")[-2]


async def test_more_requests_than_the_bound_are_refused(
    nats_server: NatsServer, worker: Any, model: str, rig: Any, tmp_path: Any
) -> None:
    async with rig.run_edge(nats_server, tmp_path, MAX_ACTIVE_REQUESTS="1") as edge, rig.session(edge) as http:
        call = asyncio.create_task(http.post(PATH, json=rig.chat(model)))
        request = await worker.take(model)
        refused = await http.post(PATH, json=rig.chat(model))
        assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        assert (await refused.json())["error"]["code"] == "edge_full"
        worker.close(request, worker.say(request, ["a"]))
        assert (await call).status == 200


async def test_a_stopping_edge_finishes_its_streams_and_takes_no_new_ones(
    nats_server: NatsServer, worker: Any, model: str, rig: Any, tmp_path: Any
) -> None:
    async with rig.run_edge(nats_server, tmp_path, DRAIN_TIMEOUT="5s") as edge, rig.session(edge) as http:
        client, request = await started(edge, worker, model, rig)
        stopping = asyncio.create_task(edge.stop())
        async with asyncio.timeout(5):
            while (await http.get("/readyz")).status == 200:
                await asyncio.sleep(0.01)
        assert (await http.get("/healthz")).status == 200
        refused = await http.post(PATH, json=rig.chat(model))
        assert (refused.status, (await refused.json())["error"]["code"]) == (503, "draining")
        assert "Retry-After" in refused.headers
        worker.say(request, ["second"], 1)
        worker.close(request, 2)
        rest = await client.until(b"0\r\n\r\n")
        assert b"second" in rest
        assert b"[DONE]" in rest
        assert await stopping == 0


async def test_a_stream_beyond_the_drain_deadline_is_told_and_cancelled(
    nats_server: NatsServer, worker: Any, model: str, rig: Any, tmp_path: Any
) -> None:
    async with rig.run_edge(nats_server, tmp_path, DRAIN_TIMEOUT="200ms") as edge:
        client, request = await started(edge, worker, model, rig)
        stopping = asyncio.create_task(edge.stop())
        assert b'"code":"draining"' in await client.until(b"0\r\n\r\n")
        assert (await worker.cancel_of(request))[1] == "edge_stopped"
        assert await stopping == 0


async def test_without_the_broker_requests_are_refused_and_streams_go_on_after_it(rig: Any, tmp_path: Any) -> None:
    """A broker of its own, killed (-9) in the middle of a stream."""
    async with (
        rig.broker(tmp_path) as server, rig.run_worker(server) as worker,
        rig.run_edge(server, tmp_path) as edge, rig.session(edge) as http,
    ):  # fmt: skip
        await worker.serve("m", http)
        client, request = await started(edge, worker, "m", rig)
        await server.kill()
        async with asyncio.timeout(5):
            while (await http.get("/readyz")).status == 200:
                await asyncio.sleep(0.01)
        assert (await http.get("/healthz")).status == 200
        began = time.monotonic()
        refused = await http.post(PATH, json=rig.chat("m"))
        assert (refused.status, (await refused.json())["error"]["code"]) == (503, "bus_unavailable")
        assert refused.headers["Retry-After"] == "1"
        assert time.monotonic() - began < 1
        worker.say(request, ["while", "away"], 1)
        await server.start()
        worker.close(request, worker.say(request, ["after"], 3))
        async with asyncio.timeout(20):
            rest = await client.reader.readuntil(b"0\r\n\r\n")
        assert [rest.count(word) for word in (b"while", b"away", b"after", b"[DONE]")] == [1, 1, 1, 1]
        async with asyncio.timeout(10):
            while (await http.get("/readyz")).status != 200:
                await asyncio.sleep(0.05)
