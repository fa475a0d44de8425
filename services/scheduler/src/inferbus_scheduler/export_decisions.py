"""The placements that the stream DECISIONS still holds, into a file: for a policy to be run over them again."""

import asyncio
import json
from pathlib import Path
from typing import Any, BinaryIO

from inferbus_bus.connection import BusConfig, connect
from inferbus_bus.consumers import Position
from inferbus_bus.ordered import OrderedReader
from inferbus_runtime import clock
from inferbus_runtime.tls import TlsFiles
from nats.aio.msg import Msg

_SUBJECT = "dec.placement.>"
_POLL_SECONDS = 0.05
_SILENCE_SECONDS = 30.0


def export(stack: Path, target: Path) -> int:
    """All that there is now, by the operator's access to the broker in ``stack`` (stack.json); how many messages.

    The file holds each message after its length as a varint. OSError where a file or the broker cannot be had.
    """
    content = json.loads(stack.read_text())
    with target.open("wb") as out:
        return asyncio.run(_export(_access(content), out))


def _access(content: dict[str, Any]) -> BusConfig:
    identity = content.get("identity")
    tls = TlsFiles(Path(identity["cert"]), Path(identity["key"]), Path(content["ca"])) if identity else None
    return BusConfig(content["nats_url"], "simulate", content["nats_seed"], tls)


async def _export(access: BusConfig, out: BinaryIO) -> int:
    count = 0
    heard = clock.monotonic()

    def received(msg: Msg, _: Position) -> None:
        nonlocal count, heard
        out.write(_varint(len(msg.data)) + msg.data)
        count, heard = count + 1, clock.monotonic()

    async with connect(access) as bus:
        reader = OrderedReader(bus, stream="DECISIONS", subject=_SUBJECT, on_message=received)
        pending = await reader.start({"deliver_policy": "all"}, 0)
        while count < pending:
            if clock.monotonic() - heard > _SILENCE_SECONDS:
                raise TimeoutError(f"the broker gave {count} of {pending} messages of decisions")
            await asyncio.sleep(_POLL_SECONDS)
        await reader.stop()
    return count


def _varint(number: int) -> bytes:
    """As protobuf writes lengths: seven bits a byte, the lowest first."""
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*parts, number))
