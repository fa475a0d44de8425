"""The meter's wiring."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from inferbus.meter.v1.analytics_pb2_grpc import add_AnalyticsServiceServicer_to_server
from inferbus.meter.v1.budgets_pb2_grpc import add_BudgetServiceServicer_to_server
from inferbus.meter.v1.captures_pb2_grpc import add_CaptureServiceServicer_to_server
from inferbus.meter.v1.invoices_pb2_grpc import add_InvoiceServiceServicer_to_server
from inferbus.meter.v1.meter_pb2_grpc import add_MeterServiceServicer_to_server
from inferbus.meter.v1.prices_pb2_grpc import add_PriceServiceServicer_to_server
from inferbus.meter.v1.privacy_pb2_grpc import add_PrivacyServiceServicer_to_server
from inferbus.meter.v1.replay_pb2_grpc import add_ReplayServiceServicer_to_server
from inferbus.meter.v1.requests_pb2_grpc import add_RequestServiceServicer_to_server
from inferbus.meter.v1.revisions_pb2_grpc import add_RevisionStatisticsServiceServicer_to_server
from inferbus.meter.v1.usage_pb2_grpc import add_UsageServiceServicer_to_server
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.log import FrameLog
from inferbus_bus.publish import Publisher
from inferbus_runtime import clock, rpc
from inferbus_runtime.lifecycle import Process
from inferbus_webhooks.signing import secret_of

from inferbus_meter.analytics_servicer import SERVICE_NAME as ANALYTICS_SERVICE
from inferbus_meter.analytics_servicer import AnalyticsServicer
from inferbus_meter.bringing import Privacy
from inferbus_meter.budget_keeper import BudgetKeeper, KeeperSettings
from inferbus_meter.budgets import Budgets
from inferbus_meter.budgets_servicer import SERVICE_NAME as BUDGET_SERVICE
from inferbus_meter.budgets_servicer import BudgetServicer
from inferbus_meter.captures import Captures
from inferbus_meter.captures_servicer import SERVICE_NAME as CAPTURE_SERVICE
from inferbus_meter.captures_servicer import CaptureServicer
from inferbus_meter.clickhouse import Store, StoreConfig, open_store
from inferbus_meter.config import Config
from inferbus_meter.core.margin import OperatingPrices
from inferbus_meter.deliveries import STREAM as DELIVERIES
from inferbus_meter.deliveries import DeliveryIngest
from inferbus_meter.eraser import Eraser, keep_erased
from inferbus_meter.erasures import follow_erasures
from inferbus_meter.ingest import FlushLimits, Ingest
from inferbus_meter.invoice_archive import InvoiceArchive
from inferbus_meter.invoice_copy import follow as copy_invoices
from inferbus_meter.invoice_paper import Fonts
from inferbus_meter.invoices import Invoices
from inferbus_meter.invoices_servicer import SERVICE_NAME as INVOICE_SERVICE
from inferbus_meter.invoices_servicer import InvoiceServicer
from inferbus_meter.keeping import keep
from inferbus_meter.kept_answers import KeptAnswers
from inferbus_meter.prices import follow_prices
from inferbus_meter.prices_servicer import SERVICE_NAME as PRICE_SERVICE
from inferbus_meter.prices_servicer import PricesServicer
from inferbus_meter.privacy_servicer import SERVICE_NAME as PRIVACY_SERVICE
from inferbus_meter.privacy_servicer import PrivacyServicer
from inferbus_meter.replay_servicer import SERVICE_NAME as REPLAY_SERVICE
from inferbus_meter.replay_servicer import ReplayServicer
from inferbus_meter.requests_servicer import SERVICE_NAME as REQUEST_SERVICE
from inferbus_meter.requests_servicer import RequestsServicer
from inferbus_meter.rerate import Reratings
from inferbus_meter.revision_statistics import SERVICE_NAME as REVISION_SERVICE
from inferbus_meter.revision_statistics import RevisionStatisticsServicer
from inferbus_meter.servicer import SERVICE_NAME, MeterServicer
from inferbus_meter.usage_hours import UsageHours
from inferbus_meter.usage_servicer import SERVICE_NAME as USAGE_SERVICE
from inferbus_meter.usage_servicer import UsageServicer
from inferbus_meter.webhooks import Webhooks
from inferbus_meter.worker_minutes import WorkerMinutes


async def wire(config: Config, process: Process) -> dict[str, str]:
    seed = config.nats_seed.get_secret_value() if config.nats_seed else None
    bus = await process.enter(connect(BusConfig(config.nats_url, config.name, seed, config.tls)))
    store = await process.enter(open_store(StoreConfig.of(config)))
    prices = await process.enter(follow_prices(bus))
    frames = FrameLog(bus)
    # The name alone would not tell a meter from the one before it under the same name.
    holder = f"{config.name}-{clock.now_us()}"
    limits = FlushLimits(config.flush_tokens, config.flush_interval, config.lease_ttl)
    erasures = await process.enter(follow_erasures(bus))
    privacy = Privacy(erasures.is_erased, await _store(process, StoreConfig.for_captures(config, writes=True)))
    ingest = Ingest(frames, store, lambda: prices.book, limits, holder, privacy)
    task = process.spawn(ingest.run(), "ingest")
    process.on_drain(partial(_drain, ingest, task))
    token = config.rpc_token.get_secret_value() if config.rpc_token else None
    servicer = MeterServicer(store, frames, ingest, prices, erasures.is_erased)
    reading = await process.enter(open_store(StoreConfig.for_reading(config)))
    usage = UsageServicer(
        reading,
        store,
        lambda: prices.book,
        OperatingPrices(config.gpu_hour_price, config.kwh_price, config.cost_currency, config.gpus_per_worker),
    )
    archive = InvoiceArchive(bus)
    await process.enter(_running(archive))
    invoices = Invoices(archive, store, frames, ingest, lambda: prices.book, config.retention_requests)
    process.spawn(copy_invoices(archive, store), "invoices into the store")
    invoicing = InvoiceServicer(invoices, store, Fonts.load(config.invoice_font, config.invoice_font_bold))

    budgeting = await _budgets(config, process, bus, store, ingest)
    workers = WorkerMinutes(bus, store)
    process.spawn(workers.watch(), "watch the fleet")
    delivered = DeliveryIngest(FrameLog(bus, DELIVERIES), store)
    kept = keep(bus, config.name, config.lease_ttl, delivered, UsageHours(store), workers)
    process.spawn(kept, "deliveries and sums of hours")
    repair_store = await _store(process, StoreConfig.for_repair(config))
    replaying = ReplayServicer(bus, frames, repair_store, ingest, prices, config.name, erasures.is_erased)
    eraser = None if repair_store is None else Eraser(repair_store, KeptAnswers(bus))
    if eraser is not None:
        process.spawn(keep_erased(bus, config.name, config.lease_ttl, erasures, eraser), "erasures")
    erasing = PrivacyServicer(erasures, eraser)
    captured = await _store(process, StoreConfig.for_captures(config, writes=False))
    capturing = CaptureServicer(None if captured is None else Captures(captured))

    analytics = AnalyticsServicer(reading)

    def add_servicers(server: Any) -> None:
        add_MeterServiceServicer_to_server(servicer, server)
        add_UsageServiceServicer_to_server(usage, server)
        add_PriceServiceServicer_to_server(PricesServicer(prices, Reratings(store), store), server)
        add_InvoiceServiceServicer_to_server(invoicing, server)
        add_BudgetServiceServicer_to_server(budgeting, server)
        add_ReplayServiceServicer_to_server(replaying, server)
        add_PrivacyServiceServicer_to_server(erasing, server)
        add_CaptureServiceServicer_to_server(capturing, server)
        add_RequestServiceServicer_to_server(RequestsServicer(reading), server)
        add_AnalyticsServiceServicer_to_server(analytics, server)
        add_RevisionStatisticsServiceServicer_to_server(RevisionStatisticsServicer(reading), server)

    server = await process.enter(
        rpc.serve(
            config.grpc_address,
            add_servicers,
            [
                SERVICE_NAME,
                PRICE_SERVICE,
                USAGE_SERVICE,
                INVOICE_SERVICE,
                BUDGET_SERVICE,
                REPLAY_SERVICE,
                PRIVACY_SERVICE,
                CAPTURE_SERVICE,
                ANALYTICS_SERVICE,
                REQUEST_SERVICE,
                REVISION_SERVICE,
            ],
            token,
            config.tls,
        )
    )
    return {"grpc": server.address}


async def _store(process: Process, config: StoreConfig | None) -> Store | None:
    return None if config is None else await process.enter(open_store(config))


async def _budgets(config: Config, process: Process, bus: Bus, store: Store, ingest: Ingest) -> BudgetServicer:
    """Budgets kept by one meter at a time, and set through any."""
    publisher = Publisher(bus)
    await publisher.start()
    budgets = Budgets(bus, store)
    await process.enter(_running(budgets))
    settings = KeeperSettings(config.name, config.lease_ttl, config.dead_edge_delay)
    keeper = BudgetKeeper(bus, budgets, ingest, publisher, settings)
    process.spawn(keeper.run(), "budgets by the charges")
    key = None if config.webhook_secret is None else secret_of(config.webhook_secret.get_secret_value())
    process.spawn(Webhooks(budgets.alerts, key, lambda: keeper.holds).run(), "webhooks of budgets")
    return BudgetServicer(budgets, publisher, webhooks=key is not None)


async def _drain(ingest: Ingest, task: "asyncio.Task[None]") -> None:
    ingest.stop()
    await asyncio.wait((task,))


@asynccontextmanager
async def _running(part: InvoiceArchive | Budgets) -> AsyncIterator[None]:
    await part.start()
    try:
        yield
    finally:
        await part.stop()
