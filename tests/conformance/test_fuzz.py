"""Whatever comes over the wire: no 500, no generation left running, no memory kept, and the next request is served."""

import asyncio
import gzip
import json
import socket
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
import psutil
import pytest
import pytest_asyncio

from tests.harness.local import Stack, running

MODEL = "synthetic"
ATTACKS, SOAK_ATTACKS = 1_000, 10_000
AT_ONCE = 32
# What the allocator keeps of the first attacks is no leak, nor is what the edge remembers of the last 10,000 cancelled
# generations: the measurement begins after them. What is left is the allocator's breathing, of bodies of 300 kB.
WARM_UP, SOAK_WARM_UP = 600, 4_000
MAX_GROWTH = 40 << 20
_SECONDS = 1.0
_VARIABLES = {
    "INFERBUS_EDGE_IDLE_TIMEOUT": f"{_SECONDS}s",
    "INFERBUS_EDGE_BODY_TIMEOUT": f"{_SECONDS}s",
    "INFERBUS_EDGE_UNREAD_TIMEOUT": "2s",
}
_PATHS = (
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages",
    "/v1/messages/count_tokens", "/v1/responses/input_tokens", "/tokenize", "/detokenize",
)  # fmt: skip
_BODY: dict[str, Any] = {
    "model": MODEL,
    "messages": [
        {"role": "user", "content": "Hello, wörld 🌊"},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
    ],
    "input": [{"role": "user", "content": "x"}], "prompt": "abc", "tokens": [1, 2], "max_tokens": 4, "stream": False,
    "stop": ["a"], "temperature": 0.5, "tools": [], "metadata": {"a": "b"}, "logit_bias": {"1": 1},
}  # fmt: skip
_VALUES = (
    b"1e999", b"-1e999", b"9" * 400, b"1" + b"0" * 5000, b"0.1e-400", b"NaN", b"-Infinity", b"-0", b"1.0", b"true",
    b"null", b"[]", b"{}", b'""', b'"\\ud800"', b'"\\udfff\\ud800"', b'"\\u0000"', b'"\xff\xfe"', b'"\xed\xa0\x80"',
    b'"\xc0\xaf"', b'"\xf0\x9f\x92"', b'"\x00"', b'"' + b"a" * 300_000 + b'"', b"[" + b"0," * 20_000 + b"0]",
)  # fmt: skip
_FIELDS = (
    b"Last-Event-ID", b"Idempotency-Key", b"x-inferbus-hold", b"Content-Type", b"traceparent", b"OpenAI-Organization",
    b"Expect", b"Origin", b"Content-Encoding", b"X-Any",
)  # fmt: skip
_CONTENTS = (
    b"a" * 20_000, b"\xff\xfe\x80", b"\x00", b"", b"a" * 8_000, b"1" * 300, b"-1", b"\xe2\x82\xac", b"100-continue",
    b"gzip", b"deflate, gzip", b"01a1fe2d-da39-7684-88df-274e4b2083f7:99999999999999999999", b"a\x0bb", b"a\nb: c",
)  # fmt: skip
_ODD_PATHS = (
    "/v1/%ff%fe", "/%00", "//", "/v1/models/" + "%2f" * 1_000, "*", "/v1/responses/resp_" + "f" * 32, "http://[",
    "/v1/streams/%F0%9F", "/?" + "a=" * 3_000, "/v1/chat/completions#", "/v1/organization/audit_logs?limit=%ff",
)  # fmt: skip


@pytest_asyncio.fixture(scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    async with running(tmp_path_factory.mktemp("fuzz") / "home", "synthetic", variables=_VARIABLES) as started:
        yield started


async def test_a_thousand_attacks(stack: Stack) -> None:
    await _withstands(stack, ATTACKS, WARM_UP)


@pytest.mark.soak
async def test_ten_thousand_attacks(stack: Stack) -> None:
    await _withstands(stack, SOAK_ATTACKS, SOAK_WARM_UP)


async def _withstands(stack: Stack, attacks: int, warm_up: int) -> None:
    edge = psutil.Process(stack.pids["edge"])
    warm = await _attack(stack, range(-warm_up, 0))
    before = edge.memory_info().rss
    started = time.monotonic()
    report = await _attack(stack, range(attacks))
    took = time.monotonic() - started
    await _nothing_runs(stack)
    growth = edge.memory_info().rss - before
    print(f"\n{attacks} attacks in {took:.0f} s: {dict(sorted(report.kinds.items()))}")
    print(f"answers: {dict(sorted(report.statuses.items()))}")
    print(f"memory: {before >> 20} MiB, grew by {growth / (1 << 20):.1f} MiB")
    for found in (warm, report):
        assert found.faults == []
    # Each kind did something, and most were told what is wrong.
    assert report.statuses["400"] > attacks / 5
    assert growth < MAX_GROWTH
    assert _errors_logged(stack) == []
    assert stack.pids["edge"] == edge.pid  # it was never started anew
    async with httpx.AsyncClient(base_url=stack.base_url, timeout=30) as http:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
        answer = await http.post("/chat/completions", json=body, headers={"Authorization": f"Bearer {stack.api_key}"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"]


def _errors_logged(stack: Stack) -> list[str]:
    """What a stranger sends is no error of ours: who could fill the log could hide in it."""
    lines = (line for path in (stack.home / "logs").glob("edge*.log") for line in path.read_text().splitlines())
    return [line for line in lines if '"level": "error"' in line or line.startswith("Traceback")]


async def _nothing_runs(stack: Stack) -> None:
    """By the fleet view: no worker has a generation, and none is on its way to one."""
    headers = {"Authorization": f"Bearer {stack.admin_key}"}
    async with httpx.AsyncClient(base_url=stack.root_url, headers=headers, timeout=30) as http, asyncio.timeout(60):
        while True:
            fleet = (await http.get("/inferbus/v1/fleet")).json()
            busy = [one for one in fleet["workers"] if one.get("active", 0) or one.get("on_the_way", 0)]
            if not busy and not any(one.get("queued", 0) for one in fleet.get("queues", [])):
                return
            await asyncio.sleep(0.1)


async def test_who_reads_nothing_is_disconnected(stack: Stack) -> None:
    """Neither the end of the answers nor a close gets through to it: the edge lets go of it all the same."""
    edge, url = psutil.Process(stack.pids["edge"]), urlsplit(stack.root_url)
    connected = socket.create_connection((url.hostname, url.port))
    try:
        connected.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 40)
        port = connected.getsockname()[1]
        async with asyncio.timeout(60):
            while not _is_answered(connected):
                await asyncio.sleep(0.01)
            while _is_connected(edge, port):
                await asyncio.sleep(0.1)
    finally:
        connected.close()


async def test_a_compressed_body_is_refused_by_name(stack: Stack) -> None:
    """A small one could be made of a large one."""
    headers = {"Authorization": f"Bearer {stack.api_key}", "Content-Encoding": "gzip"}
    async with httpx.AsyncClient(base_url=stack.base_url, headers=headers, timeout=60) as http:
        answer = await http.post("/chat/completions", content=gzip.compress(b"a" * (64 << 20)))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", "Content-Encoding")


def _is_answered(connected: socket.socket) -> bool:
    """Looked at and left unread. One that was let go of was accepted, too."""
    try:
        return bool(connected.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def _is_connected(edge: psutil.Process, port: int) -> bool:
    return any(one.raddr and one.raddr.port == port for one in edge.net_connections("tcp"))


# --- attacks ----------------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """``faults``: what must not be. ``statuses``: how often each answer came; "none" for a closed connection."""

    kinds: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Target:
    host: str
    port: int
    key: str

    def head(self, path: str, length: int, *more: bytes) -> bytes:
        fields = [f"POST {path} HTTP/1.1", f"Host: {self.host}", f"Authorization: Bearer {self.key}"]
        return "\r\n".join([*fields, f"Content-Length: {length}", ""]).encode() + b"".join(more) + b"\r\n"


async def _attack(stack: Stack, numbers: range) -> Report:
    url = urlsplit(stack.root_url)
    target = Target(url.hostname or "", url.port or 0, stack.api_key)
    report, turns = Report(), iter(numbers)

    async def attacker() -> None:
        for number in turns:
            source = Random(f"attack {number}")
            kind = source.choices(_KINDS, _WEIGHTS)[0]
            report.kinds[kind.__name__.strip("_")] += 1
            try:
                async with asyncio.timeout(30):
                    data = await kind(target, source)
            except TimeoutError:
                report.faults.append(f"attack {number} ({kind.__name__}): neither answered nor closed in 30 s")
                continue
            _judge(data, f"attack {number} ({kind.__name__})", report)

    await asyncio.gather(*(attacker() for _ in range(AT_ONCE)))
    return report


def _judge(data: bytes, name: str, report: Report) -> None:
    """Every answer has a status of its own, and none says that the server failed."""
    if b"HTTP/1.1 200".startswith(data):  # it had enough
        report.statuses["none"] += 1
    elif not data.startswith((b"HTTP/1.1 ", b"HTTP/1.0 ")):
        report.faults.append(f"{name}: no HTTP: {data[:80]!r}")
    else:
        status = data[9:12].decode()
        report.statuses[status] += 1
        if status in ("500", "502") or b"internal_error" in data:
            report.faults.append(f"{name}: {data[:600]!r}")


async def _told(target: Target, data: bytes, *, read: int = 1 << 16, wait: float = 20.0) -> bytes:
    """What comes back for ``data``, up to ``read`` bytes; the connection is then dropped."""
    reader, writer = await asyncio.open_connection(target.host, target.port)
    try:
        writer.write(data)
        out = b""
        with suppress(ConnectionError, TimeoutError):
            await writer.drain()
            async with asyncio.timeout(wait):
                while len(out) < read and (part := await reader.read(read - len(out))):
                    out += part
                    if _whole(out):
                        break
        return out
    finally:
        _drop(writer)


def _whole(data: bytes) -> bool:
    head, ended, body = data.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    if b"content-length" in fields:
        return bool(ended) and len(body) >= int(fields[b"content-length"])
    return body.endswith(b"0\r\n\r\n")


def _drop(writer: asyncio.StreamWriter) -> None:
    """As a crash does: with a reset, so that nothing waits for anything."""
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _bodies(target: Target, source: Random) -> bytes:
    """JSON that is broken, odd, deep, or about something else."""
    body = source.choice(_SPOILERS)(source)
    return await _told(target, target.head(source.choice(_PATHS), len(body)) + body)


def _cut(source: Random) -> bytes:
    text = json.dumps(_BODY).encode()
    return text[: source.randrange(len(text))]


def _mutated(source: Random) -> bytes:
    text = bytearray(json.dumps(_BODY, ensure_ascii=source.random() < 0.5).encode())
    for _ in range(source.randint(1, 8)):
        text[source.randrange(len(text))] = source.randrange(256)
    return bytes(text)


def _deep(source: Random) -> bytes:
    opened, closed = source.choice(((b"[", b"]"), (b'{"a":', b"}"), (b'{"messages":[', b"]}")))
    depth = source.choice((65, 1_000, 100_000))
    inner = opened * depth + b"1" + closed * (depth if source.random() < 0.7 else 0)
    return b'{"model":"%s","messages":%s}' % (MODEL.encode(), inner)


def _odd(source: Random) -> bytes:
    """A valid shape with a value that nobody expects."""
    value = source.choice(_VALUES)
    name = source.choice([*_BODY, "n", "seed", "response_format", "tool_choice", "user", "x" * 100_000])
    body = json.dumps({key: one for key, one in _BODY.items() if key != name}).encode()
    return body[:-1] + b', "%s": %s}' % (name.encode(), value)


def _twice(source: Random) -> bytes:
    """Keys that stand there more than once."""
    name = source.choice(list(_BODY))
    again = b', "%s": %s' % (name.encode(), source.choice((b"1", b"null", b'"%s"' % MODEL.encode(), b"[]")))
    return json.dumps(_BODY).encode()[:-1] + again * source.randint(1, 50) + b"}"


def _noise(source: Random) -> bytes:
    return source.randbytes(source.choice((0, 1, 100, 10_000)))


_SPOILERS: tuple[Callable[[Random], bytes], ...] = (_cut, _mutated, _mutated, _deep, _odd, _odd, _twice, _noise)


async def _heads(target: Target, source: Random) -> bytes:
    """Heads that are too long, too many, or none."""
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}).encode()
    one = b"%s: %s\r\n" % (source.choice(_FIELDS), source.choice(_CONTENTS))
    many = source.choice((100, 1_000, 20_000))
    odd = source.choice(
        (
            lambda: one,
            lambda: one * source.choice((2, 200)),
            lambda: b"".join(b"h%d: %d\r\n" % (at, at) for at in range(many)),
            lambda: source.randbytes(source.randint(1, 300)) + b"\r\n",
            lambda: b"Transfer-Encoding: chunked\r\n",
            lambda: b"Content-Length: %d\r\n" % source.choice((0, 5, 10**18, 10**30)),
            lambda: b"Authorization: Bearer \xff\xff\r\n",
        )
    )()
    path = source.choice(_PATHS if source.random() < 0.8 else _ODD_PATHS)
    head = target.head(path, len(body), odd)
    if source.random() < 0.2:
        head = source.choice((b"GET ", b"\x16\x03\x01", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"/" * 70_000)) + head
    if source.random() < 0.2:
        head = head.replace(b"POST", source.choice((b"GET", b"DELETE", b"OPTIONS", b"TRACE")), 1)
    return await _told(target, head + body, wait=4.0)


async def _gone_while_asking(target: Target, source: Random) -> bytes:
    """A request that stops in its middle."""
    body = json.dumps(_BODY).encode()
    data = target.head(source.choice(_PATHS), len(body)) + body
    _, writer = await asyncio.open_connection(target.host, target.port)
    writer.write(data[: source.randrange(len(data))])
    with suppress(ConnectionError):
        await writer.drain()
    if source.random() < 0.5:
        await asyncio.sleep(source.random() * 0.02)
    _drop(writer)
    return b""


def _long_stream(target: Target, source: Random) -> bytes:
    path, body = source.choice(
        (
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "n": source.randint(1, 3)}),
            ("/v1/completions", {"prompt": "x", "max_tokens": 2_000}),
            ("/v1/responses", {"input": "x", "store": source.random() < 0.3}),
            ("/v1/messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2_000}),
        )
    )
    text = json.dumps({"model": MODEL, "stream": True, **body}).encode()
    return target.head(path, len(text)) + text


async def _gone_while_reading(target: Target, source: Random) -> bytes:
    """A stream whose client leaves at any byte of it."""
    return await _told(target, _long_stream(target, source), read=source.randint(1, 6_000))


async def _never_reading(target: Target, source: Random) -> bytes:
    """A stream whose client takes nothing, for a while."""
    connected = socket.socket()
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
    connected.setblocking(False)
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_connect(connected, (target.host, target.port))
        await loop.sock_sendall(connected, _long_stream(target, source))
        await asyncio.sleep(source.random() * 2)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    finally:
        connected.close()
    return b""


async def _slowly_asking(target: Target, source: Random) -> bytes:
    """A head or a body that never gets whole: the connection is closed, or the body refused with 408."""
    body = json.dumps(_BODY).encode()
    data = target.head(source.choice(_PATHS), len(body)) + body
    stop = source.randrange(1, len(data))
    reader, writer = await asyncio.open_connection(target.host, target.port)
    try:
        out = b""
        with suppress(ConnectionError):
            for at in range(stop):
                writer.write(data[at : at + 1] if at > stop - 5 else b"" if at else data[: stop - 4])
                if at > stop - 5:
                    await asyncio.sleep(_SECONDS / 4)
            await writer.drain()
            while part := await reader.read(1 << 16):
                out += part
                if _whole(out):
                    break
        return out
    finally:
        _drop(writer)


async def _pipelined(target: Target, source: Random) -> bytes:
    """Requests without waiting for answers; the last one may be broken. All answers are looked at."""
    body = json.dumps({"model": MODEL, "prompt": "x"}).encode()
    one = target.head("/v1/tokenize", len(body)) + body
    many = source.randint(2, 40)
    data = one * many + source.choice((b"", one[: source.randrange(len(one))], b"\x00\x01\x02\r\n\r\n"))
    reader, writer = await asyncio.open_connection(target.host, target.port)
    try:
        writer.write(data)
        out = b""
        with suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(3):
                while out.count(b"HTTP/1.1 ") < many and (part := await reader.read(1 << 16)):
                    out += part
        return out
    finally:
        _drop(writer)


_KINDS: tuple[Callable[[Target, Random], Awaitable[bytes]], ...] = (
    _bodies, _heads, _gone_while_asking, _gone_while_reading, _never_reading, _slowly_asking, _pipelined,
)  # fmt: skip
_WEIGHTS = (45, 20, 12, 12, 2, 2, 7)
