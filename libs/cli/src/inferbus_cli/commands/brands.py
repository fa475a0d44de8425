"""``inferbus tenants brand``: how the console looks under a tenant's domain."""

import base64
from pathlib import Path
from typing import Any

import click
from inferbus.edge.v1.brands_pb2 import DeleteBrandResponse, GetBrandResponse, ListBrandsResponse, SetBrandResponse

from inferbus_cli.edge import Edge
from inferbus_cli.tables import Column, Rows, terminal
from inferbus_cli.target import Target, json_option, with_target
from inferbus_cli.tenancy import NONE
from inferbus_cli.tenancy import as_json as json_of
from inferbus_cli.text import moment

_HOUSE = "the house's own"
# Fields that options set.
_TEXTS = ("display_name", "accent_light", "accent_dark", "domain")


@click.group()
def brand() -> None:
    """How the console looks under a tenant's domain (needs an operator's key)."""


@brand.command("list")
@json_option
@with_target
def list_brands(target: Target, as_json: bool) -> None:
    """List the brands of all tenants."""
    with Edge(target) as edge:
        answer = edge.ask("GET", "/brands", ListBrandsResponse())
    if as_json:
        click.echo(json_of(answer))
        return
    table = Rows(
        *(Column("tenant"), Column("name", folds=True), Column("domain", folds=True), Column("logo", spare=2)),
        *(Column("accents", spare=1), Column("changed (UTC)", spare=3, folds=True)),
    )
    for one in answer.brands:
        accents = " ".join(filter(None, (one.accent_light, one.accent_dark)))
        table.add(one.tenant_id, one.display_name, one.domain, one.logo_type, accents, moment(one.update_time))
    terminal().print(table)


@brand.command()
@click.argument("tenant_id")
@json_option
@with_target
def show(target: Target, tenant_id: str, as_json: bool) -> None:
    """Show the brand of the tenant TENANT_ID; its logo only as JSON, in base64."""
    with Edge(target) as edge:
        answer = edge.ask("GET", f"/tenants/{tenant_id}/brand", GetBrandResponse())
    if as_json:
        click.echo(json_of(answer))
        return
    found = answer.brand
    click.echo(f"name: {found.display_name}")
    click.echo(f"domain: {found.domain or 'none, so it is shown to nobody'}")
    click.echo(f"accent on light ground: {found.accent_light or _HOUSE}")
    click.echo(f"accent on dark ground: {found.accent_dark or _HOUSE}")
    click.echo(f"logo: {f'{found.logo_type}, {len(found.logo)} bytes' if found.logo else _HOUSE}")


@brand.command("set")
@click.argument("tenant_id")
@click.option("--name", "display_name", help="Instead of InferBus; needed for a new brand.")
@click.option("--domain", help=f"The host under which it is shown, or '{NONE}'.")
@click.option("--accent-light", help=f"Colour on light ground, as #2456c7, or '{NONE}' for the house's.")
@click.option("--accent-dark", help=f"Colour on dark ground, or '{NONE}'.")
@click.option("--logo", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A PNG or SVG of 64 KiB.")
@click.option("--no-logo", is_flag=True, help="Take the logo away.")
@json_option
@with_target
def set_brand(
    target: Target, tenant_id: str, logo: Path | None, no_logo: bool, as_json: bool, **texts: str | None
) -> None:
    """Make or change the brand of the tenant TENANT_ID; what is not named stays."""
    if logo is not None and no_logo:
        raise click.UsageError("--logo and --no-logo exclude each other")
    with Edge(target) as edge:
        listed = edge.ask("GET", "/brands", ListBrandsResponse()).brands
        body: dict[str, Any] = {}
        if any(one.tenant_id == tenant_id for one in listed):
            known = edge.ask("GET", f"/tenants/{tenant_id}/brand", GetBrandResponse()).brand
            body = {name: getattr(known, name) for name in _TEXTS} | {"logo": _encoded(known.logo)}
        elif texts["display_name"] is None:
            raise click.UsageError("a new brand needs --name")
        body |= {name: "" if given == NONE else given for name, given in texts.items() if given is not None}
        if logo is not None or no_logo:
            body["logo"] = "" if logo is None else _encoded(logo.read_bytes())
        made = edge.ask("PUT", f"/tenants/{tenant_id}/brand", SetBrandResponse(), json=body)
    where = f" at {made.brand.domain}" if made.brand.domain else ", at no domain yet (--domain)"
    click.echo(json_of(made) if as_json else f"The console is {made.brand.display_name}{where}.")


@brand.command()
@click.argument("tenant_id")
@json_option
@with_target
def delete(target: Target, tenant_id: str, as_json: bool) -> None:
    """Delete the brand of the tenant TENANT_ID: its domain shows the house's own again."""
    with Edge(target) as edge:
        answer = edge.ask("DELETE", f"/tenants/{tenant_id}/brand", DeleteBrandResponse())
    click.echo(json_of(answer) if as_json else f"The brand of {tenant_id} is deleted.")


def _encoded(octets: bytes) -> str:
    return base64.b64encode(octets).decode()
