"""/v1/batches: the batch service's jobs, for the project of the key."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import grpc
import orjson
from aiohttp import web
from inferbus.batch.v1.batch_pb2 import (
    CancelJobRequest,
    GetJobRequest,
    GetWebhookSecretRequest,
    ListJobsRequest,
    SubmitJobRequest,
    ValidateFileRequest,
)
from inferbus.batch.v1.batch_pb2_grpc import BatchServiceStub
from inferbus_bus.user_jwt import Issuer
from inferbus_dialect.batches import batch_object, seconds_of
from inferbus_runtime import clock
from inferbus_runtime.errors import invalid
from inferbus_runtime.rpc import error_of

from inferbus_edge.auth import INFERENCE, Auth
from inferbus_edge.batch_services import BatchServices
from inferbus_edge.core.batch_objects import list_object, validation_object
from inferbus_edge.idempotency import HEADER
from inferbus_edge.queue_door import queue_subjects
from inferbus_edge.routes.files import expiry_of, limit_of
from inferbus_edge.routes.messages import body_object, only
from inferbus_edge.routes.relay import ask, configured
from inferbus_edge.server import Call, Routes, json_response

PATH = "/v1/batches"
# A million lines are a minute of computing, and others may be looked at before.
_VALIDATE_SECONDS = 600.0
_FIELDS = ("input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after", "webhook_url")


class BatchRoutes:
    """``batch``: None if the operator named none. ``queue``: in whose name clients may come straight onto the queue;
    None: nobody may."""

    def __init__(
        self, auth: Auth, batch: BatchServices | None, body_timeout: timedelta, *, queue: Issuer | None = None
    ) -> None:
        self._issuer = queue
        self._auth = auth
        self._batch = batch
        self._body_timeout = body_timeout

    def add_to(self, routes: Routes) -> None:
        one = f"{PATH}/{{batch_id}}"
        routes.add("POST", PATH, self.create)
        routes.add("GET", PATH, self.list)
        routes.add("POST", f"{PATH}/validate", self.validate)
        routes.add("GET", f"{PATH}/queue", self.queue)
        routes.add("GET", f"{PATH}/webhook_secret", self.webhook_secret)
        routes.add("GET", one, self.get)
        routes.add("POST", f"{one}/cancel", self.cancel)

    async def create(self, call: Call) -> web.StreamResponse:
        key, stub = self._auth.require_for_change(call.http.headers, INFERENCE), self._stub()
        body = await body_object(call, self._body_timeout)
        only(body, _FIELDS)
        _require_texts(body, ("input_file_id", "endpoint", "completion_window"))
        metadata = body.get("metadata") or {}
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise invalid("'metadata' should be an object of strings.", param="metadata", reason="invalid_type")
        expire_us = call.accepted_us + seconds_of(body["completion_window"]) * 1_000_000
        asked = SubmitJobRequest(
            request_id=call.http.headers.get(HEADER, "")[:256], tenant_id=key.tenant_id, project_id=key.project_id,
            key_id=key.key_id, input_file_id=body["input_file_id"], endpoint=body["endpoint"], metadata=metadata,
            expire_time=clock.timestamp(expire_us), webhook_url=str(body.get("webhook_url") or ""),
        )  # fmt: skip
        if body.get("output_expires_after") is not None:
            asked.output_expire_after.CopyFrom(expiry_of(body["output_expires_after"], "output_expires_after"))
        return _json(call, batch_object((await ask(stub.SubmitJob, asked)).job))

    async def validate(self, call: Call) -> web.StreamResponse:
        """What a batch of this file would be told of it; nothing is kept."""
        key, stub = self._auth.require_for_change(call.http.headers, INFERENCE), self._stub()
        body = await body_object(call, self._body_timeout)
        only(body, ("input_file_id", "endpoint"))
        _require_texts(body, ("input_file_id", "endpoint"))
        asked = ValidateFileRequest(
            tenant_id=key.tenant_id, project_id=key.project_id, key_id=key.key_id, endpoint=body["endpoint"],
            input_file_id=body["input_file_id"],
        )  # fmt: skip
        try:
            answer = await stub.ValidateFile(asked, timeout=_VALIDATE_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from error
        return _json(call, validation_object(answer))

    async def list(self, call: Call) -> web.StreamResponse:
        key, stub = self._auth.require(call.http.headers, INFERENCE), self._stub()
        query = call.http.query
        asked = ListJobsRequest(
            tenant_id=key.tenant_id, project_id=key.project_id, page_size=limit_of(query.get("limit", ""), 100),
            page_token=query.get("after", ""),
        )  # fmt: skip
        answer = await ask(stub.ListJobs, asked)
        return _json(call, list_object([batch_object(one) for one in answer.jobs], bool(answer.next_page_token)))

    async def queue(self, call: Call) -> web.StreamResponse:
        """Where this key's own NATS client publishes and listens."""
        key = self._auth.require(call.http.headers, INFERENCE)
        where = queue_subjects(key, configured(self._issuer, "queue"))
        said = {
            "object": "batch.queue",
            "submit_subject": where.submit,
            "result_subject": where.results,
            "inbox_prefix": where.inbox,
        }
        return _json(call, said)

    async def webhook_secret(self, call: Call) -> web.StreamResponse:
        """What webhooks of the project's batches are signed with."""
        key = self._auth.require(call.http.headers, INFERENCE)
        asked = GetWebhookSecretRequest(tenant_id=key.tenant_id, project_id=key.project_id)
        said = {"object": "batch.webhook_secret", "secret": (await ask(self._stub().GetWebhookSecret, asked)).secret}
        return _json(call, said)

    async def get(self, call: Call) -> web.StreamResponse:
        key = self._auth.require(call.http.headers, INFERENCE)
        asked = GetJobRequest(tenant_id=key.tenant_id, project_id=key.project_id, job_id=call.path["batch_id"])
        return _json(call, batch_object((await ask(self._stub().GetJob, asked)).job))

    async def cancel(self, call: Call) -> web.StreamResponse:
        key = self._auth.require(call.http.headers, INFERENCE)
        asked = CancelJobRequest(tenant_id=key.tenant_id, project_id=key.project_id, job_id=call.path["batch_id"])
        return _json(call, batch_object((await ask(self._stub().CancelJob, asked)).job))

    def _stub(self) -> BatchServiceStub:
        batch: BatchServices = configured(self._batch, "batch")
        stub: BatchServiceStub = batch.stub(BatchServiceStub)
        return stub


def _require_texts(body: dict[str, Any], names: Iterable[str]) -> None:
    for name in names:
        if not isinstance(body.get(name), str):
            message = f"'{name}' should be a string." if name in body else f"Missing required parameter: '{name}'."
            raise invalid(message, param=name, reason="missing_required_parameter")


def _json(call: Call, said: object) -> web.Response:
    return json_response(orjson.dumps(said), call.request_id)
