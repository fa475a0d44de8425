"""``inferbus tenants``: who is billed and isolated."""

from datetime import timedelta
from typing import Any

import click
from inferbus.bus.v1.registry_pb2 import RecordState, TenantRecord
from inferbus.edge.v1.edge_pb2 import (
    ArchiveTenantResponse,
    CreateTenantResponse,
    GetTenantResponse,
    ListTenantsResponse,
    RestoreTenantResponse,
    UpdateTenantResponse,
)

from inferbus_cli.commands.brands import brand
from inferbus_cli.edge import Edge
from inferbus_cli.tables import Column, Rows, terminal
from inferbus_cli.target import Target, json_option, with_target
from inferbus_cli.tenancy import LIMITS, Lifetime, limit_options, limits_body, limits_text, weight_option
from inferbus_cli.tenancy import as_json as json_of
from inferbus_cli.text import duration, moment

_hold = click.option("--hold", type=Lifetime(), help="A vanished client's generation goes on this long: 30s.")


@click.group()
def tenants() -> None:
    """Make, list, change, archive and restore tenants (needs an operator's key)."""


tenants.add_command(brand)


@tenants.command()
@click.argument("tenant_id")
@click.option("--name", default="", help="For people (default: the id).")
@_hold
@weight_option
@limit_options
@json_option
@with_target
def create(
    target: Target,
    tenant_id: str,
    name: str,
    hold: timedelta | None,
    weight: int | None,
    as_json: bool,
    **limits: str | None,
) -> None:
    """Make the tenant TENANT_ID."""
    body: dict[str, Any] = {"tenant_id": tenant_id, "name": name, "limits": limits_body(limits)}
    if weight is not None:
        body["weight"] = weight
    if hold is not None:
        body["hold"] = f"{hold.total_seconds():.6f}s"
    with Edge(target) as edge:
        made = edge.ask("POST", "/tenants", CreateTenantResponse(), json=body)
    click.echo(json_of(made) if as_json else f"Tenant {made.tenant.tenant_id} is made.")


@tenants.command("list")
@json_option
@with_target
def list_tenants(target: Target, as_json: bool) -> None:
    """List the tenants, archived ones included."""
    with Edge(target) as edge:
        answer = edge.ask("GET", "/tenants", ListTenantsResponse())
    if as_json:
        click.echo(json_of(answer))
        return
    table = Rows(
        *(Column("id"), Column("name", folds=True), Column("state"), Column("limits", spare=1, folds=True)),
        *(Column("weight", number=True, spare=2), Column("hold", spare=3)),
        Column("created (UTC)", spare=4, folds=True),
    )
    for tenant in answer.tenants:
        hold = duration(tenant.hold) if tenant.HasField("hold") else ""
        table.add(
            *(tenant.tenant_id, tenant.name, _state(tenant), limits_text(tenant.limits)),
            *(str(tenant.weight or 1), hold),
            moment(tenant.create_time),
            dim=tenant.state == RecordState.RECORD_STATE_ARCHIVED,
        )
    terminal().print(table)


@tenants.command()
@click.argument("tenant_id")
@click.option("--name", help="For people.")
@_hold
@weight_option
@limit_options
@json_option
@with_target
def update(
    target: Target,
    tenant_id: str,
    name: str | None,
    hold: timedelta | None,
    weight: int | None,
    as_json: bool,
    **limits: str | None,
) -> None:
    """Change the tenant TENANT_ID; what is not named stays."""
    body: dict[str, Any] = {} if name is None else {"name": name}
    if weight is not None:
        body["weight"] = weight
    if hold is not None:
        body["hold"] = f"{hold.total_seconds():.6f}s"
    with Edge(target) as edge:
        if any(limits.values()):
            known = edge.ask("GET", f"/tenants/{tenant_id}", GetTenantResponse()).tenant.limits
            body["limits"] = limits_body(limits, known) or None
        if not body:
            raise click.UsageError(f"name what to change: --name, --hold, --weight, --{', --'.join(LIMITS)}")
        changed = edge.ask("PATCH", f"/tenants/{tenant_id}", UpdateTenantResponse(), json=body)
    click.echo(json_of(changed) if as_json else f"Tenant {changed.tenant.tenant_id} is changed.")


@tenants.command()
@click.argument("tenant_id")
@json_option
@with_target
def archive(target: Target, tenant_id: str, as_json: bool) -> None:
    """Refuse all keys of the tenant TENANT_ID from now on. Nothing of it is deleted."""
    with Edge(target) as edge:
        answer = edge.ask("POST", f"/tenants/{tenant_id}/archive", ArchiveTenantResponse())
    click.echo(json_of(answer) if as_json else f"Tenant {tenant_id} is archived: its keys are refused.")


@tenants.command()
@click.argument("tenant_id")
@json_option
@with_target
def restore(target: Target, tenant_id: str, as_json: bool) -> None:
    """Take the keys of the archived tenant TENANT_ID again."""
    with Edge(target) as edge:
        answer = edge.ask("POST", f"/tenants/{tenant_id}/restore", RestoreTenantResponse())
    click.echo(json_of(answer) if as_json else f"Tenant {tenant_id} is active again.")


def _state(tenant: TenantRecord) -> str:
    return "archived" if tenant.state == RecordState.RECORD_STATE_ARCHIVED else "active"
