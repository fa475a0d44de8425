"""The meter's wiring."""

import asyncio
import logging
from functools import partial
from typing import Any

from inferbus.meter.v1.meter_pb2_grpc import add_MeterServiceServicer_to_server
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.errors import StreamApiError
from inferbus_bus.lease import Lease, hold
from inferbus_bus.log import FrameLog
from inferbus_runtime import clock, rpc
from inferbus_runtime.errors import InferBusError
from inferbus_runtime.lifecycle import Process

from inferbus_meter.clickhouse import StoreConfig, open_store
from inferbus_meter.config import Config
from inferbus_meter.ingest import FlushLimits, Ingest, NotAloneError, StreamResetError
from inferbus_meter.prices import price_book
from inferbus_meter.servicer import SERVICE_NAME, MeterServicer

log = logging.getLogger(__name__)
LEASE = "meter"
_CHECK_SECONDS = 5.0
_AGAIN_SECONDS = 1.0


async def wire(config: Config, process: Process) -> dict[str, str]:
    seed = config.nats_seed.get_secret_value() if config.nats_seed else None
    bus = await process.enter(connect(BusConfig(config.nats_url, config.name, seed, config.tls)))
    store = await process.enter(open_store(StoreConfig.of(config)))
    prices = await process.enter(price_book(bus))
    frames = FrameLog(bus)
    # The name alone would not tell a meter from the one before it under the same name.
    holder = f"{config.name}-{clock.now_us()}"
    ingest = Ingest(
        frames, store, lambda: prices.rates, FlushLimits(config.flush_tokens, config.flush_interval), holder
    )
    task = process.spawn(_ingest(bus, ingest, config), "ingest")
    process.on_drain(partial(_drain, ingest, task))
    token = config.rpc_token.get_secret_value() if config.rpc_token else None
    servicer = MeterServicer(store, frames, ingest, prices)
    server = await process.enter(
        rpc.serve(
            config.grpc_address,
            partial(add_MeterServiceServicer_to_server, servicer),
            [SERVICE_NAME],
            token,
            config.tls,
        )
    )
    return {"grpc": server.address}


async def _ingest(bus: Bus, ingest: Ingest, config: Config) -> None:
    """Ingest whenever the lease is ours, until the drain. The lease keeps two meters from working against each other;
    that each frame is inserted once does not hang on it, but on the intents."""
    while not ingest.stopped:
        try:
            async with hold(bus, LEASE, config.name, config.lease_ttl) as lease:
                await _run_while_held(ingest, lease)
        except (NotAloneError, StreamResetError, InferBusError, StreamApiError) as error:
            log.error("the ingest begins again", extra={"error": str(error)})
            await asyncio.sleep(_AGAIN_SECONDS)


async def _run_while_held(ingest: Ingest, lease: Lease) -> None:
    running = asyncio.create_task(ingest.run(), name="ingest run")
    lost = asyncio.create_task(lease.lost.wait(), name="lease lost")
    watch = asyncio.create_task(_watch(ingest), name="ingest lag")
    tasks: tuple[asyncio.Task[Any], ...] = (running, lost, watch)
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        if lost in done:
            log.error("the lease is lost: another meter may act by now")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _watch(ingest: Ingest) -> None:
    """Measure the lag; end with an error if the stream was made anew under us."""
    while True:
        await asyncio.sleep(_CHECK_SECONDS)
        if ingest.running:
            try:
                await ingest.check_stream()
            except (InferBusError, StreamApiError) as error:
                log.debug("lag not known", extra={"error": str(error)})


async def _drain(ingest: Ingest, task: "asyncio.Task[None]") -> None:
    ingest.stop()
    await asyncio.wait((task,))
