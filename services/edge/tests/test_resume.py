"""Clients that come back, to this edge or another, and retries under an idempotency key."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from inferbus.bus.v1.control_pb2 import Attached
from inferbus.bus.v1.registry_pb2 import KeyRecord
from inferbus.common.v1.error_pb2 import Error, ErrorClass
from inferbus.common.v1.usage_pb2 import FinishReason
from inferbus_bus.registry import Registry
from inferbus_contracts.ids import key_hash, uuid_text
from inferbus_contracts.keys import mint
from inferbus_edge.config import Config
from inferbus_edge.core.lifetimes import LEAST_ORPHAN_SECONDS
from inferbus_runtime import clock
from inferbus_stack.nats import NatsServer
from pydantic import ValidationError

PATH = "/v1/chat/completions"
OTHERS_KEY = mint(b"z" * 32)


@pytest_asyncio.fixture(scope="module")
async def other_edge(nats_server: NatsServer, tmp_path_factory: pytest.TempPathFactory, rig: Any) -> AsyncIterator[Any]:
    async with rig.run_edge(nats_server, tmp_path_factory.mktemp("other-edge"), ORPHAN_HOLD="4s") as running:
        yield running


@pytest_asyncio.fixture(scope="module")
async def other_http(other_edge: Any, rig: Any) -> AsyncIterator[aiohttp.ClientSession]:
    async with rig.session(other_edge) as one:
        yield one


@pytest_asyncio.fixture(scope="module")
async def stranger(nats_server: NatsServer, edge: Any, other_edge: Any, rig: Any, worker: Any) -> AsyncIterator[str]:
    """The key of another tenant."""
    keys = Registry(worker.bus, "keys", KeyRecord)
    await keys.start()
    record = KeyRecord(key_id="key_z", tenant_id="evil", project_id="web", scopes=["inference"])
    record.create_time.CopyFrom(clock.timestamp(clock.now_us()))
    await keys.put(key_hash(OTHERS_KEY), record)
    for one in (edge, other_edge):
        async with asyncio.timeout(30), rig.session(one, OTHERS_KEY) as session:
            while (await session.get("/v1/models")).status != 200:
                await asyncio.sleep(0.02)
    yield OTHERS_KEY
    await keys.stop()


@pytest_asyncio.fixture
async def model(model: str, other_http: aiohttp.ClientSession) -> str:
    """The other edge serves it, too: it has a watch of its own."""
    async with asyncio.timeout(30):
        while (await other_http.get(f"/v1/models/{model}")).status != 200:
            await asyncio.sleep(0.01)
    return model


@asynccontextmanager
async def told_by_the_first(worker: Any, rig: Any, request: Any) -> AsyncIterator[None]:
    """Ends when the edge that has it has answered the one that a client comes to meanwhile: both know of each other."""
    told: list[Attached] = []
    stop = await worker.bus.subscribe(Attached, told.append)
    await worker.bus.nc.flush()
    yield
    await rig.until(lambda: any(one.edge == request.edge and request.request_id in one.request_ids for one in told), 30)
    await stop()


class Reader:
    """An SSE client that remembers the last event's id, as EventSource does."""

    def __init__(self) -> None:
        self.data: list[str] = []
        self.ids: list[str] = []

    async def read(self, response: aiohttp.ClientResponse, until: str | None = None) -> None:
        """To the end, or to the first event that contains ``until``."""
        buffer = b""
        async for chunk in response.content.iter_any():
            buffer += chunk
            *whole, buffer = buffer.split(b"\n\n")
            for block in whole:
                fields = dict(line.split(": ", 1) for line in block.decode().split("\n") if not line.startswith(":"))
                if "data" not in fields:
                    continue
                self.data.append(fields["data"])
                if "id" in fields:
                    self.ids.append(fields["id"])
                if until is not None and until in fields["data"]:
                    return

    @property
    def last(self) -> dict[str, str]:
        return {"Last-Event-ID": self.ids[-1]}

    @property
    def text(self) -> str:
        chunks = [json.loads(one) for one in self.data if one != "[DONE]"]
        return "".join(one["choices"][0]["delta"].get("content", "") for one in chunks if one.get("choices"))

    @property
    def numbers(self) -> list[int]:
        return [int(one.rpartition(":")[2]) for one in self.ids]


async def begun(
    http: aiohttp.ClientSession, worker: Any, model: str, rig: Any, **headers: str
) -> tuple[Any, Any, Reader]:
    """(response, request, reader) of a stream that has delivered "a ", "b "."""
    call = asyncio.create_task(http.post(PATH, json=rig.chat(model, stream=True), headers=headers))
    request = await worker.take(model)
    worker.say(request, ["a ", "b "])
    response, reader = await call, Reader()
    await reader.read(response, until='"b "')
    return response, request, reader


def whole(reader: Reader) -> None:
    assert reader.text == "a b c d "
    assert reader.data[-1] == "[DONE]"
    assert reader.numbers == list(range(1, len(reader.numbers) + 1))


async def test_at_the_same_edge_within_the_hold(http: Any, worker: Any, model: str, rig: Any) -> None:
    response, request, reader = await begun(http, worker, model, rig, **{"x-inferbus-hold": "30"})
    assert response.headers["x-inferbus-stream"] == uuid_text(request.request_id)
    response.close()
    worker.say(request, ["c "], first_index=2)
    again = await http.post(PATH, headers=reader.last)
    worker.say(request, ["d "], first_index=3)
    worker.close(request, 4)
    await reader.read(again)
    whole(reader)
    assert request.request_id not in worker.cancelled


async def test_at_another_edge_while_the_first_lives(
    http: Any, other_http: Any, other_edge: Any, worker: Any, model: str, rig: Any
) -> None:
    """The client comes back before the first edge has noticed that it was gone."""
    response, request, reader = await begun(http, worker, model, rig)
    async with told_by_the_first(worker, rig, request):
        again = await other_http.post(PATH, headers=reader.last)
    assert again.status == 200
    response.close()
    worker.say(request, ["c ", "d "], first_index=2)
    worker.close(request, 4)
    await reader.read(again)
    whole(reader)
    assert request.request_id not in worker.cancelled


async def test_at_another_edge_after_the_first_was_killed(
    nats_server: NatsServer, other_http: Any, worker: Any, rig: Any, tmp_path: Path
) -> None:
    model = "killed-edge-model"
    async with rig.run_edge(nats_server, tmp_path) as doomed, rig.session(doomed) as http:
        await worker.serve(model, http)
        response, request, reader = await begun(http, worker, model, rig)
        os.kill(doomed.process.pid, signal.SIGKILL)
        worker.say(request, ["c "], first_index=2)
        with pytest.raises(aiohttp.ClientError):
            await reader.read(response)
        again = await other_http.get(f"/v1/streams/{uuid_text(request.request_id)}", headers=reader.last)
        worker.say(request, ["d "], first_index=3)
        worker.close(request, 4)
        await reader.read(again)
    whole(reader)


async def test_an_edge_that_is_started_anew_leaves_alone_what_another_one_delivers(
    nats_server: NatsServer, other_http: Any, worker: Any, rig: Any, tmp_path: Path
) -> None:
    """Also with the shortest time that it may give orphans: it hears the other one before that is over."""
    model, settings = "returned-edge-model", {"NAME": "edge-returned", "ORPHAN_HOLD": f"{LEAST_ORPHAN_SECONDS:g}s"}
    async with rig.run_edge(nats_server, tmp_path, **settings) as doomed, rig.session(doomed) as http:
        await worker.serve(model, http)
        response, request, reader = await begun(http, worker, model, rig)
        os.kill(doomed.process.pid, signal.SIGKILL)
        with pytest.raises(aiohttp.ClientError):
            await reader.read(response)
    again = await other_http.get(
        f"/v1/streams/{uuid_text(request.request_id)}", headers=reader.last, timeout=aiohttp.ClientTimeout(total=90)
    )  # it reads until another edge has come up and gone
    await asyncio.sleep(0.1)  # what the other one said of it then, the new edge did not hear
    async with rig.run_edge(nats_server, tmp_path, **settings):
        for index in range(int((LEAST_ORPHAN_SECONDS + 1) / 0.1)):
            worker.say(request, ["c "], first_index=2 + index)
            await asyncio.sleep(0.1)
        worker.close(request, 3 + index)
        await reader.read(again)
    assert reader.text == "a b " + "c " * (index + 1)
    assert request.request_id not in worker.cancelled


@pytest.mark.parametrize("seconds", [0, 0.3, 3.9])
def test_an_edge_is_given_no_time_for_orphans_in_which_it_cannot_hear_the_others(seconds: float) -> None:
    with pytest.raises(ValidationError, match=r"orphan_hold\n.*greater than or equal to 4 seconds"):
        Config(name="edge-0", orphan_hold=timedelta(seconds=seconds))
    assert Config(name="edge-0", orphan_hold=timedelta(seconds=4))


async def test_after_the_end(http: Any, other_http: Any, worker: Any, model: str, rig: Any) -> None:
    response, request, reader = await begun(http, worker, model, rig)
    worker.say(request, ["c ", "d "], first_index=2)
    worker.close(request, 4)
    await reader.read(response)
    whole(reader)
    name = uuid_text(request.request_id)
    for session in (http, other_http):
        for after in (0, 3, len(reader.ids)):
            rest = Reader()
            await rest.read(await session.get(f"/v1/streams/{name}?starting_after={after}"))
            assert rest.data == reader.data[after:]
        body = await (await session.get(f"/v1/streams/{name}?stream=false")).json()
        assert body["choices"][0]["message"]["content"] == "a b c d "


async def test_a_client_that_does_not_come_back_is_cancelled_after_its_hold(
    http: Any, worker: Any, model: str, rig: Any
) -> None:
    response, request, _ = await begun(http, worker, model, rig, **{"x-inferbus-hold": "1"})
    left = clock.monotonic()
    response.close()
    at, reason = await worker.cancel_of(request)
    assert reason == "client_gone"
    assert at - left >= 0.9


async def test_a_resumed_client_that_leaves_is_cancelled_too(
    http: Any, other_http: Any, worker: Any, model: str, rig: Any
) -> None:
    response, request, reader = await begun(http, worker, model, rig, **{"x-inferbus-hold": "60"})
    response.close()
    again = await other_http.post(PATH, headers={**reader.last, "x-inferbus-hold": "0"})
    await asyncio.sleep(0.1)
    again.close()
    assert (await worker.cancel_of(request))[1] == "client_gone"


async def test_the_hold_is_remembered_when_it_is_not_said_again(
    http: Any, other_http: Any, worker: Any, model: str, rig: Any
) -> None:
    response, request, reader = await begun(http, worker, model, rig, **{"x-inferbus-hold": "60"})
    response.close()
    again = await other_http.post(PATH, headers=reader.last)
    again.close()
    await asyncio.sleep(1.5)  # longer than the grace of a shared stream
    worker.say(request, ["c "], first_index=2)
    third = await http.post(PATH, headers=reader.last)
    worker.say(request, ["d "], first_index=3)
    worker.close(request, 4)
    await reader.read(third)
    whole(reader)
    assert request.request_id not in worker.cancelled


async def test_one_of_two_readers_leaving_leaves_the_other(
    http: Any, other_http: Any, worker: Any, model: str, rig: Any
) -> None:
    response, request, reader = await begun(http, worker, model, rig)
    async with told_by_the_first(worker, rig, request):
        second = await other_http.get(f"/v1/streams/{uuid_text(request.request_id)}")
    second.close()
    await asyncio.sleep(1.5)
    assert request.request_id not in worker.cancelled
    worker.say(request, ["c ", "d "], first_index=2)
    worker.close(request, 4)
    await reader.read(response)
    whole(reader)


async def test_what_failed_before_its_first_token_fails_again(
    http: Any, other_http: Any, worker: Any, model: str, rig: Any
) -> None:
    key = {"Idempotency-Key": f"k-{model}"}
    call = asyncio.create_task(http.post(PATH, json=rig.chat(model, stream=True), headers=key))
    request = await worker.take(model)
    error = Error(
        error_class=ErrorClass.ERROR_CLASS_INVALID_ARGUMENT, reason="context_length_exceeded", message="Too long."
    )
    worker.close(request, 0, reason=FinishReason.FINISH_REASON_ERROR, error=error)
    assert (await call).status == 400
    for session in (http, other_http):
        again = await session.post(PATH, json=rig.chat(model, stream=True), headers=key)
        assert (again.status, (await again.json())["error"]["code"]) == (400, "context_length_exceeded")
        looked = await session.get(f"/v1/streams/{uuid_text(request.request_id)}")
        assert looked.status == 400


@pytest.mark.parametrize("time", [b"\xff" * 6, b"\0" * 6, (1 << 47).to_bytes(6, "big")])
async def test_an_id_of_another_time_is_not_found(http: Any, worker: Any, model: str, rig: Any, time: bytes) -> None:
    call = asyncio.create_task(http.post(PATH, json=rig.chat(model)))
    request = await worker.answer(model, ["a"])
    await call
    name = uuid_text(time + request.request_id[6:])
    assert (await http.get(f"/v1/streams/{name}")).status == 404


async def test_nobody_elses_stream(
    http: Any, other_edge: Any, stranger: str, worker: Any, model: str, rig: Any
) -> None:
    response, request, reader = await begun(http, worker, model, rig)
    missing = uuid_text(request.request_id[:11] + b"\0\0\0\0\0")
    async with rig.session(other_edge, stranger) as session:
        refused = await session.post(PATH, headers=reader.last)
        unknown = await session.get(f"/v1/streams/{missing}")
        assert (refused.status, await refused.json()) == (404, await unknown.json())
    worker.close(request, 2)
    await reader.read(response)


@pytest.mark.parametrize("name", ["", "x", "1:2:3", "0192:5", f"{uuid_text(bytes(16))}:x"])
async def test_what_is_no_event_id_is_refused(http: Any, model: str, rig: Any, name: str) -> None:
    response = await http.post(PATH, json=rig.chat(model, stream=True), headers={"Last-Event-ID": name})
    assert response.status == 400
    assert (await response.json())["error"]["param"] == "Last-Event-ID"


@pytest.mark.parametrize("hold", ["-1", "x", "601", "1.5", "9" * 40, "0000000009999999"])
async def test_a_hold_out_of_bounds_is_refused(http: Any, model: str, rig: Any, hold: str) -> None:
    response = await http.post(PATH, json=rig.chat(model), headers={"x-inferbus-hold": hold})
    assert response.status == 400
    assert (await response.json())["error"]["param"] == "x-inferbus-hold"


# --- idempotency ------------------------------------------------------------------------------------------------------


async def test_a_retry_joins_the_running_stream_at_any_edge(
    http: Any, other_http: Any, worker: Any, model: str, rig: Any
) -> None:
    key = {"Idempotency-Key": f"k-{model}"}
    response, request, reader = await begun(http, worker, model, rig, **key)
    again = await other_http.post(PATH, json=rig.chat(model, stream=True), headers=key)
    worker.say(request, ["c ", "d "], first_index=2)
    worker.close(request, 4)
    second = Reader()
    await asyncio.gather(reader.read(response), second.read(again))
    whole(reader)
    assert second.data == reader.data
    assert worker.queues[model].empty()


async def test_a_retry_gets_the_finished_answer(http: Any, other_http: Any, worker: Any, model: str, rig: Any) -> None:
    key = {"Idempotency-Key": f"k-{model}"}
    call = asyncio.create_task(http.post(PATH, json=rig.chat(model), headers=key))
    await worker.answer(model, ["a ", "b "])
    first = await (await call).json()
    for session in (http, other_http):
        assert await (await session.post(PATH, json=rig.chat(model), headers=key)).json() == first
    assert worker.queues[model].empty()


async def test_both_at_once_are_one(http: Any, other_http: Any, worker: Any, model: str, rig: Any) -> None:
    key = {"Idempotency-Key": f"k-{model}"}
    calls = [
        asyncio.create_task(session.post(PATH, json=rig.chat(model), headers=key)) for session in (http, other_http) * 4
    ]
    await asyncio.sleep(0.2)
    await worker.answer(model, ["a ", "b "])
    answers = [await (await call).json() for call in calls]
    assert all(one == answers[0] for one in answers)
    assert worker.queues[model].empty()


async def test_another_body_under_the_same_key_is_a_conflict(http: Any, worker: Any, model: str, rig: Any) -> None:
    key = {"Idempotency-Key": f"k-{model}"}
    call = asyncio.create_task(http.post(PATH, json=rig.chat(model), headers=key))
    await worker.answer(model, ["a "])
    await call
    response = await http.post(PATH, json=rig.chat(model, seed=1), headers=key)
    assert response.status == 409
    assert (await response.json())["error"]["code"] == "idempotency_key_reused"


async def test_another_tenant_has_keys_of_its_own(
    http: Any, edge: Any, stranger: str, worker: Any, model: str, rig: Any
) -> None:
    key = {"Idempotency-Key": f"k-{model}"}
    async with rig.session(edge, stranger) as session:
        for one, text in ((http, "mine"), (session, "yours")):
            call = asyncio.create_task(one.post(PATH, json=rig.chat(model), headers=key))
            await worker.answer(model, [text])
            assert (await (await call).json())["choices"][0]["message"]["content"] == text


async def test_a_client_whose_connection_broke_finds_its_answer_whole(
    http: Any, worker: Any, model: str, rig: Any
) -> None:
    key = {"Idempotency-Key": f"k-{model}"}
    response, request, _ = await begun(http, worker, model, rig, **key)
    response.close()
    await asyncio.sleep(0.1)
    worker.say(request, ["c ", "d "], first_index=2)
    worker.close(request, 4)
    reader = Reader()
    await reader.read(await http.post(PATH, json=rig.chat(model, stream=True), headers=key))
    whole(reader)
    assert request.request_id not in worker.cancelled


async def test_what_failed_for_a_reason_of_ours_is_made_anew(http: Any, worker: Any, model: str, rig: Any) -> None:
    key = {"Idempotency-Key": f"k-{model}"}
    call = asyncio.create_task(http.post(PATH, json=rig.chat(model), headers=key))
    request = await worker.take(model)
    error = Error(error_class=ErrorClass.ERROR_CLASS_UNAVAILABLE, reason="engine_failed", message="The engine failed.")
    worker.close(request, 0, reason=FinishReason.FINISH_REASON_ERROR, error=error)
    assert (await call).status == 503
    call = asyncio.create_task(http.post(PATH, json=rig.chat(model), headers=key))
    await worker.answer(model, ["now"])
    assert (await (await call).json())["choices"][0]["message"]["content"] == "now"


async def test_what_was_claimed_and_never_published_is_published_by_the_retry(
    nats_server: NatsServer, http: Any, worker: Any, model: str, rig: Any, tmp_path: Path
) -> None:
    """The edge was killed before anything of it was on the log: the retry publishes it under the same ids."""
    key = {"Idempotency-Key": f"k-{model}"}
    async with rig.run_edge(nats_server, tmp_path) as doomed, rig.session(doomed) as session:
        await worker.serve(model, session)
        call = asyncio.create_task(session.post(PATH, json=rig.chat(model), headers=key))
        request = await worker.take(model)
        os.kill(doomed.process.pid, signal.SIGKILL)
        with pytest.raises(aiohttp.ClientError):
            await call
    again = asyncio.create_task(http.post(PATH, json=rig.chat(model), headers=key))
    await asyncio.sleep(0.5)
    assert worker.queues[model].empty()  # recognised as what is there already
    worker.close(request, worker.say(request, ["late"]))
    response = await again
    assert (await response.json())["choices"][0]["message"]["content"] == "late"


async def test_a_refused_request_does_not_use_up_its_key(http: Any, worker: Any, model: str, rig: Any) -> None:
    key = {"Idempotency-Key": f"k-{model}"}
    assert (await http.post(PATH, json=rig.chat(model, temperature=9), headers=key)).status == 400
    call = asyncio.create_task(http.post(PATH, json=rig.chat(model), headers=key))
    await worker.answer(model, ["fine"])
    assert (await call).status == 200
