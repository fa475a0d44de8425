"""``inferbus invoice``: what tenants owe for a month, issued, shown, proved and taken back."""

import base64
import json
import sys
from pathlib import Path
from typing import Any

import click
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from inferbus.bus.v1.invoice_pb2 import BillingProfileRecord
from inferbus.meter.v1.invoices_pb2 import (
    DraftInvoicesResponse,
    FinalizeInvoiceResponse,
    GetBillingProfileResponse,
    GetInvoiceResponse,
    Invoice,
    InvoiceState,
    ListInvoicesResponse,
    SetBillingProfileResponse,
    VerifyInvoiceResponse,
    VoidInvoiceResponse,
)

from inferbus_cli.edge import PATIENCE, Edge
from inferbus_cli.tables import Column, Rows, terminal
from inferbus_cli.target import Target, json_option, with_target
from inferbus_cli.text import count, moment

# What a large month may take.
_WORK = {"timeout": 600.0}
_STATES = {
    InvoiceState.INVOICE_STATE_DRAFT: "draft",
    InvoiceState.INVOICE_STATE_FINAL: "final",
    InvoiceState.INVOICE_STATE_VOIDED: "voided",
}
# Says what is next, and is no fault.
_LATE = "late_charges"


@click.group()
def invoice() -> None:
    """Draft, issue, list, show, verify and void invoices (needs an operator's key)."""


@invoice.command()
@click.argument("tenant_id")
@click.argument("month")
@json_option
@with_target
def draft(target: Target, tenant_id: str, month: str, as_json: bool) -> None:
    """Show what TENANT_ID would be invoiced for MONTH (2026-11) now. Nothing is issued."""
    with Edge(target) as edge:
        params = {"tenant": tenant_id, "month": month}
        answer = edge.ask(
            "GET", "/invoices/drafts", DraftInvoicesResponse(), params=params, patience=PATIENCE, **_WORK
        )  # fmt: skip
    if as_json:
        click.echo(_json(answer))
        return
    if not answer.invoices:
        click.echo("Nothing is charged in that month that was not invoiced.")
    for one in answer.invoices:
        _show(one)


@invoice.command()
@click.argument("tenant_id")
@click.argument("month")
@click.option("--currency", default="", help="If there is more than one.")
@click.option("--hash", "expected_hash", default="", help="Of the draft that was agreed to; another one is refused.")
@json_option
@with_target
def finalize(target: Target, tenant_id: str, month: str, currency: str, expected_hash: str, as_json: bool) -> None:
    """Issue the invoice of TENANT_ID for MONTH, which must be over (UTC). It cannot be changed any more.

    Again is the same as once: the invoice that there is is shown.
    """
    given = {"tenant_id": tenant_id, "month": month, "currency": currency, "expected_hash": expected_hash}
    body = {name: value for name, value in given.items() if value}
    with Edge(target) as edge:
        answer = edge.ask("POST", "/invoices", FinalizeInvoiceResponse(), json=body, patience=PATIENCE, **_WORK)
    if as_json:
        click.echo(_json(answer))
    else:
        _show(answer.invoice)


@invoice.command("list")
@click.option("--tenant", help="Only this tenant's.")
@click.option("--month", help="Only of this month, as 2026-11.")
@json_option
@with_target
def list_invoices(target: Target, tenant: str | None, month: str | None, as_json: bool) -> None:
    """List invoices and credit notes, newest first."""
    params = {name: value for name, value in (("tenant", tenant), ("month", month)) if value}
    with Edge(target) as edge:
        answer = edge.ask("GET", "/invoices", ListInvoicesResponse(), params=params, patience=PATIENCE)
    if as_json:
        click.echo(_json(answer))
        return
    table = Rows(
        *(Column("number"), Column("tenant"), Column("month"), Column("total", number=True), Column("state")),
        *(Column("issued (UTC)", spare=2), Column("due (UTC)", spare=1), Column("see", spare=3)),
    )
    for one in answer.invoices:
        table.add(
            *(one.number, one.tenant_id, one.month, f"{one.total} {one.currency}", _STATES.get(one.state, "")),
            *(moment(one.issue_time)[:10], moment(one.due_time)[:10], one.voids or one.voided_by),
            dim=one.state == InvoiceState.INVOICE_STATE_VOIDED,
        )
    terminal().print(table if answer.invoices else "No invoice has been issued.")


@invoice.command()
@click.argument("number")
@click.option("--format", "form", type=click.Choice(("json", "csv", "pdf")), help="As a file, to --output.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Default: NUMBER.FORMAT.")
@json_option
@with_target
def show(target: Target, number: str, form: str | None, output: Path | None, as_json: bool) -> None:
    """Show the invoice or credit note NUMBER, or write it as JSON, CSV or PDF."""
    with Edge(target) as edge:
        if form is not None:
            path = output or Path(f"{number}.{form}")
            path.write_bytes(b"".join(edge.file(f"/invoices/{number}/{form}", patience=PATIENCE)))
            click.echo(f"Written to {path}.")
            return
        answer = edge.ask("GET", f"/invoices/{number}", GetInvoiceResponse(), patience=PATIENCE)
    if as_json:
        click.echo(_json(answer))
    else:
        _show(answer.invoice)


@invoice.command()
@click.argument("number")
@json_option
@with_target
def verify(target: Target, number: str, as_json: bool) -> None:
    """Work the invoice NUMBER out again from raw events and prices, and name each difference.

    Exit code 0: it is right; 1: it is not.
    """
    with Edge(target) as edge:
        answer = edge.ask("POST", f"/invoices/{number}/verify", VerifyInvoiceResponse(), patience=PATIENCE, **_WORK)
    faults = [one for one in answer.differences if one.reason != _LATE]
    if as_json:
        click.echo(_json(answer))
    else:
        for one in answer.differences:
            click.echo(f"{one.reason}: {one.detail}")
        seen = f"{count(answer.charges)} charges and {count(answer.tokens)} output tokens were counted again"
        click.echo(f"{number}: {seen}; {f'{len(faults)} differences' if faults else 'it is right'}.")
    if faults:
        sys.exit(1)


@invoice.command()
@click.argument("number")
@click.option("--reason", required=True, help="Stands on the credit note.")
@json_option
@with_target
def void(target: Target, number: str, reason: str, as_json: bool) -> None:
    """Take the invoice NUMBER back by a credit note. Its month can then be issued anew, and is before later ones."""
    with Edge(target) as edge:
        answer = edge.ask(
            "POST", f"/invoices/{number}/void", VoidInvoiceResponse(), json={"reason": reason}, patience=PATIENCE
        )
    if as_json:
        click.echo(_json(answer))
        return
    note = answer.credit_note
    click.echo(f"{note.number} takes {number} back: {note.total} {note.currency}.")


@invoice.command()
@click.option("--tenant", default="", help="Who this tenant is on its invoices (default: the seller).")
@click.option("--set", "file", type=click.File("rb"), help="JSON file with the whole profile; - for standard input.")
@click.option("--logo", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="PNG to put into it.")
@json_option
@with_target
def profile(target: Target, tenant: str, file: Any, logo: Path | None, as_json: bool) -> None:
    """Show who sells, or who a tenant is on its invoices; with --set, say it.

    The JSON has name, address (a list of lines), country, tax_id, email, tax ({"name", "rate", "note"}), payment_days,
    note, and of the seller number_prefix.
    """
    params = {"tenant": tenant} if tenant else {}
    if logo is not None and file is None:
        raise click.UsageError("--logo needs --set")
    with Edge(target) as edge:
        if file is None:
            found = edge.ask("GET", "/billing-profile", GetBillingProfileResponse(), params=params, patience=PATIENCE)
            _show_profile(found.profile, as_json=as_json)
            return
        body = _body(file.read())
        if logo is not None:
            body["logo"] = base64.b64encode(logo.read_bytes()).decode()
        answer = edge.ask("PUT", "/billing-profile", SetBillingProfileResponse(), params=params, json=body)
    _show_profile(answer.profile, as_json=as_json)


def _body(data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except ValueError as error:
        raise click.UsageError(f"--set: not JSON: {error}") from None
    if not isinstance(body, dict):
        raise click.UsageError("--set: not a JSON object")
    return body


def _show(one: Invoice) -> None:
    mixed = any(line.estimated for line in one.lines)
    earlier = any(line.month != one.month for line in one.lines)
    table = Rows(
        *([Column("month")] if earlier else []),
        *(Column("project"), Column("model"), Column("what"), Column("quantity", number=True)),
        *(Column("unit price", number=True, spare=1), Column("amount", number=True), Column("rate", spare=2)),
        *([Column("tokens are")] if mixed else []),
    )
    for line in one.lines:
        table.add(
            *([line.month] if earlier else []),
            *(line.project_id, line.model, line.kind.replace("_", " "), count(line.quantity)),
            *(line.unit_price, line.amount, line.rate_version),
            *(["estimated" if line.estimated else "counted"] if mixed else []),
        )
    console = terminal()
    console.print(f"{one.number or 'Draft'}: {one.tenant_id}, {one.month}, {_STATES.get(one.state, '')}")
    console.print(table)
    tax = f", tax {one.tax}" if one.tax != "0" else ""
    console.print(f"Sum of lines {one.subtotal}, net {one.net}{tax}: total {one.total} {one.currency}")
    if one.credits not in ("", "0"):
        console.print(f"Paid in advance {one.credits}: due {one.due} {one.currency}")
    console.print(f"Hash {one.hash}", style="dim")


def _show_profile(found: BillingProfileRecord, *, as_json: bool) -> None:
    if as_json:
        click.echo(_json(found))
        return
    if not found.name:
        click.echo("Nothing is set.")
        return
    lines = [found.name, *found.address, found.country, found.tax_id, found.email]
    tax = f"Tax: {found.tax.name} {found.tax.rate} {found.tax.note}".rstrip() if found.HasField("tax") else ""
    days = f"Payable within {found.payment_days} days" if found.HasField("payment_days") else ""
    click.echo("\n".join(line for line in (*lines, tax, days, found.note) if line))


def _json(message: Message) -> str:
    return MessageToJson(message, preserving_proto_field_name=True, indent=None)
