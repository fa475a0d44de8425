"""Typed configuration: one frozen model per service, read from variables once, checked whole.

A service writes ``class Config(ServiceConfig)`` in its own ``config.py``; a variable's name is the prefix and the
field's, ``INFERBUS_EDGE_HTTP_PORT`` for ``http_port``, with ``__`` between the parts of a nested model. Each field's
docstring is one line that says what happens at its limit. Nothing else reads the environment.
"""

import difflib
import os
import types
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError, PydanticUndefined

from inferbus_runtime.durations import format_duration, parse_duration
from inferbus_runtime.tls import TlsFiles

ADDRESS = r"^(\[[0-9a-fA-F:.]+\]|[^\[\]:/\s]+):\d{1,5}$"


class Section(BaseModel):
    """A frozen part of a configuration: nested sections derive from it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True, validate_default=True
    )


class ServiceConfig(Section):
    """What every service is told."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")
    """Names this process in logs, traces, metrics, leases and on the bus; two processes never share one."""
    nats_url: str = "nats://127.0.0.1:4222"
    """Where the broker is; comma-separated for a cluster. While it is away new requests get 503."""
    nats_seed: SecretStr | None = None
    """nkey seed that this service signs in to the broker with; unset: no authentication."""
    grpc_address: str = Field(default="127.0.0.1:0", pattern=ADDRESS)
    """host:port of the gRPC server; port 0 takes a free one, which the ready file names."""
    rpc_token: SecretStr | None = Field(default=None, min_length=16)
    """Operator's token that gRPC calls between services carry; calls without it are UNAUTHENTICATED. Unset: open."""
    tls_cert: Path | None = None
    """PEM certificate that names this service: it speaks TLS on gRPC and to the broker, and nothing in plain text."""
    tls_key: Path | None = None
    """PEM private key of it, not encrypted. Read at the start: a renewed one counts from the restart on."""
    tls_ca: Path | None = None
    """PEM certificate of the authority: who calls without a certificate that it signed is refused in the handshake."""
    metrics_address: str | None = Field(default=None, pattern=ADDRESS)
    """host:port of a /metrics server in Prometheus' text format; unset: none is started."""
    ready_file: Path | None = None
    """Written when the service serves, with its pid and addresses as JSON, and removed when it stops."""
    otlp_endpoint: str | None = Field(default=None, pattern=r"^https?://")
    """OTLP gRPC collector for traces; when it cannot keep up spans are dropped. Unset: none are recorded."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lines below this level are not written."""
    drain_timeout: timedelta = Field(default=timedelta(seconds=30), ge=timedelta(0))
    """How long running work may take to end after a stop signal; what is left then is cut off."""
    die_with_parent: bool = False
    """Linux: killed when the process that started it dies, however it dies, so that nothing is left behind."""

    @field_validator("tls_ca")
    @classmethod
    def _whole_identity(cls, ca: Path | None, info: ValidationInfo) -> Path | None:
        return together(ca, info, "tls_cert", "tls_key")

    @property
    def tls(self) -> TlsFiles | None:
        """What this service shows to other services and to the broker, and whom it believes; None: plain text."""
        if self.tls_cert is None or self.tls_key is None:
            return None
        return TlsFiles(self.tls_cert, self.tls_key, self.tls_ca)


def together(value: Path | None, info: ValidationInfo, *others: str) -> Path | None:
    """A validator of the last of some fields that mean something only together. All of them unset is fine."""
    given = {name: info.data.get(name) is not None for name in others} | {str(info.field_name): value is not None}
    if any(given.values()) and not all(given.values()):
        missing = " and ".join(name.upper() for name, is_set in given.items() if not is_set)
        present = " and ".join(name.upper() for name, is_set in given.items() if is_set)
        raise PydanticCustomError(
            "together", "set {missing} too, or leave out {present}", {"present": present, "missing": missing}
        )
    return value


ModelT = TypeVar("ModelT", bound=BaseModel)


class ConfigError(Exception):
    """The configuration is not usable. ``faults``: all of them, one sentence each, with no value in it."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable of a service, for docs and for checks of deployment files. ``default`` is empty if unset."""

    name: str
    type: str
    default: str
    required: bool
    secret: bool
    doc: str


def load(
    cls: type[ModelT],
    prefix: str,
    environ: Mapping[str, str] | None = None,
    instead: Mapping[str, str] = MappingProxyType({}),
) -> ModelT:
    """Build ``cls`` from the variables of ``environ`` (default: of the process) that begin with ``prefix``, and of
    ``instead``, which wins.

    An empty value counts as unset. Durations are ``1.5s``, ``200ms``, ``5m``, ``2h`` or ISO 8601, lists are
    comma-separated. Raises :class:`ConfigError` that lists every fault; an unknown variable is one.
    """
    environ = {**(os.environ if environ is None else environ), **instead}
    values: dict[str, Any] = {}
    faults: list[str] = []
    known = {variable.name for variable in describe(cls, prefix)}
    for name in sorted(name for name in environ if name.startswith(prefix)):
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            faults.append(f"{name}: no such variable" + (f"; did you mean {close[0]}?" if close else ""))
        elif environ[name]:
            _put(cls, values, name.removeprefix(prefix).lower().split("__"), environ[name])
    try:
        config = cls.model_validate(values)
    except ValidationError as error:
        faults += [_fault(cls, prefix, detail) for detail in error.errors(include_input=False, include_url=False)]
        raise ConfigError(faults) from None
    if faults:
        raise ConfigError(faults)
    return config


def describe(cls: type[BaseModel], prefix: str) -> list[Variable]:
    """Every variable of ``cls``, in the order of its fields, nested sections included."""
    variables: list[Variable] = []
    for name, field in cls.model_fields.items():
        variable = prefix + name.upper()
        section = _section(field.annotation)
        if section is not None:
            parts = describe(section, variable + "__")
            # Of a section that may be left out as a whole, nothing must be set.
            variables += parts if field.is_required() or field.default is not None else map(_not_required, parts)
            continue
        default = field.get_default(call_default_factory=True) if not field.is_required() else PydanticUndefined
        secret = _has(field.annotation, SecretStr)
        variables.append(
            Variable(
                name=variable,
                type=_type_name(field.annotation),
                default="" if default in (None, PydanticUndefined) or secret else _text(default),
                required=field.is_required(),
                secret=secret,
                doc=" ".join((field.description or "").split()),
            )
        )
    return variables


def _not_required(variable: Variable) -> Variable:
    return replace(variable, required=False)


def _put(cls: type[BaseModel], values: dict[str, Any], path: list[str], text: str) -> None:
    """Set the value at ``path``. Text that does not parse is left as it is: validation reports it with the rest."""
    model = cls
    for part in path[:-1]:
        section = _section(model.model_fields[part].annotation)
        assert section is not None, "describe() lists only what can be set"  # noqa: S101
        values, model = values.setdefault(part, {}), section
    values[path[-1]] = _value(model.model_fields[path[-1]].annotation, text)


def _value(annotation: Any, text: str) -> Any:
    for choice in _choices(annotation):
        if get_origin(choice) in (list, tuple, set, frozenset):
            item = get_args(choice)[0]
            return [_value(item, part.strip()) for part in text.split(",") if part.strip()]
        if choice is timedelta:
            duration = parse_duration(text)
            return text if duration is None else duration
    return text


def _fault(cls: type[BaseModel], prefix: str, detail: Any) -> str:
    name, model = prefix, cls
    for part in detail["loc"]:
        if not isinstance(part, str) or part not in model.model_fields:
            break
        name += part.upper()
        section = _section(model.model_fields[part].annotation)
        if section is None:
            break
        name, model = name + "__", section
    message = FAULTS.get(detail["type"], detail["msg"])
    # a validator of the whole model has no field: the prefix alone stands for it
    return f"{name}{'*' if name == prefix else ''}: {message}"


FAULTS = {
    "missing": "must be set",
    "time_delta_parsing": "must be a duration such as 200ms, 1.5s or 5m, or ISO 8601",
}


def _choices(annotation: Any) -> tuple[Any, ...]:
    """The members of a union without None, or the annotation itself."""
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(choice for choice in get_args(annotation) if choice is not type(None))
    return (annotation,)


def _section(annotation: Any) -> type[BaseModel] | None:
    for choice in _choices(annotation):
        if isinstance(choice, type) and issubclass(choice, BaseModel):
            return choice
    return None


def _has(annotation: Any, wanted: type) -> bool:
    return annotation is wanted or any(_has(part, wanted) for part in get_args(annotation))


def _type_name(annotation: Any) -> str:
    names: list[str] = []
    for choice in _choices(annotation):
        if get_origin(choice) is Literal:
            names.append("|".join(map(str, get_args(choice))))
        elif get_origin(choice) in (list, tuple, set, frozenset):
            names.append(f"list of {_type_name(get_args(choice)[0])}")
        else:
            names.append(TYPE_NAMES.get(choice, getattr(choice, "__name__", str(choice)).lower()))
    return " or ".join(names)


TYPE_NAMES: dict[Any, str] = {
    str: "text",
    SecretStr: "text",
    int: "integer",
    float: "number",
    bool: "true|false",
    timedelta: "duration",
}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, timedelta):
        return format_duration(value)
    if isinstance(value, list | tuple | set | frozenset):
        return ",".join(_text(item) for item in value)
    return str(value)
