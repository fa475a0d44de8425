"""``inferbus keys``: who may call."""

import click
from google.protobuf.json_format import MessageToDict, MessageToJson
from inferbus.edge.v1.edge_pb2 import CreateKeyRequest, CreateKeyResponse, ListKeysResponse, RevokeKeyResponse

from inferbus_cli.edge import Edge
from inferbus_cli.tables import Column, Rows, terminal
from inferbus_cli.target import Target, json_option, with_target
from inferbus_cli.text import moment


@click.group()
def keys() -> None:
    """Make, list and revoke API keys (needs an admin key)."""


@keys.command()
@click.option("--tenant", default="default", show_default=True, help="Who is billed.")
@click.option("--project", default="default", show_default=True, help="Scope of cost inside the tenant.")
@click.option("--name", default="", help="What the key is for.")
@click.option("--scope", "scopes", multiple=True, type=click.Choice(["inference", "admin"]), help="Default: inference.")
@json_option
@with_target
def create(target: Target, tenant: str, project: str, name: str, scopes: tuple[str, ...], as_json: bool) -> None:
    """Make a key. Its secret is shown now and never again."""
    request = CreateKeyRequest(tenant_id=tenant, project_id=project, name=name, scopes=scopes)
    with Edge(target) as edge:
        body = MessageToDict(request, preserving_proto_field_name=True)
        answer = edge.ask("POST", "/keys", CreateKeyResponse(), json=body)
    if as_json:
        click.echo(_json(answer))
        return
    click.echo(answer.secret)
    click.echo(f"Key {answer.key.key_id} of {tenant}/{project}. Keep the line above: it is not stored.", err=True)


@keys.command("list")
@click.option("--tenant", default="", help="Only this tenant's.")
@json_option
@with_target
def list_keys(target: Target, tenant: str, as_json: bool) -> None:
    """List the keys; secrets are not stored, so only their first characters can be shown."""
    with Edge(target) as edge:
        answer = edge.ask("GET", "/keys", ListKeysResponse(), params={"tenant": tenant} if tenant else None)
    if as_json:
        click.echo(_json(answer))
        return
    table = Rows(
        *(Column("id"), Column("tenant"), Column("project"), Column("name", folds=True), Column("key", spare=4)),
        *(Column("scopes", spare=2, folds=True), Column("created (UTC)", spare=3, folds=True)),
        Column("revoked (UTC)", spare=1, folds=True),
    )
    for key in answer.keys:
        table.add(
            *(key.key_id, key.tenant_id, key.project_id, key.name, f"{key.prefix}…"),
            *(" ".join(key.scopes), moment(key.create_time), moment(key.revoke_time)),
            dim=key.HasField("revoke_time"),
        )
    terminal().print(table)


@keys.command()
@click.argument("key_id")
@json_option
@with_target
def revoke(target: Target, key_id: str, as_json: bool) -> None:
    """Refuse the key KEY_ID from now on."""
    with Edge(target) as edge:
        answer = edge.ask("DELETE", f"/keys/{key_id}", RevokeKeyResponse())
    click.echo(_json(answer) if as_json else f"Key {answer.key.key_id} is revoked.")


def _json(message: CreateKeyResponse | ListKeysResponse | RevokeKeyResponse) -> str:
    return MessageToJson(message, preserving_proto_field_name=True, indent=None)
