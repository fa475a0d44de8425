"""Lines that may be longer than a model's context, counted by a worker that serves it."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.worker.v1.worker_pb2 import TokenizeRequest
from inferbus_bus.workers import Workers
from inferbus_dialect.plan import Plan
from inferbus_runtime.errors import InferBusError

from inferbus_batch.core.index import Place
from inferbus_batch.core.lengths import too_long
from inferbus_batch.core.lines import Fault, plan_line, read_line
from inferbus_batch.validating import Served

_AT_ONCE = 8
_ENOUGH = 56
_AWAY = (ErrorClass.ERROR_CLASS_UNAVAILABLE, ErrorClass.ERROR_CLASS_DEADLINE_EXCEEDED)


class Counting:
    """Of one input of validated lines. What is not found here is told when the line runs, and costs nothing either."""

    def __init__(self, workers: Workers, source: Path, endpoint: str, served: Mapping[str, Served]) -> None:
        self._workers = workers
        self._source = source
        self._endpoint = endpoint
        self._served = served
        self._away: set[str] = set()

    async def faults(self, places: Sequence[Place]) -> list[Fault]:
        """``places``: the longest first; it ends when many in a row have room."""
        found: list[Fault] = []
        fitting = 0
        for begin in range(0, len(places), _AT_ONCE):
            some = await asyncio.gather(*(self._judged(place) for place in places[begin : begin + _AT_ONCE]))
            faults = [fault for fault in some if fault is not None]
            found += faults
            fitting = 0 if faults else fitting + len(some)
            if fitting >= _ENOUGH:
                break
        return found

    async def _judged(self, place: Place) -> Fault | None:
        plan = await asyncio.to_thread(self._read, place)
        if plan is None or plan.model in self._away:
            return None
        context = self._served[plan.model].context_length
        request = plan.requests[0]
        embedded = [one.text for one in request.embedding.inputs if one.text]
        asked = [TokenizeRequest(text=text, parse_special=True) for text in embedded]
        if request.WhichOneof("input") == "chat":
            asked = [TokenizeRequest(chat=request.chat, add_generation_prompt=True)]
        elif request.WhichOneof("input") == "prompt":
            asked = [TokenizeRequest(text=request.prompt.text, parse_special=True)]
        try:
            tokens = [len((await self._workers.tokenize(plan.model, one)).token_id) for one in asked]
        except InferBusError as error:
            if error.error_class in _AWAY:
                self._away.add(plan.model)
            return None
        most = max(tokens, default=0)
        # A text's answer needs room for one token.
        return too_long(place.number, context, most) if most > context - (0 if embedded else 1) else None

    def _read(self, place: Place) -> Plan | None:
        with self._source.open("rb") as data:
            data.seek(place.offset)
            line = read_line(place.number, data.read(place.size), self._endpoint)
        plan = line if isinstance(line, Fault) else plan_line(place.number, line.body, self._endpoint)
        return None if isinstance(plan, Fault) else plan
