"""From the client's words to the worker that has read them: edge, scheduler, worker and its engine's cache as one."""

import asyncio
from pathlib import Path

import openai

from tests.harness.asking import asking
from tests.harness.local import running

# A prompt is read for nearly half a second, so that it pays to have read it; each worker has room for all of them.
VARIABLES = {
    "INFERBUS_WORKER_SYNTHETIC__ITL": "5ms",
    "INFERBUS_WORKER_SYNTHETIC__PREFILL_RATE": "1000",
    "INFERBUS_WORKER_SYNTHETIC__KV_BLOCKS": "512",
    "INFERBUS_WORKER_CONTEXT_LENGTH": "2048",
}
WORKERS = 4
QUESTIONS = 5


async def cached(client: openai.AsyncOpenAI, system: str, question: str) -> int:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    answer = await client.chat.completions.create(model="synthetic", messages=messages, max_tokens=2)
    return answer.usage.prompt_tokens_details.cached_tokens


def system_of(group: int) -> str:
    return " ".join(f"rule{group}-{number}" for number in range(400))


async def test_questions_go_to_where_their_beginning_has_been_read(tmp_path: Path) -> None:
    """The groups' first questions come at once, and spread over the workers; all later ones find their rules again."""
    async with running(
        tmp_path / "home", "synthetic", "--workers", str(WORKERS), variables=VARIABLES
    ) as stack, asking(stack) as client:  # fmt: skip
        first = await asyncio.gather(*(cached(client, system_of(group), "First?") for group in range(WORKERS)))
        later = [
            await cached(client, system_of(group), f"Question {number}?")
            for number in range(QUESTIONS)
            for group in range(WORKERS)
        ]
    assert first == [0] * WORKERS
    # Told ten times a second at most, and what gets lost is told again ten seconds later: the first may be too early.
    assert sum(tokens >= 350 for tokens in later) >= len(later) - WORKERS, later
