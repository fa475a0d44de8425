"""The operations about the console and how it looks."""

from inferbus.edge.v1 import brands_pb2 as brands

from inferbus_edge.core.openapi_operations import EVERYWHERE, WITH_KEY, Operation, in_path
from inferbus_edge.core.openapi_schema import TEXT, Schema, of_messages, told

_GROUP, _SCOPE, _PUBLIC = "Operator", "admin", "Health and document"
_PATH = "/inferbus/v1/tenants/{tenant_id}/brand"
_TENANT_ID = in_path("tenant_id", "The id of a tenant.")
_ERRORS = (*WITH_KEY, 404, 409, 429, 503)
_COLOUR: Schema = {"type": "string", "pattern": "^(#[0-9A-Fa-f]{6})?$"}
_WANTED: dict[str, Schema] = {
    "display_name": told({"type": "string", "minLength": 1, "maxLength": 200}, "Instead of InferBus."),
    "logo": told(TEXT, "A PNG or SVG of at most 64 KiB, in base64. An SVG is only ever shown as an image."),
    "accent_light": told(_COLOUR, "On light ground; its contrast there is at least 4.5 to 1."),
    "accent_dark": told(_COLOUR, "On dark ground; its contrast there is at least 4.5 to 1."),
    "domain": told(TEXT, "The host under which it is shown. It is one tenant's."),
}
SCHEMAS: dict[str, Schema] = {
    **of_messages(
        brands.GetBrandResponse.DESCRIPTOR,
        brands.SetBrandResponse.DESCRIPTOR,
        brands.DeleteBrandResponse.DESCRIPTOR,
        brands.ListBrandsResponse.DESCRIPTOR,
    ),
    "BrandSet": {
        "type": "object",
        "properties": _WANTED,
        "required": ["display_name"],
        "additionalProperties": False,
    },
    "ShownBrand": {
        "type": "object",
        "properties": {
            "display_name": TEXT,
            "logo": told(TEXT, "A data: URI."),
            "accent_light": _COLOUR,
            "accent_dark": _COLOUR,
        },
        "required": ["display_name"],
        "additionalProperties": False,
    },
}

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "GET", "/inferbus/v1/brands", _GROUP, "Brands of all tenants, without their logos", "ListBrandsResponse",
        scope=_SCOPE,
    ),
    Operation(
        "GET", _PATH, _GROUP, "How the console looks under a tenant's domain", "GetBrandResponse", scope=_SCOPE,
        parameters=(_TENANT_ID,), errors=_ERRORS,
    ),
    Operation(
        "PUT", _PATH, _GROUP, "Make or replace a tenant's brand", "SetBrandResponse", scope=_SCOPE, body="BrandSet",
        parameters=(_TENANT_ID,), errors=_ERRORS,
        example={"display_name": "Acme AI", "accent_light": "#0b6e4f", "domain": "ai.acme.example"},
    ),
    Operation(
        "DELETE", _PATH, _GROUP, "Show the house's own again", "DeleteBrandResponse", scope=_SCOPE,
        parameters=(_TENANT_ID,), errors=_ERRORS,
    ),
    Operation("GET", "/console/", _PUBLIC, "The console", "Anything", content="text/html", errors=EVERYWHERE),
    Operation(
        "GET", "/console/brand.json", _PUBLIC, "The brand of the domain in the Host header", "ShownBrand",
        errors=EVERYWHERE,
    ),
)  # fmt: skip
