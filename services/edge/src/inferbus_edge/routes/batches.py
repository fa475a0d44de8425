"""/v1/batches: the batch service's jobs, for the project of the key."""

from datetime import timedelta

import grpc
import orjson
from aiohttp import web
from inferbus.batch.v1.batch_pb2 import CancelJobRequest, GetJobRequest, ListJobsRequest, SubmitJobRequest
from inferbus.batch.v1.batch_pb2_grpc import BatchServiceStub
from inferbus_runtime import clock
from inferbus_runtime.errors import invalid

from inferbus_edge.auth import INFERENCE, Auth
from inferbus_edge.core.batch_objects import batch_object, list_object, seconds_of
from inferbus_edge.idempotency import HEADER
from inferbus_edge.routes.files import expiry_of, limit_of
from inferbus_edge.routes.messages import body_object, only
from inferbus_edge.routes.relay import ask, configured
from inferbus_edge.server import Call, Routes, json_response

PATH = "/v1/batches"
_FIELDS = ("input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after", "webhook_url")


class BatchRoutes:
    """``batch``: a channel to the batch service, None if the operator named none."""

    def __init__(self, auth: Auth, batch: grpc.aio.Channel | None, body_timeout: timedelta) -> None:
        self._auth = auth
        self._batch = None if batch is None else BatchServiceStub(batch)
        self._body_timeout = body_timeout

    def add_to(self, routes: Routes) -> None:
        one = f"{PATH}/{{batch_id}}"
        routes.add("POST", PATH, self.create)
        routes.add("GET", PATH, self.list)
        routes.add("GET", one, self.get)
        routes.add("POST", f"{one}/cancel", self.cancel)

    async def create(self, call: Call) -> web.StreamResponse:
        key, stub = self._auth.require_for_change(call.http.headers, INFERENCE), self._stub()
        body = await body_object(call, self._body_timeout)
        only(body, _FIELDS)
        for name in ("input_file_id", "endpoint", "completion_window"):
            if not isinstance(body.get(name), str):
                message = f"'{name}' should be a string." if name in body else f"Missing required parameter: '{name}'."
                raise invalid(message, param=name, reason="missing_required_parameter")
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

    async def list(self, call: Call) -> web.StreamResponse:
        key, stub = self._auth.require(call.http.headers, INFERENCE), self._stub()
        query = call.http.query
        asked = ListJobsRequest(
            tenant_id=key.tenant_id, project_id=key.project_id, page_size=limit_of(query.get("limit", ""), 100),
            page_token=query.get("after", ""),
        )  # fmt: skip
        answer = await ask(stub.ListJobs, asked)
        return _json(call, list_object([batch_object(one) for one in answer.jobs], bool(answer.next_page_token)))

    async def get(self, call: Call) -> web.StreamResponse:
        key = self._auth.require(call.http.headers, INFERENCE)
        asked = GetJobRequest(tenant_id=key.tenant_id, project_id=key.project_id, job_id=call.path["batch_id"])
        return _json(call, batch_object((await ask(self._stub().GetJob, asked)).job))

    async def cancel(self, call: Call) -> web.StreamResponse:
        key = self._auth.require(call.http.headers, INFERENCE)
        asked = CancelJobRequest(tenant_id=key.tenant_id, project_id=key.project_id, job_id=call.path["batch_id"])
        return _json(call, batch_object((await ask(self._stub().CancelJob, asked)).job))

    def _stub(self) -> BatchServiceStub:
        stub: BatchServiceStub = configured(self._batch, "batch")
        return stub


def _json(call: Call, said: object) -> web.Response:
    return json_response(orjson.dumps(said), call.request_id)
