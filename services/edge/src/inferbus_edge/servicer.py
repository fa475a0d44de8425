"""EdgeService: the administration of keys, tenants and projects over gRPC, by the same desks as over HTTP."""

from typing import Any

from inferbus.bus.v1.registry_pb2 import KeyRecord, RecordState
from inferbus.edge.v1 import edge_pb2 as edge
from inferbus.edge.v1.edge_pb2_grpc import EdgeServiceServicer

from inferbus_edge.auth import ADMIN, Auth
from inferbus_edge.directory import Directory
from inferbus_edge.keys import KeyDesk
from inferbus_edge.routes.tenants import created_key


class EdgeServicer(EdgeServiceServicer):
    """The calls about keys. Each call carries an admin key in its metadata."""

    def __init__(self, auth: Auth, desk: KeyDesk) -> None:
        self._auth = auth
        self._keys = desk

    async def CreateKey(self, request: edge.CreateKeyRequest, context: Any) -> edge.CreateKeyResponse:  # noqa: N802
        return await created_key(self._keys, request, self._changing(context))

    async def GetKey(self, request: edge.GetKeyRequest, context: Any) -> edge.GetKeyResponse:  # noqa: N802
        self._admin(context)
        return edge.GetKeyResponse(key=self._keys.get(request.key_id))

    async def ListKeys(self, request: edge.ListKeysRequest, context: Any) -> edge.ListKeysResponse:  # noqa: N802
        self._admin(context)
        return edge.ListKeysResponse(keys=self._keys.all(request.tenant_id, request.project_id))

    async def UpdateKey(self, request: edge.UpdateKeyRequest, context: Any) -> edge.UpdateKeyResponse:  # noqa: N802
        actor = self._changing(context)
        changed = await self._keys.update(request.key, list(request.update_mask.paths), actor)
        return edge.UpdateKeyResponse(key=changed)

    async def RotateKey(self, request: edge.RotateKeyRequest, context: Any) -> edge.RotateKeyResponse:  # noqa: N802
        actor = self._changing(context)
        key, secret = await self._keys.rotate(request.key_id, request.overlap.ToTimedelta(), actor)
        return edge.RotateKeyResponse(key=key, secret=secret)

    async def RevokeKey(self, request: edge.RevokeKeyRequest, context: Any) -> edge.RevokeKeyResponse:  # noqa: N802
        actor = self._admin(context)
        return edge.RevokeKeyResponse(key=await self._keys.revoke(request.key_id, actor))

    def _admin(self, context: Any) -> KeyRecord:
        return self._auth.require(_headers(context), ADMIN)

    def _changing(self, context: Any) -> KeyRecord:
        return self._auth.require_for_change(_headers(context), ADMIN)


class DirectoryServicer(EdgeServicer):
    """All of EdgeService: keys, tenants and projects."""

    def __init__(self, directory: Directory) -> None:
        super().__init__(directory.auth, directory.keys)
        self._tenants = directory.tenants
        self._projects = directory.projects

    async def CreateTenant(  # noqa: N802
        self, request: edge.CreateTenantRequest, context: Any
    ) -> edge.CreateTenantResponse:
        actor = self._changing(context)
        return edge.CreateTenantResponse(tenant=await self._tenants.create(request.tenant, actor))

    async def GetTenant(self, request: edge.GetTenantRequest, context: Any) -> edge.GetTenantResponse:  # noqa: N802
        self._admin(context)
        return edge.GetTenantResponse(tenant=self._tenants.get(request.tenant_id))

    async def ListTenants(  # noqa: N802
        self, request: edge.ListTenantsRequest, context: Any
    ) -> edge.ListTenantsResponse:
        self._admin(context)
        return edge.ListTenantsResponse(tenants=self._tenants.all())

    async def UpdateTenant(  # noqa: N802
        self, request: edge.UpdateTenantRequest, context: Any
    ) -> edge.UpdateTenantResponse:
        actor = self._changing(context)
        changed = await self._tenants.update(request.tenant, list(request.update_mask.paths), actor)
        return edge.UpdateTenantResponse(tenant=changed)

    async def ArchiveTenant(  # noqa: N802
        self, request: edge.ArchiveTenantRequest, context: Any
    ) -> edge.ArchiveTenantResponse:
        actor = self._admin(context)
        return edge.ArchiveTenantResponse(tenant=await self._tenants.archive(request.tenant_id, actor))

    async def RestoreTenant(  # noqa: N802
        self, request: edge.RestoreTenantRequest, context: Any
    ) -> edge.RestoreTenantResponse:
        actor = self._changing(context)
        return edge.RestoreTenantResponse(tenant=await self._tenants.restore(request.tenant_id, actor))

    async def CreateProject(  # noqa: N802
        self, request: edge.CreateProjectRequest, context: Any
    ) -> edge.CreateProjectResponse:
        actor = self._changing(context)
        self._tenants.get(request.project.tenant_id)
        return edge.CreateProjectResponse(project=await self._projects.create(request.project, actor))

    async def GetProject(self, request: edge.GetProjectRequest, context: Any) -> edge.GetProjectResponse:  # noqa: N802
        self._admin(context)
        self._tenants.get(request.tenant_id)
        return edge.GetProjectResponse(project=self._projects.get(request.tenant_id, request.project_id))

    async def ListProjects(  # noqa: N802
        self, request: edge.ListProjectsRequest, context: Any
    ) -> edge.ListProjectsResponse:
        self._admin(context)
        self._tenants.get(request.tenant_id)
        archived = RecordState.RECORD_STATE_ARCHIVED
        found = self._projects.all(request.tenant_id)
        return edge.ListProjectsResponse(
            projects=[one for one in found if request.include_archived or one.state != archived]
        )

    async def UpdateProject(  # noqa: N802
        self, request: edge.UpdateProjectRequest, context: Any
    ) -> edge.UpdateProjectResponse:
        actor = self._changing(context)
        self._tenants.get(request.project.tenant_id)
        changed = await self._projects.update(request.project, list(request.update_mask.paths), actor)
        return edge.UpdateProjectResponse(project=changed)

    async def ArchiveProject(  # noqa: N802
        self, request: edge.ArchiveProjectRequest, context: Any
    ) -> edge.ArchiveProjectResponse:
        actor = self._admin(context)
        self._tenants.get(request.tenant_id)
        archived = await self._projects.archive(request.tenant_id, request.project_id, actor)
        return edge.ArchiveProjectResponse(project=archived)


def _headers(context: Any) -> dict[str, str]:
    return dict(context.invocation_metadata() or ())
