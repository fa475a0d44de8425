"""KEDA's external scaler: Kubernetes is told how many workers a deployment should have.

The metric is that number, and its target is 1 with metric type AverageValue (KEDA's default): the autoscaler sets
ceil(metric / target) = ceil(replicas / 1) = replicas. ``IsActive`` is false at 0, and then KEDA goes to none.

KEDA sends no token of ours, so this is served on a port of its own with nothing else on it. Whoever reaches that port
learns, for a model that he can name, how many workers it should have; with TLS only who has a certificate does.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any

from externalscaler import externalscaler_pb2 as api
from externalscaler import externalscaler_pb2_grpc
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_runtime.errors import InferBusError, invalid, unavailable
from inferbus_runtime.rpc import Public, RpcServer, serve
from inferbus_runtime.tls import TlsFiles

from inferbus_scheduler.core.deployments import Deployment
from inferbus_scheduler.deployments import Deployments
from inferbus_scheduler.scaler import SETTLE_SECONDS, Scaler

KEDA_SERVICE = api.DESCRIPTOR.services_by_name["ExternalScaler"].full_name
METRIC = "inferbus-replicas"
_MODEL, _REVISION = "model", "revision"
_STRANGERS = Public(
    admit=lambda method, metadata: None,
    max_request_bytes=64 << 10,
    read_timeout=timedelta(seconds=10),
    idle_timeout=timedelta(minutes=10),
    unread_timeout=timedelta(seconds=30),
    call_timeout=timedelta(minutes=1),
)


class KedaServicer(externalscaler_pb2_grpc.ExternalScalerServicer):
    """``scalerMetadata`` names the ``model``, and a ``revision`` of it where each has workers of its own.
    Errors: INVALID_ARGUMENT without a model, NOT_FOUND for one that is not scaled, UNAVAILABLE in the first seconds; on
    an error KEDA leaves everything as it is."""

    def __init__(self, scaler: Scaler, deployments: Deployments) -> None:
        self._scaler = scaler
        self._deployments = deployments

    async def IsActive(self, request: api.ScaledObjectRef, context: Any) -> api.IsActiveResponse:  # noqa: N802 (gRPC's name)
        return api.IsActiveResponse(result=self._replicas(request) > 0)

    async def StreamIsActive(self, request: api.ScaledObjectRef, context: Any) -> AsyncIterator[api.IsActiveResponse]:  # noqa: N802 (gRPC's name)
        """What IsActive says, at once and whenever it changes: KEDA need not wait for its next look."""
        said: bool | None = None
        async for _ in self._scaler.changes():
            active = self._replicas(request) > 0
            if active != said:
                said = active
                yield api.IsActiveResponse(result=active)

    async def GetMetricSpec(self, request: api.ScaledObjectRef, context: Any) -> api.GetMetricSpecResponse:  # noqa: N802 (gRPC's name)
        self._deployment(request)
        return _spec()

    async def StreamMetricSpec(  # noqa: N802 (gRPC's name)
        self, request: api.ScaledObjectRef, context: Any
    ) -> AsyncIterator[api.GetMetricSpecResponse]:
        """It never changes: said once, and then the stream stays open."""
        self._deployment(request)
        yield _spec()
        await asyncio.Event().wait()

    async def GetMetrics(self, request: api.GetMetricsRequest, context: Any) -> api.GetMetricsResponse:  # noqa: N802 (gRPC's name)
        replicas = self._replicas(request.scaledObjectRef)
        value = api.MetricValue(
            metricName=request.metricName or METRIC, metricValue=replicas, metricValueFloat=float(replicas)
        )
        return api.GetMetricsResponse(metricValues=[value])

    def _replicas(self, ref: api.ScaledObjectRef) -> int:
        replicas = self._scaler.replicas(self._deployment(ref), ref.scalerMetadata.get(_REVISION, ""))
        if replicas is None:
            raise unavailable(
                "not_settled",
                "This scheduler has just started and does not know its workers yet.",
                retry_after=timedelta(seconds=SETTLE_SECONDS),
            )
        return replicas

    def _deployment(self, ref: api.ScaledObjectRef) -> Deployment:
        model = ref.scalerMetadata.get(_MODEL, "")
        if not model:
            raise invalid("The trigger's metadata must name the model.", param=_MODEL)
        deployment = self._deployments.of(model)
        revision = ref.scalerMetadata.get(_REVISION, "")
        # Revisions of a model that nobody scales have decisions, too, once it is divided among some.
        if not deployment.scaled and not (revision and self._scaler.last(deployment.model, revision)):
            raise InferBusError(
                ErrorClass.ERROR_CLASS_NOT_FOUND,
                "deployment_not_scaled",
                f"`{model[:256]}` has no deployment with 'max_replicas': nobody decides how many workers it has.",
                param=_MODEL,
            )
        return deployment


def serve_keda(
    address: str, scaler: Scaler, deployments: Deployments, identity: TlsFiles | None
) -> AbstractAsyncContextManager[RpcServer]:
    """Serve it, and health, at ``address`` until the context ends. With ``identity`` callers need a certificate of its
    authority. Raises like :func:`inferbus_runtime.rpc.serve`."""
    servicer = KedaServicer(scaler, deployments)
    return serve(
        address,
        lambda server: externalscaler_pb2_grpc.add_ExternalScalerServicer_to_server(servicer, server),
        [KEDA_SERVICE],
        token=None,
        identity=identity,
        public=_STRANGERS,
    )


def _spec() -> api.GetMetricSpecResponse:
    return api.GetMetricSpecResponse(metricSpecs=[api.MetricSpec(metricName=METRIC, targetSize=1, targetSizeFloat=1.0)])
