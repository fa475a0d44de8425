"""OpenAI's SDK, unmodified: files, uploads and batches, their whole life."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from io import BytesIO

import httpx2 as httpx
import openai
import pytest

from tests.harness.batches import chat_line
from tests.harness.local import Stack, running

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
async def batch_stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    variables = {"INFERBUS_WORKER_SYNTHETIC__ITL": "50ms", "INFERBUS_WORKER_CAPACITY": "16"}
    async with running(tmp_path_factory.mktemp("sdk") / "home", "synthetic", variables=variables) as stack:
        yield stack


@pytest.fixture
async def client(batch_stack: Stack) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=batch_stack.base_url, api_key=batch_stack.api_key, max_retries=0) as one:
        yield one


@pytest.fixture
async def stranger(batch_stack: Stack) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=batch_stack.base_url, api_key=batch_stack.admin_key, max_retries=0) as one:
        yield one


def lines(count: int) -> bytes:
    return b"".join(chat_line(f"line-{number}", "synthetic", 5) for number in range(count))


async def ended(client: openai.AsyncOpenAI, batch_id: str) -> openai.types.Batch:
    async with asyncio.timeout(120):
        while True:
            batch = await client.batches.retrieve(batch_id)
            if batch.status in ("completed", "failed", "expired", "cancelled"):
                return batch
            await asyncio.sleep(0.2)


@pytest.mark.timeout(180)
async def test_a_batch_from_its_file_to_its_answers(client: openai.AsyncOpenAI, stranger: openai.AsyncOpenAI) -> None:
    file = await client.files.create(file=("in.jsonl", lines(50)), purpose="batch")
    assert (file.object, file.bytes, file.filename, file.purpose) == ("file", len(lines(50)), "in.jsonl", "batch")
    batch = await client.batches.create(
        input_file_id=file.id, endpoint=CHAT, completion_window="24h", metadata={"team": "search"}
    )
    assert (batch.object, batch.status, batch.endpoint, batch.completion_window) == ("batch", "validating", CHAT, "24h")
    assert batch.metadata == {"team": "search"}
    done = await ended(client, batch.id)
    assert (done.status, done.errors, done.error_file_id) == ("completed", None, None)
    assert done.request_counts is not None
    assert done.request_counts.model_dump() == {"total": 50, "completed": 50, "failed": 0}
    assert done.output_file_id is not None
    answers = [json.loads(line) for line in (await client.files.content(done.output_file_id)).text.splitlines()]
    assert sorted(one["custom_id"] for one in answers) == sorted(f"line-{number}" for number in range(50))
    for one in answers:
        openai.types.chat.ChatCompletion.model_validate(one["response"]["body"])
    assert done.usage is not None
    assert done.usage.output_tokens == sum(one["response"]["body"]["usage"]["completion_tokens"] for one in answers)
    assert (await client.batches.list(limit=1)).data[0].id == batch.id
    for call in (
        stranger.files.retrieve(file.id), stranger.files.content(done.output_file_id), stranger.files.delete(file.id),
        stranger.batches.retrieve(batch.id), stranger.batches.cancel(batch.id),
        stranger.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h"),
    ):  # fmt: skip
        with pytest.raises(openai.NotFoundError):
            await call
    assert [one async for one in stranger.files.list()] == []


@pytest.mark.timeout(180)
async def test_a_cancelled_batch(client: openai.AsyncOpenAI) -> None:
    file = await client.files.create(file=("in.jsonl", lines(3000)), purpose="batch")
    batch = await client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="1h")
    async with asyncio.timeout(60):
        while (await client.batches.retrieve(batch.id)).status == "validating":
            await asyncio.sleep(0.1)
    assert (await client.batches.cancel(batch.id)).status in ("cancelling", "cancelled")
    assert (await ended(client, batch.id)).status == "cancelled"


@pytest.mark.timeout(180)
async def test_faults_are_told_with_their_lines(client: openai.AsyncOpenAI) -> None:
    file = await client.files.create(file=("in.jsonl", lines(2) + b"oh\n"), purpose="batch")
    batch = await client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    done = await ended(client, batch.id)
    assert done.status == "failed"
    assert done.errors is not None
    assert [(one.line, one.code) for one in done.errors.data or []] == [(3, "invalid_json_line")]


@pytest.mark.timeout(120)
async def test_an_upload_in_parts(client: openai.AsyncOpenAI) -> None:
    data = lines(1000)
    upload = await client.uploads.create(
        filename="in.jsonl", purpose="batch", bytes=len(data), mime_type="application/jsonl"
    )
    half = len(data) // 2
    parts = [
        await client.uploads.parts.create(upload_id=upload.id, data=BytesIO(piece))
        for piece in (data[half:], data[:half])
    ]
    made = await client.uploads.complete(upload.id, part_ids=[parts[1].id, parts[0].id])
    assert made.status == "completed"
    assert made.file is not None
    assert (await client.files.content(made.file.id)).content == data
    other = await client.uploads.create(filename="x", purpose="batch", bytes=5, mime_type="text/plain")
    assert (await client.uploads.cancel(other.id)).status == "cancelled"


@pytest.mark.timeout(120)
async def test_files_by_their_ranges_and_pages(client: openai.AsyncOpenAI, batch_stack: Stack) -> None:
    data = lines(2000)
    made = [await client.files.create(file=(f"{number}.jsonl", data), purpose="user_data") for number in range(3)]
    listed = [one.id async for one in client.files.list(purpose="user_data", limit=2, order="asc")]
    assert listed == [one.id for one in made]
    headers = {"Authorization": f"Bearer {batch_stack.api_key}"}
    url = f"{batch_stack.base_url}/files/{made[0].id}/content"
    async with httpx.AsyncClient(headers=headers, timeout=60) as http:
        for said, expected in (("0-9", data[:10]), ("1000-", data[1000:]), ("-7", data[-7:]), ("5-5", data[5:6])):
            answer = await http.get(url, headers={"Range": f"bytes={said}"})
            assert (answer.status_code, answer.content) == (206, expected)
            first = len(data) - 7 if said == "-7" else int(said.split("-")[0])
            assert answer.headers["content-range"] == f"bytes {first}-{first + len(expected) - 1}/{len(data)}"
        beyond = await http.get(url, headers={"Range": f"bytes={len(data)}-"})
        assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(data)}")
        head = await http.head(url)
        assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(data)), b"")
    assert (await client.files.delete(made[0].id)).deleted
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(made[0].id)


@pytest.mark.timeout(120)
async def test_what_is_wrong_is_said(client: openai.AsyncOpenAI, batch_stack: Stack) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.files.create(file=("x", b"x"), purpose="nonsense")  # type: ignore[arg-type]
    assert caught.value.param == "purpose"
    with pytest.raises(openai.NotFoundError):
        await client.batches.create(input_file_id="file-none", endpoint=CHAT, completion_window="24h")
    file = await client.files.create(file=("in.jsonl", lines(1)), purpose="batch")
    with pytest.raises(openai.BadRequestError) as caught:
        await client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="soon")  # type: ignore[arg-type]
    assert caught.value.param == "completion_window"
    with pytest.raises(openai.BadRequestError) as caught:
        await client.batches.create(input_file_id=file.id, endpoint="/v1/nothing", completion_window="24h")  # type: ignore[arg-type]
    assert caught.value.param == "endpoint"
    headers = {"Authorization": f"Bearer {batch_stack.api_key}"}
    async with httpx.AsyncClient(headers=headers, timeout=60) as http:
        no_file = await http.post(f"{batch_stack.base_url}/files", data={"purpose": "batch"}, files={"other": b"x"})
        assert no_file.status_code == 400
        no_form = await http.post(f"{batch_stack.base_url}/files", json={"purpose": "batch"})
        assert no_form.status_code == 400


@pytest.mark.timeout(120)
async def test_a_file_that_is_refused_before_all_of_it_came_leaves_its_connection(batch_stack: Stack) -> None:
    """Who still sends has to be able to read why it was refused, and to ask again."""
    url = httpx.URL(batch_stack.base_url)
    start = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nnonsense\r\n'
    start += b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    start += b"x" * 10_000  # a reader of forms looks that far ahead for a boundary
    rest = b"x" * 100_000 + b"\r\n--b--\r\n"
    head = f"Host: {url.host}\r\nAuthorization: Bearer {batch_stack.api_key}\r\n"
    form = f"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {len(start) + len(rest)}\r\n"
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        for _ in range(3):
            writer.write(f"POST {url.path}/files HTTP/1.1\r\n{head}{form}\r\n".encode() + start)
            refused = await reader.readuntil(b"\r\n\r\n")
            assert refused.startswith(b"HTTP/1.1 400"), refused
            size = re.search(rb"(?i)content-length: ([0-9]+)", refused)
            assert size is not None
            assert b"'purpose'" in await reader.readexactly(int(size[1]))
            writer.write(rest)
            await writer.drain()
    finally:
        writer.close()
