"""``inferbus audit-log``: who changed what."""

import itertools
import json
from datetime import datetime
from typing import Any

import click

from inferbus_cli.edge import Edge
from inferbus_cli.tables import Column, Rows, terminal
from inferbus_cli.target import Target, json_option, with_target
from inferbus_cli.tenancy import tenant_of, tenant_option
from inferbus_cli.text import epoch
from inferbus_cli.timerange import time_range


@click.command()
@tenant_option
@click.option("--project", default="", help="Only changes in this project (its id).")
@click.option("--target-id", default="", help="Only changes of this key, project, user or service account.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1), help="The newest so many.")
@time_range
@json_option
@with_target
def audit_log(
    target: Target,
    tenant: str,
    project: str,
    target_id: str,
    limit: int,
    since: datetime | None,
    until: datetime | None,
    as_json: bool,
) -> None:
    """List the changes of a tenant's projects, keys and members, newest first (needs an admin key)."""
    query: dict[str, Any] = {"project_ids[]": project, "resource_ids[]": target_id}
    if since is not None:
        query["effective_at[gte]"] = int(since.timestamp())
    if until is not None:
        query["effective_at[lt]"] = int(until.timestamp())
    asked = {name: value for name, value in query.items() if value != ""}
    with Edge(target) as edge:
        newest = edge.organization_list("/audit_logs", tenant_of(target, tenant), **asked)
        entries = list(itertools.islice(newest, limit))
    if as_json:
        click.echo(json.dumps(entries))
        return
    table = Rows(
        *(Column("time (UTC)"), Column("what"), Column("id"), Column("by key", spare=1), Column("project", spare=2)),
        Column("details", spare=3, folds=True),
    )
    for one in entries:
        payload = one[one["type"]]
        details = payload.get("data") or payload.get("changes_requested") or {}
        said = ", ".join(f"{name}={json.dumps(value)}" for name, value in details.items())
        actor, where = one["actor"]["api_key"]["id"], one.get("project", {}).get("id", "")
        table.add(epoch(one["effective_at"]), one["type"], payload["id"], actor, where, said)
    terminal().print(table)
