"""Bodies of form fields and one file, which is passed on as it comes: a few parts of it are in memory at once."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta

from aiohttp import BodyPartReader, MultipartReader, web
from aiohttp.http_exceptions import HttpProcessingError
from inferbus_dialect.errors import of_status
from inferbus_runtime.errors import invalid

from inferbus_edge.server import Call

_PART_BYTES = 256 << 10
_MAX_FIELDS, _MAX_FIELD_BYTES = 16, 4096
# What the reader says of bytes that are no form.
_BROKEN = (ValueError, web.RequestPayloadError, AssertionError, HttpProcessingError)


@dataclass(slots=True)
class Form:
    """``fields``: what came before the file. ``file`` None: there was none."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str = ""
    file: BodyPartReader | None = None


async def read_form(call: Call, name: str, timeout: timedelta) -> Form:
    """All up to the file, which is the field ``name``. Raises InferBusError INVALID_ARGUMENT, ``request_timeout``."""
    if not call.http.content_type == "multipart/form-data":
        raise invalid("Send a form: 'Content-Type: multipart/form-data'.", param="Content-Type")
    form = Form()
    try:
        async with asyncio.timeout(timeout.total_seconds()):
            reader = MultipartReader(call.http.headers, call.http.content)
            while (part := await reader.next()) is not None:
                if not isinstance(part, BodyPartReader) or part.name is None or len(form.fields) >= _MAX_FIELDS:
                    raise invalid("The form has parts that this call does not know.")
                if part.name == name:
                    form.filename, form.file = _utf8(part.filename or ""), part
                    return form
                form.fields[_utf8(part.name)] = await _text(part)
    except TimeoutError:
        raise of_status(408) from None
    except _BROKEN as error:
        raise invalid(f"The form cannot be read ({type(error).__name__}).", reason="bad_request") from None
    return form


async def content(form: Form, timeout: timedelta) -> AsyncIterator[bytes]:
    """The file's, part by part. Raises InferBusError ``request_timeout`` if nothing comes for so long,
    ``bad_request``."""
    assert form.file is not None  # noqa: S101
    while True:
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                part = await form.file.read_chunk(_PART_BYTES)
        except TimeoutError:
            raise of_status(408) from None
        except _BROKEN as error:
            raise invalid(f"The form cannot be read ({type(error).__name__}).", reason="bad_request") from None
        if not part:
            return
        yield part


async def _text(part: BodyPartReader) -> str:
    held = bytearray()
    while chunk := await part.read_chunk(_MAX_FIELD_BYTES):
        held += chunk
        if len(held) > _MAX_FIELD_BYTES:
            raise invalid(f"A field of a form has {_MAX_FIELD_BYTES} bytes at most.", param=_utf8(part.name or ""))
    return held.decode()


def _utf8(name: str) -> str:
    """A header's text may have bytes that are none."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
