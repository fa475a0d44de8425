"""The gRPC API of files and uploads. Who may ask is the edge's business; what they may see is said in each call."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from inferbus.batch.v1 import files_pb2_grpc
from inferbus.batch.v1.files_pb2 import (
    CancelUploadRequest,
    CancelUploadResponse,
    CompleteUploadRequest,
    CompleteUploadResponse,
    CreateUploadRequest,
    CreateUploadResponse,
    DeleteFileRequest,
    DeleteFileResponse,
    File,
    GetFileRequest,
    GetFileResponse,
    ListFilesRequest,
    ListFilesResponse,
    PutFileRequest,
    PutFileResponse,
    PutUploadPartRequest,
    PutUploadPartResponse,
    ReadFileRequest,
    ReadFileResponse,
    Upload,
)
from inferbus.bus.v1.batch_pb2 import FileRecord, UploadRecord
from inferbus_runtime import clock
from inferbus_runtime.errors import invalid

from inferbus_batch.files import Files
from inferbus_batch.uploads import Uploads, head_of, state_of

SERVICE_NAME = "inferbus.batch.v1.FileService"


class FileServicer(files_pb2_grpc.FileServiceServicer):
    """What it answers are InferBusErrors of :class:`Files` and :class:`Uploads`."""

    def __init__(self, files: Files, uploads: Uploads) -> None:
        self._files = files
        self._uploads = uploads

    async def PutFile(  # noqa: N802 - gRPC's name
        self, requests: AsyncIterator[PutFileRequest], context: Any
    ) -> PutFileResponse:
        head = (await _head(requests)).head
        async with aclosing(_content(requests)) as content:
            return PutFileResponse(file=_file(await self._files.put(head, content)))

    async def GetFile(self, request: GetFileRequest, context: Any) -> GetFileResponse:  # noqa: N802
        _named(request)
        record = await self._files.look_up(request.tenant_id, request.project_id, request.file_id)
        return GetFileResponse(file=_file(record))

    async def ListFiles(self, request: ListFilesRequest, context: Any) -> ListFilesResponse:  # noqa: N802
        _named(request)
        found, following = self._files.page(
            request.tenant_id, request.project_id, request.purpose, request.page_size, request.page_token,
            request.ascending,
        )  # fmt: skip
        return ListFilesResponse(files=map(_file, found), next_page_token=following)

    async def DeleteFile(self, request: DeleteFileRequest, context: Any) -> DeleteFileResponse:  # noqa: N802
        _named(request)
        await self._files.delete(request.tenant_id, request.project_id, request.file_id)
        return DeleteFileResponse()

    async def ReadFile(  # noqa: N802
        self, request: ReadFileRequest, context: Any
    ) -> AsyncGenerator[ReadFileResponse, None]:
        _named(request)
        record = await self._files.look_up(request.tenant_id, request.project_id, request.file_id)
        yield ReadFileResponse(file=_file(record))
        async with aclosing(self._files.read(record, request.offset, request.length or None)) as parts:
            async for part in parts:
                yield ReadFileResponse(content=part)

    async def CreateUpload(self, request: CreateUploadRequest, context: Any) -> CreateUploadResponse:  # noqa: N802
        return CreateUploadResponse(upload=self._upload(await self._uploads.create(request.head, request.size_bytes)))

    async def PutUploadPart(  # noqa: N802
        self, requests: AsyncIterator[PutUploadPartRequest], context: Any
    ) -> PutUploadPartResponse:
        head = (await _head(requests)).head
        _named(head)
        async with aclosing(_content(requests)) as content:
            part_id = await self._uploads.put_part(head.tenant_id, head.project_id, head.upload_id, content)
        return PutUploadPartResponse(part_id=part_id, create_time=clock.timestamp(clock.now_us()))

    async def CompleteUpload(  # noqa: N802
        self, request: CompleteUploadRequest, context: Any
    ) -> CompleteUploadResponse:
        _named(request)
        record = await self._uploads.complete(
            request.tenant_id, request.project_id, request.upload_id, list(request.part_ids), request.md5
        )
        return CompleteUploadResponse(upload=self._upload(record))

    async def CancelUpload(self, request: CancelUploadRequest, context: Any) -> CancelUploadResponse:  # noqa: N802
        _named(request)
        record = await self._uploads.cancel(request.tenant_id, request.project_id, request.upload_id)
        return CancelUploadResponse(upload=self._upload(record))

    def _upload(self, record: UploadRecord) -> Upload:
        shown = Upload(
            upload_id=record.upload_id, head=head_of(record), size_bytes=record.size_bytes, state=state_of(record),
            create_time=record.create_time, expire_time=record.expire_time,
        )  # fmt: skip
        if record.file_id and (made := self._uploads.file_of(record)) is not None:
            shown.file.CopyFrom(_file(made))
        return shown


def add_file_service(server: Any, files: Files, uploads: Uploads) -> None:
    files_pb2_grpc.add_FileServiceServicer_to_server(FileServicer(files, uploads), server)


def _file(record: FileRecord) -> File:
    shown = File(
        file_id=record.file_id, tenant_id=record.tenant_id, project_id=record.project_id, filename=record.filename,
        purpose=record.purpose, size_bytes=record.size_bytes, create_time=record.create_time,
    )  # fmt: skip
    if record.HasField("expire_time"):
        shown.expire_time.CopyFrom(record.expire_time)
    return shown


def _named(request: Any) -> None:
    if not request.tenant_id:
        raise invalid("Name the tenant.", param="tenant_id")


async def _head(requests: AsyncIterator[Any]) -> Any:
    first = await anext(aiter(requests), None)
    if first is None or first.WhichOneof("part") != "head":
        raise invalid("A head comes first.", param="head")
    return first


async def _content(requests: AsyncIterator[Any]) -> AsyncGenerator[bytes, None]:
    async for request in requests:
        if request.WhichOneof("part") != "content":
            raise invalid("After the head comes content alone.", param="content")
        yield request.content
