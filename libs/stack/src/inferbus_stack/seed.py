"""What a new stack needs on its bus before a service starts: streams, the first two keys and their tenants, a first
price book."""

from dataclasses import dataclass
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp
from inferbus.bus.v1.registry_pb2 import KeyRecord, PriceRecord, ProjectRecord, RecordState, TenantRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.connection import BusConfig, connect
from inferbus_bus.registry import Registry, T
from inferbus_bus.streams import ensure_streams
from inferbus_contracts.ids import key_hash
from inferbus_contracts.keys import prefix_of
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

_PROJECT = "default"
# The rates hold for whatever was ever served by this stack, so nothing in it is unpriced.
_EFFECTIVE = datetime(2020, 1, 1, tzinfo=UTC)
# USD per million tokens: input, cached input, output. Examples to be replaced by whoever sells. Of all models: no name.
_PRICES = {
    "smollm2-135m-instruct": ("0.02", "0.01", "0.06"),
    "all-minilm-l6-v2": ("0.01", "0.01", "0.00"),
    "synthetic": ("0.10", "0.05", "0.40"),
    "": ("0.50", "0.25", "1.50"),
}
# Work that may wait is half the price, as it is elsewhere.
_BATCH_FACTOR = "0.5"


@dataclass(frozen=True, slots=True)
class FirstKey:
    """A key that the stack brings along; ``secret`` is stored as its hash only."""

    key_id: str
    name: str
    secret: str
    tenant_id: str
    scopes: tuple[str, ...]


def first_keys(api_key: str, admin_key: str) -> tuple[FirstKey, ...]:
    return (
        FirstKey("key_first", "first API key", api_key, "default", ("inference",)),
        FirstKey("key_admin", "first admin key", admin_key, "operator", ("inference", "admin")),
    )


async def seed(bus: BusConfig, keys: tuple[FirstKey, ...]) -> None:
    """Make the streams; put keys, tenants and projects that are not there, and prices if there are none at all. What an
    operator has changed or revoked stays as it is.

    Safe to run again. Raises InferBusError or StreamApiError if the bus refuses.
    """
    async with connect(bus) as admin:
        await ensure_streams(admin)
        now = clock.timestamp(clock.now_us())
        known_keys = Registry(admin, "keys", KeyRecord)
        await _add(known_keys, {key_hash(key.secret): _key_record(key, now) for key in keys})
        tenant_ids = sorted({key.tenant_id for key in keys})
        await _add(Registry(admin, "tenants", TenantRecord), {name: _tenant_record(name, now) for name in tenant_ids})
        projects = {f"{name}/{_PROJECT}": _project_record(name, now) for name in tenant_ids}
        await _add(Registry(admin, "projects", ProjectRecord), projects)
        prices = {record.rate_version: record for record in map(_price_record, _PRICES)}
        # An example that was deleted, or that another price has taken over from, must not come back.
        await _add(Registry(admin, "prices", PriceRecord), prices, only_if_empty=True)


async def _add(registry: Registry[T], records: dict[str, T], *, only_if_empty: bool = False) -> None:
    await registry.start()
    try:
        if only_if_empty and registry.items():
            return
        for name, record in records.items():
            try:
                await registry.create(name, record)
            except InferBusError as error:
                if error.error_class != ErrorClass.ERROR_CLASS_CONFLICT:
                    raise
    finally:
        await registry.stop()


def _key_record(key: FirstKey, now: Timestamp) -> KeyRecord:
    return KeyRecord(
        key_id=key.key_id,
        tenant_id=key.tenant_id,
        project_id=_PROJECT,
        name=key.name,
        prefix=prefix_of(key.secret),
        scopes=key.scopes,
        create_time=now,
    )


def _tenant_record(tenant_id: str, now: Timestamp) -> TenantRecord:
    return TenantRecord(tenant_id=tenant_id, name=tenant_id, state=RecordState.RECORD_STATE_ACTIVE, create_time=now)


def _project_record(tenant_id: str, now: Timestamp) -> ProjectRecord:
    return ProjectRecord(
        project_id=_PROJECT,
        tenant_id=tenant_id,
        name=_PROJECT,
        state=RecordState.RECORD_STATE_ACTIVE,
        create_time=now,
    )


def _price_record(model: str) -> PriceRecord:
    given, cached, output = _PRICES[model]
    record = PriceRecord(
        model=model,
        rate_version=f"{model or 'default'}-1",
        currency="USD",
        input_per_million=given,
        cached_input_per_million=cached,
        output_per_million=output,
        batch_factor=_BATCH_FACTOR,
    )
    record.effective_time.FromDatetime(_EFFECTIVE)
    return record
