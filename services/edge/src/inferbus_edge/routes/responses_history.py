"""Earlier responses of a conversation, out of the store."""

from collections.abc import Sequence

import orjson
from inferbus.bus.v1.registry_pb2 import KeyRecord, ResponseRecord
from inferbus_dialect.responses_items import Item, distinct, items_of, no_such_item, owner_of, with_ids
from inferbus_dialect.responses_objects import (
    API,
    no_such_response,
    parse_response_id,
    previous_not_found,
    response_id,
)
from inferbus_dialect.responses_schema import Conversation
from inferbus_runtime.errors import InferBusError, invalid

from inferbus_edge.inference import Inference
from inferbus_edge.stored import Stored

# Each earlier response is a round trip to the store; all of them together must fit one message of the bus.
_MAX_TURNS = 512
_MAX_BYTES = 4 << 20
_MAX_REFERENCED = 64
_RUNNING = ("queued", "in_progress")


class History:
    """Of the caller's own project: what is another's is not there."""

    def __init__(self, stored: Stored, inference: Inference) -> None:
        self._stored = stored
        self._inference = inference

    async def record(self, key: KeyRecord, name: str) -> ResponseRecord:
        """The stored response with the id ``name``. Raises InferBusError NOT_FOUND."""
        try:
            first = parse_response_id(name)
        except ValueError:
            raise no_such_response(name) from None
        record = await self._get(key, first)
        if record is None:
            raise no_such_response(name)
        return record

    async def conversation(self, key: KeyRecord, request: Conversation) -> tuple[list[Item], list[Item], bytes]:
        """(the request's own items, those before them, the request id of the previous response or nothing). Raises
        like :meth:`resolved` and :meth:`before`."""
        items = await self.resolved(key, items_of(request.input))
        if request.previous_response_id is None:
            return items, [], b""
        return items, *await self.before(key, request.previous_response_id)

    async def before(self, key: KeyRecord, name: str) -> tuple[list[Item], bytes]:
        """(the conversation up to and with the response ``name``, the id of its request). Raises InferBusError
        INVALID_ARGUMENT if it is not there in full, has not ended, or is too long."""
        try:
            first = parse_response_id(name)
        except ValueError:
            raise previous_not_found(name) from None
        return await self._turns(key, first, whole=True), first

    async def input_of(self, key: KeyRecord, record: ResponseRecord) -> list[Item]:
        """All items that a response was given, those of the conversation before it first, as far as it is stored."""
        first = record.request_id
        earlier: list[Item] = []
        if record.previous_request_id:
            earlier = await self._turns(key, record.previous_request_id, whole=False)
        return distinct(first, [*earlier, *with_ids(first, orjson.loads(record.input))])

    async def resolved(self, key: KeyRecord, items: Sequence[Item]) -> list[Item]:
        """``items`` with what they refer to. Raises InferBusError NOT_FOUND naming the reference."""
        known: dict[bytes, dict[str, Item]] = {}
        out = []
        for at, item in enumerate(items):
            if item["type"] != "item_reference":
                out.append(item)
                continue
            owner = owner_of(item["id"])
            if owner is None:
                raise no_such_item(item["id"], at)
            if owner not in known:
                if len(known) == _MAX_REFERENCED:
                    message = f"Refer to items of at most {_MAX_REFERENCED} responses, or use 'previous_response_id'."
                    raise invalid(message, param=f"input[{at}].id")
                known[owner] = await self._items_of(key, owner)
            found = known[owner].get(item["id"])
            if found is None:
                raise no_such_item(item["id"], at)
            out.append(found)
        return out

    async def _items_of(self, key: KeyRecord, first: bytes) -> dict[str, Item]:
        record = await self._get(key, first)
        if record is None:
            return {}
        items = [*with_ids(first, orjson.loads(record.input)), *await self._output(key, record)]
        return {item["id"]: item for item in items}

    async def _turns(self, key: KeyRecord, last: bytes, *, whole: bool) -> list[Item]:
        """The conversation of ``last`` and those before it. ``whole``: all of it or an error."""
        turns: list[list[Item]] = []
        size, first = 0, last
        while first:
            record = await self._get(key, first)
            if record is None and whole:
                raise previous_not_found(response_id(first))
            if record is None:
                break
            output = await self._output(key, record, ended=whole)
            size += len(record.input) + len(orjson.dumps(output))
            turns.append([*with_ids(first, orjson.loads(record.input)), *output])
            first = record.previous_request_id
            if size > _MAX_BYTES or (first and len(turns) == _MAX_TURNS):
                raise _too_long()
        return [item for turn in reversed(turns) for item in turn]

    async def _output(self, key: KeyRecord, record: ResponseRecord, *, ended: bool = False) -> list[Item]:
        """``ended``: it must be."""
        body = record.body or await self._inference.snapshot(key, record.request_id)
        if not body:
            return []  # deleted in between
        response = orjson.loads(body)
        if ended and response["status"] in _RUNNING:
            raise invalid(
                "The previous response has not ended: wait until it has, or cancel it.",
                param="previous_response_id",
                reason="previous_response_in_progress",
            )
        if ended and not record.body and (response.get("error") or {}).get("code") == "server_error":
            raise previous_not_found(response_id(record.request_id))  # it is not on the log any more
        output: list[Item] = response["output"]
        return output

    async def _get(self, key: KeyRecord, first: bytes) -> ResponseRecord | None:
        """None also for what another API has stored."""
        record = await self._stored.get(key, first)
        if record is None or orjson.loads(record.reply)["api"] != API:
            return None
        return record


def _too_long() -> InferBusError:
    return invalid(
        "The conversation is too long: start a new one without 'previous_response_id'.",
        param="previous_response_id",
        reason="conversation_too_long",
    )
