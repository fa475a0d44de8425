"""``inferbus service-accounts``: programs that have keys of their own in a project."""

import json
from datetime import timedelta
from typing import Any

import click

from inferbus_cli.edge import Edge
from inferbus_cli.tables import Column, Rows, terminal
from inferbus_cli.target import Target, json_option, with_target
from inferbus_cli.tenancy import Lifetime, tenant_of, tenant_option
from inferbus_cli.text import epoch

_project = click.option("--project", default="default", show_default=True, help="The project's id.")


@click.group()
def service_accounts() -> None:
    """Make, list and delete service accounts of a project (needs an admin key)."""


@service_accounts.command()
@click.argument("name")
@_project
@tenant_option
@click.option("--expires", type=Lifetime(), help="Its key is refused after this long: 30d. Default: never.")
@json_option
@with_target
def create(target: Target, name: str, project: str, tenant: str, expires: timedelta | None, as_json: bool) -> None:
    """Make a service account called NAME, and its key. The key is shown now and never again."""
    body: dict[str, Any] = {"name": name}
    if expires is not None:
        body["expires_in_seconds"] = int(expires.total_seconds())
    with Edge(target) as edge:
        path = f"/projects/{project}/service_accounts"
        made = edge.organization("POST", path, tenant_of(target, tenant), json=body)
    if as_json:
        click.echo(json.dumps(made))
        return
    click.echo(made["api_key"]["value"])
    click.echo(f"Service account {made['id']} of {project}. Keep the line above: it is not stored.", err=True)


@service_accounts.command("list")
@_project
@tenant_option
@json_option
@with_target
def list_accounts(target: Target, project: str, tenant: str, as_json: bool) -> None:
    """List the service accounts of a project."""
    with Edge(target) as edge:
        found = list(edge.organization_list(f"/projects/{project}/service_accounts", tenant_of(target, tenant)))
    if as_json:
        click.echo(json.dumps(found))
        return
    table = Rows(Column("id"), Column("name", folds=True), Column("role"), Column("created (UTC)", spare=1))
    for one in found:
        table.add(one["id"], one["name"], one["role"], epoch(one["created_at"]))
    terminal().print(table)


@service_accounts.command()
@click.argument("account_id")
@_project
@tenant_option
@json_option
@with_target
def delete(target: Target, account_id: str, project: str, tenant: str, as_json: bool) -> None:
    """Delete the service account ACCOUNT_ID, and refuse its keys from now on."""
    with Edge(target) as edge:
        path = f"/projects/{project}/service_accounts/{account_id}"
        gone = edge.organization("DELETE", path, tenant_of(target, tenant))
    click.echo(json.dumps(gone) if as_json else f"Service account {account_id} is deleted, its keys are refused.")
