"""Lines go onto REQUESTS, as an edge's calls do; and what is known of those that have not ended."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from inferbus.bus.v1.batch_pb2 import JobRecord
from inferbus.bus.v1.registry_pb2 import KeyRecord, ModelRecord
from inferbus.bus.v1.request_pb2 import GenerateRequest
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import PriorityClass
from inferbus_contracts.ids import choice_id
from inferbus_contracts.prefixes import HASH_BYTES, prefix_of
from inferbus_contracts.subjects import job_edge
from inferbus_dialect.acceptance import messages_of, reply_of
from inferbus_dialect.chat_form import ChatForm
from inferbus_dialect.completions_form import CompletionForm
from inferbus_dialect.embeddings import EmbeddingsForm
from inferbus_dialect.form import Form
from inferbus_dialect.plan import Plan
from inferbus_dialect.responses_form import ResponsesForm
from inferbus_runtime.errors import InferBusError

from inferbus_batch.core.line_ids import line_request_id
from inferbus_batch.core.lines import Fault, plan_line
from inferbus_batch.inputs import Input
from inferbus_batch.parts import Parts

TAG = "batch_id"
# 16 KiB of text: a beginning that is longer is as good as read with that.
_BEGINNING_BYTES = 64 * HASH_BYTES
_FORMS: dict[str, Callable[[bytes, Mapping[str, Any], bool], Form]] = {
    "chat": ChatForm,
    "completions": CompletionForm,
    "embeddings": EmbeddingsForm,
    "responses": ResponsesForm,
}


@dataclass(slots=True)
class Asked:
    """A try of a line. ``first``: the id of its first choice; ``plan`` None: it cannot be asked, see ``error``.

    ``beginning``: see :mod:`.core.leading`. ``reserved``: here, in the budgets that it counts in; ``tried``: it may be
    on REQUESTS; ``stored``: it was.
    """

    line: int
    attempt: int
    first: bytes
    custom_id: str
    plan: Plan | None
    model: ModelRecord | None
    reply: bytes = b""
    error: InferBusError | None = None
    beginning: tuple[bytes, ...] = ()
    reserved: bool = False
    tried: bool = False
    stored: bool = False


class Asking:
    """Of one job."""

    def __init__(self, parts: Parts, record: JobRecord, source: Input) -> None:
        self._parts = parts
        self._record = record
        self._edge = job_edge(record.shard)
        self._source = source

    def prepared(self, line: int, attempt: int, window_ms: int) -> Asked:
        """The try of ``line``, the same whoever makes it. Reads the line from the disk."""
        number, said = self._source.line(line)
        first = line_request_id(self._record.job_id, line, attempt, window_ms, self._edge)
        plan = plan_line(number, said.body, self._record.endpoint)
        if isinstance(plan, Fault):
            # It was valid for the program that validated it.
            error = InferBusError(ErrorClass.ERROR_CLASS_INVALID_ARGUMENT, plan.code, plan.message, param=plan.param)
            return Asked(line, attempt, first, said.custom_id, None, None, error=error)
        plan.tags[TAG] = self._record.job_id
        for request in plan.requests:
            request.priority_class = PriorityClass.PRIORITY_CLASS_BATCH
        model = self._parts.model(plan.model)
        if model is None:
            message = f"The model '{plan.model[:128]}' does not exist or is not served here."
            error = InferBusError(ErrorClass.ERROR_CLASS_NOT_FOUND, "model_not_found", message, param="model")
            return Asked(line, attempt, first, said.custom_id, None, None, error=error)
        reply = orjson.dumps(reply_of(plan, model, window_ms * 1000, 0.0))
        return Asked(line, attempt, first, said.custom_id, plan, model, reply, beginning=_beginning(plan))

    def form(self, asked: Asked) -> Form:
        """Fresh, of one that can be asked."""
        reply = orjson.loads(asked.reply)
        return _FORMS[reply["api"]](asked.first, reply, False)

    async def ask(self, asked: Asked, key: KeyRecord, window_ms: int, expire_ms: int) -> None:
        """Returns when it is stored. Raises InferBusError: of budgets, and as :meth:`Publisher.publish`; asked again it
        is the same request."""
        assert asked.plan is not None  # noqa: S101
        assert asked.model is not None  # noqa: S101
        if not asked.reserved:
            await self._parts.budgets.reserve(asked.first, key, asked.plan, asked.model, window_ms * 1000)
            asked.reserved = True
        asked.tried = True
        for message in self._messages(asked, key, window_ms, expire_ms):
            await self._parts.publisher.publish(message)
        asked.stored = True

    def withdraw(self, asked: Asked) -> None:
        """It was certainly not accepted, and is not going to be: it costs nothing."""
        if asked.reserved and asked.plan is not None:
            asked.reserved = False
            for choice in range(len(asked.plan.requests)):
                self._parts.budgets.refused(choice_id(asked.first, choice))

    def _messages(self, asked: Asked, key: KeyRecord, window_ms: int, expire_ms: int) -> list[GenerateRequest]:
        assert asked.plan is not None  # noqa: S101
        return messages_of(asked.plan, key, asked.first, self._edge, window_ms * 1000, expire_ms * 1000, asked.reply)


def _beginning(plan: Plan) -> tuple[bytes, ...]:
    hashes, model = prefix_of(plan.requests[0])[:_BEGINNING_BYTES], plan.model.encode()
    return tuple(model + hashes[at : at + HASH_BYTES] for at in range(0, len(hashes), HASH_BYTES))
