"""What a tenant, a project or a key may be called and hold, and how a change to its record is made. Pure."""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, TypeVar

from google.protobuf.message import Message
from inferbus.bus.v1.registry_pb2 import KeyRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_runtime.errors import InferBusError, invalid

MAX_NAME = 200
MAX_MODELS = 100
# Of an allow-list in all: with the longest names for all else a key's record stays below its bound.
MAX_MODELS_BYTES = 2560
# Of one tenant: the registries are whole in every edge's memory, and share a bucket with all tenants.
MAX_KEYS = 2000
MAX_PROJECTS = 1000
MAX_MEMBERS = 2000
MAX_WEIGHT = 1000
MAX_OVERLAP_SECONDS = 30 * 86_400
# Protobuf's timestamps end with the year 9999.
MAX_EXPIRY_SECONDS = 253_402_300_799
NO_PROJECT = "default"
# Two ids with their escapes (=XX) are a part of a subject, of which the broker takes 4,096 bytes before it ends the
# connection.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MessageT = TypeVar("MessageT", bound=Message)


def checked_name(value: str, param: str, *, required: bool = False) -> str:
    """A name for people. Raises InferBusError INVALID_ARGUMENT."""
    if required and not value:
        raise invalid(f"'{param}' must be set.", param=param, reason="missing_required_parameter")
    if len(value) > MAX_NAME:
        raise invalid(f"'{param}' is longer than {MAX_NAME} characters.", param=param)
    if not value.isprintable() or value != value.strip():
        raise invalid(f"'{param}' has control characters, or space at its ends.", param=param)
    return value


def checked_id(value: str, param: str) -> str:
    """A name for machines: it stands in paths, in subjects, and in the names of records next to another id.

    Raises InferBusError INVALID_ARGUMENT.
    """
    checked_name(value, param, required=True)
    if not _ID.fullmatch(value):
        raise invalid(
            f"'{param}' is 1 to 64 letters, digits, '.', '_' and '-', and begins with a letter or a digit.", param=param
        )
    return value


def checked_models(models: Sequence[str]) -> list[str]:
    """An allow-list, in its order, each name once. Raises InferBusError INVALID_ARGUMENT."""
    if len(models) > MAX_MODELS:
        raise invalid(f"'models' names more than {MAX_MODELS} models; leave it empty to allow all.", param="models")
    names = list(dict.fromkeys(checked_name(model, "models", required=True) for model in models))
    if sum(len(name.encode()) for name in names) > MAX_MODELS_BYTES:
        raise invalid(
            f"The names in 'models' have more than {MAX_MODELS_BYTES} bytes together; leave it empty to allow all.",
            param="models",
        )
    return names


def checked_expiry(unix_seconds: int, now_us: int) -> None:
    if not now_us // 1_000_000 < unix_seconds <= MAX_EXPIRY_SECONDS:
        raise invalid("The time at which a key expires must be in the future.", param="expire_time")


def checked_weight(weight: int) -> None:
    """0 stands for 1. Raises InferBusError INVALID_ARGUMENT."""
    if weight > MAX_WEIGHT:
        raise invalid(f"'weight' is 1 to {MAX_WEIGHT}.", param="weight")


def with_changes(record: MessageT, given: Message, mask: Iterable[str], allowed: Collection[str]) -> MessageT:
    """A copy of ``record`` that has, for each field in ``mask``, what ``given`` has, or nothing where it has none.

    Raises InferBusError INVALID_ARGUMENT for a field that is not in ``allowed``.
    """
    changed = type(record)()
    changed.CopyFrom(record)
    for name in mask:
        if name not in allowed:
            raise invalid(f"'{name}' cannot be changed; {', '.join(allowed)} can.", param=name)
        _copy_field(given, changed, name)
    return changed


def _copy_field(source: Any, target: Any, name: str) -> None:
    target.ClearField(name)
    field = source.DESCRIPTOR.fields_by_name[name]
    if field.is_repeated:
        getattr(target, name).extend(getattr(source, name))
    elif field.message_type is None:
        setattr(target, name, getattr(source, name))
    elif source.HasField(name):
        getattr(target, name).CopyFrom(getattr(source, name))


def allows(record: KeyRecord, model: str) -> bool:
    """Whether the key may use the model."""
    return not record.models or model in record.models


def too_many(what: str, most: int) -> InferBusError:
    return invalid(f"An organization has {most} {what} at most.", reason="too_many")


def conflict(message: str, reason: str, param: str = "") -> InferBusError:
    return InferBusError(ErrorClass.ERROR_CLASS_CONFLICT, reason, message, param=param)


def not_found(what: str) -> InferBusError:
    """One answer for what is not there and for what is another tenant's."""
    reason = f"{what.replace(' ', '_')}_not_found"
    return InferBusError(ErrorClass.ERROR_CLASS_NOT_FOUND, reason, f"There is no such {what}.", param="id")
