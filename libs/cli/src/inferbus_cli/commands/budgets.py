"""``inferbus budgets`` and ``inferbus credits``: what tenants, projects and keys may spend, and what they paid in."""

from datetime import datetime
from typing import Any

import click
from inferbus.bus.v1.registry_pb2 import BudgetPeriod, BudgetRecord, CreditRecord
from inferbus.meter.v1.budgets_pb2 import (
    AddCreditResponse,
    DeleteBudgetResponse,
    ListBudgetsResponse,
    ListCreditsResponse,
    SetBudgetResponse,
)

from inferbus_cli.edge import PATIENCE, Edge
from inferbus_cli.tables import Column, Rows, terminal
from inferbus_cli.target import Target, json_option, with_target
from inferbus_cli.tenancy import as_json as json_of
from inferbus_cli.text import moment, rfc3339
from inferbus_cli.timerange import Moment

_PERIODS = ("month", "day", "prepaid")
_period = click.option("--period", type=click.Choice(_PERIODS), default="month", show_default=True)
_currency = click.option("--currency", default="USD", show_default=True)


def _scoped(command: Any) -> Any:
    command = click.option("--key-id", help="Of this key only.")(command)
    command = click.option("--project", "project_id", help="Of this project only.")(command)
    return click.option("--tenant", "tenant_id", required=True)(command)


@click.group()
def budgets() -> None:
    """Set, list and delete budgets (needs an operator's key)."""


@budgets.command("set")
@_scoped
@_period
@click.option("--currency", help="USD unless it says another one already.")
@click.option("--amount", help="Of each period; a prepaid budget has its credits.")
@click.option("--hard/--soft", default=None, help="Refuse what would pass it, or only tell (a new one's default).")
@click.option("--threshold", "thresholds", multiple=True, help="Tell at this part of the amount: 0.8. Several times.")
@click.option("--no-thresholds", is_flag=True, help="Tell nothing any more.")
@click.option("--webhook", "webhook_url", help="Tell this URL, too; empty: none any more.")
@json_option
@with_target
def set_budget(target: Target, as_json: bool, no_thresholds: bool, **given: Any) -> None:
    """Make the budget of a tenant, project or key, or change what is named of it."""
    if no_thresholds and given["thresholds"]:
        raise click.UsageError("--no-thresholds goes without --threshold.")
    with Edge(target) as edge:
        body = {"currency": "USD"} | _known(edge, given)
        body |= {name: value for name, value in given.items() if value not in (None, ())}
        if no_thresholds:
            body["thresholds"] = []
        answer = edge.ask("PUT", "/budgets", SetBudgetResponse(), json=body, patience=PATIENCE)
    status = answer.status
    text = f"{_scope(status.budget)}: {status.left} of {status.amount} {status.budget.currency} left."
    click.echo(json_of(answer) if as_json else text)


@budgets.command("list")
@click.option("--tenant", help="Only this tenant's.")
@json_option
@with_target
def list_budgets(target: Target, tenant: str | None, as_json: bool) -> None:
    """List budgets, and how they stand in their present period."""
    with Edge(target) as edge:
        params = {"tenant": tenant} if tenant else {}
        answer = edge.ask("GET", "/budgets", ListBudgetsResponse(), params=params, patience=PATIENCE)
    if as_json:
        click.echo(json_of(answer))
        return
    table = Rows(
        *(Column("budget of", folds=True), Column("period"), Column("amount", number=True)),
        *(Column("spent", number=True), Column("reserved", number=True, spare=1), Column("left", number=True)),
        *(Column("currency"), Column("kind", spare=2), Column("told at", spare=3, folds=True)),
    )
    for one in answer.budgets:
        budget = one.budget
        table.add(
            *(_scope(budget), _period_of(budget)),
            *(one.amount, one.spent, one.reserved, one.left, budget.currency),
            *("hard" if budget.hard else "soft", ", ".join(budget.thresholds)),
        )
    terminal().print(table if answer.budgets else "There are no budgets.")


@budgets.command()
@_scoped
@_period
@json_option
@with_target
def delete(
    target: Target, tenant_id: str, project_id: str | None, key_id: str | None, period: str, as_json: bool
) -> None:
    """Delete the budget of a tenant, project or key."""
    asked = {"tenant": tenant_id, "project": project_id, "key": key_id, "period": period}
    params = {name: value for name, value in asked.items() if value}
    with Edge(target) as edge:
        answer = edge.ask("DELETE", "/budgets", DeleteBudgetResponse(), params=params)
    click.echo(json_of(answer) if as_json else "The budget is deleted.")


@click.group()
def credits() -> None:
    """Pay in for prepaid budgets, and list what was paid in (needs an operator's key)."""


@credits.command()
@click.argument("credit_id")
@_scoped
@_currency
@click.option("--amount", required=True)
@click.option("--expires", type=Moment(), help="What is left then is lost.")
@click.option("--note", help="For people.")
@json_option
@with_target
def add(target: Target, credit_id: str, expires: datetime | None, as_json: bool, **given: Any) -> None:
    """Pay in under CREDIT_ID, such as an order's number: a second time does nothing."""
    body = {"credit_id": credit_id, **{name: value for name, value in given.items() if value}}
    if expires is not None:
        body["expire_time"] = rfc3339(expires)
    with Edge(target) as edge:
        answer = edge.ask("POST", "/credits", AddCreditResponse(), json=body, patience=PATIENCE)
    text = f"{answer.credit.amount} {answer.credit.currency} for {_scope(answer.credit)}."
    click.echo(json_of(answer) if as_json else text)


@credits.command("list")
@click.option("--tenant", help="Only this tenant's.")
@json_option
@with_target
def list_credits(target: Target, tenant: str | None, as_json: bool) -> None:
    """List what was paid in."""
    with Edge(target) as edge:
        params = {"tenant": tenant} if tenant else {}
        answer = edge.ask("GET", "/credits", ListCreditsResponse(), params=params, patience=PATIENCE)
    if as_json:
        click.echo(json_of(answer))
        return
    table = Rows(
        *(Column("id", folds=True), Column("for", folds=True), Column("amount", number=True), Column("currency")),
        *(Column("paid in (UTC)", spare=1, folds=True), Column("expires (UTC)", spare=2, folds=True)),
        Column("note", spare=3, folds=True),
    )
    for one in answer.credits:
        expires = moment(one.expire_time) if one.HasField("expire_time") else ""
        table.add(
            *(one.credit_id, _scope(one), one.amount, one.currency, moment(one.create_time), expires, one.note),
        )
    terminal().print(table if answer.credits else "Nothing was paid in.")


def _known(edge: Edge, given: dict[str, Any]) -> dict[str, Any]:
    """What the budget says that there is: a PUT replaces all of it."""
    params = {"tenant": given["tenant_id"]}
    answer = edge.ask("GET", "/budgets", ListBudgetsResponse(), params=params, patience=PATIENCE)
    wanted = (given["project_id"] or "", given["key_id"] or "", given["period"])
    for one in answer.budgets:
        budget = one.budget
        if (budget.project_id, budget.key_id, _period_of(budget)) == wanted:
            return {
                "currency": budget.currency, "amount": budget.amount, "hard": budget.hard,
                "thresholds": list(budget.thresholds), "webhook_url": budget.webhook_url,
            }  # fmt: skip
    return {}


def _period_of(budget: BudgetRecord) -> str:
    return BudgetPeriod.Name(budget.period).removeprefix("BUDGET_PERIOD_").lower()


def _scope(record: BudgetRecord | CreditRecord) -> str:
    if record.key_id:
        return f"{record.tenant_id}, key {record.key_id}"
    return f"{record.tenant_id}, project {record.project_id}" if record.project_id else record.tenant_id
