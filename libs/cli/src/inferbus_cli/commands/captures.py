"""``inferbus captures``: of which requests text is kept, and what they said."""

from datetime import datetime
from typing import Any

import click
from inferbus.bus.v1.registry_pb2 import CapturePolicy
from inferbus.edge.v1.edge_pb2 import UpdateTenantResponse
from inferbus.meter.v1.captures_pb2 import GetCaptureResponse, ListCapturesResponse

from inferbus_cli.edge import Edge
from inferbus_cli.tables import Column, Rows, terminal
from inferbus_cli.target import Target, json_option, with_target
from inferbus_cli.tenancy import as_json as json_of
from inferbus_cli.text import count, moment, rfc3339
from inferbus_cli.timerange import time_range


@click.group()
def captures() -> None:
    """Keep prompts and outputs of a tenant's requests, and read them (needs an operator's key)."""


@captures.command("set")
@click.argument("tenant_id")
@click.option("--rate", "sampling_rate", type=click.FloatRange(0, 1), required=True, help="Part of the requests.")
@click.option("--project", "project_ids", multiple=True, help="Only of this project. Several times.")
@click.option("--self-service", is_flag=True, help="The tenant may turn it on by itself.")
@json_option
@with_target
def set_policy(target: Target, tenant_id: str, as_json: bool, **policy: Any) -> None:
    """Keep the text of TENANT_ID's requests from now on."""
    with Edge(target) as edge:
        answer = edge.ask("PUT", f"/tenants/{tenant_id}/capture", UpdateTenantResponse(), json=policy)
    click.echo(json_of(answer) if as_json else _said(tenant_id, answer.tenant.capture))


@captures.command()
@click.argument("tenant_id")
@json_option
@with_target
def off(target: Target, tenant_id: str, as_json: bool) -> None:
    """Keep no text of TENANT_ID's requests any more."""
    with Edge(target) as edge:
        answer = edge.ask("DELETE", f"/tenants/{tenant_id}/capture", UpdateTenantResponse())
    click.echo(json_of(answer) if as_json else _said(tenant_id, answer.tenant.capture))


@captures.command("list")
@click.option("--tenant", help="Only this tenant's.")
@click.option("--project", help="Only this project's.")
@time_range
@click.option("--limit", "page_size", type=click.IntRange(1, 1000), default=100, show_default=True)
@json_option
@with_target
def list_captures(
    target: Target, since: datetime | None, until: datetime | None, page_size: int, as_json: bool, **given: str | None
) -> None:
    """List requests whose text is kept, newest first."""
    params: dict[str, Any] = {name: value for name, value in given.items() if value}
    params |= {"page_size": str(page_size)}
    params |= {name: rfc3339(at) for name, at in (("start", since), ("end", until)) if at is not None}
    with Edge(target) as edge:
        answer = edge.ask("GET", "/captures", ListCapturesResponse(), params=params)
    if as_json:
        click.echo(json_of(answer))
        return
    table = Rows(
        *(Column("request", folds=True), Column("accepted (UTC)", folds=True), Column("tenant", folds=True)),
        *(Column("project", folds=True, spare=2), Column("model", folds=True, spare=1), Column("bytes", number=True)),
    )
    for one in answer.captures:
        table.add(
            *(one.request_id, moment(one.accepted_time), one.tenant_id, one.project_id, one.model, count(one.bytes))
        )
    terminal().print(table if answer.captures else "No text is kept.")


@captures.command()
@click.argument("request_id")
@json_option
@with_target
def show(target: Target, request_id: str, as_json: bool) -> None:
    """Show what REQUEST_ID asked and was answered. The tenant's audit log tells that it was read."""
    with Edge(target) as edge:
        answer = edge.ask("GET", f"/captures/{request_id}", GetCaptureResponse())
    if as_json:
        click.echo(json_of(answer))
        return
    one = answer.capture
    cut = {True: " (cut)", False: ""}
    click.echo(f"{one.tenant_id}, {one.model}, {moment(one.accepted_time)} UTC")
    click.echo(f"--- asked{cut[one.input_truncated]}\n{one.input}")
    click.echo(f"--- answered{cut[one.output_truncated]}\n{one.output}")


def _said(tenant_id: str, policy: CapturePolicy) -> str:
    if not policy.sampling_rate:
        return f"No text of {tenant_id} is kept."
    where = f" in {', '.join(policy.project_ids)}" if policy.project_ids else ""
    return f"Text of {policy.sampling_rate:.4%} of {tenant_id}'s requests{where} is kept."
