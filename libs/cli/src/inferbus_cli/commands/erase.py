"""``inferbus erase``: take out what names an end user, or a tenant."""

from typing import Any

import click
from inferbus.meter.v1.privacy_pb2 import EraseResponse, Erasure, ListErasuresResponse

from inferbus_cli.edge import Edge
from inferbus_cli.tables import Column, Rows, terminal
from inferbus_cli.target import Target, json_option, with_target
from inferbus_cli.tenancy import as_json as json_of
from inferbus_cli.text import count, moment

_KINDS = {
    "requests": "requests without their labels",
    "captures": "requests with captured text",
    "responses": "stored answers",
    "idempotency_keys": "idempotency keys",
}


@click.command()
@click.option("--tenant", "tenant_id", help="Whose; all of it without --end-user.")
@click.option("--end-user", help="As 'safety_identifier', 'user' or 'metadata.user_id' of the requests named him.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--timeout", default=60.0, show_default=True, help="Seconds to wait; it goes on all the same.")
@click.option("--list", "listed", is_flag=True, help="Only show the erasures that there were.")
@json_option
@with_target
def erase(
    target: Target, tenant_id: str | None, end_user: str | None, dry_run: bool, yes: bool, timeout: float,
    listed: bool, as_json: bool,
) -> None:  # fmt: skip
    """Erase an end user or a tenant: labels, stored answers, idempotency keys, captured text (operator's key).

    Counts and charges stay, without a name. What arrives later, or is read again by a replay, is erased as well.
    """
    if listed:
        _list(target, tenant_id, as_json)
        return
    if not tenant_id:
        raise click.UsageError("name the tenant with --tenant")
    if not (dry_run or yes):
        whom = f"end user {end_user} of {tenant_id}" if end_user else f"everybody of {tenant_id}"
        click.confirm(f"Erase {whom}? It cannot be undone.", abort=True, err=True)
    body: dict[str, Any] = {"tenant_id": tenant_id, "dry_run": dry_run, "timeout": timeout}
    body |= {"end_user": end_user} if end_user else {"whole_tenant": True}
    with Edge(target) as edge:
        answer = edge.ask("POST", "/erasures", EraseResponse(), json=body, patience=timeout + 10)
    if as_json:
        click.echo(json_of(answer))
        return
    terminal().print(_said(answer), highlight=False)


def _list(target: Target, tenant_id: str | None, as_json: bool) -> None:
    params = {"tenant": tenant_id} if tenant_id else {}
    with Edge(target) as edge:
        answer = edge.ask("GET", "/erasures", ListErasuresResponse(), params=params)
    if as_json:
        click.echo(json_of(answer))
        return
    table = Rows(
        *(Column("id", folds=True), Column("tenant", folds=True), Column("whom", folds=True)),
        *(Column("accepted until (UTC)", folds=True), Column("state"), Column("requests", number=True)),
    )
    for one in answer.erasures:
        whom = one.end_user_hash[:12] if one.end_user_hash else "everybody"
        table.add(
            *(one.erasure_id, one.tenant_id, whom, moment(one.until_time), _state(one)),
            count(one.erased["requests"]),
        )
    terminal().print(table if answer.erasures else "Nothing was erased.")


def _state(erasure: Erasure) -> str:
    return "done" if erasure.HasField("done_time") else "at work"


def _said(answer: EraseResponse) -> str:
    erasure = answer.erasure
    head = "Would go" if answer.dry_run else f"{erasure.erasure_id}, {_state(erasure)}. Gone"
    lines = [f"{head}:"]
    lines += [f"  {count(erasure.erased[kind]):>9}  {what}" for kind, what in _KINDS.items()]
    lines.append("Goes by itself:")
    lines += [f"  {one}" for one in erasure.left]
    return "\n".join(lines)
