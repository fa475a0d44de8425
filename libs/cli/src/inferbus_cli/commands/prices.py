"""``inferbus prices``: the price book."""

from datetime import datetime
from typing import Any

import click
from inferbus.bus.v1.registry_pb2 import PriceRecord
from inferbus.meter.v1.prices_pb2 import (
    CreatePriceResponse,
    DeletePriceResponse,
    GetPriceResponse,
    GetRateResponse,
    ListPricesResponse,
    Price,
    PriceState,
)
from rich.text import Text

from inferbus_cli.edge import PATIENCE, Edge
from inferbus_cli.tables import Column, Rows, terminal
from inferbus_cli.target import Target, json_option, with_target
from inferbus_cli.tenancy import as_json as json_of
from inferbus_cli.text import count, moment, rfc3339
from inferbus_cli.timerange import Moment

_STATES = {
    PriceState.PRICE_STATE_COMING: "coming",
    PriceState.PRICE_STATE_IN_FORCE: "in force",
    PriceState.PRICE_STATE_FOLLOWED: "followed",
}
# Option, field, and what it says.
_AMOUNTS = (
    ("--input", "input_per_million", "Per million tokens of input."),
    ("--cached-input", "cached_input_per_million", "Of input from the cache; default: as input."),
    ("--output", "output_per_million", "Per million tokens of output."),
    ("--reasoning", "reasoning_per_million", "Of reasoning tokens; default: as output."),
    ("--embedding", "embedding_per_million", "Of the input of embeddings; default: as input."),
    ("--per-call", "per_call", "Of a call that was answered."),
    ("--minimum", "minimum", "Of a call that used anything."),
    ("--batch-factor", "batch_factor", "What a charge of class batch is multiplied by."),
)


_WARNING = """{charges} charges name the price {version}. They keep their amounts, and so do the invoices that have been
issued, with their discounts. But an invoice cannot be drafted from such charges, nor be verified, until there is a
price of that version again, and 'inferbus rerate' would charge them by what else is in the book."""


class TierText(click.ParamType[dict[str, str]]):
    """``1000000:0.9``."""

    name = "tokens:factor"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, str]:
        above, _, factor = str(value).replace("_", "").partition(":")
        if not above.isdecimal() or not factor:
            self.fail("give TOKENS:FACTOR, such as 1000000:0.9", param, ctx)
        return {"above_tokens": above, "factor": factor}


def _with_amounts(command: Any) -> Any:
    for option, field, text in reversed(_AMOUNTS):
        command = click.option(option, field, help=text)(command)
    return command


@click.group()
def prices() -> None:
    """List, make and delete prices, and see which one is charged (needs an operator's key)."""


@prices.command("list")
@click.option("--tenant", help="Only this tenant's, and those for everybody.")
@json_option
@with_target
def list_prices(target: Target, tenant: str | None, as_json: bool) -> None:
    """List the price book."""
    with Edge(target) as edge:
        params = {"tenant": tenant} if tenant else {}
        answer = edge.ask("GET", "/prices", ListPricesResponse(), params=params, patience=PATIENCE)
    if as_json:
        click.echo(json_of(answer))
        return
    table = Rows(
        *(Column("version"), Column("for", folds=True), Column("from (UTC)", spare=1, folds=True), Column("state")),
        *(Column("input", number=True), Column("output", number=True), Column("", spare=2)),
    )
    for price in answer.prices:
        record = price.record
        table.add(
            *(record.rate_version, _scope(record), _since(record), _STATES.get(price.state, "")),
            *(record.input_per_million or "0", record.output_per_million or "0", record.currency),
            dim=price.state == PriceState.PRICE_STATE_FOLLOWED,
        )
    terminal().print(table if answer.prices else "There are no prices: nothing is charged.")


@prices.command("set")
@click.argument("rate_version")
@click.option("--currency", required=True, help="Such as USD.")
@_with_amounts
@click.option("--tier", "tiers", type=TierText(), multiple=True, help="TOKENS:FACTOR of a month; may be repeated.")
@click.option("--model", help="Default: all models.")
@click.option("--revision", help="Of the model; default: all.")
@click.option("--tenant", "tenant_id", help="Default: all tenants.")
@click.option("--project", "project_id", help="Of the tenant; default: all.")
@click.option("--from", "effective", type=Moment(), help="In force from then on (ISO 8601, UTC); default: from now on.")
@json_option
@with_target
def set_price(
    target: Target, effective: datetime | None, tiers: tuple[dict[str, str], ...], as_json: bool, **given: str | None
) -> None:
    """Make the price RATE_VERSION. It takes over from the one before for the same tenant, project, model and revision.

    A price is never changed; to correct one, make another from the same time on, and run 'inferbus rerate'.
    """
    body: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if tiers:
        body["tiers"] = list(tiers)
    if effective is not None:
        body["effective_time"] = rfc3339(effective)
    with Edge(target) as edge:
        made = edge.ask("POST", "/prices", CreatePriceResponse(), json=body)
    if as_json:
        click.echo(json_of(made))
        return
    record = made.price.record
    click.echo(f"Price {record.rate_version} for {_scope(record)} is in force from {_since(record)} UTC on.")


@prices.command()
@click.argument("rate_version")
@json_option
@with_target
def show(target: Target, rate_version: str, as_json: bool) -> None:
    """Show all of the price RATE_VERSION."""
    with Edge(target) as edge:
        found = edge.ask("GET", f"/prices/{rate_version}", GetPriceResponse(), patience=PATIENCE)
    if as_json:
        click.echo(json_of(found))
    else:
        terminal().print(_whole(found.price))


@prices.command()
@click.argument("rate_version")
@click.option("--force", is_flag=True, help="Also if it has been in force: says first how many charges name it.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@with_target
def delete(target: Target, rate_version: str, force: bool, yes: bool, as_json: bool) -> None:
    """Delete the price RATE_VERSION, whose time has not come yet."""
    with Edge(target) as edge:
        params = {"force": "true"} if force else {}
        if force:
            asked = {**params, "dry_run": "true"}
            naming = edge.ask("DELETE", f"/prices/{rate_version}", DeletePriceResponse(), params=asked).charges
            if naming:
                click.echo(_WARNING.format(version=rate_version, charges=count(naming)), err=True)
                if not yes:
                    click.confirm("Delete it?", abort=True, err=True)
        answer = edge.ask("DELETE", f"/prices/{rate_version}", DeletePriceResponse(), params=params)
    click.echo(json_of(answer) if as_json else f"Price {rate_version} is deleted.")


@prices.command()
@click.option("--tenant", help="Whose request.")
@click.option("--project", help="Of which project.")
@click.option("--model", help="For which model.")
@click.option("--revision", help="Of which revision.")
@click.option("--operation", help="chat, text_completion, embeddings or inference.")
@click.option("--class", "priority_class", help="interactive, background or batch.")
@click.option("--at", "time", type=Moment(), help="Accepted then; default: now.")
@json_option
@with_target
def rate(target: Target, time: datetime | None, as_json: bool, **asked: str | None) -> None:
    """Show what a request would be charged with, and by which price."""
    params = {name: value for name, value in asked.items() if value}
    if time is not None:
        params["time"] = rfc3339(time)
    with Edge(target) as edge:
        answer = edge.ask("GET", "/rate", GetRateResponse(), params=params, patience=PATIENCE)
    if as_json:
        click.echo(json_of(answer))
        return
    if not answer.HasField("rate"):
        terminal().print("There is no price for it: nothing is charged.")
        return
    console = terminal()
    table = Rows(Column("charged with"), Column("amount", number=True))
    for field, value in answer.rate.ListFields():
        table.add(field.name.replace("_", " "), value)
    console.print(table)
    others = [f"{one.record.rate_version} ({_scope(one.record)})" for one in answer.prices[1:]]
    if others:
        console.print(f"It goes before {', '.join(others)}.")


def _scope(record: PriceRecord) -> str:
    """``acme / web, model m, revision r``; ``everybody, all models``."""
    owner = " / ".join(part for part in (record.tenant_id, record.project_id) if part) or "everybody"
    model = f"model {record.model}" if record.model else "all models"
    return ", ".join((owner, model, *([f"revision {record.revision}"] if record.revision else [])))


def _since(record: PriceRecord) -> str:
    return moment(record.effective_time) or "always"


def _whole(price: Price) -> Text:
    record = price.record
    lines = [f"{record.rate_version}: {_scope(record)}; {_STATES.get(price.state, '')}, from {_since(record)}"]
    for _, field, text in _AMOUNTS:
        value = getattr(record, field)
        if value:
            unit = "" if field == "batch_factor" else f" {record.currency}"
            lines.append(f"  {value}{unit}  {text.partition(';')[0].rstrip('.')}")
    lines += [f"  times {tier.factor}  above {count(tier.above_tokens)} tokens a month" for tier in record.tiers]
    return Text("\n".join(lines))
