"""``inferbus keys``: who may call."""

from datetime import timedelta
from typing import Any

import click
from google.protobuf.json_format import MessageToDict
from inferbus.edge.v1.edge_pb2 import (
    CreateKeyRequest,
    CreateKeyResponse,
    GetKeyResponse,
    ListKeysResponse,
    RevokeKeyResponse,
    RotateKeyResponse,
    UpdateKeyResponse,
)
from inferbus_runtime import clock

from inferbus_cli.edge import Edge
from inferbus_cli.tables import Column, Rows, terminal
from inferbus_cli.target import Target, json_option, with_target
from inferbus_cli.tenancy import LIMITS, NONE, Lifetime, limit_options, limits_body, limits_text
from inferbus_cli.tenancy import as_json as json_of
from inferbus_cli.text import moment, rfc3339

_models = click.option("--models", help="Only these models, by comma; 'none' for any.")
_scopes = click.Choice(["inference", "tenant_admin", "admin"])


@click.group()
def keys() -> None:
    """Make, list, change, rotate and revoke API keys (needs an admin key)."""


@keys.command()
@click.option("--tenant", default="default", show_default=True, help="Who is billed.")
@click.option("--project", default="default", show_default=True, help="Scope of cost inside the tenant.")
@click.option("--name", default="", help="What the key is for.")
@click.option("--scope", "scopes", multiple=True, type=_scopes, help="Default: inference.")
@click.option("--expires", type=Lifetime(), help="Refused after this long: 30d, 12h. Default: never.")
@_models
@limit_options
@json_option
@with_target
def create(
    target: Target,
    tenant: str,
    project: str,
    name: str,
    scopes: tuple[str, ...],
    expires: timedelta | None,
    models: str | None,
    as_json: bool,
    **limits: str | None,
) -> None:
    """Make a key. Its secret is shown now and never again."""
    request = CreateKeyRequest(
        tenant_id=tenant, project_id=project, name=name, scopes=scopes, models=_model_list(models)
    )
    body = MessageToDict(request, preserving_proto_field_name=True)
    if expires is not None:
        body["expire_time"] = rfc3339(clock.now() + expires)
    if any(limits.values()):
        body["limits"] = limits_body(limits)
    with Edge(target) as edge:
        answer = edge.ask("POST", "/keys", CreateKeyResponse(), json=body)
    _show_secret(answer, f"Key {answer.key.key_id} of {tenant}/{project}.", as_json=as_json)


@keys.command("list")
@click.option("--tenant", default="", help="Only this tenant's.")
@click.option("--project", default="", help="Only this project's.")
@json_option
@with_target
def list_keys(target: Target, tenant: str, project: str, as_json: bool) -> None:
    """List the keys; secrets are not stored, so only their first characters can be shown."""
    params = {name: value for name, value in (("tenant", tenant), ("project", project)) if value}
    with Edge(target) as edge:
        answer = edge.ask("GET", "/keys", ListKeysResponse(), params=params or None)
    if as_json:
        click.echo(json_of(answer))
        return
    table = Rows(
        *(Column("id"), Column("tenant"), Column("project"), Column("name", folds=True), Column("key", spare=4)),
        *(Column("scopes", spare=2, folds=True), Column("models", spare=5, folds=True)),
        *(Column("limits", spare=6, folds=True), Column("last used (UTC)", spare=3, folds=True)),
        *(Column("created (UTC)", spare=7, folds=True), Column("ends (UTC)", spare=1, folds=True)),
    )
    now = clock.now()
    for key in answer.keys:
        end = key.revoke_time if key.HasField("revoke_time") else key.expire_time
        table.add(
            *(key.key_id, key.tenant_id, key.project_id, key.name, f"{key.prefix}…"),
            *(" ".join(key.scopes), " ".join(key.models), limits_text(key.limits), moment(key.last_use_time)),
            *(moment(key.create_time), moment(end)),
            dim=bool(end.seconds) and end.seconds <= now.timestamp(),
        )
    terminal().print(table)


@keys.command()
@click.argument("key_id")
@click.option("--overlap", type=Lifetime(), default="0s", show_default=True, help="The old secret works on: 1h, 7d.")
@json_option
@with_target
def rotate(target: Target, key_id: str, overlap: timedelta, as_json: bool) -> None:
    """Give the key KEY_ID a new secret. It is shown now and never again."""
    with Edge(target) as edge:
        body = {"overlap": f"{overlap.total_seconds():.6f}s"}
        answer = edge.ask("POST", f"/keys/{key_id}/rotate", RotateKeyResponse(), json=body)
    old = f"The old secret works for {overlap} longer." if overlap else "The old secret is refused from now on."
    _show_secret(answer, f"Key {answer.key.key_id} has a new secret. {old}", as_json=as_json)


@keys.command()
@click.argument("key_id")
@click.option("--name", help="What the key is for.")
@click.option("--expires", help="Refused after this long from now: 30d; 'none' for never.")
@_models
@limit_options
@json_option
@with_target
def update(
    target: Target,
    key_id: str,
    name: str | None,
    expires: str | None,
    models: str | None,
    as_json: bool,
    **limits: str | None,
) -> None:
    """Change the key KEY_ID; what is not named stays."""
    body: dict[str, Any] = {} if name is None else {"name": name}
    if models is not None:
        body["models"] = _model_list(models)
    if expires is not None:
        body["expire_time"] = None if expires == NONE else rfc3339(clock.now() + _lifetime(expires))
    with Edge(target) as edge:
        if any(limits.values()):
            known = edge.ask("GET", f"/keys/{key_id}", GetKeyResponse()).key.limits
            body["limits"] = limits_body(limits, known) or None
        if not body:
            raise click.UsageError(f"name what to change: --name, --expires, --models, --{', --'.join(LIMITS)}")
        answer = edge.ask("PATCH", f"/keys/{key_id}", UpdateKeyResponse(), json=body)
    click.echo(json_of(answer) if as_json else f"Key {answer.key.key_id} is changed.")


@keys.command()
@click.argument("key_id")
@json_option
@with_target
def revoke(target: Target, key_id: str, as_json: bool) -> None:
    """Refuse the key KEY_ID from now on."""
    with Edge(target) as edge:
        answer = edge.ask("DELETE", f"/keys/{key_id}", RevokeKeyResponse())
    click.echo(json_of(answer) if as_json else f"Key {answer.key.key_id} is revoked.")


def _show_secret(answer: CreateKeyResponse | RotateKeyResponse, said: str, *, as_json: bool) -> None:
    """The secret alone on standard output, for scripts."""
    if as_json:
        click.echo(json_of(answer))
        return
    click.echo(answer.secret)
    click.echo(f"{said} Keep the line above: it is not stored.", err=True)


def _model_list(models: str | None) -> list[str]:
    if models is None or models == NONE:
        return []
    return [name.strip() for name in models.split(",")]


def _lifetime(text: str) -> timedelta:
    return Lifetime().convert(text, None, None)
