"""A service of nothing but its lifecycle; ``INFERBUS_SAMPLE_SCRIPT`` chooses what goes wrong in it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Literal

from inferbus_runtime import lifecycle, rpc
from inferbus_runtime.config import ServiceConfig
from inferbus_runtime.errors import unavailable
from inferbus_runtime.lifecycle import Process, main
from inferbus_runtime.telemetry import get_logger

log = get_logger("sample")


class Config(ServiceConfig):
    script: Literal[
        "plain",
        "task_dies",
        "wire_fails",
        "wire_hangs",
        "drain_hangs",
        "drain_fails",
        "close_hangs",
        "close_stuck",
        "callback_fails",
    ] = "plain"
    """What goes wrong."""


@asynccontextmanager
async def noted(name: str, hang: bool = False) -> AsyncIterator[None]:
    log.info("open", extra={"part": name})
    try:
        yield
    finally:
        log.info("close", extra={"part": name})
        if hang:
            await asyncio.Event().wait()


async def background(wired: asyncio.Event, dies: bool) -> None:
    try:
        await wired.wait()
        await asyncio.sleep(0.2 if dies else 3600)
        raise unavailable("sample_gone", "Gone.", retry_after=timedelta(seconds=1), diagnostic="it had to be")
    finally:
        log.info("close", extra={"part": "task"})


async def wire(config: Config, process: Process) -> dict[str, str]:
    script, wired = config.script, asyncio.Event()
    if script in ("close_hangs", "close_stuck"):
        lifecycle.CLOSE_TIMEOUT_SECONDS = 60.0
    if script == "close_stuck":
        lifecycle.FORCED_CLOSE_SECONDS = 60.0
    await process.enter(noted("store", hang=script in ("close_hangs", "close_stuck")))
    process.spawn(background(wired, dies=script == "task_dies"), "background")
    server = await process.enter(rpc.serve(config.grpc_address, lambda server: None, (), None))
    await process.enter(noted("last"))

    async def drain(part: str) -> None:
        log.info("drain", extra={"part": part, "ready_now": process.ready})
        if script == "drain_hangs":
            await asyncio.Event().wait()
        if script == "drain_fails" and part == "first":
            raise ValueError("cannot drain")

    process.on_drain(lambda: drain("first"))
    process.on_drain(lambda: drain("second"))
    wired.set()
    if script == "wire_fails":
        raise OSError("nothing to connect to")
    if script == "wire_hangs":
        log.info("hanging")
        await asyncio.Event().wait()
    if script == "callback_fails":
        asyncio.get_running_loop().call_later(0.1, process.fail, ValueError("seen in a callback"))
    return {"grpc": server.address}


if __name__ == "__main__":
    main(Config, "INFERBUS_SAMPLE_", wire)
