"""Files, uploads and lists as OpenAI writes them. A batch: :mod:`inferbus_dialect.batches`."""

from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from inferbus.batch.v1.batch_pb2 import ValidateFileResponse
from inferbus.batch.v1.files_pb2 import File, Upload, UploadState

_UPLOADS = {
    UploadState.UPLOAD_STATE_ACTIVE: "pending",
    UploadState.UPLOAD_STATE_COMPLETED: "completed",
    UploadState.UPLOAD_STATE_CANCELLED: "cancelled",
    UploadState.UPLOAD_STATE_EXPIRED: "expired",
}


def file_object(file: File) -> dict[str, Any]:
    return {
        "id": file.file_id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": file.create_time.seconds,
        "expires_at": _seconds(file.expire_time),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def upload_object(upload: Upload) -> dict[str, Any]:
    return {
        "id": upload.upload_id,
        "object": "upload",
        "bytes": upload.size_bytes,
        "created_at": upload.create_time.seconds,
        "expires_at": upload.expire_time.seconds,
        "filename": upload.head.filename,
        "purpose": upload.head.purpose,
        "status": _UPLOADS[upload.state],
        "file": file_object(upload.file) if upload.HasField("file") else None,
    }


def validation_object(found: ValidateFileResponse) -> dict[str, Any]:
    return {
        "object": "batch.validation",
        "line_count": found.line_count,
        "fault_count": found.fault_count,
        "faults": [
            {"code": one.code, "line": one.line or None, "message": one.message, "param": one.param or None}
            for one in found.faults
        ],
        "highest_cost": found.highest_cost or None,
        "currency": found.currency or None,
    }


def list_object(data: list[dict[str, Any]], more: bool) -> dict[str, Any]:
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": more,
    }


def _seconds(time: Timestamp) -> int | None:
    return time.seconds or None
