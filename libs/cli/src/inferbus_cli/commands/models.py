"""``inferbus models``: what the stack serves."""

import json

import click

from inferbus_cli.edge import Edge
from inferbus_cli.tables import Column, Rows, terminal
from inferbus_cli.target import Target, json_option, with_target


@click.command()
@json_option
@with_target
def models(target: Target, as_json: bool) -> None:
    """List the models that can be asked for."""
    with Edge(target) as edge:
        entries = edge.models()
    if as_json:
        click.echo(json.dumps(entries))
        return
    table = Rows(Column("model"), Column("owned by", spare=1))
    for entry in entries:
        table.add(entry["id"], entry.get("owned_by", ""))
    terminal().print(table if entries else "No model is served: no worker has registered yet.")
