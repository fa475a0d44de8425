"""The two kinds of answer that aiohttp has not: one that is written already, and one that tells when it is read."""

import weakref
from collections.abc import Callable
from functools import partial

from aiohttp import web


class WrittenResponse(web.StreamResponse):
    """Says to aiohttp that the answer is on its way already, written to the transport by ourselves."""

    def __init__(self, *, keep_alive: bool) -> None:
        super().__init__()
        self._reuse = keep_alive

    @property
    def keep_alive(self) -> bool:
        return self._reuse

    async def prepare(self, request: web.BaseRequest) -> None:
        """Nothing: the head is out."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing: the end is out."""


def _nothing() -> None:
    pass


class WholeResponse(web.Response):
    """One that may be large. ``written``: called when the client has it, or cannot get it."""

    written: "weakref.finalize[..., web.StreamResponse] | None" = None

    def handed_on(self) -> Callable[[], object]:
        """For who writes the body himself: to be called instead of ``written``, which is not called any more."""
        found = None if self.written is None else self.written.detach()
        return _nothing if found is None else partial(found[1], *found[2])

    async def write_eof(self, data: bytes = b"") -> None:
        try:
            await super().write_eof(data)
        finally:
            if self.written is not None:
                self.written()
