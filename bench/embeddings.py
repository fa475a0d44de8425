"""How long the largest embeddings answer keeps an edge from all else: as it comes, and were it written at once."""

import math
import time
from array import array

import orjson
from inferbus.bus.v1.frame_pb2 import Close
from inferbus.common.v1.usage_pb2 import FinishReason, Usage
from inferbus_dialect.embeddings import EmbeddingsForm, parse_embedding_request, plan_embeddings

from bench.measure import table

INPUTS, DIMENSIONS, A_FRAME = 2048, 384, 341  # the most that is asked at once; what half a megabyte of a frame holds
VALUES = array("f", [math.sin(at) / 14 for at in range(DIMENSIONS)]).tobytes()


def answer(encoding: str, dimensions: int | None, a_frame: int) -> list[float]:
    """Seconds of each step of an answer that comes ``a_frame`` vectors at a time: its frames, and its end."""
    asked = {"model": "m", "input": ["x"] * INPUTS, "encoding_format": encoding, "dimensions": dimensions}
    reply = plan_embeddings(parse_embedding_request(orjson.dumps(asked))).reply
    form = EmbeddingsForm(b"r" * 16, {**reply, "model": "m", "created": 7}, False)
    spans = []
    for start in range(0, INPUTS, a_frame):
        began = time.perf_counter()
        for index in range(start, min(start + a_frame, INPUTS)):
            form.binary(index, VALUES)
        spans.append(time.perf_counter() - began)
    began = time.perf_counter()
    form.close(0, "rev", Close(finish_reason=FinishReason.FINISH_REASON_STOP, usage=Usage(input_tokens=9)))
    form.finish()
    form.body()
    return [*spans, time.perf_counter() - began]


def longest(encoding: str, dimensions: int | None, a_frame: int, rounds: int) -> list[float]:
    """Of each step the quickest of ``rounds``: what it takes where nothing else wants the core."""
    return [min(step) for step in zip(*(answer(encoding, dimensions, a_frame) for _ in range(rounds)), strict=True)]


async def run(rounds: int = 9) -> str:
    rows = []
    for encoding in ("float", "base64"):
        for dimensions in (None, 300):
            coming = longest(encoding, dimensions, A_FRAME, rounds)
            at_once = sum(longest(encoding, dimensions, INPUTS, rounds))
            pause = max(coming)
            row = (1e3 * max(coming[:-1]), 1e3 * coming[-1], 1e3 * at_once)
            rows.append((encoding, dimensions or DIMENSIONS, *(f"{one:.1f}" for one in row), f"{pause / at_once:.2f}"))
    return table(
        f"{INPUTS} vectors: the longest an edge does nothing else",
        ("format", "dimensions", "a frame, ms", "the end, ms", "all at once, ms", "longest / all at once"),
        rows,
    )
