"""Answers that nobody reads, on real connections."""

import asyncio
import gc
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
from inferbus_dialect.errors import http_status
from inferbus_edge.cors import cors_of
from inferbus_edge.inference_v2_servicer import body_of
from inferbus_edge.listening import listen
from inferbus_edge.server import Call, Routes, body_response
from inferbus_edge.unread import MAX_BYTES, Unread
from inferbus_runtime.errors import InferBusError
from inferbus_runtime.rpc import Public
from inferbus_runtime.rpc import serve as rpc_serve

SIZE = 16 << 20


@pytest.fixture(autouse=True)
def _collects_its_own() -> Iterator[None]:
    """A collection takes seconds where it looks at all that a thousand other tests have left."""
    gc.freeze()
    yield
    gc.unfreeze()


async def test_a_tenant_that_reads_nothing_asks_for_no_more_and_no_other_is_refused() -> None:
    unread = Unread()

    async def large(call: Call) -> Any:
        unread.check("acme")
        return unread.keep("acme", body_response(bytes(SIZE), call.request_id, {}))

    routes = Routes()
    routes.add("GET", "/large", large)
    brief = timedelta(seconds=30)
    async with (
        listen(
            "127.0.0.1", 0, routes, edge="e", max_body_bytes=1024, idle_timeout=brief, unread_timeout=brief,
            cors=cors_of(()),
        ) as address,
        asyncio.timeout(30),
    ):  # fmt: skip
        host, port = address.split(":")

        async def asked() -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET /large HTTP/1.1\r\nHost: e\r\n\r\n")
            return reader, writer, await reader.readuntil(b"\r\n\r\n")

        waiting = [await asked() for _ in range(MAX_BYTES // SIZE + 1)]
        assert all(head.startswith(b"HTTP/1.1 200") for _, _, head in waiting)
        with pytest.raises(InferBusError) as refused:
            unread.check("acme")
        assert http_status(refused.value) == 429
        unread.check("another")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(unread.idle(), 0.2)
        _, last, head = await asked()
        assert head.startswith(b"HTTP/1.1 429")
        await waiting[0][0].readexactly(SIZE)  # the connection stays open
        waiting[1][1].transport.abort()
        while True:
            gc.collect()
            try:
                unread.check("acme")
            except InferBusError:
                await asyncio.sleep(0.01)
            else:
                break
        _, again, head = await asked()
        assert head.startswith(b"HTTP/1.1 200")
        for _, writer, _ in waiting:
            writer.transport.abort()
        again.transport.abort()
        last.close()
        await unread.idle()


async def test_over_grpc_an_answer_counts_until_its_call_has_ended() -> None:
    unread = Unread()

    async def large(_body: bytes, context: Any) -> bytes:
        response = unread.keep("acme", body_response(bytes(1 << 20), b"r" * 16, {}))
        body = body_of(response, context)
        del response
        gc.collect()
        assert unread.bytes_of("acme") >= 1 << 20
        return body

    def add(server: Any) -> None:
        handlers = {"Large": grpc.unary_unary_rpc_method_handler(large)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", handlers),))

    brief = timedelta(seconds=30)
    public = Public(lambda _method, _metadata: None, 1024, brief, brief, brief, brief)
    async with (
        rpc_serve("127.0.0.1:0", add, (), None, public=public) as server,
        grpc.aio.insecure_channel(server.address) as channel,
        asyncio.timeout(30),
    ):
        ask = channel.unary_unary("/test.Service/Large")
        for _ in range(8):
            assert len(await ask(b"")) == 1 << 20
        while unread.bytes_of("acme"):
            await asyncio.sleep(0.01)
