"""Who pays, row by row: calls whose words are counted, and the whole row of ``charges`` that they must come to."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any, TypeVar

import httpx2 as httpx

from tests.harness.beside import Beside
from tests.harness.local import Stack

# Each amount shows in a charge by itself: the price of a call is above the minimum, and that above most of the tokens.
PRICE = {"input_per_million": "3", "cached_input_per_million": "1", "output_per_million": "7",
         "reasoning_per_million": "11", "per_call": "0.01", "minimum": "0.0005", "batch_factor": "0.5"}  # fmt: skip
VERSION = "who-pays"
T = TypeVar("T")
PROMPT = "tell me all of it"
WORDS = 5
_ROW = (
    "finish_reason", "error_reason", "attempt", "input_tokens", "cached_input_tokens", "output_tokens",
    "reasoning_tokens", "estimated", "priority_class", "rate_version", "charge",
)  # fmt: skip


def asked(tokens: int | None, model: str = "synthetic", **fields: Any) -> dict[str, Any]:
    """``tokens`` None: as many as the model likes."""
    return {"model": model, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": tokens, **fields}


def row(
    finish: str, output: int, *, read: int = WORDS, error: str = "", attempt: int = 1, **fields: Any
) -> dict[str, Any]:
    """A whole row. ``read``: input tokens. ``first`` False: of a later choice, which bears no price of the call."""
    first = fields.pop("first", True)
    answered = finish in ("stop", "length")
    exact = Fraction(read * 3 + output * 7, 1_000_000) + (Fraction(1, 100) if answered and first else 0)
    if fields.get("priority_class") == "batch":
        exact /= 2
    least = Fraction(5, 10_000) if first and (answered or read + output) else Fraction(0)
    due = max(exact, least)
    return {
        "finish_reason": finish, "error_reason": error, "attempt": attempt, "input_tokens": read,
        "cached_input_tokens": 0, "output_tokens": output, "reasoning_tokens": 0, "estimated": False,
        "priority_class": "interactive", "rate_version": VERSION,
        "charge": Decimal(due.numerator) / Decimal(due.denominator), **fields,
    }  # fmt: skip


def different(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """Of each column in which they differ, both."""
    return {name: (found[name], expected[name]) for name in expected if found[name] != expected[name]}


@dataclass
class Streamed:
    """One stream as its client saw it. A word is a token."""

    request_id: str = ""
    last_event: str = ""
    text: str = ""
    error: str = ""
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def words(self) -> int:
        return len(self.text.split())


class World:
    """A stack, what runs beside it, and its tables."""

    def __init__(self, stack: Stack, http: httpx.AsyncClient) -> None:
        self.stack = stack
        self.http = http
        self.beside: dict[str, Beside] = {}
        self._shared: dict[Callable[[World], Awaitable[Any]], asyncio.Future[Any]] = {}

    async def shared(self, scene: "Callable[[World], Awaitable[T]]") -> T:
        """What ``scene`` gives, which happens once for all who ask."""
        if scene not in self._shared:
            self._shared[scene] = asyncio.ensure_future(scene(self))
        given: T = await asyncio.shield(self._shared[scene])
        return given

    def url(self, edge: str = "", path: str = "/v1/chat/completions") -> str:
        root = f"http://{self.beside[edge].said['http']}" if edge else self.stack.root_url
        return root + path

    def headers(self, **more: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.stack.api_key}", **more}

    async def add(self, like: str, name: str, **settings: str) -> Beside:
        self.beside[name] = Beside(self.stack, like, name, **settings)
        return await self.beside[name].start()

    async def serve(self, model: str, **settings: str) -> Beside:
        """A worker of its own for ``model``, which edges know when it returns."""
        worker = await self.add("worker-0", f"worker-{model}", MODEL=model, **settings)
        async with asyncio.timeout(60):
            while model not in (await self.http.get(self.url(path="/v1/models"), headers=self.headers())).text:
                await asyncio.sleep(0.05)
        return worker

    async def serve_twice(self, model: str, **settings: str) -> list[Beside]:
        """Two workers for ``model``."""
        first = await self.serve(model, **settings)
        return [first, await self.add("worker-0", f"worker-{model}-too", MODEL=model, **settings)]

    async def busy(self, workers: Sequence[Beside]) -> Beside:
        """Whichever of them has something to do first."""
        url, admin = f"{self.stack.root_url}/inferbus/v1/fleet", {"Authorization": f"Bearer {self.stack.admin_key}"}
        async with asyncio.timeout(60):
            while True:
                fleet = (await self.http.get(url, headers=admin)).json()["workers"]
                active = {one["record"]["worker"] for one in fleet if one.get("active")}
                for worker in workers:
                    if worker.name in active:
                        return worker
                await asyncio.sleep(0.05)

    async def whole(self, body: dict[str, Any], edge: str = "", **headers: str) -> httpx.Response:
        return await self.http.post(self.url(edge), json=body, headers=self.headers(**headers))

    async def stream(
        self,
        body: dict[str, Any],
        edge: str = "",
        leave: int | None = None,
        into: Streamed | None = None,
        **headers: str,
    ) -> Streamed:
        """To its end, or until ``leave`` words have come. ``into``: to look at meanwhile."""
        seen = into or Streamed()
        try:
            async with self.http.stream(
                "POST", self.url(edge), json={**body, "stream": True}, headers=self.headers(**headers)
            ) as answer:
                seen.request_id = answer.headers["x-request-id"]
                async for line in answer.aiter_lines():
                    self._take(seen, line)
                    if leave is not None and seen.words >= leave:
                        break
        except httpx.TransportError as error:  # its edge was killed
            seen.error = type(error).__name__
        seen.begun.set()
        return seen

    @staticmethod
    def _take(seen: Streamed, line: str) -> None:
        if line.startswith("id: "):
            seen.last_event = line.removeprefix("id: ")
        if not line.startswith("data: {"):
            return
        event = json.loads(line.removeprefix("data: "))
        seen.error = event.get("error", {}).get("code") or seen.error
        for choice in event.get("choices", ()):
            seen.text += choice["delta"].get("content") or ""
        if seen.text:
            seen.begun.set()

    async def sql(self, query: str) -> list[dict[str, Any]]:
        """As the store's admin."""
        store = self.stack.content["clickhouse"]
        answer = await self.http.post(
            store["url"], content=f"{query} FORMAT JSONEachRow", auth=(store["user"], store["password"]),
            params={"database": store["database"], "output_format_json_quote_decimals": 1},
        )  # fmt: skip
        assert answer.status_code == 200, answer.text
        return [json.loads(line) for line in answer.text.splitlines()]

    async def billed(self, request_id: str, expected: dict[str, Any]) -> None:
        """The one row of it is as ``expected``, once it is there; and the log has as many tokens."""
        found = await self.found(request_id)
        assert not (wrong := different(found, expected)), wrong
        (tokens,) = await self.sql(f"SELECT count() AS n FROM tokens WHERE request_id = '{request_id}'")
        assert int(tokens["n"]) == expected["output_tokens"]

    async def found(self, request_id: str) -> dict[str, Any]:
        async with asyncio.timeout(90):
            while not (rows := await self.sql(f"SELECT * FROM charges WHERE request_id = '{request_id}'")):
                await asyncio.sleep(0.1)
        (one,) = rows
        whole = {name: one[name] for name in _ROW}
        for name in _ROW:
            if name == "attempt" or name.endswith("_tokens"):
                whole[name] = int(whole[name])
        return whole | {"charge": Decimal(one["charge"])}

    async def made(self, request_id: str, at_least: int) -> int:
        """Output tokens of one that was cut off: what the row says, which is no less than what its client got."""
        tokens = int((await self.found(request_id))["output_tokens"])
        assert tokens >= at_least
        return tokens


@asynccontextmanager
async def world_of(stack: Stack) -> AsyncIterator[World]:
    """With a price of our own in force; what runs beside the stack ends with it."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=8)
    async with httpx.AsyncClient(timeout=60, limits=limits) as http:
        world = World(stack, http)
        admin = {"Authorization": f"Bearer {stack.admin_key}"}
        price = {"rate_version": VERSION, "currency": "USD", "tenant_id": "default", **PRICE}
        made = await http.post(f"{stack.root_url}/inferbus/v1/prices", json=price, headers=admin)
        assert made.status_code == 201, made.text
        async with asyncio.timeout(60):
            while (await _version(http, stack, admin)) != VERSION:
                await asyncio.sleep(0.05)
        try:
            yield world
        finally:
            for one in world.beside.values():
                await one.stop()


async def _version(http: httpx.AsyncClient, stack: Stack, admin: dict[str, str]) -> str | None:
    """Of the price in force."""
    answer = await http.get(f"{stack.root_url}/inferbus/v1/rate", params={"tenant": "default"}, headers=admin)
    name: str | None = answer.json().get("rate", {}).get("rate_version")
    return name
