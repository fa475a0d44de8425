"""``inferbus model``: revisions, made from weights and validated against them."""

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
from google.protobuf.json_format import MessageToDict
from inferbus.bus.v1.revision_pb2 import RevisionRecord, RevisionStage, Validation, ValidationFigure
from inferbus.scheduler.v1.revision_pb2 import CreateRevisionResponse, ListRevisionsResponse
from inferbus_prepare import checkpoint, publishing, steps
from inferbus_prepare.checkpoint import CheckpointPlan, prepare_checkpoint
from inferbus_prepare.errors import PrepareError
from inferbus_prepare.modelopt import FORMATS, Calibration, calibration_texts
from inferbus_prepare.plan import AS_IS, Plan
from inferbus_prepare.preparing import Prepared
from inferbus_prepare.publishing import publish
from inferbus_prepare.quantize import PRECISIONS
from inferbus_prepare.shipped import shipped_file
from inferbus_prepare.steps import prepare
from inferbus_prepare.validation import Thresholds
from inferbus_prepare.work import Work
from inferbus_prepare.workload import PROMPTS, Workload
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from inferbus_cli.artifacts import uploads
from inferbus_cli.edge import PATIENCE, Edge
from inferbus_cli.tables import Column, Rows, terminal
from inferbus_cli.target import Target, json_option, with_target, with_target_later
from inferbus_cli.tenancy import as_json as json_of
from inferbus_cli.text import count, duration, moment

_PATH = "/revisions"
_FAILED = 1
_DEFAULTS = Thresholds()
_FILES_PRECISION, _FOLDERS_PRECISION = "q8_0", "fp8"
_NOT_A_FOLDER = "the source is a file"
_OPTIMIZER = "modelopt/bin/python"  # beside this Python's own bin/, where `make modelopt` puts it
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class Failed(click.ClickException):
    """There is nothing to judge."""

    exit_code = 2


class _Reference(click.ParamType[str | Path]):
    """A precision, or a GGUF file."""

    name = "precision|file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | Path:
        if value in PRECISIONS:
            return str(value)
        if not Path(value).is_file():
            self.fail(f"{value!r} is neither a file nor one of {', '.join(PRECISIONS)}", param, ctx)
        return Path(value)


@click.group()
def model() -> None:
    """Revisions of models: made from weights, and validated (needs an operator's key)."""


@model.command("prepare")
@click.argument("source", type=click.Path(exists=True, path_type=Path), required=False)
@click.option("--as", "model_name", required=True, metavar="MODEL", help="The model that it is a revision of.")
@click.option(
    "--precision",
    type=click.Choice([*PRECISIONS, AS_IS, *FORMATS]),
    help=f"{', '.join(FORMATS)}: of a folder (default: {_FOLDERS_PRECISION}); others: of a file ({_FILES_PRECISION}).",
)
@click.option("--revision", default="", help="Its name (default: precision and digest).")
@click.option("--reference", type=_Reference(), help="What it is compared with (default: of a file f16).")
@click.option("--derived-from", default="", help="The reference's revision (default: precision and digest).")
@click.option("--chat-template", type=_FILE, help="A Jinja file, instead of the model's own.")
@click.option("--min-agreement", type=float, default=_DEFAULTS.min_agreement, show_default=True, help="Greedy texts.")
@click.option("--min-same-first", type=float, default=_DEFAULTS.min_same_first, show_default=True, help="Next tokens.")
@click.option("--max-kl", type=float, default=_DEFAULTS.max_kl, show_default=True, help="Nats a token.")
@click.option("--max-perplexity", type=float, default=_DEFAULTS.max_perplexity_ratio, show_default=True, help="Ratio.")
@click.option("--min-speed", type=float, help="Ratio of tokens per second; not asked for without it.")
@click.option("--max-size", type=float, help="Ratio of bytes; not asked for without it.")
@click.option("--prompts", type=click.IntRange(1, len(PROMPTS)), default=len(PROMPTS), show_default=True)
@click.option("--tokens", type=click.IntRange(1), default=Workload().tokens, show_default=True, help="A prompt.")
@click.option("--positions", type=click.IntRange(1), default=Workload().positions, show_default=True, help="Of a text.")
@click.option("--threads", type=click.IntRange(0), default=0, help="Of the engine (default: all cores).")
@click.option(
    "--calibration", type=_FILE, help='For a folder: lines of {"text": "..."} (default: the model\'s own words).'
)
@click.option("--calibration-samples", type=click.IntRange(1), help=f"For a folder (default: {Calibration().samples}).")
@click.option("--optimizer", type=_FILE, help="For a folder: the Python that has Model Optimizer (make modelopt).")
@click.option("--work-dir", type=click.Path(file_okay=False, path_type=Path), help="Where it goes on if it was ended.")
@click.option("--keep", is_flag=True, help="Register it also if it fails; it cannot be deployed.")
@click.option("--no-register", is_flag=True, help="Only make and validate it; no stack is asked.")
@json_option
@with_target_later
def prepare_revision(
    target: Callable[[], Target],
    source: Path | None,
    work_dir: Path | None,
    keep: bool,
    no_register: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Make a revision from SOURCE and validate it against the original.

    SOURCE is a GGUF file (default: the shipped model), or the folder of a Hugging Face checkpoint, which NVIDIA Model
    Optimizer quantizes for TensorRT-LLM. Started again with the same --work-dir it goes on where it was ended.
    Exit code 1 if it fails.
    """
    plan = _checkpoint_plan(source, given) if source is not None and source.is_dir() else _plan(source, given)
    # Before minutes of work, not after.
    asked = None if no_register else target()
    folder = work_dir or _default_folder(plan)
    own_steps = checkpoint.STEPS if isinstance(plan, CheckpointPlan) else steps.STEPS
    try:
        with Work(folder) as work, _shown((*own_steps, *publishing.STEPS)) as progress:
            if isinstance(plan, CheckpointPlan):
                prepared = prepare_checkpoint(plan, work, progress)
            else:
                prepared = prepare(plan, work, progress)
            may_serve = prepared.validation.passed or keep
            if asked is not None and may_serve and prepared.record is not None:
                with Edge(asked) as edge:
                    asyncio.run(_publish(asked, edge, prepared, progress))
    except (PrepareError, OSError) as error:
        raise Failed(str(error)) from None
    if as_json:
        click.echo(json.dumps(_as_dict(prepared)))
    else:
        _tell(prepared, folder, registered=asked is not None and may_serve)
    sys.exit(0 if prepared.validation.passed else _FAILED)


@model.command("list")
@click.argument("model_name", metavar="[MODEL]", default="")
@json_option
@with_target
def list_revisions(target: Target, model_name: str, as_json: bool) -> None:
    """List the revisions of MODEL, or of all models."""
    with Edge(target) as edge:
        params = {"model": model_name} if model_name else {}
        answer = edge.ask("GET", _PATH, ListRevisionsResponse(), params=params, patience=PATIENCE)
    if as_json:
        click.echo(json_of(answer))
        return
    table = Rows(
        *(Column("model"), Column("revision"), Column("stage"), Column("precision"), Column("validated")),
        *(Column("MB", number=True, spare=2), Column("made (UTC)", folds=True, spare=1), Column("engine", spare=3)),
    )
    for one in answer.revisions:
        record = one.revision
        table.add(
            *(record.model, record.revision, _stage(record), record.precision, _validated(record)),
            *(count(record.memory_bytes / 1e6) if record.memory_bytes else "", moment(record.create_time)),
            record.engine,
        )
    terminal().print(table if answer.revisions else "There are no revisions.")


@model.command()
@click.argument("model_name", metavar="MODEL")
@click.argument("revision")
@json_option
@with_target
def show(target: Target, model_name: str, revision: str, as_json: bool) -> None:
    """Show REVISION of MODEL: what it was made from, and the report of its validation."""
    with Edge(target) as edge:
        params = {"model": model_name, "revision": revision}
        answer = edge.ask("GET", _PATH, ListRevisionsResponse(), params=params, patience=PATIENCE)
    if as_json:
        click.echo(json_of(answer.revisions[0]))
        return
    record = answer.revisions[0].revision
    click.echo(f"model: {record.model}")
    click.echo(f"revision: {record.revision}")
    click.echo(f"stage: {_stage(record)}, workers: {answer.revisions[0].workers}")
    click.echo(f"engine: {record.engine}, precision {record.precision or 'not told'}")
    for name, value in sorted(record.settings.items()):
        click.echo(f"setting: {name}={value}")
    for file in record.artifacts:
        click.echo(f"file: {file.name}, {count(file.size_bytes)} bytes, sha256 {file.sha256.hex()}")
    if record.memory_bytes:
        click.echo(f"memory: {count(record.memory_bytes / 1e6)} MB, weights and KV cache")
    if record.source:
        click.echo(f"made from: {record.source}")
    if record.derived_from:
        click.echo(f"derived from: {record.derived_from}")
    click.echo(f"made: {moment(record.create_time)} UTC")
    if record.HasField("validation"):
        _tell_validation(record.validation)
    else:
        click.echo("It was not validated.")


def _plan(source: Path | None, given: dict[str, Any]) -> Plan:
    """Of a GGUF file."""
    for name in ("calibration", "calibration_samples", "optimizer"):
        if given[name] is not None:
            raise click.UsageError(f"--{name.replace('_', '-')} is for the folder of a checkpoint, and {_NOT_A_FOLDER}")
    precision = given["precision"] or _FILES_PRECISION
    if precision in FORMATS:
        raise click.UsageError(f"{precision} is made from the folder of a Hugging Face checkpoint, and {_NOT_A_FOLDER}")
    try:
        found = source or shipped_file()
    except PrepareError as error:
        raise click.UsageError(str(error)) from None
    return Plan(
        model=given["model_name"],
        source=found,
        precision=precision,
        reference=given["reference"] or "f16",
        chat_template=given["chat_template"],
        **_judged_by(given),
    )


def _checkpoint_plan(source: Path, given: dict[str, Any]) -> CheckpointPlan:
    for name in ("reference", "chat_template"):
        if given[name] is not None:
            raise click.UsageError(f"--{name.replace('_', '-')} is for a GGUF file: a checkpoint is its own reference")
    precision = given["precision"] or _FOLDERS_PRECISION
    if precision not in FORMATS:
        raise click.UsageError(f"{precision} is made from a GGUF file; from a folder one of {', '.join(FORMATS)}")
    try:
        texts = calibration_texts(given["calibration"]) if given["calibration"] else ()
    except PrepareError as error:
        raise click.UsageError(str(error)) from None
    return CheckpointPlan(
        model=given["model_name"],
        source=source,
        precision=precision,
        python=given["optimizer"] or Path(sys.prefix, _OPTIMIZER),
        calibration=Calibration(texts, given["calibration_samples"] or Calibration().samples),
        **_judged_by(given),
    )


def _judged_by(given: dict[str, Any]) -> dict[str, Any]:
    """What plans of both kinds have."""
    thresholds = Thresholds(
        min_agreement=given["min_agreement"],
        min_same_first=given["min_same_first"],
        max_kl=given["max_kl"],
        max_perplexity_ratio=given["max_perplexity"],
        min_speed_ratio=given["min_speed"],
        max_size_ratio=given["max_size"],
    )
    workload = Workload(given["prompts"], given["tokens"], given["positions"], threads=given["threads"])
    named = {"revision": given["revision"], "derived_from": given["derived_from"]}
    return {**named, "thresholds": thresholds, "workload": workload}


def _default_folder(plan: Plan | CheckpointPlan) -> Path:
    """Of the model and the precision, so that a second run goes on with the first one's."""
    name = quote(f"{plan.model}-{plan.precision}", safe="")
    return Path.home() / ".cache" / "inferbus" / "prepare" / name


async def _publish(target: Target, edge: Edge, prepared: Prepared, progress: Callable[[str, float], None]) -> None:
    """Into the store that the stack's workers pull from, and into its list of revisions."""
    async with uploads(target) as store:
        await publish(prepared, store, lambda made: _register(edge, made), progress)


def _register(edge: Edge, record: RevisionRecord) -> None:
    body = MessageToDict(record, preserving_proto_field_name=True)
    edge.ask("POST", _PATH, CreateRevisionResponse(), json=body, patience=PATIENCE)


@contextmanager
def _shown(all_steps: tuple[str, ...]) -> Iterator[Callable[[str, float], None]]:
    """A line a step on standard error, so that standard output is the result alone."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def told(step: str, part: float) -> None:
            if step not in tasks:
                number = f"{all_steps.index(step) + 1}/{len(all_steps)}"
                tasks[step] = bars.add_task(f"{number} {step}", total=1.0)
            bars.update(tasks[step], completed=part)

        yield told


def _as_dict(prepared: Prepared) -> dict[str, Any]:
    """The record, which has the validation; of a file that makes none the validation alone."""
    if prepared.record is not None:
        return MessageToDict(prepared.record, preserving_proto_field_name=True)
    return {"validation": MessageToDict(prepared.validation, preserving_proto_field_name=True)}


def _tell(prepared: Prepared, folder: Path, registered: bool) -> None:
    _tell_validation(prepared.validation)
    if prepared.record is None:
        return
    record = prepared.record
    for file in prepared.files:
        click.echo(f"{file.name}: {file.path}, {count(file.size_bytes)} bytes, sha256 {file.sha256}")
    click.echo(f"report: {folder / 'report.json'}")
    if not registered:
        click.echo(f"Revision {record.revision} of {record.model} is not registered.")
    elif prepared.validation.passed:
        click.echo(f"Registered: inferbus deploy {record.model} {record.revision}")
    else:
        click.echo(f"Registered: {record.revision} of {record.model}; it cannot be deployed.")


def _tell_validation(validation: Validation) -> None:
    table = Rows(
        *(Column("figure"), Column("value", number=True), Column("must be"), Column("passed")),
        Column("measured on", spare=1, folds=True),
    )
    for one in validation.figures:
        value = f"{one.value:.4g} {one.unit}".strip()
        table.add(one.name, value, _bounds(one), "yes" if one.passed else "NO", one.detail)
    terminal().print(table)
    failed = ", ".join(one.name for one in validation.figures if not one.passed)
    against = f" against {validation.reference}" if validation.reference else ""
    took = f", in {duration(validation.duration)}" if validation.duration.ToTimedelta() else ""
    click.echo(f"Validation: {'passed' if validation.passed else f'FAILED by {failed}'}{against}{took}.")


def _bounds(one: ValidationFigure) -> str:
    said = [f">= {one.at_least:g}"] if one.HasField("at_least") else []
    return ", ".join(said + ([f"<= {one.at_most:g}"] if one.HasField("at_most") else []))


def _stage(record: RevisionRecord) -> str:
    return RevisionStage.Name(record.stage).removeprefix("REVISION_STAGE_").lower()


def _validated(record: RevisionRecord) -> str:
    if not record.HasField("validation"):
        return "no"
    return "passed" if record.validation.passed else "FAILED"
