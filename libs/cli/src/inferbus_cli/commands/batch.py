"""``inferbus batch``: files of many requests."""

import json
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click

from inferbus_cli.batch_progress import following, transfer
from inferbus_cli.batches import ENDED, Client, pause_after
from inferbus_cli.edge import Edge, Refused, Unreachable
from inferbus_cli.tables import Column, Rows, terminal
from inferbus_cli.target import Target, json_option, with_target
from inferbus_cli.text import epoch

_FIRST_LINE_BYTES = 8 << 20
_file = click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
_endpoint = click.option("--endpoint", help="Path of the API that the lines ask (default: that of the first line).")
_TO = click.Path(dir_okay=False, writable=True, allow_dash=True, path_type=Path)


def _creatable(_: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    """Said before hours of waiting, not after."""
    if path is not None and not path.parent.is_dir():
        raise click.BadParameter(f"there is no folder '{path.parent}'; make it first", param=option)
    return path


_output = click.option("--output", type=_TO, callback=_creatable, help="Where answers go; - for stdout.")
_errors = click.option("--errors", type=_TO, callback=_creatable, help="Where lines go that failed.")
_wait = click.option("--wait", is_flag=True, help="Until it has ended; exit code 1 if a line failed.")


@click.group()
def batch() -> None:
    """Run files of many requests, at the price of what may wait."""


@batch.command()
@_file
@_endpoint
@click.option("--window", default="24h", show_default=True, help="What has not run by then does not: 90m, 24h, 7d.")
@click.option("--metadata", multiple=True, metavar="NAME=VALUE", help="For yourself; up to 16.")
@click.option("--webhook", help="A URL that is told when it has ended.")
@_wait
@_output
@_errors
@json_option
@with_target
def submit(
    target: Target, file: Path, endpoint: str | None, window: str, metadata: tuple[str, ...], webhook: str | None,
    wait: bool, output: Path | None, errors: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Send FILE, a request a line, and run it."""
    _apart(output, errors)
    body: dict[str, Any] = {"endpoint": endpoint or _endpoint_of(file), "completion_window": window}
    if metadata:
        body["metadata"] = dict(map(_pair, metadata))
    if webhook:
        body["webhook_url"] = webhook
    with _client(target) as client:
        body["input_file_id"] = _sent(client, file)
        made = client.create(body, secrets.token_hex(16))
        if not (wait or output or errors):
            _show(made, as_json=as_json)
            return
        click.echo(f"{made['id']} is running.", err=True)
        _to_its_end(client, made["id"], file, output, errors, as_json=as_json)


@batch.command("list")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=1), help="How many.")
@json_option
@with_target
def list_(target: Target, limit: int, as_json: bool) -> None:
    """Batches of the key's project, the newest first."""
    with _client(target) as client:
        found = list(client.newest(limit))
    if as_json:
        click.echo(json.dumps(found))
        return
    columns = (
        Column("batch"), Column("status"), Column("lines", number=True), Column("done", number=True),
        Column("failed", number=True), Column("created"), Column("endpoint"),
    )  # fmt: skip
    rows = Rows(*columns)
    for one in found:
        counts = one["request_counts"]
        rows.add(
            one["id"], one["status"], str(counts["total"]), str(counts["completed"]), str(counts["failed"]),
            epoch(one["created_at"]), one["endpoint"],
        )  # fmt: skip
    terminal().print(rows)


@batch.command()
@click.argument("batch_id")
@_wait
@_output
@_errors
@json_option
@with_target
def status(target: Target, batch_id: str, wait: bool, output: Path | None, errors: Path | None, as_json: bool) -> None:
    """How far BATCH_ID is."""
    _apart(output, errors)
    with _client(target) as client:
        if wait or output or errors:
            _to_its_end(client, batch_id, None, output, errors, as_json=as_json)
        else:
            _show(client.get(batch_id), as_json=as_json)


@batch.command()
@click.argument("batch_id")
@json_option
@with_target
def cancel(target: Target, batch_id: str, as_json: bool) -> None:
    """End BATCH_ID; what is done is kept."""
    with _client(target) as client:
        _show(client.cancel(batch_id), as_json=as_json)


@batch.command()
@click.argument("batch_id")
@_output
@_errors
@with_target
def fetch(target: Target, batch_id: str, output: Path | None, errors: Path | None) -> None:
    """Get the results of BATCH_ID (default: to BATCH_ID_output.jsonl and BATCH_ID_error.jsonl)."""
    _apart(output, errors)
    with _client(target) as client:
        found = client.get(batch_id)
        if found["status"] not in ENDED:
            raise click.ClickException(
                f"{batch_id} is {found['status']}; wait: inferbus batch status {batch_id} --wait"
            )
        if output is None and errors is None:
            output, errors = Path(f"{batch_id}_output.jsonl"), Path(f"{batch_id}_error.jsonl")
        _fetch(client, found, output, errors)


@batch.command()
@_file
@_endpoint
@json_option
@with_target
def validate(target: Target, file: Path, endpoint: str | None, as_json: bool) -> None:
    """Say what is wrong with FILE, line by line, and what it would cost at most. Nothing runs."""
    asked = endpoint or _endpoint_of(file)
    with _client(target) as client:
        sent = _sent(client, file)
        try:
            said = client.validate(sent, asked)
        finally:
            _removed(client, sent)
    if as_json:
        click.echo(json.dumps(said))
    else:
        _tell_faults(file, said["faults"], said["fault_count"])
        cost = f", at most {said['highest_cost']} {said['currency']}" if said["highest_cost"] else ""
        click.echo(f"{said['line_count']} lines, {said['fault_count']} faults{cost}.")
    if said["fault_count"]:
        sys.exit(1)


@contextmanager
def _client(target: Target) -> Iterator[Client]:
    with Edge(target) as edge:
        yield Client(edge)


def _sent(client: Client, file: Path) -> str:
    with transfer(f"sending {file.name}", file.stat().st_size) as sent:
        return client.upload(file, sent)


def _removed(client: Client, file_id: str) -> None:
    """What was found is told even if the file stays."""
    try:
        client.remove(file_id)
    except click.ClickException as error:
        click.echo(f"{file_id} is not deleted, and goes when its time has come: {error.message}", err=True)


def _apart(output: Path | None, errors: Path | None) -> None:
    if output is not None and errors is not None and str(output) != "-" and output.resolve() == errors.resolve():
        raise click.UsageError("--output and --errors are one file; the second would replace the first")


def _to_its_end(
    client: Client, batch_id: str, file: Path | None, output: Path | None, errors: Path | None, *, as_json: bool
) -> NoReturn:
    try:
        found = following(client.watch(batch_id))
    except KeyboardInterrupt:
        click.echo(f"{batch_id} runs on. To wait again: inferbus batch status {batch_id} --wait", err=True)
        sys.exit(130)
    except (Refused, Unreachable) as error:
        if pause_after(error, 1) is None:
            raise
        raise Unreachable(f"{error.message}; to wait again: inferbus batch status {batch_id} --wait") from None
    if found["status"] == "failed" and found["errors"]:
        faults = found["errors"]["data"]
        _tell_faults(file or Path(found["input_file_id"]), faults, len(faults))
        click.echo(f"{len(faults)} {'fault' if len(faults) == 1 else 'faults'}.", err=True)
    _fetch(client, found, output, errors)
    if as_json or "-" not in (str(output), str(errors)):
        _show(found, as_json=as_json)
    good = found["status"] == "completed" and not found["request_counts"]["failed"]
    sys.exit(0 if good else 1)


def _fetch(client: Client, found: dict[str, Any], output: Path | None, errors: Path | None) -> None:
    for name, path in (("output_file_id", output), ("error_file_id", errors)):
        if path is None:
            continue
        if not found[name]:
            click.echo(f"{found['id']} has no {'answers' if path is output else 'failed lines'}.", err=True)
            continue
        with transfer(f"fetching {path.name}", client.size(found[name])) as got:
            client.download(found[name], path, got)


def _tell_faults(file: Path, faults: list[dict[str, Any]], count: int) -> None:
    for one in faults:
        at = f"{file}:{one['line']}" if one["line"] else str(file)
        param = f" ({one['param']})" if one["param"] else ""
        click.echo(f"{at}: {one['code']}: {one['message']}{param}", err=True)
    if count > len(faults):
        click.echo(f"and {count - len(faults)} more", err=True)


def _show(one: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(one))
        return
    counts, usage = one["request_counts"], one["usage"]
    click.echo(f"{one['id']}  {one['status']}")
    click.echo(f"  {counts['total']} lines, {counts['completed']} done, {counts['failed']} failed")
    click.echo(f"  {usage['input_tokens']} input tokens, {usage['output_tokens']} output tokens")
    click.echo(f"  made {epoch(one['created_at'])}, to end by {epoch(one['expires_at'])}")


def _endpoint_of(file: Path) -> str:
    """The ``url`` of the first line. Raises UsageError if it has none."""
    with file.open("rb") as data:
        first = data.readline(_FIRST_LINE_BYTES)
    try:
        url = json.loads(first.decode("utf-8-sig")).get("url")
    except (ValueError, AttributeError, RecursionError):
        url = None
    if not isinstance(url, str):
        raise click.UsageError("the first line names no 'url'; say which --endpoint the lines ask")
    return url


def _pair(text: str) -> tuple[str, str]:
    name, mark, value = text.partition("=")
    if not mark:
        raise click.UsageError("--metadata is NAME=VALUE")
    return name, value
