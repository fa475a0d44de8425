"""Brands: how the console looks under a tenant's domain. Making and changing them is the operator's."""

from inferbus.bus.v1.brand_pb2 import BrandRecord
from inferbus.bus.v1.registry_pb2 import KeyRecord
from inferbus_bus.publish import Publisher
from inferbus_runtime import clock

from inferbus_edge.audit_log import Changes
from inferbus_edge.core.brand import FIELDS, HOUSE, checked_brand, host_of
from inferbus_edge.core.organization_audit import Change
from inferbus_edge.core.organization_rules import conflict, not_found
from inferbus_edge.records import Index, Records


class BrandDesk:
    def __init__(self, brands: Records[BrandRecord], publisher: Publisher) -> None:
        self._brands = brands.registry
        self._by_domain = Index(brands.registry, lambda brand: brand.domain)
        self._changes = Changes(brands, publisher)

    def of_host(self, header: str) -> BrandRecord:
        """The brand of the domain in a Host header; the house's own for any other."""
        domain = host_of(header)
        return (self._owner(domain) if domain else None) or HOUSE

    def get(self, tenant_id: str) -> BrandRecord:
        """Raises InferBusError NOT_FOUND."""
        found = self._brands.get(tenant_id)
        if found is None:
            raise not_found("brand")
        return found

    def all(self) -> list[BrandRecord]:
        """Without their logos, which are large."""
        listed = []
        for _, known in sorted(self._brands.items().items()):
            brand = BrandRecord()
            brand.CopyFrom(known)
            brand.ClearField("logo")
            listed.append(brand)
        return listed

    async def set(self, tenant_id: str, given: BrandRecord, actor: KeyRecord) -> BrandRecord:
        """Make or replace the brand of a tenant that there is.

        Raises InferBusError INVALID_ARGUMENT, CONFLICT if its domain is another tenant's or someone else changes it
        now, RESOURCE_EXHAUSTED if there is no room, UNAVAILABLE.
        """
        record = checked_brand(given)
        owner = self._owner(record.domain) if record.domain else None
        if owner is not None and owner.tenant_id != tenant_id:
            raise conflict("This domain is another tenant's.", "domain_taken", "domain")
        known = self._brands.get(tenant_id)
        record.tenant_id = tenant_id
        record.update_time.CopyFrom(clock.timestamp(clock.now_us()))
        # Who has the domain keeps the time since when; a new domain is claimed now.
        same = known is not None and known.domain == record.domain
        record.create_time.CopyFrom(known.create_time if known is not None and same else record.update_time)
        details = {name: getattr(record, name) for name in FIELDS if name != "logo" and getattr(record, name)}
        change = Change("brand.set", actor.key_id, tenant_id, tenant_id, details=details)
        await self._changes.make(tenant_id, record, self._brands.revision(tenant_id), change)
        return record

    async def delete(self, tenant_id: str, actor: KeyRecord) -> None:
        """Its domain shows the house's own again. Raises InferBusError NOT_FOUND, UNAVAILABLE."""
        self.get(tenant_id)
        change = Change("brand.deleted", actor.key_id, tenant_id, tenant_id)
        await self._changes.announce(change, self._brands.revision(tenant_id))
        await self._changes.remove(tenant_id)

    def _owner(self, domain: str) -> BrandRecord | None:
        """Of two tenants that claimed a domain at two edges in the same moment, the first one: every edge says the
        same."""
        claims = [brand for _, brand in self._by_domain.of(domain)]
        return min(claims, key=lambda one: (one.create_time.ToNanoseconds(), one.tenant_id), default=None)
