"""The operations about files, uploads and batches."""

from inferbus_edge.core.openapi_operations import WITH_KEY, Operation, Parameter, in_path, in_query, whole
from inferbus_edge.core.openapi_schema import (
    FLAG,
    LABELS,
    TEXT,
    UNIX,
    WHOLE,
    Schema,
    const,
    listing,
    many,
    nullable,
    one_of,
    record,
    ref,
    told,
)

_GROUP, _SCOPE = "Files and batches", "inference"
_ERRORS = (*WITH_KEY, 429, 499, 503, 504)
_ONE = (*_ERRORS, 404)
_PURPOSE = one_of("batch", "assistants", "fine-tune", "vision", "user_data", "evals")
_MADE = one_of("batch", "assistants", "fine-tune", "vision", "user_data", "evals", "batch_output")
_EXPIRES: Schema = {
    "type": "object",
    "properties": {"anchor": const("created_at"), "seconds": whole(3600, 2_592_000)},
    "required": ["anchor", "seconds"],
    "additionalProperties": False,
}
_CONTENT: Schema = {"type": "string", "format": "binary"}
_ENDPOINT = one_of("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
_WINDOW = told(
    {"type": "string", "pattern": "^[1-9][0-9]{0,5}[mhd]$"},
    "A deadline, such as 24h, 90m or 7d; 14 days at most. What has not run by then does not.",
)
_METADATA: Schema = {**LABELS, "maxProperties": 16}
_STATUS = one_of("validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled")
_TIME = nullable(UNIX)
_NAME = nullable(TEXT)


def _sent(required: tuple[str, ...], **fields: Schema) -> Schema:
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


_FAULTS = many(record(code=TEXT, line=nullable(WHOLE), message=TEXT, param=_NAME))
SCHEMAS: dict[str, Schema] = {
    "FileForm": {
        "type": "object",
        "properties": {
            "purpose": told(_PURPOSE, "Before the file in the form."),
            "expires_after[anchor]": const("created_at"),
            "expires_after[seconds]": told(TEXT, "3600 to 2592000."),
            "file": _CONTENT,
        },
        "required": ["purpose", "file"],
    },
    "PartForm": {"type": "object", "properties": {"data": _CONTENT}, "required": ["data"]},
    "File": record(
        id=TEXT, object=const("file"), bytes=WHOLE, created_at=UNIX, expires_at=_TIME, filename=TEXT, purpose=_MADE,
        status=const("processed"), status_details=_NAME,
    ),
    "FileList": listing("File"),
    "DeletedFile": record(id=TEXT, object=const("file"), deleted=FLAG),
    "UploadBody": _sent(
        ("filename", "purpose", "bytes", "mime_type"),
        filename=TEXT, purpose=_PURPOSE, bytes=WHOLE, mime_type=TEXT, expires_after=_EXPIRES,
    ),
    "Upload": record(
        id=TEXT, object=const("upload"), bytes=WHOLE, created_at=UNIX, expires_at=UNIX, filename=TEXT, purpose=_PURPOSE,
        status=one_of("pending", "completed", "cancelled", "expired"), file=nullable(ref("File")),
    ),
    "UploadPart": record(id=TEXT, object=const("upload.part"), created_at=UNIX, upload_id=TEXT),
    "CompleteBody": _sent(
        ("part_ids",), part_ids=told(many(TEXT), "In the order of the file."), md5=told(TEXT, "Of the file, in hex.")
    ),
    "BatchBody": _sent(
        ("input_file_id", "endpoint", "completion_window"),
        input_file_id=TEXT, endpoint=_ENDPOINT, completion_window=_WINDOW, metadata=nullable(_METADATA),
        output_expires_after=_EXPIRES, webhook_url=told(TEXT, "Told when the batch has ended."),
    ),
    "Batch": record(
        id=TEXT, object=const("batch"), endpoint=_ENDPOINT, model=told(_NAME, "Of all lines; null for several."),
        errors=nullable(record(object=const("list"), data=_FAULTS)),
        input_file_id=TEXT, completion_window=TEXT, status=_STATUS, output_file_id=_NAME, error_file_id=_NAME,
        created_at=UNIX, in_progress_at=_TIME, expires_at=UNIX, finalizing_at=_TIME, completed_at=_TIME,
        failed_at=_TIME,
        expired_at=_TIME, cancelling_at=_TIME, cancelled_at=_TIME,
        request_counts=record(total=WHOLE, completed=WHOLE, failed=WHOLE),
        usage=record(
            input_tokens=WHOLE, input_tokens_details=record(cached_tokens=WHOLE), output_tokens=WHOLE,
            output_tokens_details=record(reasoning_tokens=WHOLE), total_tokens=WHOLE,
        ),
        metadata=_METADATA,
    ),
    "BatchList": listing("Batch"),
    "ValidateBody": _sent(("input_file_id", "endpoint"), input_file_id=TEXT, endpoint=_ENDPOINT),
    "BatchValidation": record(
        object=const("batch.validation"), line_count=WHOLE, fault_count=WHOLE, faults=_FAULTS,
        highest_cost=told(_NAME, "A decimal: all lines cost no more; null if a price is not known."), currency=_NAME,
    ),
    "BatchWebhookSecret": record(
        object=const("batch.webhook_secret"), secret=told(TEXT, "As Standard Webhooks writes it: whsec_ and base64."),
    ),
    "BatchQueue": record(
        object=const("batch.queue"), submit_subject=told(TEXT, "Publish jobs and single requests here."),
        result_subject=told(TEXT, "What came of them is told here."), inbox_prefix=told(TEXT, "Of your NATS client."),
    ),
}  # fmt: skip

_FILE, _UPLOAD, _BATCH = "/v1/files/{file_id}", "/v1/uploads/{upload_id}", "/v1/batches/{batch_id}"
_FILE_ID = in_path("file_id", "The id of a file.")
_UPLOAD_ID = in_path("upload_id", "The id of an upload.")
_BATCH_ID = in_path("batch_id", "The id of a batch.")
_AFTER = in_query("after", TEXT, "The id of the last one of the page before.")

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "POST", "/v1/files", _GROUP, "Send a file", "File", scope=_SCOPE, body="FileForm",
        body_content="multipart/form-data", errors=_ERRORS,
    ),
    Operation(
        "GET", "/v1/files", _GROUP, "Files of the project", "FileList", scope=_SCOPE, errors=_ERRORS,
        parameters=(
            in_query("purpose", _MADE), in_query("limit", whole(1, 10_000, 10_000)), _AFTER,
            in_query("order", one_of("asc", "desc"), "By creation."),
        ),
    ),
    Operation("GET", _FILE, _GROUP, "One file", "File", scope=_SCOPE, parameters=(_FILE_ID,), errors=_ONE),
    Operation(
        "DELETE", _FILE, _GROUP, "Delete a file", "DeletedFile", scope=_SCOPE, parameters=(_FILE_ID,), errors=_ONE
    ),
    Operation(
        "GET", f"{_FILE}/content", _GROUP, "Its content, or a range of it", "Anything", scope=_SCOPE,
        parameters=(_FILE_ID, Parameter("Range", "header", TEXT, "One range: bytes=0-99, bytes=100- or bytes=-100.")),
        content="application/octet-stream", errors=_ONE,
    ),
    Operation(
        "POST", "/v1/uploads", _GROUP, "Begin a file in parts", "Upload", scope=_SCOPE, body="UploadBody",
        errors=_ERRORS,
    ),
    Operation(
        "POST", f"{_UPLOAD}/parts", _GROUP, "Send a part, in any order", "UploadPart", scope=_SCOPE, body="PartForm",
        body_content="multipart/form-data", parameters=(_UPLOAD_ID,), errors=(*_ONE, 409),
    ),
    Operation(
        "POST", f"{_UPLOAD}/complete", _GROUP, "Make the file of its parts", "Upload", scope=_SCOPE,
        body="CompleteBody", parameters=(_UPLOAD_ID,), errors=(*_ONE, 409),
    ),
    Operation(
        "POST", f"{_UPLOAD}/cancel", _GROUP, "Drop the parts", "Upload", scope=_SCOPE, parameters=(_UPLOAD_ID,),
        errors=(*_ONE, 409),
    ),
    Operation(
        "POST", "/v1/batches", _GROUP, "Run the lines of a file", "Batch", scope=_SCOPE, body="BatchBody",
        errors=(*_ONE, 409),
        parameters=(Parameter("Idempotency-Key", "header", TEXT, "Sent again under it, it is the same batch."),),
    ),
    Operation(
        "GET", "/v1/batches", _GROUP, "Batches of the project, the newest first", "BatchList", scope=_SCOPE,
        parameters=(in_query("limit", whole(1, 100, 20)), _AFTER), errors=_ERRORS,
    ),
    Operation(
        "POST", "/v1/batches/validate", _GROUP, "Look at a file as a batch would", "BatchValidation", scope=_SCOPE,
        body="ValidateBody", errors=_ONE,
    ),
    Operation(
        "GET", "/v1/batches/queue", _GROUP, "Your subjects, for a NATS client with this key", "BatchQueue",
        scope=_SCOPE, errors=_ERRORS,
    ),
    Operation(
        "GET", "/v1/batches/webhook_secret", _GROUP, "What webhooks of the project's batches are signed with",
        "BatchWebhookSecret", scope=_SCOPE, errors=(*_ERRORS, 409),
    ),
    Operation("GET", _BATCH, _GROUP, "One batch", "Batch", scope=_SCOPE, parameters=(_BATCH_ID,), errors=_ONE),
    Operation(
        "POST", f"{_BATCH}/cancel", _GROUP, "End it and keep what is done", "Batch", scope=_SCOPE,
        parameters=(_BATCH_ID,), errors=(*_ONE, 409),
    ),
)  # fmt: skip
