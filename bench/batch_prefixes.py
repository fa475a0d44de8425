"""Lines of a batch that begin alike stand together when they run, so that what one has read serves the next: beside the
same lines as calls in the order of the file, as many at a time."""

import asyncio
import json
import random
from time import perf_counter

import aiohttp

from bench.local import running
from bench.measure import table
from tests.harness.batches import Batches, chat_line
from tests.harness.local import Stack

MODEL = "smollm2-135m-instruct"
WORDS, TOKENS = 150, 8
SLOTS = 4
SETTINGS = {"INFERBUS_WORKER_CAPACITY": str(SLOTS)}
_WORDS = "cat dog tree river stone cloud lamp train house bird fish mountain road bridge garden clock".split()  # noqa: SIM905


def contents(lines: int, prefixes: int) -> list[str]:
    """Shuffled, as a file of somebody's is."""
    source = random.Random(11)
    documents = [" ".join(source.choice(_WORDS) for _ in range(WORDS)) for _ in range(prefixes)]
    made = [f"{documents[n % prefixes]}\n\nQuestion {n}: how many cats are there?" for n in range(lines)]
    source.shuffle(made)
    return made


async def as_batch(stack: Stack, count: int, prefixes: int) -> tuple[float, int, int]:
    """(seconds, input tokens, those of them that were not read again)."""
    batches = Batches(stack)
    lines = [chat_line(str(number), MODEL, TOKENS, content) for number, content in enumerate(contents(count, prefixes))]
    job = await batches.ended((await batches.submit(lines)).job_id, 900)
    assert job.completed_line_count == count
    took = (job.end_time.ToMicroseconds() - job.active_time.ToMicroseconds()) / 1e6
    return took, job.usage.input_tokens, job.usage.cached_input_tokens


async def as_calls(stack: Stack, count: int, prefixes: int) -> tuple[float, int, int]:
    """The same of calls in the order of the file. A batch cannot be made to run in it: that its lines are put in
    another one is what is measured. What a call costs in HTTP is nothing beside what the model reads."""
    todo, used = iter(contents(count, prefixes)), [0, 0]
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=None)) as http:

        async def client() -> None:
            for content in todo:
                body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": TOKENS}
                async with http.post(stack.chat_url, json=body) as answer:
                    usage = json.loads(await answer.read())["usage"]
                used[0] += usage["prompt_tokens"]
                used[1] += usage["prompt_tokens_details"]["cached_tokens"]

        start = perf_counter()
        # As many as a batch has under way.
        await asyncio.gather(*(client() for _ in range(max(8, 2 * SLOTS))))
        return perf_counter() - start, used[0], used[1]


async def run(lines: int = 200, prefixes: int = 8) -> str:
    # A stack of its own each: what the first one has read is not to serve the second.
    async with running("llama_cpp", **SETTINGS) as stack:
        calls = await as_calls(stack, lines, prefixes)
    async with running("llama_cpp", **SETTINGS) as stack:
        batch = await as_batch(stack, lines, prefixes)
    rows = [
        (name, f"{took:.0f}", f"{given}", f"{cached / given:.0%}")
        for name, (took, given, cached) in (("calls, in the order of the file", calls), ("as a batch", batch))
    ]
    return "\n".join((
        "## Lines that begin alike",
        "",
        f"{lines} lines of {prefixes} beginnings of {WORDS} words, shuffled, on one `llama_cpp` worker with {SLOTS} "
        f"slots; {TOKENS} tokens each.",
        "",
        table("", ("", "seconds", "input tokens", "of them cached"), rows),
        f"A batch takes {batch[0] / calls[0]:.2f} of the time of the calls, most of which is reading.",
    ))  # fmt: skip
