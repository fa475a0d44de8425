"""Requests and tokens as generated, and how they are put into the tables."""

import json
import random
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from inferbus.meter.v1 import analytics_pb2 as pb
from inferbus_meter.clickhouse import Store

SECOND = 1_000_000
BEGIN = int(datetime(2026, 10, 30, 12, tzinfo=UTC).timestamp())
SPAN = 3 * 3600
NOW_US = (BEGIN + 86_400) * SECOND
STALL_US = SECOND
Measure = pb.AnalyticsMeasure
LATENCIES = {
    Measure.ANALYTICS_MEASURE_TTFT: "ttft", Measure.ANALYTICS_MEASURE_TPOT: "tpot",
    Measure.ANALYTICS_MEASURE_E2E: "e2e", Measure.ANALYTICS_MEASURE_QUEUE: "queue",
}  # fmt: skip
OF_TOKENS = (
    Measure.ANALYTICS_MEASURE_ITL, Measure.ANALYTICS_MEASURE_OUTPUT, Measure.ANALYTICS_MEASURE_STALLS,
)  # fmt: skip
DIMENSIONS = ("tenant_id", "project_id", "model", "revision", "worker", "priority_class")


@dataclass
class Token:
    us: int
    index: int
    gap_us: int
    attempt: int


@dataclass
class Request:
    """A row of ``requests`` and its rows of ``token_events``."""

    id: str
    tenant_id: str
    project_id: str
    model: str
    revision: str
    worker: str
    priority_class: str
    operation: str
    accepted_us: int
    end_us: int
    attempt: int
    finish: str
    error: tuple[str, str]
    estimated: bool
    currency: str
    usage: tuple[int, int, int, int]
    times: dict[str, int | None]
    energy: float | None
    tokens: list[Token] = field(default_factory=list)

    @property
    def cost(self) -> Decimal:
        return Decimal(self.usage[0] + 4 * self.usage[2]) / 1_000_000 if self.currency else Decimal(0)


def made(seed: int, count: int) -> list[Request]:
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        tenant = draw.choice(["acme", "globex", "it's"])
        accepted = BEGIN * SECOND + draw.randrange(SPAN * SECOND)
        if draw.random() < 0.1:
            accepted = accepted // (60 * SECOND) * 60 * SECOND  # a border itself
        finish = draw.choice(["stop", "stop", "stop", "length", "cancelled", "error"])
        operation = draw.choice(["chat", "chat", "", "embeddings"])
        again = draw.random() < 0.2
        placed = draw.random() < 0.9
        outputs = draw.randrange(1, 12) if placed and operation != "embeddings" else 0
        queue = draw.choice([0, 31, draw.randrange(400_000)])
        tokens, at = [], accepted
        resumed = outputs // 2
        for index in range(outputs):
            gap = queue + draw.randrange(1, 900_000) if index == 0 else draw.choice([0, 17, 20_000, 64_000, 1_700_000])
            at += gap
            tokens.append(Token(at, index, gap, 2 if again and index >= resumed else 1))
        ttft = tokens[0].gap_us if tokens else None
        e2e = at - accepted if tokens else None
        tpot = (at - tokens[0].us) // (outputs - 1) if outputs > 1 else None
        if again and outputs:  # what the first attempt still made, in vain
            tokens += [Token(at, resumed + number, 20_000, 1) for number in range(3)]
        inputs = draw.randrange(3000)
        rows.append(
            Request(
                id=str(uuid.UUID(bytes=draw.randbytes(16))), tenant_id=tenant,
                project_id=f"{tenant}-{draw.choice('pq')}",
                model=draw.choice(["small", "large"]), revision=draw.choice(["r1", "r2"]),
                worker=draw.choice(["worker-0", "worker-1"]), operation=operation,
                priority_class=draw.choice(["interactive", "background", "batch"]), accepted_us=accepted,
                end_us=at + draw.choice([0, 1000, draw.randrange(200 * SECOND)]),
                attempt=2 if again else 1 if placed else 0, finish=finish,
                error=("internal", draw.choice(["engine_failed", "lost"])) if finish == "error" else ("", ""),
                estimated=draw.random() < 0.2, currency=draw.choice(["USD", "EUR", ""]),
                usage=(inputs, draw.randrange(inputs + 1), outputs, draw.randrange(outputs + 1)),
                times={"queue": queue if placed else None, "ttft": ttft, "e2e": e2e, "tpot": tpot},
                energy=draw.choice([None, 2.5]), tokens=tokens,
            )
        )  # fmt: skip
    return rows


def stamp(us: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)).strftime("%Y-%m-%d %H:%M:%S.%f")


def request_line(row: Request, **changed: Any) -> dict[str, Any]:
    inputs, cached, outputs, reasoning = row.usage
    return {
        "request_id": row.id, "tenant_id": row.tenant_id, "project_id": row.project_id, "key_id": "k",
        "model": row.model, "revision": row.revision, "engine": "synthetic", "worker": row.worker,
        "attempt": row.attempt, "operation": row.operation, "priority_class": row.priority_class,
        "accepted_time": stamp(row.accepted_us), "end_time": stamp(row.end_us), "input_tokens": inputs,
        "cached_input_tokens": cached, "output_tokens": outputs, "reasoning_tokens": reasoning,
        "estimated": row.estimated, **{f"{name}_us": value for name, value in row.times.items()},
        "energy_j": row.energy, "finish_reason": row.finish, "error_class": row.error[0],
        "error_reason": row.error[1], "cost": str(row.cost), "currency": row.currency,
        "output_per_million": "4", "stream_seq": 7, **changed,
    }  # fmt: skip


def token_lines(row: Request) -> Iterator[dict[str, Any]]:
    for token in row.tokens:
        yield {
            "tenant_id": row.tenant_id, "project_id": row.project_id, "key_id": "k", "model": row.model,
            "revision": row.revision, "worker": row.worker, "edge": "e", "request_id": row.id,
            "attempt": token.attempt, "index": token.index, "token_id": 1, "time": stamp(token.us),
            "gap_us": token.gap_us, "stream_seq": 1,
        }  # fmt: skip


async def put(store: Store, table: str, lines: Sequence[dict[str, Any]]) -> None:
    client = await store._connected()
    await client.raw_insert(table, insert_block="\n".join(map(json.dumps, lines)), fmt="JSONEachRow")


ROWS = made(11, 250)
