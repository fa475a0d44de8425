"""/v1/files and /v1/uploads: the batch service's files, for the project of the key."""

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import timedelta

import grpc
import orjson
from aiohttp import web
from google.protobuf.duration_pb2 import Duration
from inferbus.batch.v1.files_pb2 import (
    CancelUploadRequest,
    CompleteUploadRequest,
    CreateUploadRequest,
    DeleteFileRequest,
    FileHead,
    GetFileRequest,
    ListFilesRequest,
    PartHead,
    PutFileRequest,
    PutUploadPartRequest,
    ReadFileRequest,
)
from inferbus.batch.v1.files_pb2_grpc import FileServiceStub
from inferbus.bus.v1.registry_pb2 import KeyRecord
from inferbus_runtime.errors import invalid
from inferbus_runtime.rpc import error_of

from inferbus_edge.auth import INFERENCE, Auth
from inferbus_edge.batch_services import BatchServices
from inferbus_edge.core.batch_objects import file_object, list_object, upload_object
from inferbus_edge.routes.messages import body_object, only
from inferbus_edge.routes.multipart import Form, content, read_form
from inferbus_edge.routes.relay import ask, configured
from inferbus_edge.server import Call, Routes, json_response, own_headers

PATH, UPLOADS = "/v1/files", "/v1/uploads"
# As long as the service takes a file for; what is slower is refused by it.
_PUT_SECONDS = 3700.0
_COMPLETE_SECONDS = 600.0
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


class FileRoutes:
    """``batch``: None if the operator named none."""

    def __init__(self, auth: Auth, batch: BatchServices | None, body_timeout: timedelta) -> None:
        self._auth = auth
        self._batch = batch
        self._body_timeout = body_timeout

    def add_to(self, routes: Routes) -> None:
        one = f"{PATH}/{{file_id}}"
        routes.add("POST", PATH, self.create)
        routes.add("GET", PATH, self.list)
        routes.add("GET", one, self.get)
        routes.add("DELETE", one, self.delete)
        routes.add("GET", f"{one}/content", self.content)
        upload = f"{UPLOADS}/{{upload_id}}"
        routes.add("POST", UPLOADS, self.create_upload)
        routes.add("POST", f"{upload}/parts", self.add_part)
        routes.add("POST", f"{upload}/complete", self.complete_upload)
        routes.add("POST", f"{upload}/cancel", self.cancel_upload)

    # --- files ------------------------------------------------------------------------------------------------------

    async def create(self, call: Call) -> web.StreamResponse:
        key, stub = self._auth.require_for_change(call.http.headers, INFERENCE), self._stub()
        form = await read_form(call, "file", self._body_timeout)
        if form.file is None:
            raise invalid("Missing required parameter: 'file'.", param="file", reason="missing_required_parameter")
        head = self._head(key, form)

        async def messages() -> AsyncIterator[PutFileRequest]:
            yield PutFileRequest(head=head)
            async for part in content(form, self._body_timeout):
                yield PutFileRequest(content=part)

        made = (await _sent(stub.PutFile, messages())).file
        return _json(call, file_object(made))

    async def list(self, call: Call) -> web.StreamResponse:
        key, stub = self._auth.require(call.http.headers, INFERENCE), self._stub()
        query = call.http.query
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise invalid("'order' is 'asc' or 'desc'.", param="order")
        asked = ListFilesRequest(
            tenant_id=key.tenant_id, project_id=key.project_id, purpose=query.get("purpose", ""),
            page_size=limit_of(query.get("limit", ""), 10_000), page_token=query.get("after", ""),
            ascending=order == "asc",
        )  # fmt: skip
        answer = await ask(stub.ListFiles, asked)
        return _json(call, list_object([file_object(one) for one in answer.files], bool(answer.next_page_token)))

    async def get(self, call: Call) -> web.StreamResponse:
        key = self._auth.require(call.http.headers, INFERENCE)
        asked = GetFileRequest(tenant_id=key.tenant_id, project_id=key.project_id, file_id=call.path["file_id"])
        return _json(call, file_object((await ask(self._stub().GetFile, asked)).file))

    async def delete(self, call: Call) -> web.StreamResponse:
        key = self._auth.require(call.http.headers, INFERENCE)
        file_id = call.path["file_id"]
        asked = DeleteFileRequest(tenant_id=key.tenant_id, project_id=key.project_id, file_id=file_id)
        await ask(self._stub().DeleteFile, asked)
        return _json(call, {"id": file_id, "object": "file", "deleted": True})

    async def content(self, call: Call) -> web.StreamResponse:
        """All of it, or the one range that is asked for."""
        key, stub = self._auth.require(call.http.headers, INFERENCE), self._stub()
        asked = ReadFileRequest(tenant_id=key.tenant_id, project_id=key.project_id, file_id=call.path["file_id"])
        told = GetFileRequest(tenant_id=asked.tenant_id, project_id=asked.project_id, file_id=asked.file_id)
        file = (await ask(stub.GetFile, told)).file
        headers = {
            **own_headers(call.request_id),
            **call.headers,
            "Accept-Ranges": "bytes",
            "Cache-Control": "no-store",
        }
        headers["Content-Disposition"] = "attachment"
        first, last, status = range_of(call.http.headers.get("Range", ""), file.size_bytes)
        if status == 416:
            headers["Content-Range"] = f"bytes */{file.size_bytes}"
            return web.Response(status=416, headers=headers)
        if status == 206:
            headers["Content-Range"] = f"bytes {first}-{last}/{file.size_bytes}"
        asked.offset, asked.length = first, last - first + 1
        response = web.StreamResponse(status=status, headers=headers)
        response.content_type = "application/octet-stream"
        response.content_length = last - first + 1
        if call.http.method == "HEAD" or last < first:
            await response.prepare(call.http)
            await response.write_eof()
            return response
        parts = stub.ReadFile(asked, timeout=_PUT_SECONDS)
        try:
            async for part in parts:
                if part.content:
                    if not response.prepared:
                        await response.prepare(call.http)
                    await response.write(part.content)
        except grpc.aio.AioRpcError as error:
            if not response.prepared:
                raise error_of(error) from error
            # A head that promised more is said: the client sees an answer that was cut off.
            raise ConnectionError("a file could not be read to its end") from error
        finally:
            parts.cancel()
        await response.write_eof()
        return response

    # --- uploads ----------------------------------------------------------------------------------------------------

    async def create_upload(self, call: Call) -> web.StreamResponse:
        key, stub = self._auth.require_for_change(call.http.headers, INFERENCE), self._stub()
        body = await body_object(call, self._body_timeout)
        only(body, ("filename", "purpose", "bytes", "mime_type", "expires_after"))
        size = body.get("bytes")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise invalid("'bytes' should be an integer.", param="bytes", reason="invalid_type")
        head = FileHead(
            tenant_id=key.tenant_id, project_id=key.project_id, filename=str(body.get("filename") or ""),
            purpose=str(body.get("purpose") or ""),
        )  # fmt: skip
        expires = body.get("expires_after")
        if expires is not None:
            head.expire_after.CopyFrom(expiry_of(expires))
        made = (await ask(stub.CreateUpload, CreateUploadRequest(head=head, size_bytes=size))).upload
        return _json(call, upload_object(made))

    async def add_part(self, call: Call) -> web.StreamResponse:
        key, stub = self._auth.require(call.http.headers, INFERENCE), self._stub()
        form = await read_form(call, "data", self._body_timeout)
        if form.file is None:
            raise invalid("Missing required parameter: 'data'.", param="data", reason="missing_required_parameter")
        upload_id = call.path["upload_id"]

        async def messages() -> AsyncIterator[PutUploadPartRequest]:
            head = PartHead(tenant_id=key.tenant_id, project_id=key.project_id, upload_id=upload_id)
            yield PutUploadPartRequest(head=head)
            async for part in content(form, self._body_timeout):
                yield PutUploadPartRequest(content=part)

        made = await _sent(stub.PutUploadPart, messages())
        said = {
            "id": made.part_id, "object": "upload.part", "created_at": made.create_time.seconds, "upload_id": upload_id,
        }  # fmt: skip
        return _json(call, said)

    async def complete_upload(self, call: Call) -> web.StreamResponse:
        key, stub = self._auth.require(call.http.headers, INFERENCE), self._stub()
        body = await body_object(call, self._body_timeout)
        only(body, ("part_ids", "md5"))
        part_ids = body.get("part_ids")
        if not isinstance(part_ids, list) or not all(isinstance(one, str) for one in part_ids):
            raise invalid("'part_ids' should be a list of strings.", param="part_ids", reason="invalid_type")
        asked = CompleteUploadRequest(
            tenant_id=key.tenant_id, project_id=key.project_id, upload_id=call.path["upload_id"], part_ids=part_ids,
            md5=str(body.get("md5") or ""),
        )  # fmt: skip
        return _json(call, upload_object((await ask(stub.CompleteUpload, asked, _COMPLETE_SECONDS)).upload))

    async def cancel_upload(self, call: Call) -> web.StreamResponse:
        key = self._auth.require(call.http.headers, INFERENCE)
        asked = CancelUploadRequest(
            tenant_id=key.tenant_id, project_id=key.project_id, upload_id=call.path["upload_id"]
        )
        return _json(call, upload_object((await ask(self._stub().CancelUpload, asked)).upload))

    # --- parts ------------------------------------------------------------------------------------------------------

    def _stub(self) -> FileServiceStub:
        batch: BatchServices = configured(self._batch, "batch")
        stub: FileServiceStub = batch.stub(FileServiceStub)
        return stub

    def _head(self, key: KeyRecord, form: Form) -> FileHead:
        fields = dict(form.fields)
        purpose = fields.pop("purpose", "")
        if not purpose:
            message = "Missing required parameter: 'purpose'; send it before the file."
            raise invalid(message, param="purpose", reason="missing_required_parameter")
        head = FileHead(tenant_id=key.tenant_id, project_id=key.project_id, filename=form.filename, purpose=purpose)
        anchor, seconds = fields.pop("expires_after[anchor]", ""), fields.pop("expires_after[seconds]", "")
        if anchor or seconds:
            said = {"anchor": anchor, "seconds": int(seconds) if seconds.isdecimal() else seconds}
            head.expire_after.CopyFrom(expiry_of(said))
        for name in fields:
            raise invalid(f"Unknown parameter: '{name[:64]}'.", param=name[:64], reason="unknown_parameter")
        return head


def expiry_of(said: object, param: str = "expires_after") -> Duration:
    """``{"anchor": "created_at", "seconds": n}``. Raises InferBusError INVALID_ARGUMENT."""
    seconds = said.get("seconds") if isinstance(said, dict) and said.get("anchor") == "created_at" else None
    if not isinstance(seconds, int) or isinstance(seconds, bool) or not 0 < seconds < 1 << 31:
        raise invalid(f'\'{param}\' is {{"anchor": "created_at", "seconds": 3600 to 2592000}}.', param=param)
    return Duration(seconds=seconds)


def limit_of(said: str, most: int) -> int:
    """0: not said. Raises InferBusError INVALID_ARGUMENT."""
    if not said:
        return 0
    if not said.isdecimal() or not 0 < int(said[:9]) <= most:
        raise invalid(f"'limit' is 1 to {most}.", param="limit")
    return int(said)


def range_of(said: str, size: int) -> tuple[int, int, int]:
    """(first byte, last byte, status) of a ``Range``: 206 for one range, 416 for one that lies behind the end, else 200
    for all of it, as RFC 9110 has it for what is not understood."""
    found = _RANGE.fullmatch(said.replace(" ", ""))
    if found is None or found.groups() == ("", ""):
        return 0, size - 1, 200
    if not found[1]:
        first, last = max(0, size - int(found[2])), size - 1
    else:
        first, last = int(found[1]), min(size - 1, int(found[2])) if found[2] else size - 1
        if found[2] and int(found[2]) < first:
            return 0, size - 1, 200
    return (first, last, 206) if first <= last else (0, 0, 416)


async def _sent(method: object, messages: AsyncIterator[object]):  # type: ignore[no-untyped-def]
    """The answer to a stream; what reading the body raised is raised, and not what came of it. Nobody reads the body
    any more when it returns: what is left of it is for the server, which reads it away to keep the connection."""
    call = method(timeout=_PUT_SECONDS)  # type: ignore[operator]

    async def send() -> None:
        try:
            async for message in messages:
                await call.write(message)
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # it is answered already: the answer says why
        except BaseException:
            call.cancel()
            raise

    sending = asyncio.create_task(send())
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        _raise_failure_of(sending)
        raise error_of(error) from error
    except BaseException:
        call.cancel()
        _raise_failure_of(sending)
        raise
    finally:
        sending.cancel()
        await asyncio.wait((sending,))


def _raise_failure_of(sending: "asyncio.Task[None]") -> None:
    if sending.done() and not sending.cancelled() and (error := sending.exception()) is not None:
        raise error from None


def _json(call: Call, said: object) -> web.Response:
    return json_response(orjson.dumps(said), call.request_id)
