"""What Triton's metrics page says of the model: requests and KV cache blocks, as last read."""

import asyncio
import logging
import re
from dataclasses import dataclass

import aiohttp

from inferbus_worker.engine import EngineStatistics

log = logging.getLogger(__name__)

_LINE = re.compile(r"^(nv_[a-z_]+)\{([^}]*)\} ([-+0-9.eE]+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_TIMEOUT = aiohttp.ClientTimeout(total=5)


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """None: the page does not say. Requests are those of all clients of the server.

    ``active``: at the backend, ``waiting`` ones among them; ``pending``: in Triton's own queue. A block of the KV cache
    has ``block_tokens`` tokens; ``blocks_reused``: since the server's start.
    """

    active: int | None = None
    waiting: int | None = None
    pending: int | None = None
    blocks_max: int | None = None
    blocks_used: int | None = None
    block_tokens: int | None = None
    blocks_reused: int | None = None

    def statistics(self, running: int, waiting: int) -> EngineStatistics:
        """Of an engine with so many generations of its own. Triton's own queue is a part of the wait, whether or not
        the backend says of a queue."""
        queues = [queue for queue in (self.waiting, self.pending) if queue is not None]
        return EngineStatistics(
            running=running,
            waiting=waiting,
            engine_running=None if self.active is None else max(0, self.active - (self.waiting or 0)),
            engine_waiting=sum(queues) if queues else None,
            kv_blocks_total=self.blocks_max,
            kv_blocks_used=self.blocks_used,
            kv_block_tokens=self.block_tokens,
            kv_blocks_reused_total=self.blocks_reused,
        )


# Field: (family, label, value of it). All but the last are the C++ backend's own; family B has none of them.
_FIELDS = {
    "active": ("nv_trt_llm_request_metrics", "request_type", "active"),
    "waiting": ("nv_trt_llm_request_metrics", "request_type", "waiting"),
    "blocks_max": ("nv_trt_llm_kv_cache_block_metrics", "kv_cache_block_type", "max"),
    "blocks_used": ("nv_trt_llm_kv_cache_block_metrics", "kv_cache_block_type", "used"),
    "block_tokens": ("nv_trt_llm_kv_cache_block_metrics", "kv_cache_block_type", "tokens_per"),
    "blocks_reused": ("nv_trt_llm_kv_cache_block_metrics", "kv_cache_block_type", "reused"),
    "pending": ("nv_inference_pending_request_count", "", ""),
}


def load_of(page: str, models: frozenset[str]) -> ServerLoad:
    """Of a page in Prometheus' text format; ``models``: whose lines count."""
    values: dict[str, int] = {}
    for family, labels, value in _LINE.findall(page):
        said = dict(_LABEL.findall(labels))
        if said.get("model") not in models:
            continue
        for field, (name, label, wanted) in _FIELDS.items():
            if family == name and said.get(label, "") == wanted:
                values[field] = values.get(field, 0) + int(float(value))
    return ServerLoad(**values)


class MetricsReader:
    """Reads the page every ``interval`` seconds; ``load`` is the last of it, empty while the page is away."""

    def __init__(self, url: str, models: frozenset[str], interval: float) -> None:
        self.load = ServerLoad()
        self._url = url
        self._models = models
        self._interval = interval
        self._failed = False

    async def run(self) -> None:
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
            while True:
                self.load = await self._read(session)
                await asyncio.sleep(self._interval)

    async def _read(self, session: aiohttp.ClientSession) -> ServerLoad:
        try:
            async with session.get(self._url) as response:
                response.raise_for_status()
                load = load_of(await response.text(), self._models)
        except (aiohttp.ClientError, TimeoutError) as error:
            if not self._failed:
                log.warning("Triton's metrics cannot be read", extra={"error": repr(error)})
            self._failed = True
            return ServerLoad()
        if self._failed:
            log.info("Triton's metrics can be read again")
        self._failed = False
        return load
