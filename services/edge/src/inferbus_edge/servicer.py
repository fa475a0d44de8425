"""EdgeService: the administration of keys over gRPC."""

from typing import Any

from inferbus.bus.v1.registry_pb2 import KeyRecord
from inferbus.edge.v1.edge_pb2 import (
    CreateKeyRequest,
    CreateKeyResponse,
    ListKeysRequest,
    ListKeysResponse,
    RevokeKeyRequest,
    RevokeKeyResponse,
)
from inferbus.edge.v1.edge_pb2_grpc import EdgeServiceServicer

from inferbus_edge.auth import ADMIN, Auth
from inferbus_edge.keys import KeyDesk


class EdgeServicer(EdgeServiceServicer):
    """Each call carries an admin key in its metadata."""

    def __init__(self, auth: Auth, desk: KeyDesk) -> None:
        self._auth = auth
        self._desk = desk

    async def CreateKey(self, request: CreateKeyRequest, context: Any) -> CreateKeyResponse:  # noqa: N802
        actor = self._admin(context)
        key, secret = await self._desk.create(
            tenant_id=request.tenant_id,
            project_id=request.project_id,
            name=request.name,
            scopes=list(request.scopes),
            actor=actor,
        )
        return CreateKeyResponse(key=key, secret=secret)

    async def ListKeys(self, request: ListKeysRequest, context: Any) -> ListKeysResponse:  # noqa: N802
        self._admin(context)
        return ListKeysResponse(keys=self._desk.list(request.tenant_id))

    async def RevokeKey(self, request: RevokeKeyRequest, context: Any) -> RevokeKeyResponse:  # noqa: N802
        actor = self._admin(context)
        return RevokeKeyResponse(key=await self._desk.revoke(request.key_id, actor))

    def _admin(self, context: Any) -> KeyRecord:
        return self._auth.require(dict(context.invocation_metadata() or ()), ADMIN)
