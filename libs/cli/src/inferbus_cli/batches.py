"""Batches over the edge's HTTP: large files up and down, and waiting for one to end through whatever is restarted."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import click
from inferbus_runtime import clock

from inferbus_cli.edge import Edge, Misnamed, Refused, Unreachable

ENDED = ("completed", "failed", "cancelled", "expired")
PART_BYTES = 64 << 20
WHOLE_BYTES = 256 << 20
"""A larger file goes up in parts, of which a lost one is sent again."""
_TRIES = 8
_PATIENCE_SECONDS = 300.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0
T = TypeVar("T")
OnBytes = Callable[[int], None]


class Client:
    """Of one project, by its key. ``sent``, ``got``: told of bytes as they go and come."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    # --- files ------------------------------------------------------------------------------------------------------

    def upload(self, path: Path, sent: OnBytes) -> str:
        """The id of a new input. Raises Refused, Unreachable."""
        if path.stat().st_size <= WHOLE_BYTES:
            with path.open("rb") as file:
                form = {"file": (path.name, _Counted(file, sent))}
                made = self._edge.tenant("POST", "/files", data={"purpose": "batch"}, files=form)
            return str(made["id"])
        return self._in_parts(path, sent)

    def _in_parts(self, path: Path, sent: OnBytes) -> str:
        said = {
            "filename": path.name, "purpose": "batch", "bytes": path.stat().st_size, "mime_type": "application/jsonl",
        }  # fmt: skip
        upload = patiently(lambda: self._edge.tenant("POST", "/uploads", json=said))["id"]
        try:
            parts = []
            with path.open("rb") as file:
                while data := file.read(PART_BYTES):
                    parts.append(self._part(upload, data))
                    sent(len(data))
            body = {"part_ids": parts}
            made = patiently(lambda: self._edge.tenant("POST", f"/uploads/{upload}/complete", json=body))
        except BaseException:
            with suppress(click.ClickException):
                self._edge.tenant("POST", f"/uploads/{upload}/cancel")
            raise
        return str(made["file"]["id"])

    def _part(self, upload: str, data: bytes) -> str:
        form = {"data": ("part", data)}
        made = patiently(lambda: self._edge.tenant("POST", f"/uploads/{upload}/parts", files=form))
        return str(made["id"])

    def remove(self, file_id: str) -> None:
        self._edge.tenant("DELETE", f"/files/{file_id}")

    def size(self, file_id: str) -> int:
        return int(patiently(lambda: self._edge.tenant("GET", f"/files/{file_id}"))["bytes"])

    def download(self, file_id: str, path: Path, got: OnBytes) -> None:
        """To ``path``, which is there when all of it is; ``-``: to stdout. Goes on where a connection broke."""
        size = self.size(file_id)
        if str(path) == "-":
            self._into(sys.stdout.buffer, file_id, size, got)
            return
        coming = path.with_name(f"{path.name}.part")
        with coming.open("wb") as file:
            self._into(file, file_id, size, got)
        coming.replace(path)

    def _into(self, file: BinaryIO, file_id: str, size: int, got: OnBytes) -> None:
        at, tries = 0, 0
        while at < size:
            before = at
            try:
                for part in self._edge.content(f"/files/{file_id}/content", at):
                    file.write(part)
                    at += len(part)
                    got(len(part))
                if at < size:
                    raise Unreachable(f"{file_id} ended after {at} of {size} bytes")
            except (Unreachable, Refused) as error:
                tries = 1 if at > before else tries + 1
                wait = pause_after(error, tries)
                if wait is None or tries >= _TRIES:
                    raise
                time.sleep(wait)
        file.flush()

    # --- batches ----------------------------------------------------------------------------------------------------

    def create(self, body: dict[str, Any], once: str) -> dict[str, Any]:
        """``once``: of one batch, however often it is asked for."""
        headers = {"idempotency-key": once}
        return patiently(lambda: self._edge.tenant("POST", "/batches", json=body, headers=headers))

    def get(self, batch_id: str) -> dict[str, Any]:
        return self._edge.tenant("GET", f"/batches/{batch_id}")

    def cancel(self, batch_id: str) -> dict[str, Any]:
        return self._edge.tenant("POST", f"/batches/{batch_id}/cancel")

    def newest(self, most: int) -> Iterator[dict[str, Any]]:
        query: dict[str, Any] = {"limit": min(most, 100)}
        while most > 0:
            page = self._edge.tenant("GET", "/batches", params=query)
            for one in page["data"][:most]:
                most -= 1
                yield one
            if not page["has_more"]:
                return
            query["after"] = page["last_id"]

    def validate(self, file_id: str, endpoint: str) -> dict[str, Any]:
        body = {"input_file_id": file_id, "endpoint": endpoint}
        return self._edge.tenant("POST", "/batches/validate", json=body, timeout=660.0)

    def watch(self, batch_id: str, every: float = 1.0) -> Iterator[dict[str, Any]]:
        """As it is now and again, until it has ended."""
        while True:
            batch = patiently(lambda: self.get(batch_id))
            yield batch
            if batch["status"] in ENDED:
                return
            time.sleep(every)


class _Counted:
    """A file that tells how far it has been read."""

    def __init__(self, file: BinaryIO, read: OnBytes) -> None:
        self._file = file
        self._read = read

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._read(len(data))
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def fileno(self) -> int:
        return self._file.fileno()

    def __iter__(self) -> Iterator[bytes]:
        while data := self.read(1 << 20):
            yield data


def patiently(call: Callable[[], T]) -> T:
    """Asked again while what went wrong may pass, for five minutes; stderr says so once."""
    deadline, tries = clock.monotonic() + _PATIENCE_SECONDS, 0
    while True:
        try:
            return call()
        except (Refused, Unreachable) as error:
            tries += 1
            wait = pause_after(error, tries)
            if wait is None or clock.monotonic() + wait > deadline:
                raise
            if tries == 1:
                click.echo(f"{error.message}; asked again for up to {_PATIENCE_SECONDS / 60:.0f} min", err=True)
            time.sleep(wait)


def pause_after(error: Refused | Unreachable, tries: int) -> float | None:
    """Seconds until the next try after so many; None: it would end in the same way."""
    if isinstance(error, Misnamed):
        return None
    if isinstance(error, Refused):
        if error.retry_after is not None:
            return error.retry_after
        # 501: what it does not know it will not know later.
        if error.status < 500 or error.status == 501:
            return None
    return _pause(tries)


def _pause(tries: int) -> float:
    return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(tries - 1, 10))
