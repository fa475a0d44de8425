"""HTTP content encodings, in pieces: request bodies are decompressed, results compressed, as they flow."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Protocol

import lz4.frame
from backports import zstd  # the module that Python 3.14 has as compression.zstd

from inferbus_stack.clickhouse.errors import CANNOT_DECOMPRESS, NOT_IMPLEMENTED, ClickHouseError


class Decoder(Protocol):
    def decode(self, data: bytes) -> bytes: ...
    def finish(self) -> bytes:
        """What is left. Raises CANNOT_DECOMPRESS when the input was cut short."""


class Encoder(Protocol):
    def encode(self, data: bytes) -> bytes: ...
    def finish(self) -> bytes: ...


class _Plain:
    def decode(self, data: bytes) -> bytes:
        return data

    def encode(self, data: bytes) -> bytes:
        return data

    def finish(self) -> bytes:
        return b""


class _FrameDecoder:
    """For libraries whose decompressor ends at the end of one frame: clients may send several frames in a row."""

    def __init__(self, make: Callable[[], _Decompressor]) -> None:
        self._make = make
        self._current: _Decompressor | None = None

    def decode(self, data: bytes) -> bytes:
        parts = []
        while data:
            if self._current is None:
                self._current = self._make()
            try:
                parts.append(self._current.decompress(data))
            except (RuntimeError, OSError, zlib.error, zstd.ZstdError, EOFError) as error:
                raise ClickHouseError(CANNOT_DECOMPRESS, f"Cannot decompress the request body: {error}") from None
            if not self._current.eof:
                break
            data = self._current.unused_data or b""
            self._current = None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def finish(self) -> bytes:
        if self._current is not None:
            raise ClickHouseError(CANNOT_DECOMPRESS, "Cannot decompress the request body: it ends too early.")
        return b""


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes | None: ...
    def decompress(self, data: bytes, /) -> bytes: ...


class _ZlibEncoder:
    def __init__(self, window_bits: int) -> None:
        self._zlib = zlib.compressobj(3, zlib.DEFLATED, window_bits)

    def encode(self, data: bytes) -> bytes:
        return self._zlib.compress(data)

    def finish(self) -> bytes:
        return self._zlib.flush()


class _ZstdEncoder:
    def __init__(self) -> None:
        self._zstd = zstd.ZstdCompressor(level=1)

    def encode(self, data: bytes) -> bytes:
        return self._zstd.compress(data)

    def finish(self) -> bytes:
        return self._zstd.flush()


class _Lz4Encoder:
    def __init__(self) -> None:
        self._lz4 = lz4.frame.LZ4FrameCompressor()
        self._begun = False

    def encode(self, data: bytes) -> bytes:
        begin = b"" if self._begun else bytes(self._lz4.begin())
        self._begun = True
        return begin + bytes(self._lz4.compress(data))

    def finish(self) -> bytes:
        return self.encode(b"") + bytes(self._lz4.flush())


_DECODERS: dict[str, Callable[[], Decoder]] = {
    "": _Plain,
    "identity": _Plain,
    "gzip": lambda: _FrameDecoder(lambda: zlib.decompressobj(zlib.MAX_WBITS | 16)),
    "deflate": lambda: _FrameDecoder(zlib.decompressobj),
    "lz4": lambda: _FrameDecoder(lz4.frame.LZ4FrameDecompressor),
    "zstd": lambda: _FrameDecoder(zstd.ZstdDecompressor),
}
# In the order of preference: cheapest first, as the server shares two cores with everything else.
_ENCODERS: dict[str, Callable[[], Encoder]] = {
    "lz4": _Lz4Encoder,
    "zstd": _ZstdEncoder,
    "gzip": lambda: _ZlibEncoder(zlib.MAX_WBITS | 16),
    "deflate": lambda: _ZlibEncoder(zlib.MAX_WBITS),
}


def decoder(encoding: str) -> Decoder:
    """For a request's Content-Encoding."""
    make = _DECODERS.get(encoding.strip().lower())
    if make is None:
        raise ClickHouseError(NOT_IMPLEMENTED, f"Content-Encoding {encoding[:40]!r} is not supported: use lz4 or zstd.")
    return make()


def negotiate(accept_encoding: str) -> str:
    """The encoding for a response, "" for none."""
    accepted = {}
    for part in accept_encoding.lower().split(","):
        name, _, quality = part.partition(";")
        accepted[name.strip()] = quality.replace(" ", "") not in ("q=0", "q=0.0")
    return next((name for name in _ENCODERS if accepted.get(name, False)), "")


def encoder(encoding: str) -> Encoder:
    """For a name that `negotiate` gave."""
    return _ENCODERS[encoding]() if encoding else _Plain()
