"""An engine dies, stalls or lies under running generations: the client gets its whole answer, or a clear error.

The engines are real: llama.cpp in a worker's child, a tritonserver with that model in a process of its own, and
llama.cpp's OpenAI server, behind a server that passes its answers on and does harm to them when it is told to.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import openai
import psutil
import pytest
from inferbus_runtime import clock
from inferbus_worker.engines.llama_cpp_model import default_cache

from services.worker.tests import smollm2_tokenizer
from services.worker.tests.openai_upstreams import servers
from services.worker.tests.openai_upstreams.faults import Fault, Faults, faults
from services.worker.tests.triton_repository import server as triton_server
from tests.harness.asking import Answered, asking, audited, bills, several, unary
from tests.harness.local import Stack, running

TOKENS = 32
BODY: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Write a long story about the sea."}],
    "max_tokens": TOKENS,
    "temperature": 0,
}
# A loaded machine takes seconds for the first token after a start.
PATIENCE = {"ENGINE_STALL": "6s"}
# What no tenant may read: of machines, of our parts, of what an upstream says.
INTERNAL = (
    "127.0.0.1", "10.1.2.3", "localhost", "://", "/srv", ".py", "llama", "openai", "upstream", "triton", "stub",
    "tensorrt", "worker", "exit code", "grpc", "CUDA", "Traceback", "Error:",
)  # fmt: skip


@dataclass
class Served:
    """A stack, its client, and what an undisturbed greedy answer is."""

    stack: Stack
    client: openai.AsyncOpenAI
    body: dict[str, Any]
    text: str = ""

    async def undisturbed(self) -> "Served":
        answer = await unary(self.client, **self.body)
        assert answer.error is None
        self.text = answer.text
        return self

    async def through(self, trouble: Callable[[], Any], streams: int = 3, whole: int = 1) -> list[dict[str, Any]]:
        """Several at once, and ``trouble`` while they run: all are whole, the audit is clean. Returns their rows."""
        since = clock.now_us()
        tasks = await several(self.client, streams, whole, **self.body)
        assert not all(task.done() for task in tasks)
        trouble()
        answers = await asyncio.gather(*tasks)
        assert [str(one.error) for one in answers if one.error] == []
        assert [one.text for one in answers] == [self.text] * len(answers)
        await audited(self.stack)
        rows = await bills(self.stack, since, len(answers))
        assert {row["finish_reason"] for row in rows} == {"length"}
        assert {int(row["output_tokens"]) for row in rows} == {TOKENS}
        assert len({int(row["input_tokens"]) for row in rows}) == 1
        return rows

    def child(self, worker: str = "worker-0") -> int:
        """The process that its engine runs in."""
        (child,) = psutil.Process(self.stack.pids[worker]).children()
        return child.pid


def check_error(answer: Answered, status: int | None, code: str) -> None:
    """Clear, and of nobody's internals. ``status`` None: it came in the middle of a stream."""
    error = answer.error
    assert error is not None
    if status is not None:
        assert isinstance(error, openai.APIStatusError)
        assert error.status_code == status
        assert error.response.headers["Retry-After"]
    assert error.code == code
    said = f"{error.message} {error.body}"
    assert [word for word in INTERNAL if word.lower() in said.lower()] == []
    assert "retry" in error.message.lower()


def numbers(rows: list[dict[str, Any]], name: str) -> list[int]:
    return sorted(int(row[name]) for row in rows)


# --- llama_cpp: the engine's child ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def child(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    variables = {f"INFERBUS_WORKER_{name}": value for name, value in PATIENCE.items()}
    variables["INFERBUS_EDGE_KEEPALIVE_INTERVAL"] = "1s"  # the clients bear with that, too
    home = tmp_path_factory.mktemp("child") / "home"
    async with running(home, "llama_cpp", "--no-embeddings", variables=variables) as stack, asking(stack) as client:
        yield await Served(stack, client, {**BODY, "model": "smollm2-135m-instruct"}).undisturbed()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_an_engine_child_dies_or_stands_still_and_every_answer_is_whole(
    child: Served, number: signal.Signals
) -> None:
    pid, worker = child.child(), child.stack.pids["worker-0"]
    rows = await child.through(lambda: os.kill(pid, number))
    assert numbers(rows, "attempt") == [1] * 4, "its worker went on with them"
    assert not any(row["estimated"] for row in rows)
    assert child.child() != pid
    assert not psutil.pid_exists(pid)
    assert child.stack.pids["worker-0"] == worker


# --- triton -----------------------------------------------------------------------------------------------------------


@dataclass
class OnTriton(Served):
    server: triton_server.TritonServer | None = None

    @property
    def stub(self) -> int:
        assert self.server is not None
        return self.server.stub("tensorrt_llm")


@pytest.fixture(scope="module")
async def triton(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[OnTriton]:
    """Two workers on one server."""
    if missing := triton_server.missing():
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("triton")
    tokenizer = smollm2_tokenizer.write(folder / "tokenizer")
    async with AsyncExitStack() as parts:
        model = await parts.enter_async_context(triton_server.llama(default_cache()))
        address = model.url.removeprefix("http://")
        server = await parts.enter_async_context(triton_server.triton(folder, address, ["tensorrt_llm"]))
        variables = {
            **PATIENCE, "MODEL": "sea", "TRITON__URL": server.grpc, "TRITON__TOKENIZER": str(tokenizer),
            "TRITON__CONTROL": "reload", "TRITON__PROBE_INTERVAL": "1s", "TRITON__PROBE_TIMEOUT": "8s",
            "TRITON__START_TIMEOUT": "30s",
        }  # fmt: skip
        environ = {f"INFERBUS_WORKER_{name}": value for name, value in variables.items()}
        stack = await parts.enter_async_context(running(folder / "home", "triton", "--workers", "2", variables=environ))
        client = await parts.enter_async_context(asking(stack))
        served = OnTriton(stack, client, {**BODY, "model": "sea"}, server=server)
        await served.undisturbed()
        yield served


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_a_stub_of_triton_dies_or_stands_still_and_every_answer_is_whole(
    triton: OnTriton, number: signal.Signals
) -> None:
    """Triton and its model go on saying that they are ready."""
    rows = await triton.through(lambda: os.kill(triton.stub, number))
    assert numbers(rows, "attempt") == [1] * 4
    assert {row["worker"] for row in rows} == {"worker-0", "worker-1"}
    assert not any(row["estimated"] for row in rows)


async def test_a_worker_on_triton_dies_and_its_answers_go_on_by_their_ids(triton: OnTriton) -> None:
    rows = await triton.through(lambda: triton.stack.kill("worker-0"))
    attempts = {(row["worker"], int(row["attempt"])) for row in rows}
    # What ran on the one that died went on at whichever had room first; the other's was not touched.
    assert ("worker-1", 1) in attempts
    assert {attempt for _, attempt in attempts} == {1, 2}
    assert not any(row["estimated"] for row in rows)


# --- openai -----------------------------------------------------------------------------------------------------------


@dataclass
class OnUpstream(Served):
    proxy: Faults | None = None
    server: servers.Server | None = None

    @property
    def next(self) -> Any:
        assert self.proxy is not None
        return self.proxy.next


@pytest.fixture(scope="module")
async def upstream(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[OnUpstream]:
    """Two workers, one upstream."""
    if missing := servers.llama_missing():
        pytest.skip(missing)
    async with AsyncExitStack() as parts:
        server = await parts.enter_async_context(servers.llama(default_cache()))
        proxy = await parts.enter_async_context(faults(server.url))
        variables = {
            "MODEL": "sea", "OPENAI__BASE_URL": proxy.url, "OPENAI__CAPABILITIES": "chat,completions",
            "OPENAI__STALL_TIMEOUT": "5s", "OPENAI__FIRST_TOKEN_TIMEOUT": "60s", "OPENAI__BREAKER_FAILURES": "20",
            "OPENAI__BREAKER_RATE": "1.0", "OPENAI__RETRY_FLOOR": "100", "OPENAI__BUSY_TIMEOUT": "2s",
        }  # fmt: skip
        environ = {f"INFERBUS_WORKER_{name}": value for name, value in variables.items()}
        home = tmp_path_factory.mktemp("upstream") / "home"
        stack = await parts.enter_async_context(running(home, "openai", "--workers", "2", variables=environ))
        client = await parts.enter_async_context(asking(stack))
        served = OnUpstream(stack, client, {**BODY, "model": "sea"}, proxy=proxy, server=server)
        await served.undisturbed()
        yield served


def refuses(status: int, says: str, **headers: str) -> Fault:
    return Fault(status=status, headers=headers, body={"error": {"message": says}})


FAULTS = {
    "cut": [
        Fault(events=11, then="stall"),
        Fault(events=11, then="close"),
        Fault(events=7, then="half"),
        Fault(events=9, then="end"),
    ],
    "refused": [
        refuses(429, "10.1.2.3 is full", **{"Retry-After": "1"}),
        refuses(503, "no GPU at 10.1.2.3"),
        Fault(events=5, then="error"),
    ],
}


@pytest.mark.parametrize("kind", FAULTS)
async def test_whatever_the_upstream_does_once_every_answer_is_whole(upstream: OnUpstream, kind: str) -> None:
    """Each of these happens, to one of those that run at the same time."""
    since = clock.now_us()
    upstream.next.extend(FAULTS[kind])
    tasks = await several(upstream.client, streams=3, whole=2, **upstream.body)
    answers = await asyncio.gather(*tasks)
    assert not upstream.next
    assert [str(one.error) for one in answers if one.error] == []
    assert [one.text for one in answers] == [upstream.text] * 5
    await audited(upstream.stack)
    rows = await bills(upstream.stack, since, 5)
    assert (numbers(rows, "output_tokens"), numbers(rows, "attempt")) == ([TOKENS] * 5, [1] * 5)
    assert len({row["input_tokens"] for row in rows}) == 1
    assert not any(row["estimated"] for row in rows), "the upstream counted, also of what was cut"


async def test_who_was_tried_often_enough_gets_a_clear_error(upstream: OnUpstream) -> None:
    """The last one is left alone for a while after it."""
    since = clock.now_us()
    expected = (
        (refuses(500, "CUDA error at 10.1.2.3:8000 in /srv/x.py"), 503, "engine_failed"),
        (refuses(401, "bad key sk-123 for openai"), 503, "model_unavailable"),
        (refuses(429, "10.1.2.3 is full", **{"Retry-After": "3"}), 429, "model_busy"),
    )
    for fault, status, code in expected:
        upstream.next.extend([fault] * 4)
        answer = await unary(upstream.client, **upstream.body)
        upstream.next.clear()
        check_error(answer, status, code)
    await asyncio.gather(audited(upstream.stack), asyncio.sleep(3))
    rows = await bills(upstream.stack, since, 3)
    assert [row["error_reason"] for row in rows] == [code for _, _, code in expected]
    assert {row["finish_reason"] for row in rows} == {"error"}
    assert numbers(rows, "output_tokens") == [0] * 3


async def test_a_stream_that_cannot_go_on_ends_with_a_clear_error(upstream: OnUpstream) -> None:
    """What had come is the beginning of the answer, and billed; nothing else is."""
    since = clock.now_us()
    again = refuses(500, "CUDA error at 10.1.2.3:8000")
    upstream.next.extend([Fault(events=13, then="close"), *[again] * 3])
    (task,) = await several(upstream.client, streams=1, whole=0, **upstream.body)
    answer = await task
    assert not upstream.next
    check_error(answer, None, "engine_failed")
    assert answer.text
    assert upstream.text.startswith(answer.text)
    await audited(upstream.stack)
    (row,) = await bills(upstream.stack, since, 1)
    assert (row["finish_reason"], row["error_reason"], int(row["attempt"])) == ("error", "engine_failed", 1)
    assert 5 <= int(row["output_tokens"]) < TOKENS


async def test_what_an_upstream_does_not_count_is_billed_as_an_estimate(upstream: OnUpstream) -> None:
    assert upstream.proxy is not None
    upstream.proxy.always = {"no_usage"}
    since = clock.now_us()
    upstream.next.append(Fault(events=11, then="close"))
    try:
        answer = await unary(upstream.client, **upstream.body)
    finally:
        upstream.proxy.always = set()
    assert (answer.error, answer.text) == (None, upstream.text)
    await audited(upstream.stack)
    (row,) = await bills(upstream.stack, since, 1)
    assert row["estimated"]
    assert int(row["output_tokens"]) == TOKENS, "one an event, which it is"


async def test_a_worker_on_an_upstream_dies_and_its_answers_go_on_by_their_text(upstream: OnUpstream) -> None:
    rows = await upstream.through(lambda: upstream.stack.kill("worker-0"))
    attempts = {(row["worker"], int(row["attempt"])) for row in rows}
    # What ran on the one that died went on at whichever had room first; the other's was not touched.
    assert ("worker-1", 1) in attempts
    assert {attempt for _, attempt in attempts} == {1, 2}
    assert not any(row["estimated"] for row in rows)


async def test_an_upstream_dies_and_comes_back_and_every_answer_is_whole(upstream: OnUpstream) -> None:
    server = upstream.server
    assert server is not None

    async def replaced() -> None:
        await server.kill()
        await asyncio.sleep(2)
        await server.start()

    replacing: list[asyncio.Task[None]] = []
    rows = await upstream.through(lambda: replacing.append(asyncio.create_task(replaced())))
    await replacing[0]
    assert numbers(rows, "attempt") == [1] * 4
