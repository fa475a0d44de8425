"""The built-in models: real ``config.json`` values with what their makers say of their parameters."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from inferbus_sizing.architecture import Architecture
from inferbus_sizing.configuration import architecture_of
from inferbus_sizing.errors import SizingError


@dataclass(frozen=True, slots=True)
class Model:
    """``published_*``: parameters as its maker states them; ``published_active`` None for a dense model."""

    name: str
    title: str
    source: str
    architecture: Architecture
    published_parameters: float
    published_active: float | None


@cache
def models() -> Mapping[str, Model]:
    """By name."""
    read: dict[str, Any] = json.loads(files(__package__).joinpath("models.json").read_text())
    found = {
        name: Model(
            name=name,
            title=given["title"],
            source=given["source"],
            architecture=architecture_of(given["config"], name),
            published_parameters=given["published_parameters"],
            published_active=given.get("published_active"),
        )
        for name, given in read.items()
    }
    return MappingProxyType(found)


def model_of(name: str) -> Model:
    found = models().get(name.lower())
    if found is None:
        raise SizingError("model", f"There is no built-in model {name[:100]}; there are {', '.join(models())}")
    return found
