"""How models are served: the registry of deployments as everyone here reads it, and DeploymentService, by which
operators change it."""

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol

from inferbus.bus.v1.decision_pb2 import ScalingDecision
from inferbus.bus.v1.registry_pb2 import DeploymentRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.scheduler.v1 import deployment_pb2 as api
from inferbus.scheduler.v1 import deployment_pb2_grpc
from inferbus_bus.connection import Bus
from inferbus_bus.registry import Registry
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError, invalid

from inferbus_scheduler.core.deployments import Deployment, deployment_of, fault_of
from inferbus_scheduler.core.request import base_of
from inferbus_scheduler.seen import seen

log = logging.getLogger(__name__)
DEPLOYMENT_SERVICE = api.DESCRIPTOR.services_by_name["DeploymentService"].full_name


class Deployments:
    """The bucket, followed. Reading it costs no round trip and converts nothing."""

    def __init__(self, bus: Bus) -> None:
        self._registry = Registry(bus, "deployments", DeploymentRecord)
        self._registry.on_change(self._changed)
        self._deployments: dict[str, Deployment] = {}

    async def start(self) -> None:
        """Returns when the present content is here."""
        await self._registry.start()

    async def stop(self) -> None:
        await self._registry.stop()

    def of(self, model: str) -> Deployment:
        """How ``model`` is served; of an adapter: how its model is. Without a record it has the defaults."""
        base = base_of(model)
        return self._deployments.get(base) or Deployment(base)

    def scaled(self) -> list[Deployment]:
        """Those whose number of workers is decided, by name."""
        return [one for _, one in sorted(self._deployments.items()) if one.scaled]

    def records(self) -> Mapping[str, DeploymentRecord]:
        """By model. To read."""
        return self._registry.items()

    async def put(self, record: DeploymentRecord) -> None:
        """Returns when it is stored, and seen here. Raises InferBusError UNAVAILABLE."""
        await seen(self._registry, record.model, await self._registry.put(record.model, record))

    async def delete(self, model: str) -> None:
        """As :meth:`put`."""
        await seen(self._registry, model, await self._registry.delete(model))

    def _changed(self, model: str, record: DeploymentRecord | None) -> None:
        if record is None:
            self._deployments.pop(model, None)
        else:
            self._deployments[model] = deployment_of(record)


class Decided(Protocol):
    """What was decided about workers."""

    def last(self, model: str) -> ScalingDecision | None: ...

    def revisions(self, model: str) -> list[ScalingDecision]:
        """The last ones about single revisions."""
        ...

    def changes(self) -> AsyncIterator[list[ScalingDecision]]:
        """All last decisions at once, then those that are new."""
        ...


ColdStarts = Callable[[str], api.ColdStart | None]
"""The last one of a model."""


class DeploymentServicer(deployment_pb2_grpc.DeploymentServiceServicer):
    """Any scheduler takes changes. Errors: INVALID_ARGUMENT, NOT_FOUND ``deployment_not_found``, UNAVAILABLE."""

    def __init__(self, deployments: Deployments, decided: Decided, cold_starts: ColdStarts) -> None:
        self._deployments = deployments
        self._decided = decided
        self._cold_starts = cold_starts

    async def SetDeployment(self, request: api.SetDeploymentRequest, context: Any) -> api.SetDeploymentResponse:  # noqa: N802 (gRPC's name)
        record = DeploymentRecord()
        record.CopyFrom(request.deployment)
        fault = fault_of(record, self._deployments.records())
        if fault is not None:
            raise invalid(fault.message, param=fault.param)
        now = clock.timestamp(clock.now_us())
        before = self._deployments.records().get(record.model)
        record.create_time.CopyFrom(now if before is None else before.create_time)
        record.update_time.CopyFrom(now)
        await self._deployments.put(record)
        log.info("deployment set", extra={"model": record.model, "actor": request.actor_key_id})
        return api.SetDeploymentResponse(deployment=record)

    async def GetDeployment(self, request: api.GetDeploymentRequest, context: Any) -> api.GetDeploymentResponse:  # noqa: N802 (gRPC's name)
        return self._shown(self._record(request.model))

    async def ListDeployments(self, request: api.ListDeploymentsRequest, context: Any) -> api.ListDeploymentsResponse:  # noqa: N802 (gRPC's name)
        records = self._deployments.records()
        return api.ListDeploymentsResponse(deployments=[self._shown(records[model]) for model in sorted(records)])

    async def DeleteDeployment(  # noqa: N802 (gRPC's name)
        self, request: api.DeleteDeploymentRequest, context: Any
    ) -> api.DeleteDeploymentResponse:
        record = self._record(request.model)
        await self._deployments.delete(record.model)
        log.info("deployment deleted", extra={"model": record.model, "actor": request.actor_key_id})
        return api.DeleteDeploymentResponse()

    async def WatchScaling(  # noqa: N802 (gRPC's name)
        self, request: api.WatchScalingRequest, context: Any
    ) -> AsyncIterator[api.WatchScalingResponse]:
        """The last decisions of all deployments at once (there may be none yet), then each new one."""
        async for decisions in self._decided.changes():
            yield api.WatchScalingResponse(decisions=decisions)

    def _record(self, model: str) -> DeploymentRecord:
        record = self._deployments.records().get(model)
        if record is None:
            raise InferBusError(
                ErrorClass.ERROR_CLASS_NOT_FOUND,
                "deployment_not_found",
                f"No deployment of `{model[:256]}` was set: it has the defaults.",
                param="model",
            )
        return record

    def _shown(self, record: DeploymentRecord) -> api.GetDeploymentResponse:
        model = record.model
        return api.GetDeploymentResponse(
            deployment=record,
            scaling=self._decided.last(model),
            revisions=[one for one in self._decided.revisions(model) if one.replicas or one.replicas_wanted],
            cold_start=self._cold_starts(model),
        )


def add_deployment_service(
    server: Any, deployments: Deployments, decided: Decided, cold_starts: ColdStarts = lambda model: None
) -> None:
    """Put DeploymentService on a gRPC server; :data:`DEPLOYMENT_SERVICE` is its name there."""
    servicer = DeploymentServicer(deployments, decided, cold_starts)
    deployment_pb2_grpc.add_DeploymentServiceServicer_to_server(servicer, server)
