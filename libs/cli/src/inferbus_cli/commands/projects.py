"""``inferbus projects``: scopes of keys, limits and cost inside a tenant."""

import json

import click

from inferbus_cli.edge import Edge
from inferbus_cli.tables import Column, Rows, terminal
from inferbus_cli.target import Target, json_option, with_target
from inferbus_cli.tenancy import LIMITS, NONE, limit_options, tenant_of, tenant_option, weight_option
from inferbus_cli.text import epoch

_OPENAI_LIMITS = ("max_requests_per_1_minute", "max_tokens_per_1_minute", "max_concurrent_requests")


@click.group()
def projects() -> None:
    """Make, list, rename, limit and archive a tenant's projects (needs an admin key)."""


@projects.command()
@click.argument("name")
@weight_option
@tenant_option
@json_option
@with_target
def create(target: Target, name: str, weight: int | None, tenant: str, as_json: bool) -> None:
    """Make a project called NAME."""
    with Edge(target) as edge:
        made = edge.organization("POST", "/projects", tenant_of(target, tenant), json={"name": name, "weight": weight})
    click.echo(json.dumps(made) if as_json else made["id"])


@projects.command("list")
@click.option("--archived", is_flag=True, help="Archived ones, too.")
@tenant_option
@json_option
@with_target
def list_projects(target: Target, archived: bool, tenant: str, as_json: bool) -> None:
    """List the projects."""
    with Edge(target) as edge:
        query = {"include_archived": str(archived).lower()}
        found = list(edge.organization_list("/projects", tenant_of(target, tenant), **query))
    if as_json:
        click.echo(json.dumps(found))
        return
    table = Rows(
        *(Column("id"), Column("name", folds=True), Column("status"), Column("weight", number=True, spare=1)),
        Column("created (UTC)", spare=2),
    )
    for one in found:
        dim = one["status"] == "archived"
        created = epoch(one["created_at"])
        table.add(one["id"], one["name"], one["status"], str(one.get("weight", 1)), created, dim=dim)
    terminal().print(table)


@projects.command()
@click.argument("project_id")
@click.argument("name")
@tenant_option
@json_option
@with_target
def rename(target: Target, project_id: str, name: str, tenant: str, as_json: bool) -> None:
    """Call the project PROJECT_ID NAME."""
    with Edge(target) as edge:
        path = f"/projects/{project_id}"
        changed = edge.organization("POST", path, tenant_of(target, tenant), json={"name": name})
    click.echo(json.dumps(changed) if as_json else f"Project {project_id} is called {changed['name']}.")


@projects.command()
@click.argument("project_id")
@click.argument("weight", type=click.IntRange(1, 1000))
@tenant_option
@json_option
@with_target
def weigh(target: Target, project_id: str, weight: int, tenant: str, as_json: bool) -> None:
    """Give the project PROJECT_ID the part WEIGHT of what its tenant gets, against the tenant's other projects."""
    with Edge(target) as edge:
        path = f"/projects/{project_id}"
        changed = edge.organization("POST", path, tenant_of(target, tenant), json={"weight": weight})
    click.echo(json.dumps(changed) if as_json else f"Project {project_id} has the weight {changed['weight']}.")


@projects.command()
@click.argument("project_id")
@tenant_option
@limit_options
@json_option
@with_target
def limit(target: Target, project_id: str, tenant: str, as_json: bool, **limits: str | None) -> None:
    """Limit the project PROJECT_ID; what is not named stays. Over all its keys and models together."""
    names = dict(zip(LIMITS, _OPENAI_LIMITS, strict=True))
    body = {names[name]: None if value == NONE else int(value) for name, value in limits.items() if value is not None}
    if not body:
        raise click.UsageError(f"name a limit: --{', --'.join(LIMITS)}")
    with Edge(target) as edge:
        path = f"/projects/{project_id}/rate_limits/rl-all"
        changed = edge.organization("POST", path, tenant_of(target, tenant), json=body)
    click.echo(json.dumps(changed) if as_json else f"Project {project_id} is limited.")


@projects.command()
@click.argument("project_id")
@tenant_option
@json_option
@with_target
def archive(target: Target, project_id: str, tenant: str, as_json: bool) -> None:
    """Refuse all keys of the project PROJECT_ID from now on, for good."""
    with Edge(target) as edge:
        archived = edge.organization("POST", f"/projects/{project_id}/archive", tenant_of(target, tenant))
    click.echo(json.dumps(archived) if as_json else f"Project {project_id} is archived: its keys are refused.")
