"""What comes straight over the queue: a job by its file, or a single request.

``{"job": {"input_file_id": …, "endpoint": …, "completion_window": …, …}, "id"?: …, "result_subject"?: …}``
``{"id": …, "request": {"url": …, "body": {…}}, "completion_window"?: …, "result_subject"?: …}``
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import orjson
from inferbus_contracts.subjects import subject_token
from inferbus_dialect.batches import seconds_of
from inferbus_dialect.plan import Plan
from inferbus_dialect.schema import check_size
from inferbus_runtime.errors import InferBusError, invalid

from inferbus_batch.core.lines import ENDPOINTS, Fault, plan_line, read_line

MAX_ID = 256
_WINDOW = "24h"
_MAX_SUBJECT = 1024
_MAX_TOKEN = 1024
_SUBJECT = re.compile(r"[!-)+-\-/-=?-~]+(\.[!-)+-\-/-=?-~]+)*")  # printable ASCII without dot, star and >
_JOB = ("input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after", "webhook_url")
_NEEDED = ("input_file_id", "endpoint", "completion_window")
_SHOWN = 64


@dataclass(frozen=True, slots=True)
class Address:
    """``name``: what its sender calls a message, empty if it has no name. ``subject``: where its result is told;
    ``own``: because its sender says so."""

    name: str
    subject: str
    own: bool = False


@dataclass(frozen=True, slots=True)
class AskedJob:
    """``window_s``: seconds from its publishing on, in which it is to be done."""

    to: Address
    input_file_id: str
    endpoint: str
    window_s: int
    metadata: Mapping[str, str]
    output_expire_after: timedelta | None
    webhook_url: str


@dataclass(frozen=True, slots=True)
class AskedSingle:
    """``line``: of a batch's input, with its end; ``plan``: what that asks, None once that has been judged."""

    to: Address
    url: str
    window_s: int
    line: bytes
    plan: Plan | None


@dataclass(frozen=True, slots=True)
class Refused:
    """What its sender is told."""

    to: Address
    error: InferBusError


def read_message(data: bytes, results: str, unnamed: str) -> AskedJob | AskedSingle | Refused:
    """``results``: of its project (:func:`inferbus_contracts.subjects.result_prefix`); ``unnamed``: where below it is
    told what came of a message without an id."""
    to = Address("", below(results, unnamed))
    try:
        said = _object(data)
        if "id" in said:
            name = _checked_name(said["id"])
            to = Address(name, below(results, name))
        if said.get("result_subject") is not None:
            to = _own(to, said["result_subject"], results)
        if "job" in said:
            return _job(said, to)
        return _single(said, to)
    except InferBusError as error:
        return Refused(to, error)


def below(results: str, name: str) -> str:
    """Where the result of what its sender calls ``name`` is told, if he says nothing else."""
    return f"{results}.{subject_token(name)}"


def refusal(name: str, error: InferBusError) -> bytes:
    """The result of what was not done at all."""
    told = {"code": error.reason, "message": error.message, "param": error.param or None}
    return orjson.dumps({"id": name or None, "error": told})


def _object(data: bytes) -> dict[str, Any]:
    try:
        check_size(data)
        said = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise invalid(
            f"The message is not valid JSON ({error.msg}, byte {error.pos + 1}).", reason="invalid_json"
        ) from None
    if not isinstance(said, dict):
        raise invalid("The message should be a JSON object.", reason="invalid_type")
    return said


def _checked_name(name: object) -> str:
    message = f"'id' should be a string of 1 to {MAX_ID} characters."
    if not isinstance(name, str) or not 0 < len(name) <= MAX_ID:
        raise invalid(message, param="id")
    if len(subject_token(name)) > _MAX_TOKEN:
        raise invalid(f"{message} Fewer if they are not letters and digits: they stand in a subject.", param="id")
    return name


def _own(to: Address, subject: object, results: str) -> Address:
    prefix = f"{results}."
    if (
        not isinstance(subject, str)
        or not subject.startswith(prefix)
        or len(subject) > _MAX_SUBJECT
        or _SUBJECT.fullmatch(subject) is None
    ):
        message = f"'result_subject' should be a subject that begins with '{prefix}', without wildcards."
        raise invalid(message, param="result_subject")
    return Address(to.name, subject, own=True)


def _only(said: Mapping[str, Any], known: tuple[str, ...], within: str = "") -> None:
    for name in said:
        if name not in known:
            shown = within + name[:_SHOWN]
            raise invalid(f"Unknown member: '{shown}'.", param=shown, reason="unknown_parameter")


def _inside(said: Mapping[str, Any], name: str) -> dict[str, Any]:
    if name not in said:
        raise invalid("The message should have a member 'job' or 'request'.", reason="missing_required_parameter")
    if not isinstance(said[name], dict):
        raise invalid(f"'{name}' should be an object.", param=name, reason="invalid_type")
    inside: dict[str, Any] = said[name]
    return inside


def _text(said: Mapping[str, Any], name: str, within: str) -> str:
    value = said.get(name)
    if not isinstance(value, str):
        message = f"'{within}{name}' should be a string." if name in said else f"Missing member: '{within}{name}'."
        raise invalid(message, param=f"{within}{name}", reason="missing_required_parameter")
    return value


def _job(said: dict[str, Any], to: Address) -> AskedJob:
    _only(said, ("id", "job", "result_subject"))
    job = _inside(said, "job")
    _only(job, _JOB, "job.")
    file_id, endpoint, window = (_text(job, name, "job.") for name in _NEEDED)
    metadata = job.get("metadata") or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise invalid("'job.metadata' should be an object of strings.", param="job.metadata", reason="invalid_type")
    kept, webhook = job.get("output_expires_after"), job.get("webhook_url") or ""
    if not isinstance(webhook, str):
        raise invalid("'job.webhook_url' should be a string.", param="job.webhook_url", reason="invalid_type")
    return AskedJob(to, file_id, endpoint, seconds_of(window), metadata, _kept(kept), webhook)


def _kept(said: object) -> timedelta | None:
    if said is None:
        return None
    seconds = said.get("seconds") if isinstance(said, dict) and said.get("anchor") == "created_at" else None
    if not isinstance(seconds, int) or isinstance(seconds, bool) or not 0 < seconds < 1 << 31:
        message = '\'job.output_expires_after\' is {"anchor": "created_at", "seconds": 3600 to 2592000}.'
        raise invalid(message, param="job.output_expires_after")
    return timedelta(seconds=seconds)


def _single(said: dict[str, Any], to: Address) -> AskedSingle:
    request = _inside(said, "request")
    _only(said, ("id", "request", "completion_window", "result_subject"))
    _only(request, ("url", "body"), "request.")
    if not to.name:
        raise invalid("A single request needs an 'id'.", param="id", reason="missing_required_parameter")
    window = said.get("completion_window", _WINDOW)
    if not isinstance(window, str):
        raise invalid("'completion_window' should be a string.", param="completion_window", reason="invalid_type")
    url = _text(request, "url", "request.")
    if url not in ENDPOINTS:
        raise invalid(f"'request.url' is one of {', '.join(sorted(ENDPOINTS))}.", param="request.url")
    line = {"custom_id": to.name, "method": "POST", "url": url, "body": request.get("body")}
    raw = orjson.dumps(line)
    read = read_line(1, raw, url)
    plan = read if isinstance(read, Fault) else plan_line(1, read.body, url)
    if isinstance(plan, Fault):
        param = plan.param if plan.param in ("", "custom_id") else f"request.{plan.param}"
        raise invalid(plan.message.replace("The line", "The request"), param=param, reason=plan.code)
    return AskedSingle(to, url, seconds_of(window), raw + b"\n", plan)


def told_of_line(line: bytes) -> str:
    """The ``custom_id`` of a line of a batch's input, output or errors."""
    name: str = orjson.loads(line)["custom_id"]
    return name


def error_of_fault(code: str, message: str, param: str) -> InferBusError:
    return invalid(message, param=param and f"request.{param}", reason=code)
